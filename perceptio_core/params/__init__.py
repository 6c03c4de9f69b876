"""The parameters of the stages: a typed section for each, read from ``params.yaml`` or a profile."""

from pathlib import Path

PARAMS = Path("params.yaml")
"""What a run goes by; like the profiles relative to the repository root, the working directory of every command."""
PROFILES = Path("profiles")

SECTIONS = (
    "sources",
    "foundations",
    "teacher_depth",
    "depth_codebook",
    "joint_shards",
    "cotrain",
    "evaluate",
    "report",
)
"""The sections = the stages, in the order of the pipeline."""
VARIED = ("cotrain", "evaluate")
"""Of these the ones that run once for each variant."""
