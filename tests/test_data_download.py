"""Downloads from a server that breaks off, lies and serves other files; archives that mean harm. No real address is called."""

import hashlib
import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from perceptio_core.progress import Transfer, amount
from pipeline import download as downloads
from pipeline import unpack as unpacking
from pipeline.download import DownloadError, Wanted, client, fetch
from pipeline.unpack import unpack
from unsteady_server import Served, Server, unsteady_server

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
MD5 = f"md5:{hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "_FIRST_PAUSE_S", 0.0)
    with unsteady_server() as served:
        yield served


def bring(server: Server, path: Path, *urls: str, size: int | None = len(CONTENT), digest: str | None = SHA256) -> Transfer:
    wanted = Wanted(urls=[f"{server.url}{url}" for url in urls or ("/f",)], size=size, digest=digest)
    progress = Transfer(label="test", total=size or 0)
    with client() as http:
        fetch(wanted, path, http=http, progress=progress)
    return progress


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = Served(content=CONTENT, cuts=[1_000_000, 500_000, 7])
    bring(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [asked[1:] for asked in server.asked] == [
        (None, None),
        ("bytes=1000000-", '"v1"'),
        ("bytes=1500000-", '"v1"'),
        ("bytes=1500007-", '"v1"'),
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["f"], "nothing unfinished stays"


def test_a_killed_command_goes_on_where_it_stood(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As reported in huggingface/huggingface_hub#1396: what Ctrl-C left behind was taken for the file."""
    server.files["/f"] = Served(content=CONTENT, cuts=[2_000_000])

    def killed(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(downloads.time, "sleep", killed)
        with pytest.raises(KeyboardInterrupt):
            bring(server, tmp_path / "f")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f.part", "f.part.json"]
    bring(server, tmp_path / "f")
    assert server.asked[-1][1] == "bytes=2000000-"
    assert (tmp_path / "f").read_bytes() == CONTENT
    bring(server, tmp_path / "f")
    assert len(server.asked) == 2, "what is there is not asked for"


def test_a_server_without_ranges_is_read_from_the_beginning(server: Server, tmp_path: Path) -> None:
    """As reported in cocodataset/cocoapi#64: train2014.zip could not be resumed, so that 13 GB began anew or were refused."""
    server.files["/f"] = Served(content=CONTENT, cuts=[2_999_999], ranges=False)
    bring(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    server.files["/g"] = Served(content=CONTENT, cuts=[1_000_000] * 20, ranges=False)
    with pytest.raises(DownloadError, match=r"/g: broke off 5 times after 1 MB .*try again later"):
        bring(server, tmp_path / "g", "/g")


def test_a_file_that_changed_meanwhile_is_begun_anew(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = Served(content=b"x" * len(CONTENT), cuts=[1_000_000], etag='"v0"')
    (tmp_path / "f").with_name("f.part").write_bytes(b"x" * 1_000_000)
    (tmp_path / "f.part.json").write_text(f'{{"url": "{server.url}/f", "mark": "\\"v0\\"", "total": {len(CONTENT)}}}')
    server.files["/f"] = Served(content=CONTENT)
    bring(server, tmp_path / "f")
    assert server.asked[-1][1:] == ("bytes=1000000-", '"v0"')
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ["", 'W/"v1"'])
def test_without_a_mark_or_a_checksum_nothing_is_put_together(server: Server, tmp_path: Path, etag: str) -> None:
    server.files["/f"] = Served(content=CONTENT, cuts=[1_000_000], etag=etag)
    bring(server, tmp_path / "f", digest=None)
    assert [asked[1] for asked in server.asked] == [None, None]
    server.files["/g"] = Served(content=CONTENT, cuts=[1_000_000], etag=etag)
    bring(server, tmp_path / "g", "/g")
    assert server.asked[-1][1] == "bytes=1000000-", "a checksum tells in the end"
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("served", "told"),
    [
        (Served(content=CONTENT[:-1]), "has 2,999,999 bytes; published are 3,000,000"),
        (Served(content=CONTENT, announced=2_000_000), "has 2,000,000 bytes; published are 3,000,000"),
        (Served(content=CONTENT[:-5] + b"wrong"), "gave a file of sha256 .*; published is"),
        (Served(content=CONTENT[:-5], announced=-1), "gave 2,999,995 bytes; published are 3,000,000"),
        (Served(content=b"<html>", headers={"Content-Type": "text/html; charset=utf-8"}), "web page in the place of the file"),
        (Served(content=CONTENT, headers={"Content-Encoding": "gzip"}), "packed as gzip"),
        (Served(content=b"", statuses=[404]), "the server answers 404 Not Found"),
        (Served(content=b"", statuses=[403]), "the server answers 403 Forbidden"),
        (Served(content=CONTENT, statuses=[503] * 20), "broke off 5 times after 0 B .the server answers 503."),
    ],
)
def test_what_is_not_the_published_file_is_refused(server: Server, tmp_path: Path, served: Served, told: str) -> None:
    """Among them huggingface/huggingface_hub#2589: 635 bytes of a page stood for a model of 133 MB."""
    server.files["/f"] = served
    with pytest.raises(DownloadError, match=told):
        bring(server, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_length_that_is_never_reached_is_no_file(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = Served(content=CONTENT, announced=3_000_001, ranges=False)
    with pytest.raises(DownloadError, match="broke off"):
        bring(server, tmp_path / "f", size=None, digest=None)
    assert not (tmp_path / "f").exists()


def test_a_server_in_trouble_is_asked_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    server.files["/f"] = Served(content=CONTENT, statuses=[503, 429, 500], headers={"Retry-After": "7"})
    bring(server, tmp_path / "f", digest=MD5)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert pauses == [7.0, 7.0, 7.0]


def test_the_next_address_stands_in_for_a_dead_one(server: Server, tmp_path: Path) -> None:
    """As reported in lichengunc/refer#14: the makers' server is gone, and an archive of the web has the same bytes."""
    server.files["/archived"] = Served(content=CONTENT)
    bring(server, tmp_path / "f", "/gone", "/archived")
    assert (tmp_path / "f").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=r"/gone: the server answers 404.*; .*/lost: the server answers 404"):
        bring(server, tmp_path / "g", "/gone", "/lost")


def test_a_full_disk_is_said_before_the_first_byte(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/f"] = Served(content=CONTENT)
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match=r"3 MB are to come, free are 1 kB"):
        bring(server, tmp_path / "f")


def test_progress_counts_what_is_there(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["/f"] = Served(content=CONTENT, cuts=[1_000_000, 0, 1_000_000])
    bring(server, tmp_path / "f").end()
    assert capsys.readouterr().err.splitlines()[-1].startswith("test: 3 MB of 3 MB, ")
    assert amount(13_510_573_713) == "13.5 GB"


def zipped(path: Path, members: dict[str, bytes], **modes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = modes.get(name, 0o644 | stat.S_IFREG) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def tarred(path: Path, members: dict[str, bytes], *infos: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in infos:
            archive.addfile(info)
    return path


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_parts_go_to_their_places(tmp_path: Path, pack: Callable[..., Path]) -> None:
    members = {"train/1.jpg": b"1", "train/deep/2.jpg": b"2", "train2/3.jpg": b"3", "notes.json": b"{}", "other.json": b"[]"}
    archive = pack(tmp_path / "a", members)
    data = tmp_path / "data"
    (data / "pictures").mkdir(parents=True)
    unpack(archive, {"train": data / "pictures", "notes.json": data / "x" / "instances.json"})
    assert sorted(file.relative_to(data).as_posix() for file in data.rglob("*") if file.is_file()) == [
        "pictures/1.jpg",
        "pictures/deep/2.jpg",
        "x/instances.json",
    ]


def test_an_archive_in_an_archive(tmp_path: Path) -> None:
    """As COCO's panoptic annotations are packed."""
    inner = zipped(tmp_path / "inner.zip", {"panoptic_train2017/1.png": b"png"})
    archive = zipped(
        tmp_path / "a.zip", {"annotations/panoptic_train2017.zip": inner.read_bytes(), "annotations/p.json": b"{}"}
    )
    inside = "annotations/panoptic_train2017.zip!/panoptic_train2017"
    unpack(archive, {inside: tmp_path / "d/p", "annotations/p.json": tmp_path / "d/p.json"})
    assert sorted(file.name for file in (tmp_path / "d").iterdir()) == ["p", "p.json"]
    assert (tmp_path / "d/p/1.png").read_bytes() == b"png"


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: zipped(path, {"a/1": b"1", "a/../../evil": b"x"}), "leads out"),
        (lambda path: zipped(path, {"a/1": b"1", "/etc/evil": b"x"}), "leads out"),
        (lambda path: zipped(path, {"a/1": b"1", "a\\..\\evil": b"x"}), "leads out"),
        (lambda path: zipped(path, {"a/1": b"/etc/passwd"}, **{"a/1": 0o777 | stat.S_IFLNK}), "a link or a device"),
        (lambda path: zipped(path, {"a/1": b"x"}, **{"a/1": 0o666 | stat.S_IFCHR}), "a link or a device"),
        (lambda path: zipped(path, {"a/1": b"\0" * 100_000_000}), "members of 100 MB in an archive of"),
        (lambda path: zipped(path, {"b/1": b"1"}), "holds no a"),
        (lambda path: zipped(path, {"a": b"1", "a/1": b"1"}), "stands twice"),
        (lambda path: tarred(path, {"a/1": b"1", "a/../../evil": b"x"}), "leads out"),
        (lambda path: tarred(path, {"a/1": b"1"}, link("a/2", "/etc/passwd")), "is a link or a device"),
        (lambda path: tarred(path, {"a/1": b"1"}, link("a/2", "a/1", tarfile.LNKTYPE)), "is a link or a device"),
        (lambda path: tarred(path, {"a/1": b"1"}, link("a/2", "", tarfile.CHRTYPE)), "is a link or a device"),
        (lambda path: tarred(path, {"a/1": b"\0" * 100_000_000}), "members of 100 MB in an archive of"),
        (lambda path: path.write_bytes(b"<html>") and path, r"is no \.zip and no \.tar"),
    ],
)
def test_an_archive_that_means_harm_is_refused(tmp_path: Path, make: Callable[[Path], Path], told: str) -> None:
    archive = make(tmp_path / "archive")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=told):
        unpack(archive, {"a": tmp_path / "data" / "a"})
    left = set(tmp_path.rglob("*")) - before
    assert left <= {tmp_path / "data"}, "nothing is at the place, or beside it"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/1", b"1")
        archive.writestr("a/1", b"2")
    with pytest.raises(ValueError, match="stands twice"):
        unpack(tmp_path / "a.zip", {"a": tmp_path / "a"})


def test_an_archive_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    """As reported in facebookresearch/co3d#30: archives were incomplete at their source."""
    members = {f"a/{number}": CONTENT[:100_000] for number in range(5)}
    for pack in (zipped, tarred):
        content = pack(tmp_path / "a", members).read_bytes()
        (tmp_path / "a").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="a: "):
            unpack(tmp_path / "a", {"a": tmp_path / "data"})
        assert not (tmp_path / "data").exists()


def test_bytes_that_were_changed_on_the_way_are_noticed(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"a/1": CONTENT[:100_000]})
    content = bytearray(archive.read_bytes())
    content[5_000] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(archive, {"a": tmp_path / "a"})


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MOST_MEMBERS", 3)
    with pytest.raises(ValueError, match="4 members"):
        unpack(zipped(tmp_path / "a.zip", {f"a/{number}": b"" for number in range(5)}), {"a": tmp_path / "a"})


def test_links_outside_of_the_parts_are_left_alone(tmp_path: Path) -> None:
    """A repository's archive holds links of its own."""
    archive = tarred(tmp_path / "a.tar.gz", {"r/data/1": b"1"}, link("r/README", "docs/README"))
    unpack(archive, {"r/data": tmp_path / "data"})
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["1"]


def test_no_room_is_said_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tmp_path / "a.zip", {"a/1": CONTENT})
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"unpacks to 3 MB; free are 1 kB"):
        unpack(archive, {"a": tmp_path / "a"})
