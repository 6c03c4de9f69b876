"""Referring expressions: noun phrases with a meaning, and the search for ones that name exactly one object (ours).

Three forms, in the manner of RefCOCO's: attributes only as needed ("the striped red ball"), a relation in the image plane
to another object that is itself named without doubt ("the red box left of the cone"), and order ("the leftmost cylinder",
"the second box from the right"). None speaks of depth or of physical size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from perceptio_core.scenes.view import Seen, View

NOUNS = {"sphere": ("ball", "sphere"), "box": ("box", "block"), "cylinder": ("cylinder",), "cone": ("cone",)}
SHAPE_OF_NOUN = {noun: shape for shape, nouns in NOUNS.items() for noun in nouns} | {"object": None}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
ORDINALS = ("second", "third")
MARGIN = 0.08  # share of the image side by which places must differ before one is said to be left of, above ... the other
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Phrase:
    """A noun with attributes; `noun` "object" fits every shape, an absent attribute every value."""

    noun: str
    color: str | None = None
    material: str | None = None

    def __str__(self) -> str:
        return " ".join(word for word in (self.material, self.color, self.noun) if word)

    @property
    def plural(self) -> str:
        """The phrase for several of them."""
        return f"{self}es" if self.noun == "box" else f"{self}s"

    def fits(self, seen: Seen) -> bool:
        """Whether all that the phrase says is true of the object."""
        shape = SHAPE_OF_NOUN[self.noun]
        return (
            (shape is None or shape == seen.shape)
            and (self.color is None or self.color == seen.color)
            and (self.material is None or self.material == seen.material)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Expression:
    """A definite description: a phrase, alone, or with `relation` to an `anchor`, or as number `rank` (1 = first) from a
    `side` ("left" or "right").
    """

    phrase: Phrase
    relation: str | None = None
    anchor: Phrase | None = None
    side: str | None = None
    rank: int = 1

    def __str__(self) -> str:
        if self.side is not None:
            if self.rank == 1:
                return f"the {self.side}most {self.phrase}"
            return f"the {ORDINALS[self.rank - 2]} {self.phrase} from the {self.side}"
        if self.relation is not None:
            return f"the {self.phrase} {self.relation} the {self.anchor}"
        return f"the {self.phrase}"

    def denotes(self, view: View) -> Seen | None:
        """The one object that the expression names without doubt, else None. Margins make the doubtful cases None."""
        fitting = [seen for seen in view.objects if self.phrase.fits(seen)]
        if not fitting or any(self.phrase.fits(seen) for seen in view.fragments):
            return None
        if self.side is not None:
            return _ranked(fitting, self.side, self.rank)
        if self.relation is None:
            return fitting[0] if len(fitting) == 1 else None
        assert self.anchor is not None
        anchor = Expression(phrase=self.anchor).denotes(view)
        if anchor is None:
            return None
        beyond = [seen for seen in fitting if seen is not anchor and offset(seen, anchor, self.relation) > 0]
        return beyond[0] if len(beyond) == 1 and offset(beyond[0], anchor, self.relation) >= MARGIN else None


def offset(seen: Seen, anchor: Seen, relation: str) -> float:
    """How far `seen` lies from `anchor` in the direction of a relation, in shares of the image side."""
    right, down = RELATIONS[relation]
    return right * (seen.x - anchor.x) + down * (seen.y - anchor.y)


def referring_expressions(*, view: View, target: Seen, rng: np.random.Generator, count: int) -> list[Expression]:
    """Up to `count` different expressions for an object of the view, of mixed forms; fewer, or none, where none is clear."""
    found: dict[str, Expression] = {}
    for _ in range(4 * count):
        if len(found) == count:
            break
        draw = (_plain, _plain, _related, _ordered)[int(rng.integers(4))]
        for expression in draw(view, target, rng):
            if expression.denotes(view) is target:
                found.setdefault(str(expression), expression)
                break
    return list(found.values())


def shortest_phrase(*, view: View, target: Seen, rng: np.random.Generator, without: str | None = None) -> Phrase | None:
    """A phrase with as few attributes as name the object without doubt; `without` bars "color", "material" or "shape"."""
    for phrase in _phrases(target, rng):
        barred = phrase.noun != "object" if without == "shape" else without is not None and getattr(phrase, without) is not None
        if not barred and Expression(phrase=phrase).denotes(view) is target:
            return phrase
    return None


def _phrases(target: Seen, rng: np.random.Generator) -> list[Phrase]:
    """Every true phrase about the object, the shorter first, equals shuffled; "object" only where it carries an attribute."""
    nouns = NOUNS[target.shape]
    noun = nouns[int(rng.integers(len(nouns)))]
    color, material = target.color, target.material
    short = [Phrase(noun=noun)]
    middle = [
        Phrase(noun=noun, color=color),
        Phrase(noun=noun, color=color),
        Phrase(noun=noun, material=material),
        Phrase(noun="object", color=color),
    ]
    long = [Phrase(noun=noun, color=color, material=material), Phrase(noun="object", color=color, material=material)]
    return short + [middle[int(i)] for i in rng.permutation(4)] + long


def _plain(view: View, target: Seen, rng: np.random.Generator) -> Iterator[Expression]:
    phrase = shortest_phrase(view=view, target=target, rng=rng)
    if phrase is not None:
        # people say more than they must; a quarter of the time so does this
        if phrase.color is None and rng.random() < 0.25:
            phrase = replace(phrase, color=target.color)
        yield Expression(phrase=phrase)


def _related(view: View, target: Seen, rng: np.random.Generator) -> Iterator[Expression]:
    phrases = _phrases(target, rng)[:5]
    for anchor in _shuffled([seen for seen in view.objects if seen is not target], rng):
        named = shortest_phrase(view=view, target=anchor, rng=rng)
        if named is None:
            continue
        for relation in _shuffled(list(RELATIONS), rng):
            if offset(target, anchor, relation) >= MARGIN:
                for phrase in phrases:
                    yield Expression(phrase=phrase, relation=relation, anchor=named)


def _ordered(view: View, target: Seen, rng: np.random.Generator) -> Iterator[Expression]:
    for phrase in _phrases(target, rng)[:5]:
        fitting = sorted((seen for seen in view.objects if phrase.fits(seen)), key=lambda seen: seen.x)
        if len(fitting) < 2:
            continue  # "the leftmost" of one is odd
        place = fitting.index(target)
        for side, rank in (("left", place + 1), ("right", len(fitting) - place)):
            # the second of two is the last: nobody counts it
            if rank == 1 or (rank <= 1 + len(ORDINALS) and rank < len(fitting)):
                yield Expression(phrase=phrase, side=side, rank=rank)


def _ranked(fitting: Sequence[Seen], side: str, rank: int) -> Seen | None:
    """Number `rank` from a side, if its neighbours in that order are clearly apart from it."""
    line = sorted(fitting, key=lambda seen: seen.x, reverse=side == "right")
    if rank > len(line):
        return None
    place = rank - 1
    for other in (place - 1, place + 1):
        if 0 <= other < len(line) and abs(line[other].x - line[place].x) < MARGIN / 2:
            return None
    return line[place]


def _shuffled(values: Sequence[T], rng: np.random.Generator) -> list[T]:
    return [values[int(i)] for i in rng.permutation(len(values))]
