"""`perceptio data get` on servers of this machine: what is fetched, asked, laid out, left alone and said."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from full_layout import full_layout
from parameters import values_of
from perceptio_core.params.profile import load_profile
from pipeline import data_get
from pipeline import download as downloads
from pipeline.cli import main
from pipeline.data_archives import ARCHIVES, Archive, HubFile, Licence
from pipeline.data_places import places
from stages.inputs import faults
from unsteady_server import Served, Server, unsteady_server

REPOSITORY = Path(__file__).resolve().parent.parent
LICENCE = Licence(name="Ours: free", page="https://example.org/licence")
COMMIT = "0123456789" * 4


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "_FIRST_PAUSE_S", 0.0)
    with unsteady_server() as served:
        yield served


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """Files of data sets by ``owner/name/path``, as the hub serves them; the first answer to each breaks off in the middle."""
    files: dict[str, bytes] = {}
    cut: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            found = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/main/(.+)", self.path)
            content = files.get(f"{found[1]}/{found[2]}") if found else None
            self.close_connection = True
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "GET":
                first = self.path not in cut
                cut.add(self.path)
                self.wfile.write(content[start : len(content) // 2] if first and not start else content[start:])

        def log_message(self, *_: object) -> None:
            pass

    threaded = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=threaded.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{threaded.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE"
    monkeypatch.setattr(template, f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda _: None)
    yield files
    threaded.shutdown()


def packed(path: Path, below: Path, names: list[str], *, prefix: str = "") -> bytes:
    """A zip of some files and folders below a folder."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            for file in sorted((below / name).rglob("*")) if (below / name).is_dir() else [below / name]:
                if file.is_file():
                    archive.write(file, f"{prefix}{file.relative_to(below).as_posix()}")
    return path.read_bytes()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, hub: dict[str, bytes]) -> Path:
    """A profile `p` of four data sets and two benchmarks, their archives on the servers; returns the empty data root."""
    made = full_layout(tmp_path / "made")
    values = values_of("perceptio-1b")
    kept = ("refcoco", "grandf", "llava")
    values["sources"]["datasets"] = [row for row in values["sources"]["datasets"] if row["name"] in kept]
    values["sources"]["held_out"] = ["refcoco/refs(unc).p", "mme", "blink/Relative_Depth"]
    values["foundations"] = {"bundled": "foundations/mini"}
    values["evaluate"]["benchmarks"] = [
        {"kind": "mme", "path": "mme"},
        {"kind": "blink_depth", "path": "blink/Relative_Depth"},
        {"kind": "mmbench", "path": "mmbench/MMBench_DEV_EN.tsv", "split": "dev"},
    ]
    root = tmp_path / "checkout"
    (root / "profiles").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "profiles/p.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(root)
    monkeypatch.setenv("PERCEPTIO_DATA", str(root / "data"))
    packing = tmp_path / "packed.zip"

    def serve(name: str, content: bytes, **how: object) -> None:
        server.files[f"/{name}.zip"] = Served(content=content, **how)  # type: ignore[arg-type]
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        urls = (f"{server.url}/{name}.zip",)
        archive = Archive(urls=urls, licence=ARCHIVES[name].licence, size=len(content), digest=digest)
        monkeypatch.setitem(ARCHIVES, name, archive)

    serve("refcoco", packed(packing, made, ["refcoco"]), cuts=[5_000])
    serve("train2014", packed(packing, made / "coco", ["train2014"]), statuses=[503])
    serve("train2017", packed(packing, made / "coco", ["train2017"]), ranges=False, cuts=[10_000])
    serve("gqa_images", packed(packing, made / "gqa", ["images"]))
    serve("textvqa_images", packed(packing, made / "textvqa", ["train_images"]))
    serve("vg_100k", packed(packing, made / "vg", ["VG_100K"]))
    serve("vg_100k_2", packed(packing, made / "vg", ["VG_100K_2"]))
    table = (made / "mmbench/MMBench_DEV_EN.tsv").read_bytes()
    server.files["/MMBench_DEV_EN.tsv"] = Served(content=table)
    md5 = hashlib.md5(table, usedforsecurity=False).hexdigest()
    url = f"{server.url}/MMBench_DEV_EN.tsv"
    monkeypatch.setitem(ARCHIVES, "MMBench_DEV_EN", Archive(urls=(url,), licence=LICENCE, digest=f"md5:{md5}"))
    for name, file in (
        ("llava", "llava/llava_v1_5_mix665k.json"),
        ("grandf", "GranDf/annotations/train/GranDf_HA_GCG_train.json"),
    ):
        hub[f"{ARCHIVES[name].hub.repo}/{Path(file).name}"] = (made / file).read_bytes()  # type: ignore[union-attr]
    hub["BLINK-Benchmark/BLINK/Relative_Depth/val-00000-of-00001.parquet"] = next(
        (made / "blink").rglob("*.parquet")
    ).read_bytes()
    release = packed(
        packing,
        made / "mme",
        [path.name for path in sorted((made / "mme").iterdir())],
        prefix="MME_Benchmark_release_version/MME_Benchmark/",
    )
    hub["darkyarding/MME/MME_Benchmark_release_version.zip"] = release
    return root / "data"


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["perceptio", "data", "get", "--profile", "p", *arguments])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(str(stop.code))
    told = capsys.readouterr()
    return code, told.out + told.err


