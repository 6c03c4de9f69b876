"""Your own pictures in three steps, by the commands that a person types; the report's figures worked out again from files."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from fake_pipeline import REPOSITORY, as_cloned, environment

pytestmark = [
    pytest.mark.on_request,
    pytest.mark.skipif(
        not (REPOSITORY / "foundations" / "mini" / "SHA256SUMS").is_file(),
        reason="foundations/mini holds no weights yet; make them with: make foundations",
    ),
]
PICTURES = 40
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of a coloured disc on a slope of gray, a question and a yes-or-no question each, masks of half of them."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    (folder / "masks").mkdir()
    rows = []
    for number in range(PICTURES):
        name, (colour, rgb) = f"IMG_{number:02d}.jpg", list(COLOURS.items())[number % 3]
        draw = np.random.default_rng(number)
        slope_HW = np.linspace(60, 200, 96)[:, None] + draw.normal(0, 6, (96, 128))
        image = Image.fromarray(np.dstack([slope_HW.clip(0, 255).astype(np.uint8)] * 3))
        x, y, r = (int(value) for value in draw.integers((30, 30, 12), (98, 66, 26)))
        ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=rgb)
        image.save(folder / "pictures" / name)
        rows += [(name, "What colour is the disc?", colour, ""), (name, "Is it red?", "yes" if colour == "red" else "no", "")]
        if number % 2:
            mask = Image.new("L", image.size, 0)
            ImageDraw.Draw(mask).ellipse((x - r, y - r, x + r, y + r), fill=255)
            mask.save(folder / "masks" / f"{number}.png")
            rows.append((name, f"the {colour} disc", "", f"masks/{number}.png"))
    with (folder / "questions.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("Image", "Question", "Answer", "Mask"))
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def report(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of a run of a checkout as it would be cloned."""
    checkout = as_cloned(tmp_path_factory.mktemp("checkout"), profile="mini")
    new = ("new", "mine", "--pictures", str(data / "pictures"), "--questions", str(data / "questions.csv"), "--steps", "4")
    assert "validation  8 pictures: 16 questions" in perceptio(checkout, *new)
    profile = checkout / "profiles" / "mine.yaml"
    text = profile.read_text()
    assert "- kind: masks\n" in text
    # After four steps the model asks for no mask by itself, and every IoU would be 0.
    profile.write_text(text.replace("- kind: masks\n", "- kind: masks\n    segment: true\n"))
    said = perceptio(checkout, "repro", "--profile", "mine")
    for name in ("questions_exact", "questions_contained", "questions_majority", "masks_giou", "control_questions_exact"):
        assert re.search(rf"^{name} +\d", said, re.MULTILINE), said[-4000:]
    return checkout / "artifacts" / "mine"


def perceptio(checkout: Path, *arguments: str) -> str:
    """Run the command to its end; what it wrote to stdout."""
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    ended = subprocess.run(command, cwd=checkout, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    return ended.stdout


def rows(report: Path, variant: str, benchmark: str) -> list[dict[str, Any]]:
    lines = (report / f"evaluate/{variant}/predictions/{benchmark}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(".,!? ")


def test_the_reports_figures_follow_from_the_answers_and_the_users_own_files(data: Path, report: Path) -> None:
    figures = {row["name"]: row for row in json.loads((report / "report/metrics.json").read_text())}
    table = list(csv.DictReader((data / "questions.csv").open()))
    asked: list[set[int]] = []
    for variant, prefix in (("full", ""), ("control", "control_")):
        given = {int(row["item_id"].partition("/")[2]): row["text"] for row in rows(report, variant, "questions")}
        asked.append(set(given))
        exact = [plain(text) == table[number]["Answer"] for number, text in given.items()]
        contained = [re.search(rf"\b{table[number]['Answer']}\b", plain(text)) is not None for number, text in given.items()]
        for name, hits in (("exact", exact), ("contained", contained)):
            figure = figures[f"{prefix}questions_{name}"]
            assert figure["value"] == pytest.approx(100 * np.mean(hits), abs=1e-3)
            assert figure["n"] == len(hits) == 16
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert asked[0] == asked[1], "both variants are asked the same"
    left = [row["Answer"] for number, row in enumerate(table) if not row["Mask"] and number not in asked[0]]
    pictures = {table[number]["Image"] for number in asked[0]}
    assert len(left) == 2 * PICTURES - 16
    assert not pictures & {row["Image"] for number, row in enumerate(table) if not row["Mask"] and number not in asked[0]}
    most = max(sorted(set(left)), key=left.count)
    majority = [table[number]["Answer"] == most for number in asked[0]]
    assert figures["questions_majority"]["value"] == pytest.approx(100 * np.mean(majority), abs=1e-3)

    sums, ious = np.zeros(2), []
    for row in rows(report, "full", "masks"):
        said = table[int(row["item_id"].partition("/")[2])]
        assert said["Image"] in pictures
        truth_HW = np.asarray(Image.open(data / said["Mask"])) > 127
        found_HW = np.zeros_like(truth_HW)
        for mask in row["masks"]:
            found_HW |= coco.decode(mask).astype(bool)
        pair = np.array([(found_HW & truth_HW).sum(), (found_HW | truth_HW).sum()])
        sums, ious = sums + pair, [*ious, pair[0] / pair[1]]
    assert sums[0] > 0, "some answer covers some of its object"
    assert figures["masks_ciou"]["value"] == pytest.approx(100 * sums[0] / sums[1], abs=1e-3)
    assert figures["masks_giou"]["value"] == pytest.approx(100 * np.mean(ious), abs=1e-3)
    assert not (report / "evaluate/control/predictions/masks.jsonl").exists(), "the control is not asked for masks"


def test_the_page_shows_them_beside_the_control(report: Path) -> None:
    page = (report / "report/report.html").read_text()
    assert "Your own validation pictures" in page
    row = re.search(r'<th scope="row" id="metric-questions_exact">.*?</tr>', page, re.DOTALL)
    assert row
    assert len(re.findall('class="num value"', row[0])) == 2
    assert "your questions · questions/" in page
    assert "your masks · masks/" in page


def test_no_validation_picture_is_trained_on(report: Path) -> None:
    counts = json.loads((report / "sources/summary.json").read_text())
    assert (counts["images_train"], counts["images_val"]) == (PICTURES - 8, 8)
