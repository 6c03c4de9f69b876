"""What every program that reads photographs has in common; it needs Pillow alone."""

import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from PIL import Image

SHARD_BYTES = 1 << 26
SHUFFLED = 1000
"""Entries in a buffer that shuffles, where there is one."""

LONG_SIDE = 640
"""Pixels of the longer side of a depth map that is kept."""


def files(folder: Path) -> Iterator[Path]:
    """Photographs, over and over, always in the same order."""
    return cycle(sorted(folder.rglob("*.jpg")))


def entries(folder: Path, count: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Encoded photographs, over and over, and what is said about each: some 1.3 KB of JSON."""
    pictures = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    for number in range(count):
        yield (
            pictures[number % len(pictures)],
            {
                "image_key": f"{number:08d}",
                "depth_codes": [(number * 7 + place * place) % 128 for place in range(100)],
                "turns": [[f"Is the {word} left of the dog?", "no"] for word in ("cat", "cup", "red ball", "tall tree")] * 4,
            },
        )


def text(said: dict[str, Any]) -> bytes:
    """The JSON of what is said."""
    return json.dumps(said, separators=(",", ":")).encode()


def pixels(encoded: bytes, said: bytes) -> int:
    """Decode one entry, both parts; the picture's pixels."""
    assert json.loads(bytes(said))
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    return image.width * image.height


def main(write: Callable[[Path, Path, int], None] | None, read: Callable[[Path, int], Iterable[int]]) -> None:
    """``write FOLDER PICTURES COUNT`` or ``read FOLDER WORKERS COUNT``: prints seconds, and what was read."""
    action, folder, second, count = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    start = time.perf_counter()
    found: list[int] = []
    if action == "write" and write is not None:
        write(folder, Path(second), count)
    else:
        found = list(islice(read(folder, int(second)), count))
    print(json.dumps({"seconds": time.perf_counter() - start, "read": [len(found), sum(found)]}))
