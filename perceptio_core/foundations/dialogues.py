"""What mini's InternVL is asked about procedural scenes while it learns language (ours).

Besides the generic questions of `scenes.language` there are three kinds whose answers stand where co-training will write
perception tokens; a real InternVL, which has read answers of every form, needs no such rehearsal. Raster maps say for each
square of the picture its colour or how bright it is; finds say in which cell an object is that an expression
names; choices say which of the marked points is the brightest. The tokens that stand for perception tokens are replaced on
the input side (word dropout, arXiv 1511.06349), and so is the verb of a find, by random ones that mean nothing: what is to
be read in the picture then follows from the place in the sequence alone, as it must for tokens that are added later. Nothing
is said of depth, depth order or masks.
"""

# ruff: noqa: N815 (shape suffixes of fields are upper case)

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast

from perceptio_core.data.shards.markers import QUESTION, Marker
from perceptio_core.foundations.cache import SceneCache
from perceptio_core.foundations.internvl_model import IMAGE_TOKENS
from perceptio_core.scenes.expressions import referring_expressions, shortest_phrase
from perceptio_core.scenes.language import (
    brightness_map,
    color_map,
    conversations,
    foundation_question,
    level_words,
    lookups,
)
from perceptio_core.scenes.render import Rendering
from perceptio_core.scenes.subjects import pick
from perceptio_core.scenes.view import GRID, View, look

LEAD = ":"  # stands where a perception token stands that is not a code
VERB = " point"
MARKED = QUESTION[: QUESTION.index("Which point")]
CHOICE, PAIR = "Which point is the whitest in the {}?", "Which point is whiter in the {}, {} or {}?"
KINDS = ("white", "color")  # of maps
# until these shares of the steps there are only maps, at first all after one and the same question; then only the simplest of
# everything: where a square is to be found is learned from one distance soon, and from several at once not at all
ONE_QUESTION, MAPS_ALONE, SIMPLE = 0.12, 0.2, 0.5
MAPS, NEW = 0.2, 0.6  # share of maps later; share of finds and choices among the rest
MAP_HIDDEN = 0.8  # share of the maps whose tokens are replaced on the input side
MAP_BEFORE, MAP_BEFORE_HIDDEN = 0.4, 0.5  # share of the finds and choices after a map, and of these maps that are replaced
DRAWN = 0.6  # share of the choices that are about a map drawn at random
# bytes that no text here holds: their tokens keep their first, random embeddings, which resemble no word's
MEANINGLESS = [chr(byte) for byte in range(0xAE, 0x100)]
LONG_ANSWER = 16  # tokens; each token of a longer answer weighs as one of such an answer
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question and its answer.

    Attributes:
        question, answer: texts.
        find: the answer is about one object; LEAD is written before it.
        squares: words of a map that is written before the answer.
        chosen_N: bool, the patches that the answer is about, where it must choose among several.
        box: of the object of a find: centre (x, y), width and height in shares of the picture.
        drawn: the answer follows from the dialogue's map, which was drawn at random: the map is given, not asked for.
    """

    question: str
    answer: str
    find: bool = False
    squares: Sequence[str] = ()
    chosen_N: np.ndarray | None = None
    box: Box | None = None
    drawn: bool = False


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A dialogue in tokens. `heard`: the ids that the model is given in place of `ids`; `weights`: in the loss of predicting
    each token; `answers`: for each turn, the places from which its answer (maps aside) is predicted, its LEAD first;
    `prompts`: where each turn's prompt begins; `squares`: the places of the words of the dialogue's map, if it has one.
    """

    ids: list[int]
    heard: list[int]
    weights: list[float]
    answers: list[list[int]]
    prompts: list[int]
    squares: list[int]


def rendering_of(cache: SceneCache, index: int) -> Rendering:
    """The cached rendering of a scene."""
    return Rendering(
        image=np.asarray(cache.images[index]),
        depth=np.asarray(cache.depth[index]),
        instances=np.asarray(cache.instances[index]),
    )


