"""Answers with depth tokens, by this project or by ``generate`` under the same grammar: ``WAY ARTIFACTS BATCH COUNT``."""

import hashlib
import json
import sys
import time
from pathlib import Path

from benchmarks.decoding import by_transformers, hardblink_batches, ours
from perceptio_core.model.inference import Perceptor

way, artifacts, size, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
write = {"perceptio": ours, "transformers": by_transformers}[way]
perceptor = Perceptor.from_pretrained(artifacts / "cotrain" / "full" / "checkpoint")
batches = hardblink_batches(perceptor, artifacts / "sources" / "root" / "hardblink", count=count, size=size)
write(perceptor, batches[0])
start = time.perf_counter()
written = [write(perceptor, prompts).ids for prompts in batches]
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "read": hashlib.sha256(json.dumps(written).encode()).hexdigest()}))
