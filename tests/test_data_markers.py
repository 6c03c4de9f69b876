"""Marked points: the rules of HardBLINK and AURORA, and that the image plane does not give the answer away."""

import re

import numpy as np
import pytest
from PIL import Image

from perceptio_core.data.shards.markers import (
    BAND,
    LETTERS,
    QUESTION,
    Marker,
    answer,
    comparisons,
    draw_markers,
    marker_style,
    sample_markers,
    sample_questions,
)

SIZE = 128


def leaky_world(rng, size=SIZE):
    """Inverse depth, areas and picture in which nearer boxes are mostly bigger, lower and brighter."""
    rows = np.arange(size)[:, None] / size
    depth = np.repeat(0.05 + 0.3 * np.clip(rows - 0.35, 0, 1), size, 1).astype(np.float32)
    image, areas = np.repeat(60 + 100 * rows, size, 1), np.zeros((size, size))
    for metres in sorted(rng.uniform(2, 10, size=8), reverse=True):
        side = int(np.clip(rng.uniform(0.4, 2.5) * 90 / metres, 10, 60))
        bottom = int(size * (0.55 + 0.5 / metres) + rng.normal() * 12)
        left = int(rng.integers(-10, size - 10))
        box = np.s_[max(bottom - side, 0) : max(bottom, 0), max(left, 0) : left + side]
        depth[box], image[box] = 1 / metres, 255 - 12 * metres + rng.normal() * 60
        areas[box] = depth[box].size
    image = np.clip(image + rng.normal(size=(size, size)) * 3, 0, 255).astype(np.uint8)
    return depth, areas, np.repeat(image[..., None], 3, 2)


def short_cuts(markers, areas, image):
    """Who looks at the image plane alone: the markers that each could pick."""
    rows, columns = np.array([marker.y for marker in markers]), np.array([marker.x for marker in markers])
    area = areas[rows, columns]
    bright = np.array([image[y - 1 : y + 2, x - 1 : x + 2].mean() for y, x in zip(rows, columns, strict=True)])
    cues = {
        "lowest": rows,
        "biggest": area,
        "smallest object": np.where(area > 0, -area, -np.inf),
        "brightest": bright,
        "darkest": -bright,
    }
    return {name: [markers[i] for i in np.flatnonzero(values == values.max())] for name, values in cues.items()}


@pytest.fixture(scope="module")
def worlds():
    rng = np.random.default_rng(7)
    return [leaky_world(rng) for _ in range(150)]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_points_keep_all_distances(worlds, count):
    rng, found = np.random.default_rng(count), 0
    style = marker_style(SIZE)
    for depth, areas, image in worlds * (10 if count == 5 else 2):
        markers = sample_markers(depth, count=count, rng=rng, areas_HW=areas, image_HW3=image)
        if markers is None:
            continue
        found += 1
        assert [marker.letter for marker in markers] == list(LETTERS[:count])
        levels = 255 * (depth - depth.min()) / (depth.max() - depth.min())
        for i, one in enumerate(markers):
            assert BAND[0] * SIZE <= one.y < BAND[1] * SIZE
            assert one.inverse_depth == depth[one.y, one.x]
            window = levels[one.y - 2 : one.y + 3, one.x - 2 : one.x + 3]
            assert np.ptp(window) < 40  # no edge between two depths that a question could ask about
            for two in markers[:i]:
                assert abs(levels[one.y, one.x] - levels[two.y, two.x]) >= 20
                across, down = abs(one.x - two.x), abs(one.y - two.y)
                assert np.hypot(across, down) >= 20 / 336 * SIZE
                assert across >= style.width or down >= style.height  # nothing drawn over one another
    assert found >= 8


def test_without_balance_the_short_cuts_work_and_with_it_they_do_not(worlds):
    """What the balance is for: the same worlds, with and without it; and the letters carry nothing."""
    rng = np.random.default_rng(0)
    count, hits, letters, answered = 3, {}, np.zeros(3), 0
    leaks, asked = 0, 0
    for _ in range(6):
        for depth, areas, image in worlds:
            for markers in sample_questions(depth, count=count, questions=4, rng=rng, areas_HW=areas, image_HW3=image):
                answered += 1
                letters[LETTERS.index(answer(markers)[1])] += 1
                nearest = max(markers, key=lambda marker: marker.inverse_depth)
                for name, picked in short_cuts(markers, areas, image).items():
                    hits[name] = hits.get(name, 0) + (nearest in picked) / len(picked)
            # Three points of different depth anywhere: the natural strength of the short cut.
            rows, columns = rng.integers(38, 90, size=3), rng.integers(0, SIZE, size=3)
            if len(np.unique(depth[rows, columns])) == 3:
                asked += 1
                leaks += depth[rows, columns].argmax() == rows.argmax()
    assert leaks / asked > 0.42
    assert answered > 500
    # 1/3 within 4 standard errors of the questions, taken as correlated in threes
    slack = 4 * np.sqrt(1 / 3 * 2 / 3 / (answered / 3))
    assert set(hits) == {"lowest", "biggest", "smallest object", "brightest", "darkest"}
    for name, number in hits.items():
        assert abs(number / answered - 1 / 3) < slack, name
    assert np.abs(letters / answered - 1 / 3).max() < slack