def test_what_is_missing_comes_and_can_be_read(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path
) -> None:
    """Through cuts, trouble and a server without ranges; then a second call finds nothing to do."""
    code, told = run(monkeypatch, capsys, "--accept-licences")
    assert code == 0, told
    assert "COCO: annotations CC BY 4.0, pictures under Flickr's terms: https://cocodataset.org/#termsofuse" in told
    assert told.count("https://cocodataset.org/#termsofuse") == 1, "each licence once"
    assert re.search(r"by hand  GranDf_HA_images/train .*gdown 1abdxVhrbNQhjJQ8eAcuPrOUBzhGaFsF_", told)
    assert re.search(r"by hand  ocr_vqa/images .*save all as \.jpg", told)
    assert "12 of 12 archives are laid out" in told
    assert re.search(r"data get: (\d+ kB) of \1, .*/s, .* in all", told), "a line of progress"
    assert not (checkout / ".downloads").exists(), "archives do not stay"
    for folder in ("GranDf_HA_images", "ocr_vqa"):  # the steps by hand
        (tmp_path / "made" / folder).rename(checkout / folder)
    assert list(faults(load_profile("p"), stages=("sources", "evaluate"))) == []
    asked = len(server.asked)
    code, told = run(monkeypatch, capsys)
    assert code == 0
    assert told.startswith("Nothing to do: all ")
    assert len(server.asked) == asked


def test_only_what_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(monkeypatch, capsys, "--accept-licences", "--only", "refcoco,mme")
    assert code == 0, told
    assert sorted(path.name for path in checkout.iterdir()) == ["coco", "mme", "refcoco"]
    assert sorted(path.name for path in (checkout / "refcoco").iterdir()) == ["instances.json", "refs(unc).p"]
    code, told = run(monkeypatch, capsys, "--only", "refcocoo")
    assert code == 2
    assert "--only refcocoo: the profile has none such; it has " in told
    code, told = run(monkeypatch, capsys, "--only", "mme")
    assert (code, told.startswith("Nothing to do")) == (0, True)


