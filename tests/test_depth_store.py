"""Depth maps on disk: 16 bits with a scale, tars that others read, and faults that are told by file."""

import io
import multiprocessing
import pickle
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from perceptio_core.depth.store import (
    INDEX,
    LEVELS,
    DepthMaps,
    DepthRow,
    DepthStore,
    decode_depth,
    encode_depth,
    load_part,
    member_name,
    places,
    save_part,
    write_index,
    write_shard,
)

SHARDS = ("depth-00000.tar", "depth-00001.tar")


def maps() -> dict[str, np.ndarray]:
    """Maps of several sizes and units; one flat, one of zeros, one of a pixel."""
    draw = np.random.default_rng(0)
    return {
        "set/0001": draw.uniform(0, 5, (6, 9)).astype(np.float32),
        "set/0002": draw.exponential(1e4, (30, 2)),
        "set/flat": np.full((3, 4), 2.5),
        "set/one": np.array([[1e-20]], np.float32),
        "set/zeros": np.zeros((2, 2), np.float32),
    }


def write(folder: Path) -> list[DepthRow]:
    """A store of two shards with `maps()`; its rows."""
    folder.mkdir()
    encoded = [encode_depth(key, one) for key, one in reversed(maps().items())]
    rows = write_shard(folder, name=SHARDS[0], maps=encoded[2:]) + write_shard(folder, name=SHARDS[1], maps=encoded[:2])
    assert write_index(folder, rows) == len(rows) == 5
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "store")
    return tmp_path / "store"


def test_a_map_comes_back_within_half_a_scale() -> None:
    for key, depth in maps().items():
        encoded = encode_depth(key, depth)
        exact, high = depth.astype(np.float64), float(depth.max())
        assert (encoded.height, encoded.width) == depth.shape
        assert encoded.scale == (high / LEVELS if high else 1.0)
        read = decode_depth(encoded.png, height=encoded.height, width=encoded.width, scale=encoded.scale)
        assert read.dtype == np.float32
        # and what float32 itself rounds
        assert np.abs(read.astype(np.float64) - exact).max() <= encoded.scale / 2 * (high > 0) + np.spacing(np.float32(high))
        assert read.max() == np.float32(high), "the highest value is exact"
        with Image.open(io.BytesIO(encoded.png)) as image:
            assert image.mode == "I;16"
            values = np.asarray(image)
        assert np.array_equal(values, np.round(exact / encoded.scale)), "sixteen bits as they are, to the nearest"


@pytest.mark.parametrize(
    ("depth", "told"),
    [
        (np.array([[1.0, -0.25]]), "must not be negative, found -0.25"),
        (np.array([[1.0, np.nan]]), "not finite"),
        (np.array([[1.0, np.inf]]), "not finite"),
        (np.zeros((0, 4)), r"must have two sides, got shape \(0, 4\)"),
        (np.zeros((2, 2, 1)), r"must have two sides, got shape \(2, 2, 1\)"),
    ],
)
def test_what_is_no_map_of_inverse_depth_is_refused_by_its_key(depth: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError, match=f"^set/7: .*{told}"):
        encode_depth("set/7", depth)


def png(mode: str, size: tuple[int, int] = (3, 2), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


def vast() -> bytes:
    """A PNG whose header, checksum included, says 40,000 x 40,000 pixels of 16 bits: 3.2 GB if it were decoded."""
    good, side = png("I;16"), (40_000).to_bytes(4, "big")
    header = b"IHDR" + side + side + good[24:29]
    return good[:12] + header + zlib.crc32(header).to_bytes(4, "big") + good[33:]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (png("L"), r"a L image of \(3, 2\), expected 16-bit gray of \(3, 2\)"),
        (png("RGB"), r"a RGB image of"),
        (png("I;16", (2, 3)), r"a I;16 image of \(2, 3\), expected 16-bit gray of \(3, 2\)"),
        (png("I;16", kind="TIFF"), "not a PNG that can be read"),
        (b"", "not a PNG that can be read"),
        (vast(), "not a PNG that can be read: .*exceeds limit"),
    ],
    ids=["8 bits", "colour", "turned", "TIFF", "nothing", "vast"],
)
def test_bytes_that_are_no_such_map_are_refused(content: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        decode_depth(content, height=2, width=3, scale=1.0)


def test_damaged_bytes_are_an_error_or_harmless() -> None:
    """Whichever byte is changed, and wherever the file is cut off: never another map, never another kind of error."""
    for shape in ((5, 6), (20, 30)):
        encoded = encode_depth("k", np.random.default_rng(1).uniform(0, 5, shape))
        size = {"height": shape[0], "width": shape[1], "scale": encoded.scale}
        whole, refused = decode_depth(encoded.png, **size), 0
        damaged = [encoded.png[:end] for end in range(0, len(encoded.png), 3)]
        for place in range(len(encoded.png)):
            changed = bytearray(encoded.png)
            changed[place] ^= 0x81
            damaged.append(bytes(changed))
        for content in damaged:
            try:
                assert np.array_equal(decode_depth(content, **size), whole)
            except ValueError:
                refused += 1
        assert refused > 0.8 * len(damaged)


def test_the_same_maps_are_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "one") == write(tmp_path / "two")
    for name in (*SHARDS, INDEX):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == sorted((*SHARDS, INDEX)), "nothing unfinished is left"


def test_rows_name_the_bytes_of_their_members(tmp_path: Path) -> None:
    rows = write(tmp_path / "store")
    assert [row.image_key for row in rows] == sorted(maps()), "in order of their keys, however they came"
    for row in rows:
        with tarfile.open(tmp_path / "store" / row.shard) as tar:
            member = tar.getmember(row.member)
            assert (member.offset_data, member.size) == (row.offset, row.size)
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
            assert "/" not in member.name


