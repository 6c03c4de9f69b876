"""Writes what `benchmarks.full_size` measured into a page: ``python -m benchmarks.results full_size.json docs/results.md``.

The tables stand between two marks and are renewed; the words around them stay as written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.architectures import BASES

START, END = "<!-- full size -->", "<!-- end of full size -->"
Found = Mapping[str, Any]


def tables(content: Found) -> str:
    """The tables as Markdown.

    Args:
        content: of the JSON file. A value that is not there, because its measurement failed or was skipped, is a dash, and
            the measurement is named below the tables.
    """
    found: Mapping[str, Found] = content["measurements"]
    of = {size: {name.removeprefix(f"{size}, "): result for name, result in found.items()} for size in BASES}
    first = next((of[size]["training"] for size in BASES if "shape" in of[size].get("training", {})), {})
    attention = {name.removeprefix("attention, "): ways for name, ways in found.items() if name.startswith("attention, ")}

    def by_size(*columns: tuple[str, str, str, str]) -> list[str]:
        """A table with a row a size; columns: heading, measurement, key in it, form."""
        rows = [
            [size, *(_value(of[size].get(measurement, {}), key, form) for _, measurement, key, form in columns)]
            for size in BASES
        ]
        return _table(["", *(heading for heading, *_ in columns)], rows)

    def memory(measurement: str) -> list[tuple[str, str, str, str]]:
        return [
            ("peak GiB", measurement, "peak_gib", "{:.1f}"),
            ("estimate GiB", measurement, "estimated_gib", "{:.1f}"),
            ("estimate / peak", measurement, "estimated_over_measured", "{:.2f}"),
        ]

    lines = [
        f"`python -m benchmarks.full_size` on one {content['device']} ({content.get('memory_gib', 0):.0f} GiB), torch "
        f"{content['torch']}, transformers {content['transformers']}; random weights and pictures, shapes and dtypes of "
        f"co-training: micro-batches of {_shape(first)}. Medians of the steps after a warm-up.",
        "",
        "A step of one GPU as the profile has it, with gradient checkpointing:",
        "",
        *by_size(
            ("s a step", "training", "seconds_per_step", "{:.2f}"),
            ("samples a step", "training", "samples_per_step", "{:d}"),
            ("tokens/s", "training", "tokens_per_second", "{:,.0f}"),
            ("TFLOP a step", "training", "tflop_per_step", "{:,.0f}"),
            ("share of the peak", "training", "mfu", "{:.1%}"),
            *memory("training"),
        ),
        "",
        f"The share is of {content.get('peak_tflop_per_second', 0):.0f} TFLOP/s (dense bf16); operations by the formula of "
        "`benchmarks/flops.py`, without what checkpointing computes a second time. One micro-batch without gradient "
        "checkpointing:",
        "",
        *by_size(
            ("s a step", "without checkpointing", "seconds_per_step", "{:.2f}"),
            *memory("without checkpointing"),
        ),
        "",
        "Answers of masks, 100 depth codes and text, by the grammar, SAM2 and the depth decoder included:",
        "",
        *by_size(
            ("tokens/s, one question", "generation of 1", "tokens_per_second", "{:.0f}"),
            ("s an answer", "generation of 1", "seconds", "{:.2f}"),
            ("tokens/s, 16 questions at a time", "generation of 16", "tokens_per_second", "{:.0f}"),
        ),
        "",
        "Attention of one layer over a packed row in bf16, forwards and backwards; error: relative, against float32:",
        "",
        *_table(
            ["row", "way", "error", "error of the gradients", "ms, first pass", "ms", "times the padded batch's speed"],
            [
                [
                    row,
                    way,
                    _value(result, "error", "{:.1e}"),
                    _value(result, "gradient_error", "{:.1e}"),
                    _value(result, "first_milliseconds", "{:.0f}"),
                    _value(result, "milliseconds", "{:.2f}"),
                    _value(result, "speed", "{:.2f}"),
                ]
                for row, ways in attention.items()
                for way, result in ways.items()
                if isinstance(result, Mapping)
            ],
        ),
        *_missing(found),
    ]
    return "\n".join(lines) + "\n"


def _shape(training: Found) -> str:
    if not training:
        return "unknown shape"
    shape = training["shape"]
    samples = training["samples_per_step"] // training["micro_batches"]
    return (
        f"{samples} samples with {shape['tokens']} tokens, {shape['tiles']} tiles, {shape['masks']} masks and "
        f"{shape['code_tokens'] - samples} depth codes"
    )


def _value(result: Found, key: str, form: str) -> str:
    return form.format(result[key]) if key in result else "–"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line: Callable[[Sequence[str]], str] = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    return [line(head), line(["---"] + ["---:"] * (len(head) - 1)), *map(line, rows)]


def _missing(found: Mapping[str, Found]) -> list[str]:
    """A line for each measurement, or way to attend, that gave nothing."""
    parts = dict(found)
    for name, result in found.items():
        parts |= {f"{name}, {way}": part for way, part in result.items() if isinstance(part, Mapping)}
    lines = [
        f"- {name}: {fault}, {str(part[fault]).strip().splitlines()[-1]}"
        for name, part in parts.items()
        for fault in ("failed", "skipped")
        if fault in part
    ]
    return ["", "Not measured:", "", *lines] if lines else []


def fill(page: Path, text: str, *, start: str = START, end: str = END) -> None:
    """Put `text` between the marks `start` and `end` of a page.

    Raises:
        ValueError: the page is missing, or lacks the marks.
    """
    if not page.is_file():
        raise ValueError(f"{page}: not found; it holds the words around the tables")
    old = page.read_text(encoding="utf-8")
    if (old.count(start), old.count(end)) != (1, 1) or old.index(start) > old.index(end):
        raise ValueError(f"{page}: expected {start} and, after it, {end}, each once")
    page.write_text(f"{old[: old.index(start)]}{start}\n{text}{old[old.index(end) :]}", encoding="utf-8")


def main() -> None:
    """Write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="the JSON file of benchmarks.full_size")
    parser.add_argument("page", type=Path, help="the Markdown page, with the marks")
    arguments = parser.parse_args()
    fill(arguments.page, tables(json.loads(arguments.measured.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