def test_licences_are_asked_for(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(monkeypatch, capsys, "--only", "mmbench")
    assert code == 2
    assert "Ours: free: https://example.org/licence" in told
    assert "say so by --accept-licences" in told
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert run(monkeypatch, capsys, "--only", "mmbench")[0] == 2
    assert not (checkout / "mmbench").exists()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert run(monkeypatch, capsys, "--only", "mmbench")[0] == 0
    assert (checkout / "mmbench/MMBench_DEV_EN.tsv").is_file()


def test_one_that_fails_holds_up_no_other(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server, hub: dict[str, bytes]
) -> None:
    server.files["/vg_100k.zip"].content = server.files["/vg_100k.zip"].content[:-3] + b"xyz"
    del server.files["/gqa_images.zip"]
    hub["darkyarding/MME/MME_Benchmark_release_version.zip"] = b"<html>no archive</html>"
    del hub["BLINK-Benchmark/BLINK/Relative_Depth/val-00000-of-00001.parquet"]
    code, told = run(monkeypatch, capsys, "--accept-licences")
    assert code == 1
    assert re.search(r"failed   vg_100k \(for vg/VG_100K\): .*gave a file of sha256", told)
    assert re.search(r"failed   gqa_images .*404", told)
    assert re.search(r"failed   mme \(for mme\): .*is no \.zip", told)
    assert re.search(r"failed   blink \(for blink/Relative_Depth\): EntryNotFoundError|failed   blink .*404", told)
    assert "8 of 12 archives are laid out" in told
    assert (checkout / "vg/VG_100K_2").is_dir()
    assert not (checkout / "vg/VG_100K").exists()


def test_what_lies_there_is_left_alone(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "refcoco").mkdir()
    (checkout / "refcoco/instances.json").write_text("mine")
    (checkout / "coco/train2014").mkdir(parents=True)  # empty: missing
    assert run(monkeypatch, capsys, "--accept-licences", "--only", "refcoco")[0] == 0
    assert (checkout / "refcoco/instances.json").read_text() == "mine"
    assert (checkout / "refcoco/refs(unc).p").is_file()
    assert len(list((checkout / "coco/train2014").iterdir())) == 23


def test_two_calls_do_not_mix(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with data_get._alone(checkout):
        code, told = run(monkeypatch, capsys, "--accept-licences")
    assert code == 2
    assert "another `perceptio data get` is at work there" in told


def test_a_disk_that_is_too_small_is_said_first(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server
) -> None:
    big = Archive(urls=(f"{server.url}/x",), licence=LICENCE, size=10**18)
    monkeypatch.setitem(ARCHIVES, "train2014", big)
    code, told = run(monkeypatch, capsys, "--accept-licences")
    assert code == 2
    assert re.search(r"1e\+06 TB are to come, and .* are free", told)
    assert not server.asked
    assert checkout.is_dir()


def test_ctrl_c_ends_it_at_once_and_the_next_call_goes_on(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server
) -> None:
    """Whatever its threads are at: they are told nothing, and what they have written is whole as far as it goes."""
    slow = server.files["/refcoco.zip"]
    slow.cuts, slow.stalls_s = [5_000], 60.0
    url = f"{server.url}/refcoco.zip"
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a run in the background ignores it
        "from pipeline import data_get; from pipeline.data_archives import ARCHIVES, Archive\n"
        f"ARCHIVES['refcoco'] = Archive(urls=({url!r},), licence=ARCHIVES['refcoco'].licence, size={len(slow.content)})\n"
        "data_get.get('p', only=['refcoco'], accept=True)"
    )
    monkeypatch.setitem(ARCHIVES, "train2014", Archive(urls=(f"{server.url}/none",), licence=LICENCE))
    (checkout / "coco/train2014").mkdir(parents=True)
    (checkout / "coco/train2014/1.jpg").write_bytes(b"1")
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, text=True
    ) as child:
        part = checkout / ".downloads/refcoco/refcoco.zip.part"
        end = time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size) and time.monotonic() < end and child.poll() is None:
            threading.Event().wait(0.05)
        child.send_signal(signal.SIGINT)
        told, _ = child.communicate(timeout=10)
    assert child.returncode == 130
    assert "stopped; the same command goes on where this one stood" in told
    slow.stalls_s = 0.0
    assert run(monkeypatch, capsys, "--accept-licences", "--only", "refcoco")[0] == 0
    assert server.asked[-1][1] is not None, "it went on"


def test_a_rendered_profile_needs_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", ["perceptio", "data", "get", "--profile", "mini"])
    main()
    assert "nothing is to be fetched" in capsys.readouterr().out


def test_the_table_is_sound() -> None:
    """Each entry has one way to it, an address or a step, and a licence's page; each place of a paper profile has an entry."""
    for name, archive in ARCHIVES.items():
        assert sum((bool(archive.urls), archive.hub is not None, archive.step is not None)) == 1, name
        assert archive.licence.page.startswith("https://") or name in ("yours", "ocr_vqa_images", "reasonseg")
        assert archive.digest is None or re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", archive.digest)
        assert (archive.size is None and archive.digest is None) or archive.known_from, name
        assert all(url.startswith(("http://", "https://")) for url in archive.urls)
        if isinstance(archive.hub, HubFile):
            assert re.fullmatch(r"main|[0-9a-f]{40}", archive.hub.revision)
    for name in ("perceptio-1b", "perceptio-4b", "perceptio-8b"):
        found = places(load_profile(name, folder=REPOSITORY / "profiles"))
        assert all(place.archive != "yours" for place in found)
        by_hand = [place.path for place in found if place.source.step is not None]
        assert by_hand == [
            "GranDf_HA_images/train",
            "aurora/train_depth_annealing_data.json",
            "aurora/images",
            "ocr_vqa/images",
        ]
