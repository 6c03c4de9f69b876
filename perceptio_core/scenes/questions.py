"""Questions about one picture with one true short answer and plausible wrong ones (ours).

The same facts serve as open questions (pretraining, conversations), as multiple choice (MMBench, SEED-Bench) and as pairs
of yes/no questions (MME). All of them are about the image plane; none about depth, depth order or physical size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from perceptio_core.scenes.expressions import MARGIN, NOUNS, Phrase, referring_expressions
from perceptio_core.scenes.subjects import any_phrase, apart_pair, certain, foreign_phrase, named_object, number_of, pick
from perceptio_core.scenes.view import GRID, Seen, View
from perceptio_core.scenes.world import COLORS, MATERIALS, SHAPES

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
CHOOSE = "Answer with the option's letter from the given choices directly."  # lmms-eval's for MMBench and SEED-Bench
PARTS = ("upper left", "upper right", "lower left", "lower right")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """`wrong`: other answers of the same kind, all false here; empty where the kind has no closed set of answers."""

    text: str
    answer: str
    wrong: tuple[str, ...] = ()


Maker = Callable[[View, np.random.Generator], Question | None]


def a_or_an(words: str) -> str:
    """The words with their indefinite article ("an orange ball")."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(thing: Seen) -> str:
    """An object in words: "a striped red ball"."""
    return a_or_an(str(Phrase(noun=NOUNS[thing.shape][0], color=thing.color, material=thing.material)))


def caption(view: View, *, most: int = 4) -> str:
    """The `most` objects that take the most room, from left to right, and how many more there are."""
    if not view.objects:
        return "nothing"
    largest = sorted(view.objects, key=lambda seen: -seen.pixels)[:most]
    named = [describe(seen) for seen in sorted(largest, key=lambda seen: seen.x)]
    if len(view.objects) > most:
        named.append(f"{NUMBERS[len(view.objects) - most]} more")
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def color_question(view: View, rng: np.random.Generator) -> Question | None:
    """The colour of an object that is named without it."""
    return _attribute_question(view, rng, "color", ("What color is the {}?", "What is the color of the {}?"), tuple(COLORS))


def material_question(view: View, rng: np.random.Generator) -> Question | None:
    """The surface of an object that is named without it."""
    return _attribute_question(
        view, rng, "material", ("What does the surface of the {} look like?", "Is the {} matte, shiny or striped?"), MATERIALS
    )


def shape_question(view: View, rng: np.random.Generator) -> Question | None:
    """The shape of an object that is named without it."""
    names = tuple(NOUNS[shape][0] for shape in SHAPES)
    return _attribute_question(view, rng, "shape", ("What shape is the {}?", "What kind of object is the {}?"), names)


def count_question(view: View, rng: np.random.Generator) -> Question | None:
    """How many objects fit a phrase; now and then none."""
    phrase = any_phrase(view, rng) if rng.random() < 0.8 else foreign_phrase(view, rng)
    if phrase is None or not certain(view, phrase):
        return None
    count = number_of(view, phrase)
    wrong = tuple(NUMBERS[n] for n in range(max(0, count - 3), count + 4) if n != count)
    return Question(
        text=f"How many {phrase.plural} are there{pick((' in the image', ''), rng)}?", answer=NUMBERS[count], wrong=wrong
    )


def existence_question(view: View, rng: np.random.Generator) -> Question | None:
    """Whether something that fits a phrase is in the picture."""
    phrase = any_phrase(view, rng) if rng.random() < 0.5 else foreign_phrase(view, rng)
    if phrase is None or not certain(view, phrase):
        return None
    return yes_no(f"Is there {a_or_an(str(phrase))} in the image?", number_of(view, phrase) > 0)


def identity_question(view: View, rng: np.random.Generator) -> Question | None:
    """Which of several objects is in the picture; only as multiple choice does it have one answer."""
    present = any_phrase(view, rng, detailed=True)
    absent = {
        str(phrase)
        for phrase in (foreign_phrase(view, rng) for _ in range(8))
        if phrase and phrase.color and certain(view, phrase)
    }
    if present is None or not certain(view, present) or len(absent) < 3:
        return None
    wrong = tuple(a_or_an(words) for words in sorted(absent))
    return Question(text="Which of these objects is in the image?", answer=a_or_an(str(present)), wrong=wrong)


def part_question(view: View, rng: np.random.Generator) -> Question | None:
    """In which quarter of the picture an object is, for objects clearly within one."""
    named = named_object(view, rng)
    if named is None or min(abs(named[0].x - 0.5), abs(named[0].y - 0.5)) < MARGIN / 2:
        return None
    part = PARTS[2 * (named[0].y > 0.5) + (named[0].x > 0.5)]
    text = pick(("In which part of the image is the {}?", "Which part of the image is the {} in?"), rng).format(named[1])
    return Question(text=text, answer=part, wrong=tuple(p for p in PARTS if p != part))


