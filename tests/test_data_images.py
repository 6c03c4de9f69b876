"""Pictures are told by their content, opened in one way, upright once, and refused in words that are the same every time."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import album
from perceptio_core.data.images import inspect_image, is_picture, kind_of, open_image, open_with_format, upright_size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_once_in_every_orientation_and_format(kind: str, orientation: int) -> None:
    """A TIFF was turned twice: Pillow turns it on loading (as reported in python-pillow/Pillow#7381)."""
    stored, exif = album.turned(orientation)
    how = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    content = album.encoded(stored, kind, exif=exif, **how)
    opened = open_with_format(content)
    assert opened.image.size == album.SIZE == upright_size(content)
    difference = np.abs(np.asarray(opened.image).astype(int) - np.asarray(album.scene()))
    assert np.median(difference) <= 2  # JPEG blurs where the quarters meet
    assert difference[4, 4].max() <= 8
    assert (opened.extension is not None) == (orientation == 1 and kind in ("JPEG", "PNG"))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_compressed_tiff_is_upright(compression: str, orientation: int) -> None:
    stored, exif = album.turned(orientation)
    opened = open_image(album.encoded(stored, "TIFF", exif=exif, compression=compression))
    assert opened.size == album.SIZE
    assert np.abs(np.asarray(opened)[4, 4].astype(int) - (255, 0, 0)).max() <= 8


@pytest.mark.parametrize("name", list(album.good()))
def test_what_people_have_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(album.good()[name])
    image = open_image(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", album.SIZE)
    assert ImageOps.exif_transpose(image).tobytes() == image.tobytes(), "upright, and no longer said to be turned"
    assert upright_size(tmp_path / name) == album.SIZE
    assert is_picture(tmp_path / name)
    assert inspect_image(tmp_path / name).width == album.SIZE[0]
    expected = album.scene() if "gray" not in name and "deep" not in name else album.scene().convert("L").convert("RGB")
    if "bits" not in name and "palette" not in name:
        assert np.abs(np.asarray(image)[4, 4].astype(int) - np.asarray(expected)[4, 4]).max() <= 10


@pytest.mark.parametrize("name", list(album.bad()))
def test_what_cannot_be_read_is_refused_in_words_that_stay_the_same(name: str, tmp_path: Path) -> None:
    """Pillow's own words hold the address of an object in memory (as seen in python-pillow/Pillow#2642)."""
    content, told = album.bad()[name]
    reasons = set()
    for place in ("one", "another"):
        path = tmp_path / place / name
        path.parent.mkdir()
        path.write_bytes(content)
        for read in (open_image, inspect_image, upright_size)[: 2 if told.startswith(("damaged", "its pixels")) else 3]:
            with pytest.raises(ValueError, match=name) as caught:
                read(path)
            reasons.add(str(caught.value).removeprefix(f"{path}: "))
        with pytest.raises(ValueError, match="a picture: ") as caught:
            open_with_format(bytes(bytearray(content)), name="a picture")
        reasons.add(str(caught.value).removeprefix("a picture: "))
    (reason,) = reasons
    assert reason.startswith(told)
    assert " at 0x" not in reason


def test_16_bit_gray_is_scaled_in_every_form() -> None:
    """White else (python-pillow/Pillow#2574), or no picture at all (`point` and I;16B)."""
    gray = np.full((9, 9), 20000, np.uint16)
    for image, kind in ((gray, "PNG"), (gray, "TIFF"), (gray.astype(">u2"), "TIFF"), (gray.astype(np.int32), "TIFF")):
        assert open_image(album.encoded(Image.fromarray(image), kind)).getpixel((4, 4)) == (78, 78, 78)


def test_what_is_no_file_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "nothing.jpg").symlink_to("absent.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real").write_bytes(album.encoded(album.scene(), "GIF"))
    found = {name: is_picture(tmp_path / name) for name in ("pipe.jpg", "nothing.jpg", "folder.jpg", "absent", "link")}
    assert found == {"pipe.jpg": False, "nothing.jpg": False, "folder.jpg": False, "absent": False, "link": True}
    assert kind_of(b"BMW's sales of this year, a text") is None
