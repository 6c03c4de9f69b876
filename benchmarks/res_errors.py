"""Why masks are wrong: does a mask lie on another object, or badly on the right one?

``python -m benchmarks.res_errors artifacts/studio full`` (after `evaluate`) compares each mask that the variant wrote for the
profile's referring test with every object that any expression of the data set refers to on the same image; as a whole, and by
the size of the object.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perceptio_core.data.readers.refer import read_refer
from perceptio_core.evaluation.benchmarks.masks import overlap, union
from perceptio_core.evaluation.benchmarks.res import exact_ratio, ious

Objects = Mapping[int, Mapping[str, Any]]
SIZES = (0, 128, 256, 512, 1024)
"""Least pixels of an object of each class of size."""
RIGHT, OTHER, NONE = "the object asked for", "another object", "no object"


def nearest_object(mask: Mapping[str, Any], objects: Objects, *, target: int) -> int | None:
    """Key of the object with the largest IoU with the mask, the target's where several have it; None: no pixel is shared."""
    keys = [target, *(key for key in objects if key != target)]
    ious_n = ious(np.array([overlap(mask, objects[key]) for key in keys]))
    return keys[int(ious_n.argmax())] if ious_n.max() > 0 else None


def main() -> None:
    """Print the share of each kind of answer, with gIoU and cIoU over its expressions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, help="of a profile that has been evaluated")
    parser.add_argument("variant", help="whose answers")
    arguments = parser.parse_args()
    objects: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
    asked = {}
    for expression in read_refer(arguments.artifacts / "sources" / "root" / "refcoco", split_by="umd"):
        objects[expression.image_id][expression.ann_id] = expression.mask
        asked[f"{expression.ref_id}/{expression.sent_id}"] = expression
    found: list[tuple[str, tuple[int, int], int]] = []
    answers = arguments.artifacts / "evaluate" / arguments.variant / "predictions" / "res.jsonl"
    for answer in map(json.loads, answers.read_text(encoding="utf-8").splitlines()):
        expression = asked[answer["item_id"]]
        mask = union(answer["masks"], size=expression.mask["size"])
        nearest = nearest_object(mask, objects[expression.image_id], target=expression.ann_id)
        kind = NONE if nearest is None else RIGHT if nearest == expression.ann_id else OTHER
        found.append((kind, overlap(mask, expression.mask), overlap(expression.mask, expression.mask)[0]))
    for kind in (RIGHT, OTHER, NONE):
        _say(f"nearest to {kind}", [counts for name, counts, _ in found if name == kind], total=len(found))
    for least, below in zip(SIZES, (*SIZES[1:], None), strict=True):
        here = [one for one in found if one[2] >= least and (below is None or one[2] < below)]
        which = f"objects of {least} pixels and more" if below is None else f"objects of {least} to {below - 1} pixels"
        _say(f"{which} ({len(here)}), {RIGHT}", [counts for name, counts, _ in here if name == RIGHT], total=len(here))


def _say(what: str, counts: Sequence[tuple[int, int]], *, total: int) -> None:
    if counts:
        counts_n2 = np.array(counts)
        scores = f"gIoU {100 * ious(counts_n2).mean():.1f}, cIoU {100 * exact_ratio(counts_n2):.1f}"
        print(f"{what}: {100 * len(counts) / total:.1f}% of {total} masks, {scores}")


if __name__ == "__main__":
    main()
