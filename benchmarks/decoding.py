"""Answers with depth tokens, written in three ways: ours, one code at a time, and by `transformers`' ``generate``.

``python -m benchmarks.decoding`` after ``make demo``: HardBLINK's questions, each answer with a depth span and text. All ways
write the same questions in turn, in float32, `--repeats` times; the medians are printed, and how many answers are the same
to the last id. ``generate`` is held to the same grammar by the same logits processor.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from transformers import LogitsProcessorList

from benchmarks.attention import now
from perceptio_core.data.images import open_image
from perceptio_core.evaluation.benchmarks.hardblink import HardBlink
from perceptio_core.model import depth_draft
from perceptio_core.model.decoding import GrammarLogitsProcessor, decode
from perceptio_core.model.inference import Perceptor
from perceptio_core.model.processing import Prompts

TEXT_TOKENS = 16


class Written(NamedTuple):
    """Ids of each answer, and the forward passes that it took."""

    ids: list[list[int]]
    passes: list[int]


def main() -> None:
    """Print the table, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("artifacts/mini/cotrain/full/checkpoint"))
    parser.add_argument("--hardblink", type=Path, default=Path("artifacts/mini/sources/root/hardblink"))
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 4, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a JSON file for the same figures")
    arguments = parser.parse_args()
    perceptor = Perceptor.from_pretrained(arguments.checkpoint)
    found = []
    for size in arguments.batch:
        batches = hardblink_batches(perceptor, arguments.hardblink, count=arguments.questions, size=size)
        found.append({"batch": size} | compare(perceptor, batches, repeats=arguments.repeats))
        print(json.dumps(found[-1], indent=1), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def hardblink_batches(perceptor: Perceptor, folder: Path, *, count: int, size: int) -> list[Prompts]:
    """The first questions of HardBLINK as prompts, `size` at a time."""
    items = HardBlink(folder, limit=count).items
    images = [open_image(item.image) for item in items]
    return [
        perceptor.processor.prompts(images[start : start + size], [item.question for item in items[start : start + size]])
        for start in range(0, len(items), size)
    ]


def compare(perceptor: Perceptor, batches: Sequence[Prompts], *, repeats: int) -> dict[str, Any]:
    """Questions a second of each way, how often ours is as fast, passes of its mean answer, and whether all wrote the same.

    Args:
        perceptor: on its device.
        batches: prompts; all ways write them in turn.
        repeats: of each way, after one that is not timed.
    """
    ways: dict[str, Callable[[Prompts], Written]] = {
        "ours": partial(ours, perceptor),
        "one code at a time": partial(_one_at_a_time, perceptor),
        "transformers": partial(by_transformers, perceptor),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    written = {}
    for repeat in range(repeats + 1):
        for way, write in ways.items():
            started = now(perceptor.model.device)
            written[way] = [write(prompts) for prompts in batches]
            if repeat:
                seconds[way].append(now(perceptor.model.device) - started)
    questions = sum(len(prompts.images) for prompts in batches)
    rates = {way: questions / statistics.median(taken) for way, taken in seconds.items()}
    answers = {way: [ids for batch, _ in found for ids in batch] for way, found in written.items()}
    passes = [one for _, batch in written["ours"] for one in batch]
    return {
        "questions_per_second": rates,
        "ratio": {way: rates["ours"] / rate for way, rate in rates.items() if way != "ours"},
        "passes": {"mean": statistics.mean(passes), "most": max(passes)},
        "equal": {way: sum(a == b for a, b in zip(answers["ours"], found, strict=True)) for way, found in answers.items()},
        "questions": questions,
    }


def _constraint(perceptor: Perceptor, *, prompt_length: int = 0) -> GrammarLogitsProcessor:
    config = perceptor.model.config
    return GrammarLogitsProcessor(
        grammar=config.grammar,
        vocabulary=config.vocabulary,
        end_id=config.end_token_id,
        prompt_length=prompt_length,
        depth=True,
        max_text_tokens=TEXT_TOKENS,
        never=perceptor.processor.image_token_ids,
    )


def ours(perceptor: Perceptor, prompts: Prompts) -> Written:
    """As `Perceptor` decodes."""
    decoded = decode(perceptor.model.vlm, prompts, constraint=_constraint(perceptor))
    return Written(decoded.ids, decoded.passes)


def _one_at_a_time(perceptor: Perceptor, prompts: Prompts) -> Written:
    with patch.object(depth_draft, "GUESSES_A_PASS", 0):
        return ours(perceptor, prompts)


def by_transformers(perceptor: Perceptor, prompts: Prompts) -> Written:
    """By ``generate`` with the grammar as a logits processor."""
    vlm, prompt_length = perceptor.model.vlm, prompts.input_ids_BT.shape[1]
    constraint = _constraint(perceptor, prompt_length=prompt_length)
    sequences = vlm.generate(
        input_ids=prompts.input_ids_BT.to(vlm.device),
        attention_mask=prompts.attention_mask_BT.to(vlm.device),
        pixel_values=prompts.pixels_PCHW.to(vlm.device, vlm.dtype),
        logits_processor=LogitsProcessorList([constraint]),
        max_new_tokens=constraint.longest,
        do_sample=False,
        eos_token_id=constraint.end_id,
        pad_token_id=constraint.end_id,
    )
    rows = sequences[:, prompt_length:].tolist()
    ids = [row[: row.index(constraint.end_id) + 1] for row in rows]
    return Written(ids, [len(row) for row in ids])


if __name__ == "__main__":
    main()
