"""Every value of the official files replaced by what does not belong there: a ValueError or quarantine, never another error."""

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from official_files import (
    GREFS,
    polygon,
    refer_mask,
    write_grefcoco,
    write_hardblink,
    write_pair,
    write_refer,
    write_scienceqa,
    write_seed,
)
from perceptio_core.data.readers.kinds import read_dataset
from perceptio_core.data.readers.refer import read_plain_pickle
from perceptio_core.data.records import Refused
from perceptio_core.data.rle import encode, from_segmentation
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Benchmark
from perceptio_core.evaluation.benchmarks.grefcoco import GeneralisedReferring
from perceptio_core.evaluation.benchmarks.hardblink import HardBlink
from perceptio_core.evaluation.benchmarks.reason_seg import ReasonSeg
from perceptio_core.evaluation.benchmarks.res import ReferringSegmentation
from perceptio_core.evaluation.benchmarks.scienceqa import ScienceQA
from perceptio_core.evaluation.benchmarks.seed_bench import SeedImage
from perceptio_core.evaluation.interchange.predictions import read_predictions
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.params.sources import DatasetParams

VALUES = [None, "x", -1, 10**12, 1 << 70, float("nan"), float("inf"), True, [], {}, [[1]]]
_GONE = object()

Load = Callable[[], Any]


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values, of a long list to those of its first two."""
    yield path
    below = content.items() if isinstance(content, dict) else enumerate(content[:2]) if isinstance(content, list) else ()
    for key, value in below:
        yield from places(value, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    made = copy.deepcopy(content)
    holder = made
    for key in path[:-1]:
        holder = holder[key]
    if value is _GONE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return made


def assault(file: Path, load: Load) -> None:
    """Load the file as it is, then with each value replaced."""
    kind = {".p": "pickle", ".jsonl": "lines"}.get(file.suffix, "json")
    if kind == "pickle":
        content = read_plain_pickle(file)
    else:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        content = lines if kind == "lines" else lines[0]
    load()
    refused = 0
    for path in places(content):
        for value in [*VALUES, *([_GONE] if path else [])]:
            made = changed(content, path, value)
            if kind == "pickle":
                file.write_bytes(pickle.dumps(made, protocol=2))
            elif kind == "json":
                file.write_text(json.dumps(made))
            elif isinstance(made, list):
                file.write_text("".join(json.dumps(row) + "\n" for row in made))
            try:
                rows = load()
                refused += isinstance(rows, list) and any(isinstance(row, Refused) for row in rows)
            except ValueError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{file.name}: {path} as {value!r}: {type(error).__name__}: {error}") from error
    assert refused, f"{file.name}: whatever it holds is taken, so it is not read"


def scored(benchmark: Benchmark) -> None:
    said = {item.item_id: Answer(item_id=item.item_id, raw="A", text="A") for item in benchmark.items}
    benchmark.score(said, bootstrap=Bootstrap(samples=2))


def test_hardblink(tmp_path: Path) -> None:
    folder = write_hardblink(tmp_path, markers=True)
    for kind in ("questions", "answers"):
        assault(folder / f"{kind}/blink_3pointscenter_{kind}.jsonl", lambda: HardBlink(folder))
        write_hardblink(folder, markers=True)
    assault(folder / "markers.jsonl", lambda: scored(HardBlink(folder)))


def test_seed_bench(tmp_path: Path) -> None:
    assault(write_seed(tmp_path), lambda: SeedImage(tmp_path / "SEED-Bench.json"))


@pytest.mark.parametrize("name", ["problems.json", "pid_splits.json"])
def test_scienceqa(tmp_path: Path, name: str) -> None:
    assault(write_scienceqa(tmp_path) / name, lambda: ScienceQA(tmp_path))


def reader(root: Path, kind: Any, path: str, split: Any = "train") -> Load:
    return lambda: list(read_dataset(DatasetParams(name="x", kind=kind, path=path, split=split), root=root))


@pytest.mark.parametrize("name", ["instances.json", "refs(umd).p"])
def test_refer(tmp_path: Path, name: str) -> None:
    folder = write_refer(tmp_path / "refcocog")
    read = reader(tmp_path, "refer", "refcocog", "val")
    assault(folder / name, lambda: [read(), ReferringSegmentation(folder, split="test", protocol="sa2va")])


def test_coco(tmp_path: Path) -> None:
    folder = write_refer(tmp_path / "coco")
    assault(folder / "instances.json", reader(tmp_path, "coco", "coco"))


@pytest.mark.parametrize("name", ["instances.json", "grefs(unc).json"])
def test_grefer(tmp_path: Path, name: str) -> None:
    folder = write_grefcoco(tmp_path / "grefcoco", GREFS[:2])
    assault(folder / name, lambda: GeneralisedReferring(folder, split="val"))
    write_grefcoco(folder, GREFS[:2])
    assault(folder / name, reader(tmp_path, "grefer", "grefcoco", "val"))


def test_reason_seg(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [{"label": "target", "points": polygon(0, 0, 9, 9)}])
    assault(tmp_path / "a.json", lambda: ReasonSeg(tmp_path))


def test_readers_of_one_file(tmp_path: Path) -> None:
    mask = encode(refer_mask(0, 0, 10, 5))
    grounding = {"token_positives": [0, 5], "rle_masks": [mask, {"size": [10, 20], "counts": [0, 50, 150]}]}
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    for name, kind, row in (
        ("talk.json", "llava", {"image": "a.png", "conversations": said}),
        ("captions.json", "gcg", {"file_name": "1.jpg", "caption": "a dog runs", "groundings": {"a dog": grounding}}),
    ):
        (tmp_path / name).write_text(json.dumps([row]))
        assault(tmp_path / name, reader(tmp_path, kind, name))
    (tmp_path / "table.jsonl").write_text(json.dumps({"image": "a.png", "question": "What?", "answer": "A dog."}) + "\n")
    assault(tmp_path / "table.jsonl", reader(tmp_path, "questions", "table.jsonl"))


@pytest.mark.parametrize("name", ["image_data.json", "region_descriptions.json"])
def test_visual_genome(tmp_path: Path, name: str) -> None:
    region = {"region_id": 1, "x": 0, "y": 0, "width": 5, "height": 5, "phrase": "a dog"}
    image = {"image_id": 1, "url": "http://x/VG_100K/1.jpg", "width": 20, "height": 10}
    (tmp_path / "image_data.json").write_text(json.dumps([image]))
    (tmp_path / "region_descriptions.json").write_text(json.dumps([{"id": 1, "regions": [region]}]))
    assault(tmp_path / name, reader(tmp_path, "vg", "."))


def test_predictions(tmp_path: Path) -> None:
    mask, file = encode(refer_mask(0, 0, 10, 5)), tmp_path / "p.jsonl"
    masks = ReferringSegmentation(write_refer(tmp_path / "refcocog"), split="val")
    seed = SeedImage(write_seed(tmp_path / "seedbench"))
    file.write_text(json.dumps({"sent_id": 3, "segmentation": [mask, {"size": [10, 20], "counts": [0, 50, 150]}]}) + "\n")
    assault(file, lambda: read_predictions(file, masks))
    rows = [{"question_id": "100", "prediction": "A"}, {"q_id": 101, "text": "A"}, {"item_id": "102", "raw": "A", "text": "A"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assault(file, lambda: read_predictions(file, seed))
    (tmp_path / "p.json").write_text(json.dumps({"val": [{"idx": key, "prediction": "A"} for key in ("100", "101", "102")]}))
    assault(tmp_path / "p.json", lambda: read_predictions(tmp_path / "p.json", seed))


@pytest.mark.parametrize("size", [(10**12, 7), (7, 10**12), (0, 7), (7, -1)])
def test_sizes_that_no_picture_has(size: tuple[int, int]) -> None:
    height, width = size
    run_lengths = {"size": [height, width], "counts": [max(height * width, 0)]}
    for segmentation in ([], [[0, 0, 5, 0, 5, 5]], run_lengths):
        with pytest.raises(ValueError, match=f"an image of {height} x {width} pixels; at most"):
            from_segmentation(segmentation, height=height, width=width)
