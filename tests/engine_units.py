"""Units of work for tests of the engines."""

import os
import time
from collections.abc import Callable
from pathlib import Path


def squares(log: Path | None = None, *, fail: bool = False) -> Callable[[int], tuple[int, str, int]]:
    """What gives a number's square, the GPUs that it sees, and its process; of 13 it wants to know nothing."""
    if log is not None:
        with log.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
    if fail:
        raise ValueError("no model here")

    def square(number: int) -> tuple[int, str, int]:
        time.sleep(0.02)
        if number == 13:
            raise ValueError("unlucky")
        return number * number, os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.getpid()

    return square
