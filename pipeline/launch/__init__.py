"""Where a stage's command runs: here, or as a job of a cluster; ``machine.yaml`` says which, and DVC does not look at it."""
