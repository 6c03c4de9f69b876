"""The training loop: precision, schedule, parameter groups, prefetching, checkpoints that resume exactly, curves."""
