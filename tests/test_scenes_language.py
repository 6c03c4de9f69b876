"""Referring expressions and questions against an independent reader of their text, on rendered scenes."""

import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from perceptio_core.scenes.claims import TOPICS, claims
from perceptio_core.scenes.expressions import Expression, Phrase, referring_expressions
from perceptio_core.scenes.language import brightness_map, color_map, conversations, foundation_question
from perceptio_core.scenes.questions import Question, as_multiple_choice, describe
from perceptio_core.scenes.render import render
from perceptio_core.scenes.view import Seen, View, look
from perceptio_core.scenes.world import sample_scene, split_seed

SCENES = 40
SHAPE_OF = {
    "ball": "sphere",
    "sphere": "sphere",
    "box": "box",
    "boxes": "box",
    "block": "box",
    "cylinder": "cylinder",
    "cone": "cone",
}
NAME_OF = {"sphere": "ball", "box": "box", "cylinder": "cylinder", "cone": "cone"}
COLORS = {"red", "orange", "yellow", "green", "cyan", "blue", "purple", "white"}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def scenes():
    worlds = [sample_scene(split_seed("val", index)) for index in range(SCENES)]
    return [(world, render(world)) for world in worlds]


class Reader:
    """Knows a scene from its pixels and reads English about it; shares no code with what it tests."""

    def __init__(self, world, rendering):
        self.things = []
        self.map = rendering.instances
        self.side = self.map.shape[0]
        for number, thing in enumerate(world.objects, start=1):
            rows, columns = np.nonzero(self.map == number)
            if thing.role == "object" and len(rows) >= 40:
                x, y = (columns.mean() + 0.5) / self.side, (rows.mean() + 0.5) / self.side
                self.things.append(SimpleNamespace(number=number, thing=thing, x=x, y=y, pixels=len(rows)))

    def fitting(self, phrase):
        *attributes, noun = phrase.split()
        found = self.things
        if not noun.startswith("object"):
            shape = SHAPE_OF[noun] if noun in SHAPE_OF else SHAPE_OF[noun.removesuffix("s")]
            found = [t for t in found if t.thing.shape == shape]
        for word in attributes:
            kind = "color" if word in COLORS else "material"
            found = [t for t in found if getattr(t.thing, kind) == word]
        return found

    def the(self, phrase):
        (only,) = self.fitting(phrase)
        return only

    def refer(self, text):
        """The objects that a definite description fits, read without margins."""
        if match := re.fullmatch(r"the (left|right)most (.+)", text):
            return [self.in_line(match[2], match[1])[0]]
        if match := re.fullmatch(r"the (second|third) (.+) from the (left|right)", text):
            return [self.in_line(match[2], match[3])[["second", "third"].index(match[1]) + 1]]
        if match := re.fullmatch(r"the (.+) (left of|right of|above|below) the (.+)", text):
            return [t for t in self.fitting(match[1]) if self.lies(t, match[2], self.the(match[3])) > 0]
        return self.fitting(text.removeprefix("the "))

    def in_line(self, phrase, side):
        line = sorted(self.fitting(phrase), key=lambda t: t.x)
        return line if side == "left" else line[::-1]

    @staticmethod
    def lies(one, relation, other):
        dx, dy = one.x - other.x, one.y - other.y
        return {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]

    @staticmethod
    def words(t):
        text = f"{t.thing.material} {t.thing.color} {NAME_OF[t.thing.shape]}"
        return f"a {text}"

    def cell(self, t):
        return f"({int(8 * t.x)}, {int(8 * t.y)})"

    def answers(self, text):
        """What may be answered to an open question: a set."""
        text = text.removesuffix(" Please answer yes or no.")
        for pattern, answer in (
            (r"(Describe the image\.|What is in the image\?)", lambda _: self.caption()),
            (r"What (?:is the color of|color is) the (.+)\?", lambda m: self.the(m[1]).thing.color),
            (r"(?:What shape|What kind of object) is the (.+)\?", lambda m: NAME_OF[self.the(m[1]).thing.shape]),
            (r"What does the surface of the (.+) look like\?", lambda m: self.the(m[1]).thing.material),
            (r"Is the (.+) matte, shiny or striped\?", lambda m: self.the(m[1]).thing.material),
            (r"How many (.+?) are there(?: in the image)?\?", lambda m: NUMBERS[len(self.fitting(m[1]))]),
            (r"Is there only one (.+) in the image\?", lambda m: self.yes(len(self.fitting(m[1])) == 1)),
            (r"Is there an? (.+) in (?:the|this) image\?", lambda m: self.yes(self.fitting(m[1]))),
            (
                r"Are there a total of (\w+) (.+) in the image\?",
                lambda m: self.yes(len(self.fitting(m[2])) == NUMBERS.index(m[1])),
            ),
            (r"(?:In which|Which) part of the image is the (.+?)(?: in)?\?", lambda m: self.part(self.the(m[1]))),
            (r"(?:Where is|At which cell is) the ([^(]+)\?", lambda m: self.where(m[1])),
            (r"Seen from the (.+), where in the image is the (.+)\?", lambda m: self.side_of(m[2], m[1])),
            (r"(?:What|Which object) is at \((\d), (\d)\)\?", lambda m: self.at(int(m[1]), int(m[2]))),
            (
                r"Is the number of (.+) plus the number of (.+) equal to (\w+)\?",
                lambda m: self.yes(len(self.fitting(m[1])) + len(self.fitting(m[2])) == NUMBERS.index(m[3])),
            ),
            (
                r"Is the (.+) (left of|right of|above|below) the (.+) in the image\?",
                lambda m: self.yes(self.lies(self.the(m[1]), m[2], self.the(m[3])) > 0),
            ),
            (
                r"Do the (.+) and the (.+) have the same color\?",
                lambda m: self.yes(self.the(m[1]).thing.color == self.the(m[2]).thing.color),
            ),
            (
                r"Do the (.+) and the (.+) have the same kind of surface\?",
                lambda m: self.yes(self.the(m[1]).thing.material == self.the(m[2]).thing.material),
            ),
        ):
            if match := re.fullmatch(pattern, text):
                return answer(match)
        raise AssertionError(f"no pattern reads {text!r}")

    @staticmethod
    def yes(truth):
        return "Yes" if truth else "No"

    def caption(self):
        top = sorted(self.things, key=lambda t: -t.pixels)[:4]
        parts = [self.words(t) for t in sorted(top, key=lambda t: t.x)]
        rest = len(self.things) - len(parts)
        parts += [f"{NUMBERS[rest]} more"] if rest else []
        return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else (parts or ["nothing"])[0]

    def part(self, t):
        return f"{'upper' if t.y < 0.5 else 'lower'} {'left' if t.x < 0.5 else 'right'}"

    def where(self, text):
        if " relative to the " in text:
            return self.side_of(*text.split(" relative to the "))
        (only,) = self.refer(f"the {text}")
        return self.cell(only)

    def side_of(self, one, other):
        dx, dy = self.the(one).x - self.the(other).x, self.the(one).y - self.the(other).y
        if abs(dx) > abs(dy):
            return "to the left" if dx < 0 else "to the right"
        return "above" if dy < 0 else "below"

    def at(self, column, row):
        step = self.side // 8
        inside = Counter(self.map[row * step : (row + 1) * step, column * step : (column + 1) * step].ravel().tolist())
        del inside[0]
        return self.words(next(t for t in self.things if t.number == inside.most_common(1)[0][0]))


