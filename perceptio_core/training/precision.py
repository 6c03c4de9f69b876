"""Where bf16 autocast pays: only on devices that compute in bf16 natively.

Weights, gradients and optimizer state stay float32; bf16 is used by autocast inside the forward pass. A processor without
bf16 instructions emulates them several times slower than float32, so it trains in float32.
"""

from pathlib import Path
from typing import Literal

import torch

Precision = Literal["bf16", "no"]

CPU_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cpu_flags(*, cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets that Linux lists for the first processor; empty where there is no such list."""
    if not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def native_precision(*, cuda_bf16: bool, flags: frozenset[str]) -> Precision:
    """`"bf16"` if the device in use has native bf16 arithmetic, else `"no"` (float32).

    Args:
        cuda_bf16: a CUDA device is in use and computes bf16 natively (compute capability 8.0 or higher).
        flags: the processor's instruction sets; a CUDA device without bf16 does not fall back on them.
    """
    return "bf16" if cuda_bf16 or flags & CPU_BF16_FLAGS else "no"


def detect_precision() -> Precision:
    """The precision for the device that this process trains on."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native_precision(cuda_bf16=native, flags=frozenset())
    return native_precision(cuda_bf16=False, flags=cpu_flags())
