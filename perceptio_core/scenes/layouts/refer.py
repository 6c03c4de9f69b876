"""RefCOCOg's layout (REFER): ``refcoco/instances.json``, ``refs(umd).p`` and COCO train2014 images; and LLaVA's conversations.

Masks are compressed RLE, which COCO's own tools read for any annotation: a polygon cannot hold a mask of whole pixels
exactly. The pickle is of protocol 2 and holds plain containers only, as the official ones do.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from perceptio_core.params.render import RenderParams
from perceptio_core.scenes.expressions import referring_expressions
from perceptio_core.scenes.language import turns_about
from perceptio_core.scenes.layouts.scenes import Scene, scene, write_jpeg
from perceptio_core.scenes.world import SHAPES, SPLITS, USUAL, Domain

IMAGES = "images/mscoco/images/train2014"  # below the folder of the references
REFS_PER_IMAGE = 3  # RefCOCO has about 2.5 objects referred to in an image, and 2.8 expressions for each
SENTENCES_PER_REF = 3
TURNS_PER_IMAGE = 4  # of a conversation
IDS_PER_SPLIT = 100_000_000  # image ids are 1 + split * this + scene number, so that they do not depend on the counts


def items(params: RenderParams) -> int:
    """Scenes of all three splits."""
    return params.train + params.val + params.test


def make(params: RenderParams, root: Path, number: int) -> dict[str, Any]:
    """Write the picture of a scene; its row holds annotations, referred objects with sentences, and turns."""
    split, local = _split_of(params, number)
    return make_scene(params, root / "refcoco", split=split, number=local)


def assemble(params: RenderParams, root: Path, rows: list[dict[str, Any]]) -> None:
    """Number annotations, refs and sentences through, and write the three files."""
    write_references(params, root / "refcoco", rows)
    (root / "llava").mkdir(exist_ok=True)
    dialogues = [_dialogue(row) for row in rows if row["turns"]]
    (root / "llava" / "train.json").write_text(json.dumps(dialogues, indent=0))


def make_scene(params: RenderParams, folder: Path, *, split: str, number: int, domain: Domain = USUAL) -> dict[str, Any]:
    """Write the picture of a scene of a split below a folder in REFER's layout; the row is as of `make`."""
    one = scene(params, split=split, block="refcoco", number=number, domain=domain)
    image_id = 1 + (1 + SPLITS[split]) * IDS_PER_SPLIT + number
    file_name = f"COCO_train2014_{image_id:012d}.jpg"
    write_jpeg(folder / IMAGES / file_name, one.rendering.image)
    refs = _refs(one)
    turns = turns_about(one.view, one.rng, TURNS_PER_IMAGE) if split == "train" else []
    return {
        "split": split,
        "image": {"id": image_id, "file_name": file_name, "height": params.size, "width": params.size},
        "annotations": _annotations(one),
        "refs": refs,
        "turns": turns,
    }


def write_references(params: RenderParams, folder: Path, rows: list[dict[str, Any]]) -> None:
    """Number annotations, refs and sentences through, and write REFER's two files."""
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    sentence = 0
    for row in rows:
        image = row["image"]
        ann_ids = {}
        for annotation in row["annotations"]:
            instance = annotation.pop("instance")
            ann_ids[instance] = len(annotations) + 1
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **annotation})
        for ref in row["refs"]:
            ann_id = ann_ids[ref["instance"]]
            sentences = [
                {"tokens": text.split(), "raw": text, "sent_id": sentence + i, "sent": text}
                for i, text in enumerate(ref["sentences"])
            ]
            sentence += len(sentences)
            refs.append(
                {
                    "image_id": image["id"],
                    "split": row["split"],
                    "sentences": sentences,
                    "file_name": f"{Path(image['file_name']).stem}_{ann_id}.jpg",
                    "category_id": annotations[ann_id - 1]["category_id"],
                    "ann_id": ann_id,
                    "sent_ids": [s["sent_id"] for s in sentences],
                    "ref_id": len(refs),
                }
            )
    instances = {
        "info": {"description": "Perceptio procedural world", "version": "1.0", "seed": params.world},
        "licenses": [],
        "images": [row["image"] for row in rows],
        "annotations": annotations,
        "categories": [{"supercategory": "primitive", "id": i, "name": name} for i, name in enumerate(SHAPES, start=1)],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "refs(umd).p").write_bytes(pickle.dumps(refs, protocol=2))


def _split_of(params: RenderParams, number: int) -> tuple[str, int]:
    for split in SPLITS:
        count = getattr(params, split)
        if number < count:
            return split, number
        number -= count
    raise ValueError(f"scene number exceeds train + val + test by {number + 1}")


def _annotations(one: Scene) -> list[dict[str, Any]]:
    instances_M = np.array([seen.instance for seen in one.view.objects], np.uint8)
    # laid out so that the (H, W, M) array is in column order, as the encoder wants it, without a copy
    masks_MWH = one.rendering.instances.T[None] == instances_M[:, None, None]
    codes = coco_mask.encode(np.ascontiguousarray(masks_MWH).view(np.uint8).transpose(2, 1, 0))
    boxes = coco_mask.toBbox(codes)
    return [
        {
            "instance": seen.instance,
            "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
            "area": seen.pixels,
            "bbox": [float(v) for v in box],
            "iscrowd": 0,
            "category_id": SHAPES.index(seen.shape) + 1,
        }
        for seen, code, box in zip(one.view.objects, codes, boxes, strict=True)
    ]


def _refs(one: Scene) -> list[dict[str, Any]]:
    refs = []
    for i in one.rng.permutation(len(one.view.objects)):
        target = one.view.objects[int(i)]
        found = referring_expressions(view=one.view, target=target, rng=one.rng, count=SENTENCES_PER_REF)
        if found:
            refs.append({"instance": target.instance, "sentences": [str(expression) for expression in found]})
        if len(refs) == REFS_PER_IMAGE:
            break
    return refs


def _dialogue(row: dict[str, Any]) -> dict[str, Any]:
    """A row in LLaVA's form; the image path is relative to the root of all data."""
    said: list[dict[str, str]] = []
    for question, answer in row["turns"]:
        said += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    said[0]["value"] = f"<image>\n{said[0]['value']}"
    return {"id": f"{row['image']['id']:012d}", "image": f"refcoco/{IMAGES}/{row['image']['file_name']}", "conversations": said}
