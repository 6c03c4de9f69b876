"""From shards to the samples of a training step: which are drawn, and how they are read."""
