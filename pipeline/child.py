"""Runs one DVC stage as the driver's child: ``python -m pipeline.child STAGE [--force]``; ends when the driver ends.

DVC holds the repository's lock only between commands, so stages that run at once wait for each other's (`--wait-for-lock`)
and each call is held to its own stage (`-s`).
"""

import sys

from stages.common import die_with_parent


def main() -> None:
    """Tie this process to its parent, then become DVC."""
    die_with_parent(always=True)
    from dvc.cli import main as dvc  # slow to import: only once the tie holds

    sys.exit(dvc(["--wait-for-lock", "repro", "-s", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
