"""A fake finished run for the tests of the report; as a script, writes its page, to look at it.

Usage: python tests/report_fake.py FOLDER
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from perceptio_core.data.rle import encode
from perceptio_core.metrics import Metric
from perceptio_core.report.page import Content, Input, page
from perceptio_core.report.panels import Panel, read_panels
from perceptio_core.report.plots import Curve
from perceptio_core.report.published import read_published
from perceptio_core.report.readme_figure import readme_figure
from perceptio_core.report.tables import CONTROLS

PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "published.json"
SIDE = 128


def metric(name: str, value: float, *, spread: float = 3.0, n: int = 124, chance: float | None = None) -> Metric:
    low, high = value - spread, value + spread
    return Metric(name=name, value=value, low=low, high=high, n=n, chance=chance, protocol="strict, generated")


def metrics() -> list[Metric]:
    values = {
        "codebook_usage": 100.0, "codebook_lookup_3": 98.4, "codebook_lookup_4": 97.1, "codebook_lookup_5": 96.0,
        "codebook_absrel": 0.043, "res_ciou": 58.3, "res_giou": 55.1, "hardblink_3": 77.4, "hardblink_4": 71.0,
        "hardblink_5": 66.9, "hardblink_mean": 71.8, "hardblink_lenient_mean": 72.2, "hardblink_majority": 29.0,
        "hardblink_shortcut": 33.1, "mmbench": 61.5, "seed_image": 64.2, "mme_perception": 1204.0, "mme_cognition": 402.5,
        "unparsed": 0.0, "control_hardblink_3": 70.2, "control_hardblink_mean": 66.0, "control_mmbench": 60.1,
        "no_depth_hardblink_mean": 64.5, "no_depth_res_ciou": 57.9,
    }  # fmt: skip
    chance = {"hardblink_3": 33.3, "hardblink_4": 25.0, "hardblink_5": 20.0, "hardblink_mean": 26.1, "mme_perception": 750.0}
    return [
        metric(name, value, spread=40.0 if "mme" in name else 3.0, chance=chance.get(name.removeprefix("control_")))
        for name, value in values.items()
    ]


def picture(*, seed: int) -> tuple[Image.Image, NDArray[np.bool_], NDArray[np.float32]]:
    """A ball on a plain: image, the ball's mask, inverse depth."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (SIDE, SIDE), (156, 190, 214))
    draw = ImageDraw.Draw(image)
    for row in range(60, SIDE):
        draw.line([(0, row), (SIDE, row)], fill=(90 + row // 2, 110 + row // 3, 70))
    x, y, r = (int(v) for v in generator.integers([40, 60, 14], [90, 90, 26]))
    draw.ellipse([x - r, y - r, x + r, y + r], fill=(200, 60, 50))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask = (rows - y) ** 2 + (columns - x) ** 2 <= r * r
    depth = np.where(rows > 60, (rows - 60) / 68, 0).astype(np.float32)
    depth[mask] = (y + r - 60) / 68
    return image, mask, depth


def decode_depth(codes: Sequence[int]) -> NDArray[np.float32]:
    side = int(len(codes) ** 0.5)
    return np.asarray(codes, dtype=np.float32).reshape(side, side)


def rows(root: Path) -> list[dict[str, Any]]:
    """Rows of panels.jsonl; writes the images below `root`."""
    out = []
    for index in range(6):
        image, mask, depth = picture(seed=index)
        (root / "pictures").mkdir(parents=True, exist_ok=True)
        image.save(root / "pictures" / f"{index}.png")
        codes = [int(v) for v in (depth[8::16, 8::16] * 63).ravel()]
        span = "<depth_start>" + "".join(f"<depth_{c}>" for c in codes) + "<depth_end>"
        res = index % 2 == 0
        answer = "the red ball" if res else "(B)"
        shifted = np.roll(mask, 4 * index, axis=1)
        overlap = (mask & shifted).sum() / (mask | shifted).sum()
        out.append(
            {
                "benchmark": "res" if res else "hardblink",
                "item_id": f"{'res' if res else '3'}/{index}",
                "image": f"pictures/{index}.png",
                "question": "Please segment the red ball in this image."
                if res
                else "Multiple points are circled on the image, labeled by letters beside each circle. "
                "Which point is the closest to the camera? <script>alert(1)</script>",
                "raw": ("[SEG]" if res else "") + span + answer + "<|im_end|>",
                "answer": answer,
                "expected": "the red ball" if res else "AB"[index % 4 // 2],
                "correct": round(float(overlap), 4) if res else float(index % 4 // 2),
                "mask": encode(shifted) if res else None,
                "truth": encode(mask) if res else None,
                "depth_codes": codes,
            }
        )
    return out


def encode_row(*, predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> dict[str, Any]:
    """A row with two masks."""
    return {"question": "Where is it?", "mask": encode(predicted), "truth": encode(true), "correct": 0.0}


def curves(*, seed: int) -> dict[str, Curve]:
    generator = np.random.default_rng(seed)
    steps = list(range(1, 601))
    names = ("total", "llm", "seg_ce", "seg_dice", "marker", "token", "count", "reconstruction", "gradient_norm", "rate_factor")
    noisy = {
        f"train/{name}": (
            steps,
            list((1 + i / 3) * np.exp(-np.arange(600) / (80 + 20 * i)) + 0.1 * generator.random(600) + 0.1),
        )
        for i, name in enumerate(names)
    }
    return noisy | {f"val/{name}": ([200, 400, 600], [0.6, 0.35, 0.3]) for name in names[:8]}


def content(folder: Path) -> Content:
    """A complete page's content; writes images below `folder`."""
    (folder / "panels.jsonl").write_text("\n".join(json.dumps(row) for row in rows(folder)) + "\n")
    training = {
        "steps": 600, "batch_size": 32, "train_total": 0.31, "val_total": 0.3,
        "drawn_referring": 11520, "epochs_referring": 1.536, "drawn_marker": 7680, "epochs_marker": 0.96,
        "share_referring": 0.6, "wanted_share_referring": 0.6, "share_marker": 0.4, "wanted_share_marker": 0.4,
    }  # fmt: skip
    counts = {
        "images_train": 4800, "images_val": 160,
        "held_out_by_id": 31, "held_out_by_look": 7, "shared_files": 1204, "quarantined": 42,
    }  # fmt: skip
    realised = {
        "train": {
            "marker": {"teacher_depth": {"samples": 9600, "records": 0, "dropped": {}}},
            "referring": {"refcoco": {"samples": 2500, "records": 7500, "dropped": {"held_out_by_id": 93, "quarantined": 4}}},
        },
        "val": {"referring": {"refcoco": {"samples": 90, "records": 250, "dropped": {}}}},
    }
    return Content(
        title="Perceptio on the procedural world",
        caveat="Every figure of this run is measured on a procedural world; it cannot be compared with published ones.",
        profile="mini",
        metrics=metrics(),
        controls=CONTROLS,
        parts={"full": [metric("hardblink_majority_3", 36.1, n=122)], "control": []},
        published=read_published(PUBLISHED),
        counts=counts,
        realised=realised,
        curves={
            "full": curves(seed=0),
            "control": {k: v for k, v in curves(seed=1).items() if k in ("train/total", "train/llm")},
        },
        training={"full": training, "control": {k: v for k, v in training.items() if not k.endswith("_marker")}},
        usage=list(np.random.default_rng(0).gamma(2.0, 300.0, 64)),
        samples=None,
        panels=panels(folder),
        inputs=[Input(path="artifacts/mini/cotrain/full/metrics.json", sha256="77aa" * 16, gives="training of full")],
    )


def panels(folder: Path) -> list[Panel]:
    return read_panels(
        path=folder / "panels.jsonl",
        root=folder,
        count=5,
        decode_depth=decode_depth,
        teacher=lambda image: np.asarray(image.convert("L"), dtype=np.float32),
    )


if __name__ == "__main__":
    target = Path(sys.argv[1])
    made = content(target)
    (target / "report.html").write_text(page(made), encoding="utf-8")
    (target / "figure.png").write_bytes(readme_figure(made.panels))
