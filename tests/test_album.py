"""What `sources` accepts, every later stage accepts: an album of ugly pictures on its way through the whole chain."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import album
import stages.teacher_depth as teacher_stage
from asking import ask_here
from collecting import Collected
from joint_inputs import PARAMS, train_samples
from perceptio_core.data.shards.entry import Sample
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item
from perceptio_core.evaluation.benchmarks.reason_seg import ReasonSeg
from perceptio_core.evaluation.running.panel_questions import panel_rows
from perceptio_core.params.sources import DatasetParams
from perceptio_core.report.panels import read_panels
from perceptio_core.report.pictures import data_uri

MAP_HW = np.linspace(1, 2, album.SIZE[0] * album.SIZE[1], dtype=np.float32).reshape(album.SIZE[::-1])


@dataclass(frozen=True, kw_only=True)
class Way:
    root: Path
    names: list[str]
    found: Collected
    samples: list[Sample]


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Way:
    """The album through `sources` and `joint_shards`; each picture has an answer of its own."""
    root = tmp_path_factory.mktemp("data")
    names = album.write_album(root / "pictures")
    rows = [{"image": f"pictures/{name}", "question": "What?", "answer": name} for name in [*names, *album.bad()]]
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = DatasetParams(name="mine", kind="questions", path="questions.jsonl", split="train")
    params = PARAMS.model_copy(update={"images_per_shard": 500, "markers_per_image": 0, "depth_map_share": 0.0})
    found, samples, _ = train_samples(root, [dataset], params=params, depth_of=lambda _: MAP_HW)
    return Way(root=root, names=names, found=found, samples=samples)


def test_sources_takes_what_is_good_and_says_why_not_the_rest(way: Way) -> None:
    answers = {record.turns[0][1] for record in way.found.records}
    assert answers == set(way.names)
    refused = {row.file: row.reason for row in way.found.quarantine if "#" not in row.file}
    assert refused.keys() == {f"pictures/{name}" for name in album.bad()}
    for name, (_, told) in album.bad().items():
        assert refused[f"pictures/{name}"].startswith(told)
    assert {(image.width, image.height) for image in way.found.images} == {album.SIZE}
    assert str(way.root) not in json.dumps([vars(row) for row in way.found.quarantine])


def test_the_teacher_takes_them(way: Way) -> None:
    fake = SimpleNamespace(pixels=lambda image: torch.from_numpy(np.array(image)))
    refused: list[dict[str, str]] = []
    params = SimpleNamespace(batch_size=4)
    with ThreadPoolExecutor(2) as pool:
        seen = list(teacher_stage._read_ahead(pool, way.found.images, fake, way.root, params, refused))
    assert refused == []
    assert [pixels.shape for item in seen if item is not None for pixels in item[1:]] == [(*album.SIZE[::-1], 3)] * len(seen)


def test_the_shards_have_them_upright(way: Way) -> None:
    assert {sample.turns[0][1] for sample in way.samples} == set(way.names)
    for sample in way.samples:
        assert (sample.image.mode, sample.image.size) == ("RGB", album.SIZE)
        name = sample.turns[0][1]
        if name.startswith("turned"):
            assert np.abs(np.asarray(sample.image)[4, 4].astype(int) - (255, 0, 0)).max() <= 10, name


class Blank:
    """A model that has seen the pictures and says A."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, images: list[Image.Image], questions: list[str], **_: Any) -> list[Any]:
        self.sizes += [image.size for image in images]
        mask = np.zeros(album.SIZE[::-1], bool)
        return [SimpleNamespace(raw="A", text="A", masks=[mask], depth_codes=None, passes=1) for _ in questions]


def test_benchmarks_ask_about_them_and_the_report_shows_them(way: Way, tmp_path: Path) -> None:
    files = [Item(item_id=name, image=way.root / "pictures" / name, question="?", expected="A") for name in way.names]
    bytes_ = [
        Item(item_id=f"bytes {name}", image=(way.root / "pictures" / name).read_bytes(), question="?", expected="A")
        for name in way.names
    ]
    predict = Blank()
    answers = ask_here(
        [*files, *bytes_], predict, journal=tmp_path / "j.jsonl", batch_size=8, max_new_tokens=4, max_pixels=10**6
    )
    assert [answer.error for answer in answers] == [None] * len(answers)
    assert predict.sizes == [album.SIZE] * len(answers)
    given = {answer.item_id: answer for answer in answers}
    right = dict.fromkeys(given, 1.0)
    rows = panel_rows("mme", files, given, correct=right, root=way.root, count=10**6)
    (tmp_path / "panels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    panels = read_panels(
        path=tmp_path / "panels.jsonl",
        root=way.root,
        count=10**6,
        decode_depth=lambda _: MAP_HW,
        teacher=lambda _: MAP_HW,
        max_pixels=10**6,
    )
    assert [panel.image.size for panel in panels] == [album.SIZE] * len(way.names)
    assert all(data_uri(picture.image).startswith("data:image/") for panel in panels for picture in panel.pictures)
    deep = next(panel for panel in panels if panel.row["item_id"] == "deep.png")
    assert np.abs(np.asarray(deep.image)[4, 4].astype(int) - 76).max() <= 1  # red, as gray


def test_reason_seg_has_masks_of_their_upright_sizes(way: Way, tmp_path: Path) -> None:
    for number, name in enumerate(way.names):
        shutil.copyfile(way.root / "pictures" / name, tmp_path / f"{number:03d}.jpg")
        row = {"text": ["it"], "is_sentence": False, "shapes": [{"label": "target", "points": [[0, 0], [9, 0], [9, 9]]}]}
        (tmp_path / f"{number:03d}.json").write_text(json.dumps(row))
    benchmark = ReasonSeg(tmp_path)
    assert [item.truth["size"] for item in benchmark.items if item.truth] == [list(album.SIZE[::-1])] * len(way.names)
    answers = ask_here(benchmark.items, Blank(), journal=tmp_path / "j.jsonl", batch_size=8, max_new_tokens=4, max_pixels=10**6)
    assert [answer.error for answer in answers] == [None] * len(way.names)
    assert isinstance(answers[0], Answer)


def test_the_same_bytes_every_time(way: Way, tmp_path: Path) -> None:
    """The quarantine of two runs, the second on a copy elsewhere, is the same file."""
    from collecting import collected

    shutil.copytree(way.root / "pictures", tmp_path / "copy/pictures")
    shutil.copy(way.root / "questions.jsonl", tmp_path / "copy")
    dataset = DatasetParams(name="mine", kind="questions", path="questions.jsonl", split="train")
    again = collected([dataset], root=tmp_path / "copy", work=tmp_path / "w")
    assert again.quarantine == way.found.quarantine
    first, second = ((place / "out/quarantine.jsonl").read_bytes() for place in (way.root / "work", tmp_path / "w"))
    assert first == second