def dialogue(
    cache: SceneCache, index: int, markers: list[Marker], rng: np.random.Generator, *, turns: int, progress: float
) -> list[Turn]:
    """Up to `turns` turns about one cached scene with these markers, as they are drawn at a share `progress` of the steps."""
    rendering, world = rendering_of(cache, index), cache.world(index)
    if progress < MAPS_ALONE or rng.random() < MAPS:
        kind = pick(KINDS, rng)
        question = map_question(kind, marked=bool(markers) and progress >= ONE_QUESTION)
        squares = brightness_map(rendering) if kind == "white" else color_map(world, rendering)
        return [Turn(question=question, answer="", squares=squares)]
    simple = progress < SIMPLE
    if rng.random() < NEW:
        if markers and not simple and rng.random() < DRAWN:
            return choices(rendering, markers, rng, turns=turns, squares=drawn_map(rng), drawn=True)
        squares = []
        if rng.random() < MAP_BEFORE:
            squares = brightness_map(rendering)
        if markers:
            return choices(rendering, markers, rng, turns=turns, squares=squares)
        found = finds(look(world, rendering), rendering, rng, turns=turns, simple=simple, squares=squares)
        if found:
            return found
    if simple:
        texts = lookups(world, rendering, rng, turns, markers)
    elif markers:
        texts = [foundation_question(world, rendering, rng, markers) for _ in range(turns)]
    else:
        texts = conversations(world, rendering, rng, turns)
    return [Turn(question=question, answer=answer) for question, answer in texts]


def map_question(kind: str, *, marked: bool) -> str:
    """The question for a map; its length in tokens is that of co-training's questions."""
    return f"{MARKED}Which is the {kind} map for the image?" if marked else f"What is the {kind} map for the image?"


def finds(
    view: View, rendering: Rendering, rng: np.random.Generator, *, turns: int, simple: bool, squares: Sequence[str]
) -> list[Turn]:
    """One turn each for some objects; `simple`: named by attributes alone."""
    found: list[Turn] = []
    for number in rng.permutation(len(view.objects)).tolist():
        target = view.objects[number]
        if simple:
            phrase = shortest_phrase(view=view, target=target, rng=rng)
            expressions = [f"the {phrase}"] if phrase else []
        else:
            expressions = [str(e) for e in referring_expressions(view=view, target=target, rng=rng, count=1)]
        for expression in expressions:
            shown_HW = rendering.instances == target.instance
            found.append(
                Turn(
                    question=f"Please{VERB} {expression} in this image.",
                    answer=f"{target.cell[0]}, {target.cell[1]}",
                    find=True,
                    squares=() if found else squares,
                    chosen_N=patches_of(shown_HW),
                    box=box_of(shown_HW),
                )
            )
        if len(found) == turns:
            break
    return found


def patches_of(shown_HW: np.ndarray, *, covered: float = 0.25) -> np.ndarray:
    """(GRID * GRID,) bool: the patches of which a mask covers a share `covered`, or the most, if that is less."""
    side = len(shown_HW) // GRID
    share_PP = shown_HW.reshape(GRID, side, GRID, side).mean(axis=(1, 3))
    return ((share_PP >= min(covered, float(share_PP.max()))) & (share_PP > 0)).reshape(-1)


def box_of(shown_HW: np.ndarray) -> Box:
    """Bounding box of a mask: centre and size in shares of the picture."""
    rows, columns = np.flatnonzero(shown_HW.any(1)), np.flatnonzero(shown_HW.any(0))
    height, width = shown_HW.shape
    left, right, top, bottom = columns[0] / width, (columns[-1] + 1) / width, rows[0] / height, (rows[-1] + 1) / height
    return float(left + right) / 2, float(top + bottom) / 2, float(right - left), float(bottom - top)


def drawn_map(rng: np.random.Generator) -> list[str]:
    """Levels of a raster that has to do with no picture: smooth, coarse or fine."""
    side = int(rng.integers(2, GRID + 1))
    coarse = Image.fromarray(rng.random((side, side), dtype=np.float32))
    return level_words(np.asarray(coarse.resize((GRID, GRID), Image.Resampling.BICUBIC)))


