"""Pretrain all of mini's foundation models, one after the other: what ``make foundations`` runs.

Each step resumes where it was killed. Takes minutes with a GPU and many hours on CPUs; the steps also run by themselves
(`python -m perceptio_core.foundations.sam2 --help`).
"""

import sys

from perceptio_core.foundations import card, depth_anything, internvl, sam2

STEPS = (internvl, depth_anything, sam2, card)  # the vision tower comes first: Depth Anything's encoder starts from it


def main() -> None:
    """Run the commands as the model card gives them."""
    for module in STEPS:
        sys.argv = [f"python -m {module.__name__}"]
        module.main()


if __name__ == "__main__":
    main()