def test_each_expression_names_its_target_alone(scenes):
    rng = np.random.default_rng(0)
    targets = expressions = 0
    forms = Counter()
    for world, rendering in scenes:
        view, reader = look(world, rendering), Reader(world, rendering)
        for target in view.objects:
            found = referring_expressions(view=view, target=target, rng=rng, count=3)
            texts = [str(expression) for expression in found]
            assert len(set(texts)) == len(texts) <= 3
            targets += bool(texts)
            expressions += len(texts)
            for expression in found:
                assert [t.number for t in reader.refer(str(expression))] == [target.instance], str(expression)
                forms["order" if expression.side else "relation" if expression.relation else "plain"] += 1
    everything = sum(len(look(*scene).objects) for scene in scenes)
    assert targets >= 0.97 * everything
    assert expressions >= 2.5 * targets
    assert all(forms[form] >= 0.1 * expressions for form in ("plain", "relation", "order"))


def make_view(*objects, fragments=()):
    def seen(i, row):
        shape, color, x, y = row
        return Seen(instance=i, shape=shape, color=color, material="matte", x=x, y=y, pixels=100)

    shown = tuple(seen(i, row) for i, row in enumerate(objects, start=1))
    return View(objects=shown, fragments=tuple(seen(99, row) for row in fragments), owners=np.zeros((8, 8), int))


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        (Expression(phrase=Phrase(noun="cone")), 3),
        (Expression(phrase=Phrase(noun="ball")), None),  # two of them
        (Expression(phrase=Phrase(noun="cylinder")), None),  # none
        (Expression(phrase=Phrase(noun="object", color="red")), 1),
        (Expression(phrase=Phrase(noun="box")), None),  # one, and a fragment of another
        (Expression(phrase=Phrase(noun="ball"), side="left"), 1),
        (Expression(phrase=Phrase(noun="object"), side="right", rank=2), None),  # a fragment fits
        (Expression(phrase=Phrase(noun="ball"), relation="left of", anchor=Phrase(noun="cone")), 1),
        (Expression(phrase=Phrase(noun="ball"), relation="above", anchor=Phrase(noun="cone")), None),  # by too little
        (Expression(phrase=Phrase(noun="ball"), relation="left of", anchor=Phrase(noun="box")), None),  # anchor in doubt
    ],
)
def test_meaning_by_hand(expression, named):
    view = make_view(
        ("sphere", "red", 0.2, 0.5),
        ("sphere", "blue", 0.6, 0.45),
        ("cone", "blue", 0.5, 0.5),
        ("box", "green", 0.9, 0.9),
        fragments=[("box", "white", 0.1, 0.1)],
    )
    found = expression.denotes(view)
    assert (found and found.instance) == named


