"""A tiny run up to the joint shards: what the stage `joint_shards` reads, without the stages that make it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from collecting import Collected, collected, write_manifest
from perceptio_core.data import rle
from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.data.manifest.manifest import ImageRow
from perceptio_core.data.records import Record, Refused
from perceptio_core.data.shards import tars
from perceptio_core.data.shards.entry import Sample
from perceptio_core.data.shards.joint import ShardMaker
from perceptio_core.data.shards.plan import Plan, write_plan
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.store import encode_depth, write_index, write_shard
from perceptio_core.params.joint_shards import JointShardsParams
from perceptio_core.params.sources import DatasetParams
from perceptio_core.scenes.render import render
from perceptio_core.scenes.world import sample_scene

SCENES, VAL, SIZE = 24, 4, 64
PARAMS = JointShardsParams(
    seed=0,
    images_per_shard=6,
    referring_per_image=3,
    expressions_per_conversation=2,
    conversation_per_image=None,
    markers_per_image=4,
    marker_counts=(2, 3),
    comparisons_per_marker_question=2,
    depth_map_share=0.5,
    workers=2,
)


def joint_inputs(top: Path) -> Path:
    """Outputs of the stages before `joint_shards` in ``top/artifacts/t``: scenes with their true depth as the teacher's."""
    stages = top / "artifacts" / "t"
    root = stages / "sources" / "root"
    (root / "pictures").mkdir(parents=True)
    images, records, maps = [], [], []
    for number in range(SCENES):
        scene = render(sample_scene(number, SIZE))
        split = "val" if number < VAL else "train"
        kind = ("jpg", "png", "webp")[number % 3]
        path = f"pictures/{number}.{kind}"
        Image.fromarray(scene.image).save(root / path)
        key = f"set/{number:04d}"
        images.append(ImageRow(image_key=key, path=path, width=SIZE, height=SIZE, sha256="0" * 64, split=split))
        for part in range(4):
            mask = rle.encode(scene.instances == scene.instances.max() - part)
            turns = (("Please segment it in this image.", "Sure."),)
            records.append(
                Record(
                    record_id=f"set/{number}/{part}",
                    image=path,
                    image_name=str(number),
                    image_key=key,
                    split=split,
                    task="referring",
                    turns=turns,
                    expression="it",
                    masks=(mask,),
                    source="set",
                )
            )
        records.append(
            Record(
                record_id=f"talk/{number}",
                image=path,
                image_name=str(number),
                image_key=key,
                split=split,
                task="conversation",
                turns=(("What?", "A café."), ("Where?", "Left.")),
                source="talk",
            )
        )
        if number != SCENES - 1:  # the teacher refused one
            maps.append(encode_depth(key, 1 / scene.depth))
    write_manifest(stages / "sources", images=images, records=records, quarantine=[Refused(file="bad.jpg", reason="cut off")])

    def counted(scenes: int) -> dict[str, Any]:
        referring = {"set": {"records": 4 * scenes, "dropped": {"held_out_by_id": 2}}}
        return {"referring": referring, "conversation": {"talk": {"records": scenes, "dropped": {}}}}

    data = {"train": counted(SCENES - VAL), "val": counted(VAL)}
    (stages / "sources/data.json").write_text(json.dumps(data))
    depth = stages / "teacher_depth"
    depth.mkdir()
    write_index(depth, write_shard(depth, name="depth-00000.tar", maps=maps))
    refused = {"file": f"pictures/{SCENES - 1}.webp", "reason": "not decodable"}
    (depth / "quarantine.jsonl").write_text(json.dumps(refused) + "\n")
    torch.manual_seed(0)
    codebook = DepthCodebook(num_codes=8, resolution=32, widths=(4, 8, 8), dim=8)
    codebook.save_pretrained(stages / "depth_codebook")
    return top


def train_samples(
    root: Path,
    datasets: Sequence[DatasetParams],
    *,
    params: JointShardsParams,
    depth_of: Callable[[ImageRow], NDArray[np.float32]],
) -> tuple[Collected, list[Sample], DepthCodebook]:
    """What a few official files below `root` come to in the shards, by way of the manifest, the plan and the shard maker."""
    found = collected(datasets, root=root, work=root / "work")
    for folder in ("sources", "depth", "shards"):
        (root / folder).mkdir()
    write_manifest(root / "sources", images=found.images, records=found.records, quarantine=[])
    depth = {image.image_key: depth_of(image) for image in found.images}
    maps = [encode_depth(key, depth_HW) for key, depth_HW in depth.items()]
    write_index(root / "depth", write_shard(root / "depth", name="depth-00000.tar", maps=maps))
    torch.manual_seed(0)
    codebook = DepthCodebook(num_codes=8, resolution=32, widths=(4, 8, 8), dim=8).eval()
    with torch.no_grad():  # vectors where the maps' are, or all of them would have one code
        latents_BND = codebook.latents(codebook.normalise(next(iter(depth.values())))[None])
        codebook.quantizer.embedding.copy_(latents_BND[0, ::2])
    codebook.save_pretrained(root / "codebook")
    write_plan(root / "plan", sources=root / "sources", depth=root / "depth", params=params)
    job = Plan(root / "plan", params=params).job("train-00000")
    maker = ShardMaker(root=root, depth=root / "depth", codebook=root / "codebook", params=params, reasons={})
    tars.write_index(
        root / "shards", [maker.make(job, folder=root / "shards")], quarantine=[], manifest=found.counts["data"], about={}
    )
    dataset = JointDataset(root / "shards", "train")
    return found, [dataset[number] for number in range(len(dataset))], codebook
