"""What the data stages would take for so many images: units, bytes, requests, hours. A table of numbers with their sources.

Nothing is run. Rates are measured or assumed, and each says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from perceptio_core.data.manifest.collect import CHECKED_AT_ONCE
from perceptio_core.params.profile import load_profile


@dataclass(frozen=True, kw_only=True)
class Known:
    """A number and where it comes from."""

    value: float
    unit: str
    source: str


_REALDATA = "measured: profile realdata, 216 photographs, two CPU cores"
PICTURE = Known(value=170_371, unit="bytes a picture", source=_REALDATA)
MAP = Known(value=0.787, unit="bytes a pixel of a stored depth map", source=_REALDATA)
ANNOTATED = Known(value=6_601, unit="bytes of a shard beside each picture: 3.5 samples of it, and the tar", source=_REALDATA)
MANIFEST = Known(value=77 + 2 * 274, unit="bytes of manifest a picture with two records", source=_REALDATA)
CHECKED = Known(value=270, unit="pictures a second that `sources` checks, with one thread", source=_REALDATA)
JOINED = Known(value=34, unit="pictures a second and process of `joint_shards`", source=_REALDATA + ", mini's codebook")
RATE = Known(
    value=30e12,
    unit="operations a second of one GPU, teacher in float32",
    source="assumed: 45 % of the 67e12 of an H100's data sheet",
)
PLAN = Known(
    value=88, unit="bytes of memory a picture with two records, where the plan is made", source="counted: `write_plan`"
)
KNOWN = (PICTURE, MAP, ANNOTATED, MANIFEST, CHECKED, JOINED, RATE, PLAN)


def dry_run(counts: Sequence[int], *, profile: str) -> str:
    """A table in Markdown: what each number of images takes, with the parameters of a profile."""
    parameters = load_profile(profile)
    teacher, joint = parameters.teacher_depth, parameters.joint_shards
    operations = teacher_operations()
    map_bytes = MAP.value * teacher.long_side**2 * 3 / 4  # pictures of 4:3
    rows: dict[str, list[str]] = {}

    def row(name: str, text: str) -> None:
        rows.setdefault(name, []).append(text)

    for count in counts:
        shards, tars = math.ceil(count / teacher.images_per_shard), math.ceil(count / joint.images_per_shard)
        gpu_s, join_s = count * operations / RATE.value, count / JOINED.value
        row("units of `teacher_depth`", f"{shards:,} of {teacher.images_per_shard}")
        row("units of `joint_shards`", f"{tars:,} of {joint.images_per_shard}")
        row("pictures", _bytes(count * PICTURE.value))
        row("depth maps", _bytes(count * map_bytes))
        row("joint shards", _bytes(count * (PICTURE.value + ANNOTATED.value)))
        row("manifest", _bytes(count * MANIFEST.value))
        row("reads of a picture (`sources`, teacher, join) or a map", f"{4 * count:.2g}")
        row("units of `sources`", f"{math.ceil(count / CHECKED_AT_ONCE):,} of {CHECKED_AT_ONCE}")
        row("files written (part and tar of each shard)", f"{2 * (shards + tars):,}")
        row("GPU hours of `teacher_depth`", _hours(gpu_s))
        row("with 8 / 64 GPUs", f"{_hours(gpu_s / 8)} / {_hours(gpu_s / 64)}")
        row("core hours of `joint_shards`", _hours(join_s))
        row("with 16 / 1,024 cores", f"{_hours(join_s / 16)} / {_hours(join_s / 1024)}")
        row("core hours of `sources`", _hours(count / CHECKED.value))
        row("memory of the process that plans", _bytes(count * PLAN.value))
    head = " | ".join(f"{count:,} images" for count in counts)
    table = [f"| profile {profile} | {head} |", f"|---|{'---:|' * len(counts)}"]
    table += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    known = [f"- {one.value:,.3g} {one.unit} ({one.source})" for one in KNOWN]
    counted = f"- {operations:.3g} operations of Depth Anything V2 Large a picture of 4:3 (counted: `teacher_operations`)"
    return "\n".join([*table, "", *known, counted])


def teacher_operations() -> float:
    """Operations of Depth Anything V2 Large on one picture of 4:3, as torch counts them without computing."""
    backbone = Dinov2Config(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=518,
        patch_size=14,
        out_indices=[5, 12, 18, 24],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=1024,
        neck_hidden_sizes=[256, 512, 1024, 1024],
        fusion_hidden_size=256,
    )
    with torch.device("meta"):
        model = DepthAnythingForDepthEstimation(config)
        pixels = torch.empty(1, 3, 518, 686)  # the shorter side as the model wants it, the other a multiple of 14
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels)
    return float(counter.get_total_flops())


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"
