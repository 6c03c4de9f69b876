"""Tests marked `on_request` run only where the command line names the mark."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "on_request" in config.getoption("markexpr"):
        return
    skip = pytest.mark.skip(reason="takes minutes; run it by: pytest -m on_request")
    for item in items:
        if "on_request" in item.keywords:
            item.add_marker(skip)
