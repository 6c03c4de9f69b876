"""What a question can be about: objects with a name, pairs that lie clearly apart, phrases that fit or fit nothing (ours)."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from perceptio_core.scenes.expressions import MARGIN, NOUNS, RELATIONS, Phrase, offset, shortest_phrase
from perceptio_core.scenes.view import Seen, View
from perceptio_core.scenes.world import COLORS, SHAPES

T = TypeVar("T")


def named_object(view: View, rng: np.random.Generator, *, without: str | None = None) -> tuple[Seen, Phrase] | None:
    """A random object with a phrase that names it without doubt and without the attribute `without`."""
    if not view.objects:
        return None
    target = view.objects[int(rng.integers(len(view.objects)))]
    phrase = shortest_phrase(view=view, target=target, rng=rng, without=without)
    return None if phrase is None else (target, phrase)


def apart_pair(view: View, rng: np.random.Generator) -> tuple[tuple[Seen, Phrase], tuple[Seen, Phrase], str] | None:
    """Two named objects, and the relation of the first to the second where it holds by far more than any other."""
    first, second = named_object(view, rng), named_object(view, rng)
    if first is None or second is None or first[0] is second[0]:
        return None
    by = {relation: offset(first[0], second[0], relation) for relation in RELATIONS}
    relation = max(by, key=lambda r: by[r])
    across = max(v for r, v in by.items() if (r in ("above", "below")) != (relation in ("above", "below")))
    return (first, second, relation) if by[relation] >= 1.5 * MARGIN and by[relation] >= 1.5 * across else None


def any_phrase(view: View, rng: np.random.Generator, *, detailed: bool = False) -> Phrase | None:
    """A true phrase about some object, not necessarily only about it; `detailed`: with its colour."""
    if not view.objects:
        return None
    thing = view.objects[int(rng.integers(len(view.objects)))]
    noun = pick(NOUNS[thing.shape], rng)
    form = 1 if detailed else int(rng.integers(4))
    return (
        Phrase(noun=noun),
        Phrase(noun=noun, color=thing.color),
        Phrase(noun="object", color=thing.color),
        Phrase(noun=noun, material=thing.material),
    )[form]


def foreign_phrase(view: View, rng: np.random.Generator) -> Phrase | None:
    """A phrase that fits nothing in the picture, mostly one attribute away from something that is there."""
    for _ in range(8):
        near = any_phrase(view, rng)
        noun = pick(NOUNS[pick(SHAPES, rng)], rng) if near is None or rng.random() < 0.5 else near.noun
        color = pick(tuple(COLORS), rng) if noun == "object" or rng.random() < 0.6 else None
        phrase = Phrase(noun=noun, color=color)
        if number_of(view, phrase) == 0:
            return phrase
    return None


def certain(view: View, phrase: Phrase) -> bool:
    """Whether no fragment, which one may or may not notice, fits the phrase."""
    return not any(phrase.fits(seen) for seen in view.fragments)


def number_of(view: View, phrase: Phrase) -> int:
    """How many objects fit a phrase."""
    return sum(phrase.fits(seen) for seen in view.objects)


def pick(values: Sequence[T], rng: np.random.Generator) -> T:
    """One of the values, all equally likely."""
    return values[int(rng.integers(len(values)))]
