"""The stage `sources` streams: its memory does not grow with the records, and files of any length are read row by row."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.scaling_sources import WRITERS, name
from collecting import collected
from perceptio_core import parquet
from perceptio_core.data.manifest import image_table
from perceptio_core.data.manifest.manifest import IMAGES_SCHEMA
from perceptio_core.data.readers import json_rows
from perceptio_core.data.readers.instances import read_instances
from perceptio_core.data.readers.json_rows import list_rows
from perceptio_core.data.records import is_spread, spread
from perceptio_core.params.sources import DatasetParams

FEW, MANY, GROWTH = 150, 600, 100_000
"""Records, and bytes by which the peak may grow from few to many: a record is some 2 kB as Python objects."""


def peak(kind: str, count: int, folder: Path) -> int:
    """Bytes of Python objects at the peak of `collect`; a dozen pictures, whatever the number of records."""
    (folder / "pictures").mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (64, 48), (number, 0, 0)).save(folder / "pictures" / name(number), format="PNG")
    WRITERS[kind](folder, count)
    path = {"coco": "coco.json", "gcg": "gcg.json", "llava": "llava.json"}[kind]
    dataset = DatasetParams.model_validate({"name": kind, "kind": kind, "path": path, "split": "train", "images": "pictures"})
    tracemalloc.start()
    found = collected([dataset], root=folder, work=folder / "work", read_back=False)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.counts[f"source_{kind}"] == count
    return most


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pytest keeps each one: pycocotools gives one a mask
@pytest.mark.parametrize("kind", ["llava", "gcg", "coco"])
def test_memory_does_not_grow_with_the_records(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_AT_ONCE", 4096)
    monkeypatch.setattr(parquet, "_AT_ONCE", 32)
    monkeypatch.setattr(parquet, "ROW_GROUP", 128)
    monkeypatch.setattr(image_table, "_PAGE", 32)
    peak(kind, 20, tmp_path / "warm")  # what is imported and compiled at first
    few, many = (peak(kind, count, tmp_path / str(count)) for count in (FEW, MANY))
    assert many - few < GROWTH, (few, many)


def test_a_limit_takes_what_an_even_spread_of_the_whole_list_would() -> None:
    for count in range(40):
        for limit in (*range(1, 45), None):
            taken = [place for place in range(count) if is_spread(place, count=count, limit=limit)]
            assert taken == spread(range(count), limit)


def test_row_groups_of_long_rows_are_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_AT_ONCE", 4)
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 1000)
    same = {"path": "x" * 100, "width": 1, "height": 1, "sha256": "", "split": "train"}
    rows = [{"image_key": str(number), **same} for number in range(30)]
    assert parquet.write_rows(tmp_path / "x.parquet", IMAGES_SCHEMA, rows) == 30
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [8, 8, 8, 6]
    assert list(parquet.read_rows(tmp_path / "x.parquet", IMAGES_SCHEMA)) == rows
    assert [batch.num_rows for batch in parquet.read_batches(tmp_path / "x.parquet", IMAGES_SCHEMA)] == [8, 8, 8, 6]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not JSON: parse error: premature EOF"),
        (b'[{"a": 1}, {"b"', "not JSON: parse error: premature EOF"),
        (b'{"a": []}', "expected a list of rows, it starts with '{'"),
        (b"[1] 2", "not JSON: parse error: trailing garbage"),
        (b'["\xff"]', "not JSON: lexical error"),
        (b'["\\udc00"]', "codec can't decode"),
    ],
)
def test_a_file_that_is_no_list_of_json_is_refused_by_name(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json") as caught:
        list(list_rows(path, of="rows"))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[NaN]", b"[-Infinity]", b"[123456789012345678901234567890]"])
def test_numbers_that_json_does_not_know_are_null(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert list(list_rows(tmp_path / "x.json", of="rows")) == [None]


def test_lists_in_an_object_come_in_any_order_and_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    rows = {
        "annotations": [{"id": 2, "image_id": 7, "area": 1.0, "segmentation": [[0, 0.5, 1e3]]}],
        "categories": [],
        "images": [{"id": 7, "file_name": "é.jpg", "height": 1, "width": 2}],
    }
    path.write_text(json.dumps(rows))
    images, annotations, categories = read_instances(path)
    assert dict(annotations) == {2: rows["annotations"][0]}
    assert isinstance(annotations[2]["segmentation"][0][0], int)
    assert images[7] == rows["images"][0]
    assert (8 in images, "7" in images, len(images), categories) == (False, False, 1, {})
    for broken in ({"images": {"a": [1]}}, {"categories": 3}, [rows]):
        path.write_text(json.dumps({**rows, **broken} if isinstance(broken, dict) else broken))
        with pytest.raises(ValueError, match=r"instances\.json: \w+ must be a list"):
            read_instances(path)


def test_half_a_surrogate_pair_is_refused_and_the_rest_is_kept(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "question": "What?", "answer": answer} for answer in ("a \ud800", "a dog")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = DatasetParams(name="q", kind="questions", path="q.jsonl", split="train")
    found = collected([table], root=tmp_path, work=tmp_path / "work")
    assert [record.record_id for record in found.records] == ["q/1"]
    assert [(row.file, row.reason.split(",")[0]) for row in found.quarantine] == [("q: q/0", "it holds half a surrogate pair")]
    assert found.counts["data"] == {"train": {"conversation": {"q": {"records": 1, "dropped": {"quarantined": 1}}}}}
