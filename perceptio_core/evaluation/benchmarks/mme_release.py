"""MME as its makers pack it, ``MME_Benchmark_release_version.zip``: a folder per subtask, a text file per image.

Some subtasks hold ``images/`` and ``questions_answers_YN/``, the others pictures and texts side by side. A text has the name
of its image and two lines, ``question TAB answer``. In the order of their names the images are those of the official lists
(``eval_tool``: image TAB question TAB answer), so that a question has the same number in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PACKED = "MME_Benchmark_release_version"
_BELOW = ("", "MME_Benchmark", PACKED, f"{PACKED}/MME_Benchmark")
_SUFFIXES = (".jpg", ".png", ".jpeg")
Row = tuple[Path, str, str]


def release_folders(folder: Path, *, tasks: Sequence[str]) -> dict[str, Path]:
    """The folder of each subtask that lies in `folder`, or in those that unpacking makes below it; none in another layout."""
    for below in _BELOW:
        found = {task: folder / below / task for task in tasks if (folder / below / task).is_dir()}
        if found:
            return found
    return {}


def read_release(folder: Path) -> list[Row]:
    """(image, question, answer) of a subtask, an image's two questions one after the other; the image may be absent.

    Raises:
        ValueError: there is no text, or one is not UTF-8 or has other lines; names file and line.
    """
    parted = (folder / "questions_answers_YN").is_dir()
    texts, images = (folder / "questions_answers_YN", folder / "images") if parted else (folder, folder)
    files = sorted(texts.glob("*.txt"))
    if not files:
        raise ValueError(f"{texts}: no <image>.txt in it")
    return [row for file in files for row in _read(file, images)]


def _read(file: Path, images: Path) -> list[Row]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error})") from error
    bare = images / file.stem
    image = next((path for suffix in _SUFFIXES if (path := Path(f"{bare}{suffix}")).is_file()), Path(f"{bare}{_SUFFIXES[0]}"))
    rows = [line.strip().split("\t") for line in text.split("\n") if line.strip()]
    if len(rows) != 2 or any(len(row) != 2 or row[1].strip().lower() not in ("yes", "no") for row in rows):
        raise ValueError(f"{file}: expected two lines, each question TAB Yes or No")
    return [(image, question, answer) for question, answer in rows]