def choices(
    rendering: Rendering,
    markers: Sequence[Marker],
    rng: np.random.Generator,
    *,
    turns: int,
    squares: Sequence[str],
    drawn: bool = False,
) -> list[Turn]:
    """Which of the points is the brightest in the picture, or if `drawn`, in the map `squares`; then which of some pairs is.

    Points of one level are not compared.
    """
    levels = [int(word) for word in (squares if drawn else brightness_map(rendering))]
    where = "map" if drawn else "image"
    height, width = rendering.instances.shape
    places = [marker.y * GRID // height * GRID + marker.x * GRID // width for marker in markers]
    bright = np.array([levels[place] for place in places])

    def turn(question: str, which: np.ndarray, squares: Sequence[str]) -> Turn:
        best = int(which[np.argmax(bright[which])])
        chosen_N = np.zeros(GRID * GRID, bool)
        chosen_N[places[best]] = True
        answer = f"({markers[best].letter})"
        return Turn(question=question, answer=answer, squares=squares, chosen_N=chosen_N, drawn=drawn)

    asked: list[Turn] = []
    ordered = np.sort(bright)
    if ordered[-1] > ordered[-2]:
        asked.append(turn(MARKED + CHOICE.format(where), np.arange(len(markers)), squares))
    for _ in range(4 * turns):
        if len(asked) >= turns:
            break
        pair = rng.choice(len(markers), 2, replace=False)
        if bright[pair[0]] != bright[pair[1]]:
            question = PAIR.format(where, *(markers[int(i)].letter for i in pair))
            asked.append(turn(question, pair, () if asked else squares))
    if not asked:
        squares = brightness_map(rendering)
        asked.append(Turn(question=map_question("white", marked=True), answer="", squares=squares))
    return asked


def prompt(question: str, *, first: bool) -> str:
    """The chat template around a question."""
    image = f"<img>{'<IMG_CONTEXT>' * IMAGE_TOKENS}</img>\n" if first else ""
    return f"<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"


@lru_cache(maxsize=8192)
def _tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The tokens of a text, which nobody may change."""
    ids: list[int] = tokenizer.encode(text)
    return ids


def encode(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn], rng: np.random.Generator) -> Encoded:
    """Tokens of a whole dialogue about one image.

    The tokens of an answer and its end share a weight of 1 (more, if they are more than LONG_ANSWER), so that one word of
    colour counts as much as a caption, and so do those of a map; prompts have none.

    Raises:
        ValueError: a word of a map is not a single token.
    """
    encoded = Encoded(ids=[], heard=[], weights=[], answers=[], prompts=[], squares=[])
    lead, newline = _tokens(tokenizer, LEAD), _tokens(tokenizer, "\n")
    meaningless = tokenizer.convert_tokens_to_ids(MEANINGLESS)

    def noise(count: int) -> list[int]:
        return [meaningless[i] for i in rng.integers(len(meaningless), size=count)]

    def write(ids: list[int], heard: list[int], weight: float) -> None:
        encoded.ids.extend(ids)
        encoded.heard.extend(heard)
        encoded.weights.extend([weight] * len(ids))

    for number, turn in enumerate(turns):
        encoded.prompts.append(len(encoded.ids))
        asked = _tokens(tokenizer, prompt(turn.question, first=number == 0))
        heard = list(asked)
        places = []
        if turn.find:
            heard[asked.index(_tokens(tokenizer, VERB)[0])] = noise(1)[0]
        write(asked, heard, 0.0)
        answer = _tokens(tokenizer, turn.answer) if turn.answer else []
        share = 1.0 / min(len(answer) + turn.find + 1, LONG_ANSWER)
        if turn.find:
            places = [len(encoded.ids) - 1, len(encoded.ids)]
            write(lead, noise(1), share)
        if turn.squares:
            words = [_tokens(tokenizer, f" {word}") for word in turn.squares]
            if any(len(word) > 1 for word in words):
                raise ValueError(f"words of a map that are not single tokens: {sorted(set(turn.squares))}")
            ids = [*lead, *(word[0] for word in words), *lead]
            hidden = not turn.drawn and rng.random() < (MAP_BEFORE_HIDDEN if turn.answer else MAP_HIDDEN)
            encoded.squares.extend(range(len(encoded.ids) + 1, len(encoded.ids) + 1 + len(words)))
            write(ids, noise(len(ids)) if hidden else ids, 0.0 if turn.drawn else 1.0 / LONG_ANSWER)
        places += range(len(encoded.ids) - 1, len(encoded.ids) + len(answer) - 1)
        end = [tokenizer.eos_token_id]
        write([*answer, *end], [*answer, *end], share)
        write(newline, newline, 0.0)
        encoded.answers.append(sorted(set(places)))
    return encoded
