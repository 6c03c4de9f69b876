"""A process that claims a stage's work, as a stage does."""

import os
import subprocess
import sys
from pathlib import Path

CLAIM = """
import sys, time
from stages import common
common._CLAIM_WITHIN_S, common._ASK_EVERY_S = 1, 0.1
common.logging.basicConfig(format="%(message)s", stream=sys.stdout)
common.StagePaths("tiny").claim("cotrain", "full")
print("has it", flush=True)
time.sleep(float(sys.argv[1]))
"""


def claiming(folder: Path, *, seconds: float, rank: str = "0") -> subprocess.Popen[str]:
    """A process that claims a stage's work, and has it for so long."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "RANK": rank}
    command = [sys.executable, "-c", CLAIM, str(seconds)]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
