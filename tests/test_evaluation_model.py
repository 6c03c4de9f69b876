"""The suite with a real, if tiny and untrained, Perceptio: masks and depth codes reach the scorers and the files."""

import json
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from asking import ask_here
from official_files import REFER_SIZE, write_refer
from perceptio_core.engine import Local
from perceptio_core.evaluation.benchmarks.benchmark import Item
from perceptio_core.evaluation.running.suite import Asker, evaluate
from perceptio_core.grammar import strip_perception
from perceptio_core.model.inference import Perceptor
from perceptio_core.params.evaluate import EvaluateParams
from tiny import tiny_perceptio


@pytest.fixture(scope="module")
def perceptor(tmp_path_factory: pytest.TempPathFactory) -> Perceptor:
    model, processor = tiny_perceptio(tmp_path_factory.mktemp("tiny"))
    return Perceptor(model=model, processor=processor, batch_size=2)


def no_codes(*_: object) -> NoReturn:
    raise AssertionError("no entry replaces codes")


def test_suite_with_a_model(perceptor: Perceptor, tmp_path: Path) -> None:
    write_refer(tmp_path / "refcoco")
    entry = {"kind": "refer", "path": "refcoco", "split": "test", "segment": True, "depth": True, "panels": 3}
    values = {"batch_size": 2, "max_new_tokens": 4, "bootstrap_samples": 50, "benchmarks": [entry]}
    params = EvaluateParams.from_mapping(values, where="test")
    (tmp_path / "j").mkdir()
    metrics = evaluate(
        Local(),
        lambda: Asker(perceptor.predict, params, no_codes),
        params,
        variant="full",
        root=tmp_path,
        journals=tmp_path / "j",
        out=tmp_path / "out",
    )
    assert [(metric.name, metric.n) for metric in metrics] == [("res_ciou", 3), ("res_giou", 3), ("decode_passes", 3)]
    assert 1 <= metrics[-1].value <= 32 + 4 + 4, "a mask, a code or a token of text cost at most a pass each"
    assert all(0 <= metric.value <= 100 for metric in metrics)
    rows = [json.loads(line) for line in (tmp_path / "out/predictions/res.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["raw"].startswith("[SEG]")
        assert row["text"] == strip_perception(row["raw"])
        assert [mask["size"] for mask in row["masks"]] == [list(REFER_SIZE)] * row["raw"].count("[SEG]")
        assert len(row["depth_codes"]) == 4
    assert len((tmp_path / "out/panels.jsonl").read_text().splitlines()) == 3


def test_a_killed_run_gives_the_same_answers(perceptor: Perceptor, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)
    items = []
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        # Prompts of unequal length, so that the padding depends on the batch.
        items.append(Item(item_id=str(i), image=tmp_path / f"{i}.png", question="Which point? " * (i + 1), expected="A"))

    def run(journal: Path) -> object:
        return ask_here(items, perceptor.predict, journal=journal, batch_size=2, max_new_tokens=4, max_pixels=10**6, depth=True)

    whole = run(tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "killed.jsonl").write_text("".join(lines[:2]) + lines[2][:7])
    assert run(tmp_path / "killed.jsonl") == whole
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
