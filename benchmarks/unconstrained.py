"""How well a model keeps to the grammar by itself: answers written by `transformers`' ``generate`` with nothing to hold them.

``python -m benchmarks.unconstrained`` after ``make demo``. In use, the grammar sees to it that a depth span has exactly N codes
and is closed, so nothing that is measured there says whether a model has learned that. Here nobody counts for it. Of the
answers of each benchmark, in %:

- parsable: the whole answer follows the grammar, and it ends;
- opened: there is a depth span; of these
- N codes: as many codes follow one another as the grammar has, no fewer and no more;
- closed: the token that closes the span comes next after the codes, however many they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from benchmarks.decoding import TEXT_TOKENS
from perceptio_core.data.images import open_image
from perceptio_core.evaluation.benchmarks.load import load_benchmark
from perceptio_core.grammar import Grammar
from perceptio_core.model.inference import Perceptor
from perceptio_core.params.profile import load_profile
from perceptio_core.progress import track
from perceptio_core.vocabulary import Vocabulary

MASKS = 8
"""[SEG] tokens that an answer has room for."""


@dataclass(frozen=True)
class Kept:
    """What an answer kept of the grammar."""

    parsable: bool
    opened: bool
    counted: bool
    closed: bool


def kept(ids: Sequence[int], *, grammar: Grammar, vocabulary: Vocabulary, end_id: int) -> Kept:
    """What the ids of an answer keep of the grammar.

    Args:
        ids: as written, from the first on; those after the first end token do not count.
        grammar: of the model.
        vocabulary: ids of the perception tokens.
        end_id: the token that ends an answer.
    """
    ended = end_id in ids
    ids = list(ids[: ids.index(end_id)]) if ended else list(ids)
    try:
        grammar.parse([*ids, end_id] if ended else ids, vocabulary=vocabulary, end_id=end_id)
        parsable = ended
    except ValueError:
        parsable = False
    if vocabulary.depth_start not in ids:
        return Kept(parsable=parsable, opened=False, counted=False, closed=False)
    after = ids[ids.index(vocabulary.depth_start) + 1 :]
    codes = sum(1 for _ in takewhile(lambda token: 0 <= token - vocabulary.first_code < vocabulary.num_codes, after))
    closed = after[codes : codes + 1] == [vocabulary.depth_end]
    return Kept(parsable=parsable, opened=True, counted=codes == grammar.depth_tokens, closed=closed)


def main() -> None:
    """Print a row a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts/mini"))
    parser.add_argument("--variant", default="full")
    parser.add_argument("--questions", type=int, default=150, help="of each benchmark, the first ones (%(default)s)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, help="a JSON file for the same figures")
    arguments = parser.parse_args()
    perceptor = Perceptor.from_pretrained(arguments.artifacts / "cotrain" / arguments.variant / "checkpoint")
    config, found = perceptor.model.config, {}
    for entry in load_profile(arguments.artifacts.name).evaluate.benchmarks:
        if entry.is_control or not entry.is_for(arguments.variant):
            continue
        items = load_benchmark(entry, root=arguments.artifacts / "sources" / "root").items[: arguments.questions]
        answers: list[Kept] = []
        for start in track(range(0, len(items), arguments.batch), label=entry.label, unit="batches"):
            batch = items[start : start + arguments.batch]
            written = free_answers(perceptor, [item.image for item in batch], [item.question for item in batch])
            answers += [
                kept(ids, grammar=config.grammar, vocabulary=config.vocabulary, end_id=config.end_token_id) for ids in written
            ]
        opened = [one for one in answers if one.opened]
        found[entry.label] = {
            "answers": len(answers),
            "parsable": _share(answers, "parsable"),
            "opened": _share(answers, "opened"),
            "N codes": _share(opened, "counted"),
            "closed": _share(opened, "closed"),
        }
        print(entry.label, json.dumps(found[entry.label]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def free_answers(perceptor: Perceptor, images: Sequence[Path], questions: Sequence[str]) -> list[list[int]]:
    """Greedy answers without a grammar, as ids up to their end."""
    config = perceptor.model.config
    prompts = perceptor.processor.prompts([open_image(image) for image in images], list(questions))
    vlm, prompt_length = perceptor.model.vlm, prompts.input_ids_BT.shape[1]
    sequences = vlm.generate(
        input_ids=prompts.input_ids_BT.to(vlm.device),
        attention_mask=prompts.attention_mask_BT.to(vlm.device),
        pixel_values=prompts.pixels_PCHW.to(vlm.device, vlm.dtype),
        max_new_tokens=MASKS + config.grammar.depth_tokens + 2 + TEXT_TOKENS,
        do_sample=False,
        eos_token_id=config.end_token_id,
        pad_token_id=config.end_token_id,
    )
    rows: list[list[int]] = sequences[:, prompt_length:].tolist()
    return rows


def _share(answers: Sequence[Kept], name: str) -> float | None:
    return round(100 * sum(getattr(one, name) for one in answers) / len(answers), 1) if answers else None


if __name__ == "__main__":
    main()
