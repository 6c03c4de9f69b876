"""Pretrain all of mini's foundation models, one after the other: what ``make foundations`` runs.

Each step resumes where it was killed. Takes about two hours on two CPU cores; the steps also run by themselves
(`python -m perceptio_core.foundations.sam2 --help`).
"""

import sys

from perceptio_core.foundations import card, depth_anything, internvl, sam2

# The vision tower comes first: Depth Anything's encoder starts from it. Its rate falls twice, after 1000 steps and after 2000.
STEPS = ((internvl, ()), (depth_anything, ("--steps", "1000")), (depth_anything, ("--steps", "2000")), (sam2, ()), (card, ()))


def main() -> None:
    """Run the commands as the model card gives them."""
    for module, arguments in STEPS:
        sys.argv = [f"python -m {module.__name__}", *arguments]
        module.main()


if __name__ == "__main__":
    main()
