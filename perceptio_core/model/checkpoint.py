"""Whether a checkpoint may be at a place: asked without torch, so that a wrong name is refused at once."""

from __future__ import annotations

import re
from pathlib import Path

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def refuse_absent(name: str | Path) -> None:
    """Let pass a folder with a ``config.json``, and what may be a repository of the hub (owner/name), which is not asked.

    Raises:
        ValueError: it is neither.
    """
    if not Path(name, "config.json").is_file() and (Path(name).is_dir() or not _REPOSITORY.fullmatch(str(name))):
        raise ValueError(f"{name}: no trained model here; `perceptio repro` trains one")
