"""What an object is, said in the answer after its mask: RefCOCO samples with object descriptions (the paper; how is ours).

Where the paper's descriptions come from is not known to us. Here, without a captioner, an object is described by what else
people called it: RefCOCO has about three expressions an object, and RefCOCO, RefCOCO+ and RefCOCOg often the same object.
"""

from __future__ import annotations

from collections.abc import Sequence

from perceptio_core.data.records import SEGMENT_ANSWER, Record, described_answer


def described_turns(records: Sequence[Record], *, known: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    """The turns of a conversation; an answer that says no more than `SEGMENT_ANSWER` goes on with a description of its object.

    That is the longest expression among `known` for the very same mask: not its own, and not one that a later turn asks for,
    as its text would tell that turn which mask to repeat. Without such an expression the answer stays as it is.

    Args:
        records: of the conversation.
        known: records of the same image that objects may be described from; without any, all turns stay.
    """
    turns = []
    for number, record in enumerate(records):
        asked = {_plain(later.expression) for later in records[number:]}
        for question, answer in record.turns:
            if answer == SEGMENT_ANSWER and record.masks is not None and len(record.masks) == 1:
                same = [other.expression for other in known if other.masks == record.masks and other.expression]
                others = [expression for expression in same if _plain(expression) not in asked]
                # The longest; of two, the first in the alphabet.
                answer = described_answer(min(others, key=lambda text: (-len(text), text))) if others else answer
            turns.append((question, answer))
    return tuple(turns)


def _plain(expression: str | None) -> str:
    """An expression without what does not tell it from another."""
    return " ".join((expression or "").casefold().split())
