"""The largest memory that this process has used, and the memory that there is."""

import os
import resource
import sys

import torch


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory so far in GiB: of PyTorch's allocations on a CUDA device, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # macOS counts bytes, Linux KiB


def device_memory_gib(device: torch.device) -> float:
    """Memory in GiB of a CUDA device, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
