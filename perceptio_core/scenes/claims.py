"""Pairs of yes/no questions about one picture, one true and one false, in the form of MME's (ours).

The topics bear MME's names for the subtasks that fit the world: four of perception, one of cognition.
"""

from collections.abc import Callable

import numpy as np

from perceptio_core.scenes.expressions import NOUNS, Phrase
from perceptio_core.scenes.questions import NUMBERS, Question, a_or_an, yes_no
from perceptio_core.scenes.subjects import any_phrase, apart_pair, certain, named_object, number_of, pick
from perceptio_core.scenes.view import View
from perceptio_core.scenes.world import COLORS, SHAPES

CLOSING = "Please answer yes or no."
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def claims(topic: str, view: View, rng: np.random.Generator) -> tuple[Question, Question] | None:
    """The question with answer "Yes" and the one with answer "No", or None where the picture admits no clear pair.

    Raises:
        ValueError: the topic is not one of `TOPICS`.
    """
    if topic not in _MAKERS:
        raise ValueError(f"topic {topic!r}: allowed are {', '.join(_MAKERS)}")
    pair = _MAKERS[topic](view, rng)
    if pair is None:
        return None
    true, false = pair
    return yes_no(f"{true} {CLOSING}", True), yes_no(f"{false} {CLOSING}", False)


def _existence(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    phrases = [Phrase(noun=NOUNS[shape][0]) for shape in SHAPES]
    return _is_there(phrases, view, rng)


def _color(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    named = named_object(view, rng)
    if named is None:
        return None
    noun = pick(NOUNS[named[0].shape], rng)
    return _is_there([Phrase(noun=noun, color=color) for color in COLORS], view, rng)


def _is_there(phrases: list[Phrase], view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    sure = [phrase for phrase in phrases if certain(view, phrase)]
    present = [phrase for phrase in sure if number_of(view, phrase)]
    absent = [phrase for phrase in sure if not number_of(view, phrase)]
    if not present or not absent:
        return None
    chosen = pick(present, rng), pick(absent, rng)
    true, false = (f"Is there {a_or_an(str(phrase))} in this image?" for phrase in chosen)
    return true, false


def _count(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    phrase = any_phrase(view, rng)
    if phrase is None or not certain(view, phrase):
        return None
    count = number_of(view, phrase)
    other = count + pick((-1, 1), rng) if count > 1 else count + 1
    true, false = (
        f"Is there only one {phrase} in the image?"
        if n == 1
        else f"Are there a total of {NUMBERS[n]} {phrase.plural} in the image?"
        for n in (count, other)
    )
    return true, false


def _position(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    pair = apart_pair(view, rng)
    if pair is None:
        return None
    (_, first), (_, second), relation = pair
    true, false = (f"Is the {first} {word} the {second} in the image?" for word in (relation, OPPOSITE[relation]))
    return true, false


def _calculation(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    """A sum of two counts, the true one and one that is off by one."""
    first, second = (Phrase(noun=NOUNS[SHAPES[int(i)]][0]) for i in rng.permutation(len(SHAPES))[:2])
    if not (certain(view, first) and certain(view, second)):
        return None
    total = number_of(view, first) + number_of(view, second)
    if total == 0:
        return None
    other = total + pick((-1, 1), rng)
    true, false = (
        f"Is the number of {first.plural} plus the number of {second.plural} equal to {NUMBERS[n]}?" for n in (total, other)
    )
    return true, false


_MAKERS: dict[str, Callable[[View, np.random.Generator], tuple[str, str] | None]] = {
    "existence": _existence,
    "count": _count,
    "position": _position,
    "color": _color,
    "numerical_calculation": _calculation,
}
TOPICS = tuple(_MAKERS)
