"""Why masks are wrong: does a mask lie on another object, or badly on the right one?

``python -m benchmarks.res_errors artifacts/studio full`` (after `evaluate`) compares each mask that the variant wrote for the
profile's referring test with every object that any expression of the data set refers to on the same image.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perceptio_core.data.refer import read_refer
from perceptio_core.evaluation.masks import overlap, union
from perceptio_core.evaluation.res import exact_ratio, ious

Objects = Mapping[int, Mapping[str, Any]]


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
    found: dict[str, list[tuple[int, int]]] = {"the object asked for": [], "another object": [], "no object": []}
    answers = arguments.artifacts / "evaluate" / arguments.variant / "predictions" / "res.jsonl"
    for answer in map(json.loads, answers.read_text(encoding="utf-8").splitlines()):
        expression = asked[answer["item_id"]]
        mask = union(answer["masks"], size=expression.mask["size"])
        nearest = nearest_object(mask, objects[expression.image_id], target=expression.ann_id)
        kind = "no object" if nearest is None else "the object asked for" if nearest == expression.ann_id else "another object"
        found[kind].append(overlap(mask, expression.mask))
    total = sum(map(len, found.values()))
    for kind, counts in found.items():
        if counts:
            counts_n2 = np.array(counts)
            scores = f"gIoU {100 * ious(counts_n2).mean():.1f}, cIoU {100 * exact_ratio(counts_n2):.1f}"
            print(f"nearest to {kind}: {100 * len(counts) / total:.1f}% of {total} masks, {scores}")


if __name__ == "__main__":
    main()