def test_order_needs_clear_gaps():
    view = make_view(("box", "red", 0.30, 0.5), ("box", "blue", 0.32, 0.5), ("box", "green", 0.8, 0.5))
    box = Phrase(noun="box")
    assert Expression(phrase=box, side="left").denotes(view) is None
    assert Expression(phrase=box, side="right").denotes(view).instance == 3
    assert str(Expression(phrase=box, side="right", rank=2)) == "the second box from the right"


def test_articles_and_plurals():
    assert describe(make_view(("sphere", "orange", 0.5, 0.5)).objects[0]) == "a matte orange ball"
    assert Phrase(noun="box", color="red").plural == "red boxes"
    assert Phrase(noun="cone").plural == "cones"


@pytest.fixture(scope="module")
def asked(scenes):
    """(reader, markers, question, answer) of many questions, a third of them on pictures with markers."""
    rng = np.random.default_rng(1)
    rows = []
    for world, rendering in scenes:
        reader = Reader(world, rendering)
        for i in range(45):
            markers = None
            if i % 3 == 0:
                xy = rng.integers(0, 128, (int(rng.integers(2, 6)), 2))
                markers = [SimpleNamespace(letter="ABCDE"[k], x=int(x), y=int(y)) for k, (x, y) in enumerate(xy)]
            rows.append((reader, markers, *foundation_question(world, rendering, rng, markers)))
    return rows


def read_marker_question(reader, markers, question):
    cells = {m.letter: f"({m.x // 16}, {m.y // 16})" for m in markers}
    if match := re.fullmatch(r"Which letter is at (.+)\?", question):
        (only,) = (letter for letter, cell in cells.items() if cell == match[1])
        return only
    if match := re.fullmatch(r"Where is the marker (.)\?", question):
        return cells[match[1]]
    if match := re.fullmatch(r"What (color is the object|is) at marker (.)\?", question):
        (marker,) = (m for m in markers if m.letter == match[2])
        thing = next(t for t in reader.things if t.number == reader.map[marker.y, marker.x])
        return reader.words(thing) if match[1] == "is" else thing.thing.color
    if question == "How many markers are there?":
        return NUMBERS[len(markers)]
    return ", ".join(sorted(cells)) if question == "Which letters are on the image?" else None


def test_every_answer_is_true_and_no_other_option_is(asked):
    kinds = Counter()
    for reader, markers, question, answer in asked:
        lines = question.split("\n")
        if markers and (told := read_marker_question(reader, markers, question)):
            assert told == answer, question
            kinds["marker"] += 1
        elif len(lines) == 1:
            assert reader.answers(question) == answer, question
            kinds[" ".join(question.split()[:2])] += 1
        else:
            options = dict(line.split(". ", 1) for line in lines[1:-1])
            assert list(options) == list("ABCD")[: len(options)]
            assert len(set(options.values())) == len(options) >= 3
            if lines[0] == "Which of these objects is in the image?":
                right = [letter for letter, words in options.items() if reader.fitting(words.split(" ", 1)[1])]
            else:
                right = [letter for letter, words in options.items() if words == reader.answers(lines[0])]
            assert right == [answer], question
            kinds["choice"] += 1
    assert kinds["marker"] > 300
    assert kinds["choice"] > 100
    assert len(kinds) >= 12


