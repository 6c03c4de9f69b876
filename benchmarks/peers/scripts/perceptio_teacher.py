"""JPEG files in, a shard of 16-bit maps out, as the stage `teacher_depth` does it: ``CHECKPOINT PICTURES COUNT``."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pictures import LONG_SIDE, files
from torch import Tensor

from perceptio_core.data.images import open_image
from perceptio_core.depth.store import EncodedDepth, encode_depth, write_shard
from perceptio_core.depth.teacher import Teacher, batches, stored_size

teacher = Teacher.from_pretrained(Path(sys.argv[1]))
paths = list(islice(files(Path(sys.argv[2])), int(sys.argv[3])))


def _maps() -> Iterator[EncodedDepth]:
    sizes: dict[int, tuple[int, int]] = {}

    def read() -> Iterator[tuple[int, Tensor]]:
        for number, path in enumerate(paths):
            image = open_image(path)
            sizes[number] = stored_size(height=image.height, width=image.width, long_side=LONG_SIDE)
            yield number, teacher.pixels(image)

    for batch in batches(read(), most_pixels=8 * teacher.side**2):
        maps = teacher.inverse_depth([pixels for _, pixels in batch], [sizes[number] for number, _ in batch])
        yield from (encode_depth(f"{number:06d}", depth_HW) for (number, _), depth_HW in zip(batch, maps, strict=True))


start = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    rows = write_shard(Path(folder), name="depth-00000.tar", maps=_maps())
print(json.dumps({"seconds": time.perf_counter() - start, "read": len(rows)}))