def cell_question(view: View, rng: np.random.Generator) -> Question | None:
    """The (column, row) of an object's centroid on the coarse grid."""
    named = named_object(view, rng)
    if named is None:
        return None
    text = pick(("Where is the {}?", "At which cell is the {}?"), rng).format(named[1])
    return Question(text=text, answer=cell_words(named[0].cell))


def place_question(view: View, rng: np.random.Generator) -> Question | None:
    """As `cell_question`, of an object that may be named by a relation or by order too ("the leftmost box")."""
    if not view.objects:
        return None
    target = view.objects[int(rng.integers(len(view.objects)))]
    for expression in referring_expressions(view=view, target=target, rng=rng, count=1):
        text = pick(("Where is {}?", "At which cell is {}?"), rng).format(expression)
        return Question(text=text, answer=cell_words(target.cell))
    return None


def content_question(view: View, rng: np.random.Generator) -> Question | None:
    """What is at a cell that one object clearly owns."""
    rows, columns = np.nonzero(view.owners)
    if not len(rows):
        return None
    # an object first, then one of its cells: large objects would be asked about too often otherwise
    owners = view.owners[rows, columns]
    mine = np.flatnonzero(owners == rng.choice(np.unique(owners)))
    cell = int(rng.choice(mine))
    thing = next(seen for seen in view.objects if seen.instance == owners[cell])
    text = pick(("What is at {}?", "Which object is at {}?"), rng).format(cell_words((int(columns[cell]), int(rows[cell]))))
    return Question(text=text, answer=describe(thing))


def relation_question(view: View, rng: np.random.Generator) -> Question | None:
    """On which side of one object another one lies, where one direction clearly prevails."""
    pair = apart_pair(view, rng)
    if pair is None:
        return None
    (_, first), (_, second), relation = pair
    words = {"left of": "to the left", "right of": "to the right", "above": "above", "below": "below"}
    text = pick(("Where is the {} relative to the {}?", "Seen from the {1}, where in the image is the {0}?"), rng).format(
        first, second
    )
    return Question(text=text, answer=words[relation], wrong=tuple(w for r, w in words.items() if r != relation))


def comparison_question(view: View, rng: np.random.Generator) -> Question | None:
    """Whether two objects have the same colour or surface."""
    first, second = named_object(view, rng), named_object(view, rng)
    if first is None or second is None or first[0] is second[0]:
        return None
    attribute = pick(("color", "material"), rng)
    word = {"color": "color", "material": "kind of surface"}[attribute]
    if getattr(first[1], attribute) or getattr(second[1], attribute):
        return None  # the question would tell its answer
    same = getattr(first[0], attribute) == getattr(second[0], attribute)
    return yes_no(f"Do the {first[1]} and the {second[1]} have the same {word}?", same)


def as_multiple_choice(question: Question, rng: np.random.Generator, *, options: int = 4) -> tuple[list[str], int]:
    """At most `options` options, the true one among them, in random order; and the place of the true one."""
    if not question.wrong:
        raise ValueError(f"{question.text!r} has no wrong answers to choose among")
    wrong = rng.permutation(len(question.wrong))[: options - 1]
    choices = [question.answer, *(question.wrong[int(i)] for i in wrong)]
    order = rng.permutation(len(choices))
    return [choices[int(i)] for i in order], int(np.flatnonzero(order == 0)[0])


def yes_no(text: str, truth: bool) -> Question:
    """A question that is answered "Yes" or "No"."""
    return Question(text=text, answer="Yes" if truth else "No", wrong=("No" if truth else "Yes",))


def cell_words(cell: tuple[int, int]) -> str:
    """(column, row) as it is written in questions and answers: "(3, 5)"."""
    column, row = cell
    if not (0 <= column < GRID and 0 <= row < GRID):
        raise ValueError(f"cell {cell}: columns and rows are 0..{GRID - 1}")
    return f"({column}, {row})"


def _attribute_question(
    view: View, rng: np.random.Generator, attribute: str, templates: tuple[str, ...], values: tuple[str, ...]
) -> Question | None:
    named = named_object(view, rng, without=attribute)
    if named is None:
        return None
    value = NOUNS[named[0].shape][0] if attribute == "shape" else getattr(named[0], attribute)
    return Question(text=pick(templates, rng).format(named[1]), answer=value, wrong=tuple(v for v in values if v != value))