def test_plain_webdataset_reads_the_shards(folder: Path) -> None:
    urls = [str(folder / name) for name in SHARDS]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [key.replace("/", "__") for key in sorted(maps())]
    store = DepthStore(folder)
    for sample, key in zip(samples, sorted(maps()), strict=True):
        with Image.open(io.BytesIO(sample["png"])) as image:
            values = np.asarray(image).astype(np.float64)
        high = float(maps()[key].max())
        np.testing.assert_array_equal((values * (high / LEVELS if high else 1.0)).astype(np.float32), store[key])


def test_the_store_finds_every_map_and_no_other(folder: Path) -> None:
    store = DepthStore(folder)
    assert len(store) == 5
    for key, depth in reversed(maps().items()):
        assert key in store
        np.testing.assert_allclose(store[key], depth, rtol=0, atol=0.51 * depth.max() / LEVELS)
    assert "set/0003" not in store
    with pytest.raises(KeyError, match="set/0003"):
        store["set/0003"]
    store.close()
    assert store["set/0001"].shape == (6, 9), "it opens again"


def _same_in_a_child(store: DepthStore, expected: np.ndarray) -> None:
    assert np.array_equal(store["set/0001"], expected)


def test_other_processes_read_the_same_store(folder: Path) -> None:
    store = DepthStore(folder)
    expected = store["set/0001"]  # its file is open
    assert np.array_equal(pickle.loads(pickle.dumps(store))["set/0001"], expected)  # noqa: S301
    child = multiprocessing.get_context("fork").Process(target=_same_in_a_child, args=(store, expected))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert np.array_equal(store["set/0001"], expected), "the child has closed nothing of ours"


def test_faults_of_the_folder_name_the_file(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/index\.parquet: not found; the stage teacher_depth writes it"):
        DepthStore(folder / "nowhere")
    index, shard = folder / INDEX, folder / SHARDS[0]
    store, content = DepthStore(folder), shard.read_bytes()
    place = content.index(b"IDAT")
    shard.write_bytes(content[: place + 8] + b"\xff\xff\xff" + content[place + 11 :])
    with pytest.raises(ValueError, match=r"store/depth-00000\.tar: set__0001\.png: not a PNG that can be read"):
        DepthStore(folder)["set/0001"]
    assert DepthStore(folder)["set/flat"].max() == 2.5, "the others are whole"
    shard.write_bytes(content[:600])
    with pytest.raises(ValueError, match=r"store/depth-00000\.tar: set__flat\.png: not a PNG"):
        DepthStore(folder)["set/flat"]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"store/depth-00000\.tar"):
        store["set/0001"]
    index.write_bytes(index.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"store/index\.parquet: "):
        DepthStore(folder)


@pytest.mark.parametrize("shard", ["../outside.tar", "/etc/passwd", "depth-00000.tar/../x", "depth-1.tar"])
def test_an_index_names_shards_of_its_folder_alone(tmp_path: Path, shard: str) -> None:
    rows = write(tmp_path / "store")
    write_index(tmp_path / "store", [*rows[:-1], replace(rows[-1], shard=shard)])
    with pytest.raises(ValueError, match=r"store/index\.parquet: '.*' is no name of a shard"):
        DepthStore(tmp_path / "store")


def test_rows_that_swap_sizes_are_noticed(tmp_path: Path) -> None:
    rows = write(tmp_path / "store")
    write_index(tmp_path / "store", [replace(rows[0], height=9, width=6), *rows[1:]])
    with pytest.raises(ValueError, match=r"set__0001\.png: a I;16 image of \(9, 6\), expected 16-bit gray of \(6, 9\)"):
        DepthStore(tmp_path / "store")["set/0001"]


def test_an_index_is_in_order_and_its_members_differ(tmp_path: Path) -> None:
    rows = write(tmp_path / "store")
    with pytest.raises(ValueError, match=r"index\.parquet: image_key 'set/0001' comes after 'set/zeros'"):
        write_index(tmp_path / "store", [*rows[1:], rows[0]])
    with pytest.raises(ValueError, match=r"index\.parquet: image_key 'set/0001' occurs twice"):
        write_index(tmp_path / "store", [rows[0], *rows])
    assert member_name("a/b") == member_name("a__b") == "a__b.png"
    twins = [replace(rows[0], image_key=key, member=member_name(key)) for key in ("a/b", "a__b")]
    with pytest.raises(ValueError, match=r"store: 'a/b' and 'a__b' are both 'a__b\.png'"):
        write_index(tmp_path / "store", twins)


def test_a_part_holds_what_it_was_given(tmp_path: Path) -> None:
    rows, refused = write(tmp_path / "store"), [{"file": "ä/b.jpg", "reason": "cut off"}]
    save_part(tmp_path / "part.json", rows, refused)
    assert load_part(tmp_path / "part.json") == (rows, refused)
    assert not list(tmp_path.glob(".*"))


def test_a_shard_that_fails_is_not_there(tmp_path: Path) -> None:
    def failing():
        yield encode_depth("a", np.ones((2, 2)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, name=SHARDS[0], maps=failing())
    assert not list(tmp_path.iterdir())


def test_places_of_many_images_are_found_without_the_index_in_memory(folder: Path) -> None:
    keys = sorted([*maps(), "set/0000", "set/0003", "zzz"])
    found = dict(zip(keys, places(folder, keys), strict=True))
    reader, store = DepthMaps(folder), DepthStore(folder)
    assert [key for key, place in found.items() if place[2] == 0] == [key for key in keys if key not in maps()]
    for key in maps():
        assert np.array_equal(reader.read(found[key], image_key=key), store[key])
    with pytest.raises(ValueError, match="nowhere/index"):
        list(places(folder / "nowhere", keys))
