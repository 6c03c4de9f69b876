"""Which published file a benchmark was read from, by its md5, so that a score can say so; sums from VLMEvalKit's list."""

from __future__ import annotations

import hashlib
from pathlib import Path

MD5 = {
    "b6caf1133a01c6bb705cf753bb527ed8": "MMBench_DEV_EN",
    "6939fadb0ce626fefc0bdc9c64efc528": "MMBench_TEST_EN",
    "08b8fc3324a5ed74155350f57be69fbd": "MMBench_DEV_CN",
    "7e1239baf0ee4c8b513e19705a0f317e": "MMBench_TEST_CN",
    "30c05be8f2f347a50be25aa067248184": "MMBench_DEV_EN_V11",
    "26f0f15381a21720255091d3e0316ce6": "MMBench_TEST_EN_V11",
    "593f9b5f6bea453d870a798b34ae4f37": "MMBench_DEV_CN_V11",
    "74bbe4556dac745613c7cbe5ad787050": "MMBench_TEST_CN_V11",
    "68017231464752261a2526d6ca3a10c0": "SEEDBench_IMG",
    "96320d05e142e585e7204e72affd29f3": "ScienceQA_VAL",
    "e42e9e00f9c59a80d8a5db35bc32b71f": "ScienceQA_TEST",
    "0f593e0d1c7df9a3d69bf1f947e71975": "AI2D_TEST",
    "fd8f463634d4fe9fbd23b876e8eea5be": "AI2D_TEST_NO_MASK",
}
"""Name of the published file by its md5."""


def described(file: Path) -> str:
    """``MMBench_DEV_EN`` for the published file of that name; else the file's own name, marked as no published one."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return MD5.get(digest, f"{file.name} (none of the published files)")
