"""ReasonSeg by hand and against the painting of the official script, step by step."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from official_files import REASON_HEIGHT, REASON_WIDTH, polygon, reason_mask, write_pair
from perceptio_core.data.rle import decode, encode
from perceptio_core.evaluation.benchmarks.benchmark import Answer
from perceptio_core.evaluation.benchmarks.reason_seg import ReasonSeg, painted
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap

BOOTSTRAP = Bootstrap(samples=100)


def test_by_hand(tmp_path: Path) -> None:
    folder = tmp_path / "val"
    # Outlines belong to a shape: columns and rows 0 to 9 are 100 pixels.
    write_pair(folder, "a", [{"label": "target", "points": polygon(0, 0, 9, 9)}])
    # A smaller ignored region is painted over the target: of 100 pixels, columns 5 to 9 do not count.
    ignored = {"label": "ignore", "points": polygon(5, 0, 9, 9)}
    shapes = [ignored, {"label": "target", "points": polygon(0, 0, 9, 9)}, {"label": "flag", "points": polygon(0, 0, 29, 19)}]
    write_pair(folder, "b", shapes, text="Where can hands be washed?", sentence=True)
    write_pair(folder, "c", [{"label": "target", "points": polygon(0, 0, 9, 9)}])
    benchmark = ReasonSeg(folder)
    assert [item.item_id for item in benchmark.items] == ["a", "b", "c"]
    assert benchmark.items[0].question == "Please segment the tap in this image."
    assert benchmark.items[1].question == "Where can hands be washed? Please output segmentation mask."
    np.testing.assert_array_equal(decode(benchmark.items[1].truth or {}), reason_mask(0, 0, 5, 10))
    masks: dict[str, tuple[NDArray[np.bool_], ...]] = {
        "a": (reason_mask(0, 0, 5, 10),),  # 50 / 100
        "b": (reason_mask(0, 0, 10, 10), reason_mask(10, 0, 12, 10)),  # 50 in the target, 50 ignored, 20 beside it: 50 / 70
        "c": (),  # 0 / 100
    }
    said = {key: Answer(item_id=key, raw="", text="", masks=tuple(map(encode, value))) for key, value in masks.items()}
    scores = benchmark.score(said, bootstrap=BOOTSTRAP)
    metrics = {metric.name: (metric.value, metric.n) for metric in [*scores.headline, *scores.breakdown]}
    assert metrics == {
        "reasonseg_giou": (pytest.approx(100 * (0.5 + 5 / 7) / 3), 3),
        "reasonseg_ciou": (pytest.approx(100 * 100 / 270), 3),
        "reasonseg_giou/short": (25.0, 2),
        "reasonseg_ciou/short": (25.0, 2),
        "reasonseg_giou/long": (pytest.approx(100 * 5 / 7), 1),
        "reasonseg_ciou/long": (pytest.approx(100 * 5 / 7), 1),
    }
    assert "ReasonSeg val, 3 images" in scores.headline[0].protocol
    assert "1 answers without a mask" in scores.headline[0].protocol
    assert len(ReasonSeg(folder, limit=1).items) == 1


@pytest.mark.parametrize("seed", range(5))
def test_painting_is_that_of_the_official_script(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = [
        {
            "label": str(rng.choice(["target", "ignore", "Ignore_2"])),
            "points": (rng.random((5, 2)) * [REASON_WIDTH, REASON_HEIGHT]).tolist(),
        }
        for _ in range(4)
    ]
    # get_mask_from_json of utils/data_processing.py, in its order of steps.
    areas = []
    for shape in shapes:
        alone = np.zeros((REASON_HEIGHT, REASON_WIDTH), dtype=np.uint8)
        cv2.polylines(alone, np.array([shape["points"]], dtype=np.int32), True, 1, 1)
        cv2.fillPoly(alone, np.array([shape["points"]], dtype=np.int32), 1)
        areas.append(alone.sum())
    expected = np.zeros((REASON_HEIGHT, REASON_WIDTH), dtype=np.uint8)
    for index in list(np.argsort(areas)[::-1].astype(np.int32)):
        value = 255 if "ignore" in shapes[index]["label"].lower() else 1
        cv2.polylines(expected, np.array([shapes[index]["points"]], dtype=np.int32), True, value, 1)
        cv2.fillPoly(expected, np.array([shapes[index]["points"]], dtype=np.int32), value)
    np.testing.assert_array_equal(painted(shapes, height=REASON_HEIGHT, width=REASON_WIDTH), expected)


def test_windows_encoding_and_pictures_turned_by_exif(tmp_path: Path) -> None:
    folder = tmp_path / "val"
    write_pair(folder, "a", [])
    (folder / "a.json").write_bytes(
        json.dumps({"text": ["caf\u00e9"], "is_sentence": False, "shapes": []}, ensure_ascii=False).encode("cp1252")
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (REASON_WIDTH, REASON_HEIGHT)).save(folder / "a.jpg", exif=exif)
    (item,) = ReasonSeg(folder).items
    assert item.expected == "caf\u00e9"
    assert (item.truth or {})["size"] == [REASON_WIDTH, REASON_HEIGHT]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": []}, r"a\.json: text must be a list"),
        ({"shapes": [{"label": "target", "points": [1, 2]}]}, r"a\.json: a shape has a label"),
        ({"shapes": [{"points": []}]}, r"a\.json: a shape has a label"),
    ],
)
def test_refusals(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_pair(tmp_path, "a", [])
    row = {"text": ["x"], "is_sentence": False, "shapes": [], **change}
    (tmp_path / "a.json").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        ReasonSeg(tmp_path)


def test_refuses_what_is_absent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no <name>\.json"):
        ReasonSeg(tmp_path)
    write_pair(tmp_path, "a", [])
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"a\.jpg"):
        ReasonSeg(tmp_path)
