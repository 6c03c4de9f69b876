"""How lineage writes sizes, durations and nested values, on the command line as on pages."""

from collections.abc import Mapping
from typing import Any


def size_of(count: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point, as in ``12.3 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def time_of(seconds: float) -> str:
    """Seconds as ``12 s``, ``3 min 05 s`` or ``2 h 03 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows of dotted key and value; floats to six digits, lists as they stand."""
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in flat(inner, f"{name}.{key}" if name else str(key))]
    return [(name, f"{value:.6g}" if isinstance(value, float) else str(value))]
