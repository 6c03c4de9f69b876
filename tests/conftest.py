"""Tests with one of the marks below run only where the command line names the mark; and what several files of tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_pipeline import FakePipeline, fake_pipeline
from hub_server import Hub, hub_server

_MARKS = ("on_request", "rgw")
_LONGEST = (
    "test_pipeline",
    "test_end_to_end",
    "test_reruns",
    "test_deployed",
    "test_training_loop",
    "test_training_memory_estimate",
    "test_launch",
    "test_lineage",
    "test_survivors",
    "test_training_cotrain",
    "test_training_ranks",
    "test_crashes",
)
"""A file is one worker's: these come first, or the last of them would be waited for alone."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))
    for mark in _MARKS:
        if mark in config.getoption("markexpr"):
            continue
        skip = pytest.mark.skip(reason=f"run it by: pytest -m {mark}")
        for item in items:
            if mark in item.keywords:
                item.add_marker(skip)


@pytest.fixture
def fake(tmp_path: Path) -> FakePipeline:
    """A checkout of stand-ins in which nothing has run."""
    return fake_pipeline(tmp_path)


@pytest.fixture(scope="session")
def up_to_codebook(tmp_path_factory: pytest.TempPathFactory) -> FakePipeline:
    """A checkout of stand-ins that has run up to depth_codebook, to copy (`copy_of`)."""
    made = fake_pipeline(tmp_path_factory.mktemp("up_to_codebook"))
    made.dvc("repro", "depth_codebook")
    made.ran()
    return made


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Perceptio, saved, whose answers differ from question to question; not to be changed."""
    from tiny import lively, tiny_perceptio  # brings torch, which takes seconds

    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = tiny_perceptio(tmp_path_factory.mktemp("tiny"), tied=False)
    lively(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A local hub of models, for `huggingface_hub` in this process."""
    with hub_server(tmp_path / "cache") as served:
        yield served