def test_the_second_lowest_is_no_short_cut_either(worlds):
    rng, ranks = np.random.default_rng(1), np.zeros(3)
    for depth, _, _ in worlds:
        for markers in sample_questions(depth, count=3, questions=4, rng=rng):
            nearest = max(markers, key=lambda marker: marker.inverse_depth)
            ranks[sum(marker.y < nearest.y for marker in markers)] += 1
    assert ranks.min() / ranks.sum() > 0.26


def test_a_picture_that_always_gives_the_answer_away_is_not_used():
    plane = np.repeat(np.linspace(0.1, 1, SIZE, dtype=np.float32)[:, None], SIZE, 1)  # lower is nearer, always
    assert sample_markers(plane, count=3, rng=np.random.default_rng(0)) is None


@pytest.mark.parametrize("depth", [np.zeros((64, 64), np.float32), np.ones((5, 5)), np.arange(40.0).reshape(1, 40)])
def test_flat_and_tiny_maps_give_no_question(depth):
    assert sample_markers(depth, count=2, rng=np.random.default_rng(0)) is None


def test_impossible_arguments_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="count is 6"):
        sample_markers(np.zeros((9, 9)), count=6, rng=rng)
    with pytest.raises(ValueError, match="areas_HW has shape"):
        sample_markers(np.zeros((9, 9)), count=2, rng=rng, areas_HW=np.zeros((9, 8)))
    with pytest.raises(ValueError, match="not finite"):
        sample_markers(np.full((9, 9), np.nan), count=2, rng=rng)


def test_the_same_generator_gives_the_same_question(worlds):
    depth, areas, image = worlds[0]
    one, two = (
        sample_questions(depth, count=2, questions=2, rng=np.random.default_rng(3), areas_HW=areas, image_HW3=image)
        for _ in range(2)
    )
    assert one == two


def test_large_maps_are_searched_on_a_grid(worlds):
    depth = np.kron(worlds[1][0], np.ones((8, 8), np.float32))
    for seed in range(5):
        markers = sample_markers(depth, count=2, rng=np.random.default_rng(seed))
        assert markers is not None
        for marker in markers:
            assert marker.inverse_depth == depth[marker.y, marker.x]


@pytest.mark.parametrize(("size", "corner"), [(128, (0, 0)), (128, (127, 127)), (336, (335, 2)), (48, (3, 20))])
def test_circle_and_box_are_drawn_inside_the_image(size, corner):
    image = Image.new("L", (size, size), 120)
    marker = Marker(letter="B", x=corner[0], y=corner[1], inverse_depth=1.0)
    marked = np.asarray(draw_markers(image, [marker]))
    assert marked.shape == (size, size, 3)
    assert (marked == (255, 0, 0)).all(-1).any()
    style = marker_style(size)
    black = (marked == 0).all(-1)
    rows, columns = np.nonzero((marked == marked[..., :1]).all(-1) & (marked[..., 0] != 120))
    assert np.ptp(columns) + 1 == style.box_width
    assert np.ptp(rows) + 1 == style.box_height
    assert black.sum() > style.box_width * style.box_height / 3


@pytest.mark.parametrize("letter", list(LETTERS))
def test_letters_are_eight_pixels_high_at_128(letter):
    marked = np.asarray(draw_markers(Image.new("RGB", (128, 128)), [Marker(letter=letter, x=64, y=64, inverse_depth=1.0)]))
    rows, _ = np.nonzero((marked > 100).all(-1))
    assert 7 <= np.ptp(rows) + 1 <= 9


def test_the_question_is_the_official_one():
    assert QUESTION.endswith("Which point is the closest to the camera?")
    assert answer([Marker(letter="A", x=0, y=0, inverse_depth=1), Marker(letter="B", x=0, y=0, inverse_depth=2)]) == "(B)"


def test_comparisons_ask_for_the_nearer_of_two_different_points():
    markers = [Marker(letter=letter, x=0, y=0, inverse_depth=depth) for letter, depth in (("A", 0.2), ("B", 0.9), ("C", 0.5))]
    truths = {"AB": "(B)", "BA": "(B)", "AC": "(C)", "CA": "(C)", "BC": "(B)", "CB": "(B)"}
    orders = set()
    for seed in range(40):
        turns = comparisons(markers, count=5, rng=np.random.default_rng(seed))
        assert len(turns) == 3, "three points have three pairs"
        pairs = ["".join(re.findall(r"\b[ABC]\b", question)) for question, _ in turns]
        assert {frozenset(pair) for pair in pairs} == {frozenset("AB"), frozenset("AC"), frozenset("BC")}
        assert [answered for _, answered in turns] == [truths[pair] for pair in pairs]
        orders.update(pairs)
    assert orders == truths.keys(), "either point comes first"
