"""Tests with one of the marks below run only where the command line names the mark."""

import pytest

_MARKS = ("on_request", "rgw")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for mark in _MARKS:
        if mark in config.getoption("markexpr"):
            continue
        skip = pytest.mark.skip(reason=f"run it by: pytest -m {mark}")
        for item in items:
            if mark in item.keywords:
                item.add_marker(skip)
