"""Pretraining dialogues in tokens, on cases that can be read: what is hidden, what counts, where the helpers apply."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from perceptio_core.data.shards.markers import QUESTION, Marker
from perceptio_core.foundations.dialogues import (
    CHOICE,
    LEAD,
    MARKED,
    MEANINGLESS,
    PAIR,
    VERB,
    Turn,
    box_of,
    choices,
    drawn_map,
    encode,
    finds,
    patches_of,
)
from perceptio_core.foundations.internvl_model import train_tokenizer
from perceptio_core.foundations.language import boxes_of, wanted_attention
from perceptio_core.foundations.pointing import CHOOSING, HEADS, LOOKING, READING_HEADS
from perceptio_core.scenes.view import look

SQUARES = ("red", "blue", "nothing", "red")
CHOICES = [MARKED + CHOICE.format("map image"), PAIR.format("map image", "A", "B")]
TEXTS = [f"Please{VERB} the ball in this image.", " 1 2 3 4 red blue nothing", QUESTION, *CHOICES, "3, 4"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 50)


def test_a_find_hides_its_verb_and_its_lead_and_a_map_hides_itself(tokenizer):
    turn = Turn(question=TEXTS[0], answer="3, 4", find=True, squares=SQUARES, box=(0.1, 0.2, 0.3, 0.4))
    hidden_maps = 0
    for seed in range(20):
        row = encode(tokenizer, [turn], np.random.default_rng(seed))
        (lead,), (verb,) = tokenizer.encode(LEAD), tokenizer.encode(VERB)
        start = row.ids.index(lead)
        reply = row.ids[start:]
        assert tokenizer.decode(reply) == "::" + "".join(f" {word}" for word in SQUARES) + ":3, 4<|im_end|>\n"
        assert len(row.ids) == len(row.heard) == len(row.weights)
        hidden = {i for i, (said, heard) in enumerate(zip(row.ids, row.heard, strict=True)) if said != heard}
        squares = range(start + 1, start + 7)
        hidden_maps += len(hidden & set(squares)) > 3
        assert hidden <= {row.ids.index(verb), start, *squares}
        assert {tokenizer.convert_ids_to_tokens(row.heard[i]) for i in hidden} <= set(MEANINGLESS)
        # from the token before the lead, from the lead, and from the map's last token on: "3", ",", " 4"
        after = start + 7
        assert row.answers == [[start - 1, start, after - 1, after, after + 1]]
        weights = [w for w in row.weights if w > 0]
        assert weights[0] == weights[7] == weights[-1] == pytest.approx(1 / 5), "lead, three tokens and the end"
        assert weights[1:7] == [pytest.approx(1 / 16)] * 6
        assert not any(row.weights[:start])
    assert 5 <= hidden_maps <= 15, "MAP_BEFORE_HIDDEN of them"
    where, boxes = boxes_of([[turn]], [row])
    assert ([int(i) for i in where[0]], [int(i) for i in where[1]]) == ([0], [start])
    np.testing.assert_allclose(boxes, [[0.1, 0.2, 0.3, 0.4]])


def test_a_later_turn_begins_where_the_one_before_ends(tokenizer):
    turns = [Turn(question="Which point?", answer="3"), Turn(question="Which point?", answer="A")]
    row = encode(tokenizer, turns, np.random.default_rng(0))
    assert row.heard == row.ids
    assert tokenizer.decode(row.ids[row.prompts[1] :]).startswith("<|im_start|>user\nWhich point?<|im_end|>\n")
    for (place,), answer in zip(row.answers, ("3", "A"), strict=True):
        assert tokenizer.decode([row.ids[place + 1]]) == answer


def test_a_map_of_words_that_are_not_tokens_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"single tokens.*zebra"):
        encode(tokenizer, [Turn(question="", answer="", squares=("zebra",))], np.random.default_rng(0))


def test_the_questions_are_as_long_as_those_of_co_training(tokenizer):
    for where in ("image", "map"):
        assert len(tokenizer.encode(MARKED + CHOICE.format(where))) == len(tokenizer.encode(QUESTION))


def test_boxes_and_patches_of_a_mask():
    mask = np.zeros((128, 128), bool)
    mask[16:48, 32:36] = True  # 4 of 16 columns in patches (2, 1) and (2, 2)
    assert box_of(mask) == (34 / 128, 32 / 128, 4 / 128, 32 / 128)
    assert np.flatnonzero(patches_of(mask)).tolist() == [10, 18]
    small = np.zeros((128, 128), bool)
    small[0, 0] = True
    assert np.flatnonzero(patches_of(small)).tolist() == [0], "where nothing covers a quarter, what covers the most"


def test_choices_are_the_brightest_and_never_between_equals():
    image = np.zeros((128, 128, 3), np.uint8)
    image[0:16, 0:16], image[0:16, 112:128] = 255, 128  # squares 0 and 7; all others are black
    markers = [Marker(letter=letter, x=x, y=8, inverse_depth=0.0) for letter, x in (("A", 120), ("B", 8), ("C", 60), ("D", 70))]
    rendering = SimpleNamespace(image=image, instances=np.zeros((128, 128), np.uint8))
    asked = choices(rendering, markers, np.random.default_rng(0), turns=8, squares=SQUARES)
    assert (asked[0].question, asked[0].answer, asked[0].squares) == (MARKED + CHOICE.format("image"), "(B)", SQUARES)
    assert np.flatnonzero(asked[0].chosen_N).tolist() == [0]
    brighter = {"A": 2, "B": 3, "C": 1, "D": 1}
    for turn in asked[1:]:
        one, two = turn.question.removesuffix("?").split(", ")[1].split(" or ")
        assert brighter[one] != brighter[two]
        assert turn.answer == f"({max(one, two, key=brighter.__getitem__)})"
    alike = choices(rendering, markers[2:], np.random.default_rng(0), turns=4, squares=())
    assert [len(turn.squares) for turn in alike] == [64], "nothing to choose: the map itself is asked for"


def test_a_drawn_map_alone_says_which_point_is_the_whitest(tokenizer):
    words = ["10"] * 64
    words[9], words[54] = "80", "40"
    markers = [
        Marker(letter=letter, x=x, y=y, inverse_depth=0.0) for letter, x, y in (("A", 24, 24), ("B", 100, 100), ("C", 8, 8))
    ]
    image = np.zeros((128, 128, 3), np.uint8)
    image[96:112, 96:112] = 255  # square 54, B's: the brightest of the picture
    rendering = SimpleNamespace(image=image, instances=np.zeros((128, 128), np.uint8))
    asked = choices(rendering, markers, np.random.default_rng(0), turns=6, squares=words, drawn=True)
    assert (asked[0].question, asked[0].answer) == (MARKED + CHOICE.format("map"), "(A)")
    height = {"A": 8, "B": 4, "C": 1}
    for turn in asked[1:]:
        one, two = turn.question.removesuffix("?").split(", ")[1].split(" or ")
        assert turn.answer == f"({max(one, two, key=height.__getitem__)})"
        assert turn.drawn
        assert not turn.squares, "the map stands once, in the first turn"

    tokenizer = train_tokenizer([*TEXTS, " 10 40 80"] * 50)
    row = encode(tokenizer, asked, np.random.default_rng(0))
    assert row.heard == row.ids, "nothing of it is hidden"
    assert [row.weights[place] for place in row.squares] == [0.0] * 64, "nobody can foretell it"
    assert len({row.ids[place] for place in row.squares}) == 3
    assert [row.ids[row.squares[i]] == row.ids[row.squares[0]] for i in (9, 54, 63)] == [False, False, True]

    # Of the helper losses: each word of the map looks at its square, and the answer at last at the map's word for A's square.
    cache = SimpleNamespace(
        images=image[None],
        depth=np.zeros((1, 128, 128)),
        instances=rendering.instances[None],
        world=lambda _index: SimpleNamespace(objects=[]),
    )
    wanted = wanted_attention(tokenizer, cache, np.array([0]), [markers], [asked], [row], first_image=5)
    reading = wanted[LOOKING, READING_HEADS]
    assert reading.token_M.tolist() == row.squares
    assert torch.nonzero(reading.wanted_MT).tolist() == [[square, 5 + square] for square in range(64)]
    choosing = wanted[CHOOSING, HEADS]
    first = [i for i, place in enumerate(choosing.token_M.tolist()) if place in row.answers[0]]
    assert {tuple(torch.nonzero(choosing.wanted_MT[i])[:, 0].tolist()) for i in first} == {(row.squares[9],)}


def test_drawn_maps_use_all_levels_and_differ():
    maps = [drawn_map(np.random.default_rng(seed)) for seed in range(30)]
    assert {word for words in maps for word in words} == {str(10 * level) for level in range(1, 9)}
    assert all(len(words) == 64 and {"10", "80"} <= set(words) for words in maps)
    assert len({tuple(words) for words in maps}) == 30


def test_finds_name_each_object_with_its_box():
    objects = [
        SimpleNamespace(shape="box", color="red", material="matte", role="object"),
        SimpleNamespace(shape="cone", color="blue", material="shiny", role="object"),
    ]
    instances = np.zeros((128, 128), np.uint8)
    instances[16:32, 32:64], instances[64:80, 64:80] = 1, 2
    rendering = SimpleNamespace(instances=instances)
    view = look(SimpleNamespace(objects=objects), rendering)
    found = finds(view, rendering, np.random.default_rng(0), turns=4, simple=True, squares=())
    by_answer = {turn.answer: turn for turn in found}
    assert set(by_answer) == {"3, 1", "4, 4"}
    assert by_answer["4, 4"].box == (72 / 128, 72 / 128, 16 / 128, 16 / 128)
    assert np.flatnonzero(by_answer["4, 4"].chosen_N).tolist() == [36]
