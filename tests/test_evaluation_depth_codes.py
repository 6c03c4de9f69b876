"""Depth codes from elsewhere, and what they do to a model's answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.teacher import Teacher
from perceptio_core.evaluation.benchmarks.benchmark import Item
from perceptio_core.evaluation.running.depth_codes import CodeMaker, TeacherEncoder, pictured
from perceptio_core.model.inference import Perceptor
from tiny import tiny_perceptio


def item(name: str, image: str) -> Item:
    return Item(item_id=name, image=image.encode(), question="?", expected="A")


def other(names: str, images: str) -> str:
    """For items with these one-letter names and images, the names of the items whose codes they get."""
    items = [item(name, image) for name, image in zip(names, images, strict=True)]
    return "".join(one.item_id for one in pictured("other", items))


def test_another_picture_is_the_next_that_differs() -> None:
    assert other("abc", "xyz") == "bca"
    assert other("abcd", "xxyz") == "ccda"
    assert other("abcd", "xyzx") == "bcdb"  # d goes around past a, which has d's picture
    assert other("abcd", "xyxy") == "bcda"
    with pytest.raises(ValueError, match="at least two pictures"):
        other("ab", "xx")


def test_oracle_codes_are_of_the_picture_itself() -> None:
    items = [item("a", "x"), item("b", "x")]
    assert pictured("oracle", items) == items


def test_the_teacher_is_shown_the_picture_without_its_marks() -> None:
    clean = Path("clean.png")
    items = [replace(item("a", "x"), unmarked=clean), item("b", "y")]
    assert pictured("oracle", items)[0].image == clean
    assert pictured("other", items)[1].image == clean
    assert pictured("other", items)[0] == items[1]
    twice = [replace(items[0], item_id="0", image=b"marked otherwise"), *items]
    assert pictured("other", twice)[0] == items[1], "of one scene, marked twice"


def maker(encode: Any = None, *, seed: int = 3) -> CodeMaker:
    return CodeMaker(encode=encode, num_codes=6, depth_tokens=50, seed=seed)


def test_random_codes_depend_on_seed_and_item_alone() -> None:
    items = [item(str(number), "x") for number in range(200)]
    codes = maker().codes("random", items, [])
    assert codes.shape == (200, 50)
    assert pictured("random", items) == [None] * 200
    assert np.array_equal(maker().codes("random", items[7:9], []), codes[7:9])
    assert not np.array_equal(maker(seed=4).codes("random", items, []), codes)
    shares = np.bincount(codes.ravel(), minlength=6) / codes.size
    assert shares == pytest.approx(np.full(6, 1 / 6), abs=0.02)  # 5 standard deviations of 10,000 draws
    # The same in every process, which Python's own hash is not.
    assert codes[7, :16].tolist() == [1, 5, 1, 1, 1, 4, 1, 3, 2, 2, 3, 3, 1, 1, 3, 2]


@pytest.mark.parametrize(
    ("replacement", "shown", "expected"),
    [
        ("oracle", ["1", "2"], [1, 2]),
        ("other", ["2", "1"], [2, 1]),
        ("zeroed", [None, None], [0, 0]),
        ("random", [None, None], None),
    ],
)
def test_every_replacement_is_what_its_name_says(replacement, shown, expected) -> None:
    """A teacher whose codes are the number of the picture."""
    items = [item("1", "x"), item("2", "y")]
    found = pictured(replacement, items)
    assert [one and one.item_id for one in found] == shown
    teacher = maker(lambda pictures: np.array([[picture] * 50 for picture in pictures]))
    codes = teacher.codes(replacement, items, [int(one.item_id) for one in found if one])
    if expected is None:
        assert set(codes.flat) == set(range(6))
    else:
        assert codes.tolist() == [[one] * 50 for one in expected]


def test_the_teachers_codes_are_those_that_shards_hold(tmp_path, monkeypatch) -> None:
    """By hand: map at the stored size, normalised, encoded; pictures of two sizes in one call."""
    torch.manual_seed(0)
    codebook = DepthCodebook(num_codes=6, resolution=16, widths=(4, 8, 8), dim=8).eval()
    asked = []

    class Fake:
        def pixels(self, image):
            return torch.tensor(np.asarray(image, np.float32)[..., 0])

        def inverse_depth(self, pixels, sizes):
            asked.append(sizes)
            return [pixel.numpy()[:height, :width] for pixel, (height, width) in zip(pixels, sizes, strict=True)]

    monkeypatch.setattr(Teacher, "from_pretrained", lambda _folder: Fake())
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in [(40, 20), (16, 16)]]
    codes = TeacherEncoder(teacher=tmp_path, codebook=codebook, long_side=20)(pictures)
    assert asked == [[(20, 10)], [(16, 16)]]
    maps = [np.asarray(pictures[0], np.float32)[:20, :10, 0], np.asarray(pictures[1], np.float32)[..., 0]]
    expected = torch.cat([codebook.encode(codebook.normalise(depth)[None]) for depth in maps])
    assert np.array_equal(codes, expected.numpy())


def test_given_codes_are_what_the_answer_holds_and_is_conditioned_on(tmp_path) -> None:
    model, processor = tiny_perceptio(tmp_path)
    perceptor = Perceptor(model=model, processor=processor, batch_size=2)
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in range(3)]
    codes = np.array([[0, 1, 2, 3], [5, 5, 5, 5], [3, 2, 1, 0]])
    own = perceptor.predict(images, ["yes"] * 3, segment=False, depth=True, max_new_tokens=3)
    told = perceptor.predict(images, ["yes"] * 3, segment=False, depth=True, depth_codes=codes, max_new_tokens=3)
    assert np.array_equal([answer.depth_codes for answer in told], codes)
    assert told[1].raw.startswith("<depth_start>" + "<depth_5>" * 4 + "<depth_end>")
    same = perceptor.predict(
        images, ["yes"] * 3, segment=False, depth=True, depth_codes=np.array([a.depth_codes for a in own]), max_new_tokens=3
    )
    assert [answer.raw for answer in same] == [answer.raw for answer in own]
    with pytest.raises(ValueError, match="holds 4 codes"):
        perceptor.predict(images, ["yes"] * 3, depth=True, depth_codes=codes[:, :3])
