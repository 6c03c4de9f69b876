"""What is said about a scene: questions for pretraining, with and without markers, and conversations (ours).

This is the generic language of a vision-language model before co-training: description, attributes, counts, places and
the reading of marker letters. Which point is nearer, how far a thing is, and which pixels an expression means are never
part of it: those are what co-training adds.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from perceptio_core.scenes import questions
from perceptio_core.scenes.claims import TOPICS, claims
from perceptio_core.scenes.questions import Maker, Question, as_multiple_choice, caption, cell_words, describe
from perceptio_core.scenes.render import Rendering
from perceptio_core.scenes.subjects import pick
from perceptio_core.scenes.view import GRID, View, look
from perceptio_core.scenes.world import World

LEVELS = 8  # of brightness in a raster map
CAPTION_REQUESTS = ("Describe the image.", "What is in the image?")
LETTERS = "ABCD"  # of the options of a multiple choice


class Point(Protocol):
    """A drawn marker: its letter and the pixel (column x, row y) that its circle is around."""

    @property
    def letter(self) -> str: ...  # noqa: D102
    @property
    def x(self) -> int: ...  # noqa: D102
    @property
    def y(self) -> int: ...  # noqa: D102


def foundation_question(
    world: World, rendering: Rendering, rng: np.random.Generator, markers: Sequence[Point] | None = None
) -> tuple[str, str]:
    """A random generic question about a picture and its short answer.

    `markers`: the points drawn on the picture, if any; two thirds of the questions are then about them.
    """
    view = look(world, rendering)
    if markers and rng.random() < 2 / 3:
        return _marker_question(view, rendering.instances, markers, rng)
    return _ask(view, rng)


def conversations(world: World, rendering: Rendering, rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    """Up to `n` turns about a picture without markers, no question twice; fewer only where the picture admits no more."""
    return turns_about(look(world, rendering), rng, n)


def turns_about(view: View, rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    """`conversations` for those who hold the view already."""
    turns: dict[str, str] = {}
    for _ in range(4 * n):
        if len(turns) == n:
            break
        question, answer = _ask(view, rng)
        turns.setdefault(question, answer)
    return list(turns.items())


def lookups(
    world: World, rendering: Rendering, rng: np.random.Generator, n: int, markers: Sequence[Point] | None = None
) -> list[tuple[str, str]]:
    """Up to `n` turns of the simplest kind, no question twice: the place of a marker or what letter is at a place; without
    markers, the attributes and places of single objects. A model learns from them to find in the picture what is named.
    """
    view = look(world, rendering)
    turns: dict[str, str] = {}
    for _ in range(4 * n):
        if len(turns) == n:
            break
        if markers:
            turns.setdefault(*_marker_place(rendering.instances, markers, rng))
        elif (question := pick(_LOOKUP_KINDS, rng)(view, rng)) is not None:
            turns.setdefault(question.text, question.answer)
    return list(turns.items())


def color_map(world: World, rendering: Rendering) -> list[str]:
    """The colour of what is in the middle of each square of a GRID x GRID raster, row by row; "nothing" for the background."""
    side = len(rendering.instances) // GRID
    words = []
    for instance in rendering.instances[side // 2 :: side, side // 2 :: side].reshape(-1).tolist():
        thing = world.objects[instance - 1] if instance else None
        if thing is None or thing.role == "platform":
            words.append("nothing")
        else:
            words.append(thing.color)
    return words


def brightness_map(rendering: Rendering) -> list[str]:
    """The brightness of each square of a GRID x GRID raster, row by row: from 10, the darkest of the picture, to 10 * LEVELS
    (tens, as units are the numbers of columns and rows).
    """
    side = len(rendering.image) // GRID
    return level_words(rendering.image.reshape(GRID, side, GRID, side * 3).mean(axis=(1, 3)))


def level_words(values: NDArray[np.floating]) -> list[str]:
    """The level of each value between the least, 10, and the greatest, 10 * LEVELS; in the order of the flattened array."""
    values_N = values.reshape(-1)
    shares_N = (values_N - values_N.min()) / max(float(np.ptp(values_N)), 1e-9)
    return [str(10 + 10 * min(int(LEVELS * share), LEVELS - 1)) for share in shares_N.tolist()]


def multiple_choice(question: Question, rng: np.random.Generator) -> tuple[str, str]:
    """The question with lettered options and the letter of the true one, in the form in which lmms-eval asks."""
    options, place = as_multiple_choice(question, rng)
    lines = [question.text, *(f"{LETTERS[i]}. {option}" for i, option in enumerate(options)), questions.CHOOSE]
    return "\n".join(lines), LETTERS[place]


def _caption_question(view: View, rng: np.random.Generator) -> Question:
    return Question(text=pick(CAPTION_REQUESTS, rng), answer=caption(view))


# the share of each kind among the open questions
_KINDS: tuple[tuple[Maker, float], ...] = (
    (_caption_question, 0.10),
    (questions.color_question, 0.15),
    (questions.shape_question, 0.12),
    (questions.material_question, 0.08),
    (questions.count_question, 0.10),
    (questions.existence_question, 0.10),
    (questions.cell_question, 0.06),
    (questions.place_question, 0.10),
    (questions.content_question, 0.08),
    (questions.part_question, 0.04),
    (questions.relation_question, 0.04),
    (questions.comparison_question, 0.03),
)
_LOOKUP_KINDS: tuple[Maker, ...] = (
    questions.color_question,
    questions.shape_question,
    questions.material_question,
    questions.cell_question,
    questions.content_question,
)
_CHOICE_KINDS: tuple[Maker, ...] = (
    questions.color_question,
    questions.shape_question,
    questions.material_question,
    questions.count_question,
    questions.part_question,
    questions.relation_question,
    questions.identity_question,
)
_CHOICE_SHARE, _CLAIM_SHARE = 0.15, 0.10  # of all questions: multiple choice, and yes/no claims in MME's form


def _ask(view: View, rng: np.random.Generator) -> tuple[str, str]:
    """One question about the view; a caption where ten draws find nothing that can be asked without doubt."""
    weights = np.cumsum([share for _, share in _KINDS])
    for _ in range(10):
        form = rng.random()
        if form < _CHOICE_SHARE:
            question = pick(_CHOICE_KINDS, rng)(view, rng)
            if question is not None:
                return multiple_choice(question, rng)
        elif form < _CHOICE_SHARE + _CLAIM_SHARE:
            pair = claims(pick(TOPICS, rng), view, rng)
            if pair is not None:
                claim = pick(pair, rng)
                return claim.text, claim.answer
        else:
            question = _KINDS[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))][0](view, rng)
            if question is not None:
                return question.text, question.answer
    question = _caption_question(view, rng)
    return question.text, question.answer


def _marker_place(instances_HW: np.ndarray, markers: Sequence[Point], rng: np.random.Generator) -> tuple[str, str]:
    """The place of a marker, or the letter at a place that no other marker shares."""
    height, width = instances_HW.shape
    cells = [(marker.x * GRID // width, marker.y * GRID // height) for marker in markers]
    i = int(rng.integers(len(markers)))
    if rng.random() < 0.5 and cells.count(cells[i]) == 1:
        return f"Which letter is at {cell_words(cells[i])}?", markers[i].letter
    return f"Where is the marker {markers[i].letter}?", cell_words(cells[i])


def _marker_question(
    view: View, instances_HW: np.ndarray, markers: Sequence[Point], rng: np.random.Generator
) -> tuple[str, str]:
    """Read a letter, find a marker, or say what a marker is on."""
    height, width = instances_HW.shape
    cells = [(marker.x * GRID // width, marker.y * GRID // height) for marker in markers]
    i = int(rng.integers(len(markers)))
    marker, cell = markers[i], cells[i]
    thing = next((seen for seen in view.objects if seen.instance == instances_HW[marker.y, marker.x]), None)
    form = rng.random()
    if form < 0.35 and cells.count(cell) == 1:
        return f"Which letter is at {cell_words(cell)}?", marker.letter
    if form < 0.75 or (form < 0.9 and thing is None):
        return f"Where is the marker {marker.letter}?", cell_words(cell)
    if form < 0.83 and thing is not None:
        return f"What color is the object at marker {marker.letter}?", thing.color
    if form < 0.9 and thing is not None:
        return f"What is at marker {marker.letter}?", describe(thing)
    if form < 0.95:
        return "How many markers are there?", questions.NUMBERS[len(markers)]
    return "Which letters are on the image?", ", ".join(sorted(m.letter for m in markers))