def test_nothing_is_said_of_depth_or_physical_size_and_words_are_few(asked):
    words = Counter()
    for _, _, question, answer in asked:
        words.update(re.findall(r"[a-z]+", f"{question} {answer}".lower()))
    barred = "near nearer nearest close closer closest far farther farthest front behind depth distance deep camera"
    barred += " small large big smaller larger bigger smallest largest biggest size"
    assert not set(barred.split()) & set(words)
    assert len(words) < 130


def test_captions_are_bounded(scenes):
    for world, rendering in scenes:
        turns = dict(conversations(world, rendering, np.random.default_rng(0), 12))
        assert len(turns) == 12
        assert all(len(answer.split()) <= 20 for answer in turns.values())


@pytest.mark.parametrize("topic", TOPICS)
def test_claims_are_one_true_one_false(scenes, topic):
    rng = np.random.default_rng(2)
    found = 0
    for world, rendering in scenes:
        pair = claims(topic, look(world, rendering), rng)
        if pair is not None:
            found += 1
            reader = Reader(world, rendering)
            assert [claim.answer for claim in pair] == ["Yes", "No"]
            assert [reader.answers(claim.text) for claim in pair] == ["Yes", "No"]
    assert found > 0.2 * SCENES


def test_yes_and_no_are_balanced(asked):
    said = Counter(answer for *_, answer in asked if answer in ("Yes", "No"))
    assert 0.4 < said["Yes"] / said.total() < 0.6


def test_the_place_of_the_true_option_is_random():
    question = Question(text="?", answer="1", wrong=("2", "3", "4", "5"))
    rng = np.random.default_rng(3)
    places = Counter()
    for _ in range(400):
        options, place = as_multiple_choice(question, rng)
        assert options[place] == "1"
        assert len(set(options)) == 4
        places[place] += 1
    assert max(places.values()) < 140
    with pytest.raises(ValueError, match="no wrong answers"):
        as_multiple_choice(Question(text="?", answer="1"), rng)


def test_the_same_random_stream_gives_the_same_questions(scenes):
    world, rendering = scenes[0]
    first, second = (conversations(world, rendering, np.random.default_rng(5), 6) for _ in range(2))
    assert first == second


def test_view_of_a_made_picture():
    objects = [
        SimpleNamespace(shape="box", color="red", material="matte", role="object"),
        SimpleNamespace(shape="cylinder", color="plain", material="matte", role="platform"),
        SimpleNamespace(shape="cone", color="blue", material="shiny", role="object"),
        SimpleNamespace(shape="cone", color="blue", material="shiny", role="object"),
    ]
    instances = np.zeros((128, 128), np.uint8)
    instances[16:32, 32:64] = 1  # cells (2, 1) and (3, 1)
    instances[64:96, 64:96] = 2
    instances[100:103, 100:103] = 3  # nine pixels: a fragment; object 4 does not show
    view = look(SimpleNamespace(objects=objects), SimpleNamespace(instances=instances))
    (box,), (cone,) = view.objects, view.fragments
    assert (box.instance, box.x, box.y, box.pixels, box.cell) == (1, 48 / 128, 24 / 128, 512, (3, 1))
    assert (cone.instance, cone.pixels) == (3, 9)
    assert view.owners[1].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert view.owners.sum() == 2  # the platform owns nothing


def test_a_color_map_names_what_is_in_the_middle_of_each_square():
    objects = [
        SimpleNamespace(shape="box", color="red", material="matte", role="object"),
        SimpleNamespace(shape="cylinder", color="plain", material="matte", role="platform"),
    ]
    instances = np.zeros((128, 128), np.uint8)
    instances[8:40, 20:41] = 1  # over the middles of squares (1, 0), (2, 0), (1, 1), (2, 1)
    instances[64:128, 0:16] = 2  # a platform has no name
    words = np.array(color_map(SimpleNamespace(objects=objects), SimpleNamespace(instances=instances))).reshape(8, 8)
    assert (words[:2, 1:3] == "red").all()
    assert (words == "nothing").sum() == 60


def test_a_brightness_map_goes_from_the_darkest_to_the_brightest_square():
    image = np.zeros((128, 128, 3), np.uint8)
    image[16:32, 48:64] = 200  # square (3, 1)
    image[112:, 112:] = 100  # the last square
    levels = np.array(brightness_map(SimpleNamespace(image=image)), dtype=int).reshape(8, 8)
    assert levels[1, 3] == 80
    assert levels[7, 7] == 50
    assert levels.sum() == 80 + 50 + 62 * 10
