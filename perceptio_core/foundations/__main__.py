"""Pretrain all of mini's foundation models, one after the other: what ``make foundations`` runs.

Each step resumes where it was killed. Takes some hours on two CPU cores; the steps also run by themselves
(`python -m perceptio_core.foundations.sam2 --help`).
"""

import sys

from perceptio_core.foundations import card, depth_anything, internvl, sam2


def main() -> None:
    """The vision tower comes first: Depth Anything's encoder starts from it."""
    for step in (internvl, depth_anything, sam2, card):
        sys.argv = [f"python -m {step.__name__}"]
        step.main()


if __name__ == "__main__":
    main()
