"""JPEG files in, a tar of 16-bit maps out, by `transformers`' pipeline for depth: ``CHECKPOINT PICTURES COUNT``."""

import io
import json
import sys
import tarfile
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from pictures import LONG_SIDE, files
from PIL import Image
from transformers import pipeline

depth = pipeline("depth-estimation", model=sys.argv[1], device=0 if torch.cuda.is_available() else "cpu")
paths = [str(path) for path in islice(files(Path(sys.argv[2])), int(sys.argv[3]))]
start = time.perf_counter()
with tempfile.TemporaryDirectory() as folder, tarfile.open(Path(folder) / "depth.tar", "w") as tar:
    # One by one: it refuses batches of pictures that differ in size.
    for number, found in enumerate(depth(paths, batch_size=1)):
        values = found["predicted_depth"].float().numpy()
        image = Image.fromarray(np.rint(values / values.max() * 65535).astype(np.uint16))
        image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.NEAREST)
        stream = io.BytesIO()
        image.save(stream, format="PNG", compress_level=1)
        info = tarfile.TarInfo(f"{number:06d}.png")
        info.size = stream.tell()
        stream.seek(0)
        tar.addfile(info, stream)
print(json.dumps({"seconds": time.perf_counter() - start, "read": len(paths)}))
