"""Depth-order labels left out: by number, by points and by kind of question, and nothing else with them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from entries import entry
from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.data.loading.labels import labelled, ordered_turns, readings, turns_of
from perceptio_core.data.records import Point
from perceptio_core.data.shards.entry import Annotation, Sample
from perceptio_core.data.shards.markers import COMPARISON, QUESTION
from perceptio_core.data.shards.tars import write_index, write_shard
from perceptio_core.params.cotrain import MarkerQuestions

POINTS = (2, 3, 3, 4, 5, 5, 2, 4)  # of the marked pictures, in order


def turns(comparisons):
    return [[QUESTION, "(A)"], *[[COMPARISON.format("A", "B"), "(B)"]] * comparisons]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    picture = Image.new("RGB", (8, 8))
    said = [Annotation(record_id="0", task="conversation", source="s", turns=[("Hello?", "Yes.")])]
    for number, count in enumerate(POINTS):
        points, asked = [Point(letter, 1, 1) for letter in "ABCDE"[:count]], turns(0 if number == 7 else 2)
        said.append(Annotation(record_id=str(number + 1), task="marker", source="s", turns=asked, points=points))
    entries = [entry(picture, *said[:3]), entry(picture, *said[3:])]
    part = write_shard(folder, name="train-00000", split="train", entries=entries, quarantine=[], records={})
    write_index(folder, [part], quarantine=[], manifest={}, about={})
    return JointDataset(folder, "train")


def test_everything_is_kept_by_default(dataset):
    assert labelled(dataset, wanted=MarkerQuestions(), limit=None, seed=0).tolist() == list(range(1, 9))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (MarkerQuestions(points=(2, 3)), [1, 2, 3, 7]),
        (MarkerQuestions(points=(5,)), [5, 6]),
        (MarkerQuestions(kinds=("comparison",)), [1, 2, 3, 4, 5, 6, 7]),  # the last has no comparison
        (MarkerQuestions(kinds=("nearest",), points=(4,)), [4, 8]),
        (MarkerQuestions(kinds=("comparison",), points=(4,)), [4]),
    ],
)
def test_pictures_are_chosen_by_points_and_by_what_is_left_of_them(dataset, wanted, expected):
    assert labelled(dataset, wanted=wanted, limit=None, seed=0).tolist() == expected


def test_a_smaller_limit_keeps_a_part_of_a_larger_one_and_the_seed_decides_which(dataset):
    kept = [set(labelled(dataset, wanted=MarkerQuestions(), limit=n, seed=0).tolist()) for n in range(9)]
    assert [len(some) for some in kept] == list(range(9))
    assert all(less <= more for less, more in itertools.pairwise(kept))
    drawn = {tuple(labelled(dataset, wanted=MarkerQuestions(), limit=3, seed=seed)) for seed in range(20)}
    assert len(drawn) > 5
    assert np.all(np.diff(labelled(dataset, wanted=MarkerQuestions(), limit=5, seed=1)) > 0)


def test_too_large_a_limit_is_refused(dataset):
    with pytest.raises(ValueError, match=r"markers\.limit is 5; allowed are at most 4, the pictures with 2, 3 points"):
        labelled(dataset, wanted=MarkerQuestions(points=(2, 3)), limit=5, seed=0)


def test_turns_are_chosen_by_kind():
    both = [tuple(turn) for turn in turns(2)]
    assert turns_of(both, wanted=MarkerQuestions()) == both
    assert turns_of(both, wanted=MarkerQuestions(kinds=("nearest",))) == both[:1]
    assert turns_of(both, wanted=MarkerQuestions(kinds=("comparison",))) == both[1:]
    assert turns_of(both[:1], wanted=MarkerQuestions(kinds=("comparison",))) == []


def marked(key: str, count: int) -> Sample:
    """A marked picture with the question for the nearest point and `count` comparisons."""
    return Sample(
        key=key,
        record_id="r",
        image_key="i",
        image=Image.new("RGB", (4, 4)),
        task="marker",
        turns=[(QUESTION, "(A)"), *((COMPARISON.format("A", "B"), str(i)) for i in range(count))],
        depth_codes=None,
        source="s",
    )


def test_the_first_turn_is_a_comparison_in_half_of_the_pictures_where_either_may_be():
    wanted = MarkerQuestions(first="either")
    samples = [marked(f"train-00000-{i:06d}", 3) for i in range(400)]
    places = []
    for sample in samples:
        ordered = ordered_turns(sample, wanted=wanted)
        places.append(ordered.index(sample.turns[0]))
        assert [turn for turn in ordered if turn != sample.turns[0]] == sample.turns[1:]
        assert ordered == ordered_turns(sample, wanted=wanted)
    counts = np.bincount(places, minlength=4)
    assert 160 < counts[0] < 240  # 200 expected, standard deviation 10
    assert all(45 < count < 90 for count in counts[1:])  # 67 expected, standard deviation 7.5


def test_the_first_turn_stays_where_there_is_no_choice():
    for i in range(20):
        lone, several = marked(f"a-{i}", 0), marked(f"b-{i}", 3)
        assert ordered_turns(lone, wanted=MarkerQuestions(first="either")) == lone.turns
        assert ordered_turns(several, wanted=MarkerQuestions()) == several.turns


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit": 0}, r"limit.*greater than 0"),
        ({"points": [6]}, r"points.*less than or equal to 5"),
        ({"kinds": []}, "kinds"),
        ({"kinds": ["all"]}, r"kinds.*nearest"),
        ({"first": "comparison"}, r"first.*either"),
        ({"first": "either", "kinds": ["comparison"]}, "first is either, but kinds names comparison alone"),
    ],
)
def test_parameters_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        MarkerQuestions.from_mapping(values, where="p: markers")


def test_a_reading_is_the_code_of_the_cell_below_the_marker():
    """A picture 40 wide and 20 high under 2 x 2 codes: a cell is 20 x 10 pixels."""
    sample = Sample(
        key="train-00000-000001",
        record_id="r",
        image_key="k",
        image=Image.new("RGB", (40, 20)),
        task="marker",
        turns=[(QUESTION, "(A)")],
        depth_codes=[7, 8, 9, 10],
        source="s",
        points=[Point("A", 19, 9), Point("B", 20, 9), Point("C", 39, 10)],
    )
    codes = {"Which depth code is at point A?": 7, "Which depth code is at point B?": 8, "Which depth code is at point C?": 10}
    assert dict(readings(sample)) == codes
    assert len({readings(replace(sample, key=str(number)))[0] for number in range(20)}) == 3  # any point may be the first
