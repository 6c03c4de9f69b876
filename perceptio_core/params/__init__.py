"""The parameters of the stages: a typed section for each, read from ``params.yaml`` or a profile."""
