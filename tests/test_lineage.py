"""Lineage: what dvc.lock says came from what, as a tree, as pages of the Prefect UI, and clicked through in a browser."""

import base64
import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, browser
from collecting import write_manifest
from entries import entry
from fake_pipeline import FakePipeline, environment, fake_pipeline
from perceptio_core.data.manifest.manifest import ImageRow
from perceptio_core.data.rle import encode
from perceptio_core.data.shards import tars
from perceptio_core.data.shards.entry import Annotation
from perceptio_core.depth.store import encode_depth, write_index, write_shard
from perceptio_core.params.values import SECTIONS
from pipeline.code import fingerprint, source_of
from pipeline.lineage.commits import commit_of
from pipeline.lineage.graph import LineageGraph
from pipeline.lineage.lock import Recorded, StageRecord, read_lock
from pipeline.lineage.pages import Facts, key_of, stage_page
from pipeline.lineage.stage_pictures import Picture, pictures_of
from pipeline.lineage.tree import flat

PERCEPTIO = (sys.executable, "-m", "pipeline.cli")

LOCK = """\
schema: '2.0'
stages:
  evaluate@full:
    cmd: python -m stages.evaluate --profile mini --variant full
    deps:
    - {path: artifacts/mini/cotrain/full, hash: md5, md5: 77aa.dir, size: 24000000, nfiles: 14}
    - {path: perceptio_core/grammar.py, hash: md5, md5: 0123456789abcdef, size: 7000}
    params: {profiles/mini.yaml: {evaluate: {batch_size: 16, benchmarks: [{kind: refer, path: refcoco}]}}}
    outs:
    - {path: artifacts/mini/evaluate/full, hash: md5, md5: 99bb.dir, size: 1200, nfiles: 9}
  cotrain@full:
    cmd: python -m stages.cotrain --profile mini --variant full
    deps:
    - {path: artifacts/mini/depth_codebook/config.json, hash: md5, md5: 55, size: 300}
    params: {profiles/mini.yaml: {cotrain: {steps: 600, seed: 0}, variants.full: {}}}
    outs:
    - {path: artifacts/mini/cotrain/full, hash: md5, md5: 77aa.dir, size: 24000000, nfiles: 14}
  depth_codebook:
    cmd: python -m stages.depth_codebook --profile mini
    outs:
    - {path: artifacts/mini/depth_codebook, hash: md5, md5: 55cc.dir, size: 2400000, nfiles: 5}
  sources@smoke:
    cmd: python -m stages.sources --profile smoke
    outs:
    - {path: artifacts/smoke/sources, hash: md5, md5: 11.dir, size: 1, nfiles: 1}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FakePipeline:
    """A checkout that plain `dvc repro` has run, and that is committed."""
    fake = fake_pipeline(tmp_path_factory.mktemp("finished"))
    fake.activate("full", "control")
    fake.run("git", "add", "--all")
    commit(fake.root, "all of it")
    fake.dvc("repro")
    return fake


def commit(folder: Path, message: str) -> str:
    """Commit what is staged; the commit's id."""
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qm", message]
    subprocess.run(command, cwd=folder, check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_graph_of_the_lock_file_is_the_pipelines(finished: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.root)
    graph = LineageGraph.from_lock()
    assert graph.upstream("joint_shards") == ["sources", "teacher_depth", "depth_codebook"]
    assert graph.upstream("evaluate@full") == ["foundations", "sources", "cotrain@full"]
    assert graph.downstream("teacher_depth") == ["depth_codebook", "joint_shards"]
    assert set(graph.ancestors("report")) == graph.records.keys() - {"report"}
    assert "cotrain@control" not in graph.ancestors("evaluate@full")
    assert graph.makers("artifacts/mini/cotrain/full/checkpoint/model") == ["cotrain@full"]
    assert sorted(graph.makers("artifacts/mini/cotrain")) == ["cotrain@control", "cotrain@full"]
    assert graph.makers("profiles/mini.yaml") == []


def test_dvc_and_the_graph_agree_on_the_hash_of_everything_read(
    finished: FakePipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """DVC's own hashes are the oracle: of whole outputs, of files and folders in them, and of folders that hold several."""
    monkeypatch.chdir(finished.root)
    graph = LineageGraph.from_lock()
    reads = {(name, read.path): read for name, record in graph.records.items() for read in record.reads}
    made = {where: read for where, read in reads.items() if read.path.startswith("artifacts/mini/")}
    assert {path for _, path in made} >= {
        "artifacts/mini/joint_shards/index.json",
        "artifacts/mini/sources/images.parquet",
        "artifacts/mini/cotrain/full/checkpoint",
        "artifacts/mini/cotrain",
    }
    assert all(graph.agrees(read) for read in made.values())
    assert graph.agrees(reads["foundations", "foundations/mini/SHA256SUMS"]) is None

    # Another teacher_depth alone: those that read it have not run since.
    lock = Path("dvc.lock").read_text()
    try:
        finished.change("teacher_depth", knob=7)
        finished.dvc("repro", "-s", "teacher_depth")
        changed = LineageGraph.from_lock()
    finally:
        Path("dvc.lock").write_text(lock)
        finished.change("teacher_depth", knob=1)
        finished.dvc("checkout", "--force")
    disagree = {where for where, read in made.items() if changed.agrees(read) is False}
    assert disagree == {(stage, "artifacts/mini/teacher_depth") for stage in ("depth_codebook", "joint_shards")}
    monkeypatch.chdir(tmp_path)
    assert graph.agrees(made["report", "artifacts/mini/cotrain"]) is None, "without DVC's cache it cannot be told"


def test_a_reader_that_has_seen_enough_is_no_fault(finished: FakePipeline) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*PERCEPTIO, "lineage", "artifacts/mini/report/metrics.json"]
    done = subprocess.run(command, cwd=finished.root, env=environment(), stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_the_command_tells_the_tree_from_the_lock_file_alone(finished: FakePipeline) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=finished.root, check=True, capture_output=True, text=True).stdout
    output = finished.run(*PERCEPTIO, "lineage", "artifacts/mini/report/metrics.json")
    lock = (finished.root / "dvc.lock").read_text()
    first, *_, last = output.splitlines()
    assert re.fullmatch(
        r"artifacts/mini/report/metrics\.json  md5 (\w{32})  in artifacts/mini/report, md5 (.*)\.dir, .*", first
    )
    assert all(md5 in lock for md5 in re.findall(r"md5 (\w{32})\.dir", output))
    for stage in (*SECTIONS[:5], "cotrain@full", "cotrain@control", "evaluate@full", "evaluate@control", "report"):
        assert len(re.findall(rf"─ {stage}$", output, flags=re.MULTILINE)) == 1, "each stage is told once"
    assert "─ sources  (above)" in output
    assert "parameters  sources.knob: 1" in output
    assert len(re.findall(rf"code        as in commit {head[:12]} of \d{{4}}-\d\d-\d\d$", output, re.MULTILINE)) == 10
    assert "no longer these bytes" not in output
    assert last == "used by: no stage"
    inside = finished.run(*PERCEPTIO, "lineage", "artifacts/mini/cotrain/full/checkpoint/model")
    assert "evaluate@full" not in inside.partition("used by")[0]
    assert inside.splitlines()[-1] == "used by: evaluate@full, report"
    message = finished.run(*PERCEPTIO, "lineage", "artifacts/smoke/report", expect=2)
    assert "dvc.lock does not say what made artifacts/smoke/report; it records artifacts/mini/cotrain/control, " in message


def test_the_commit_is_the_newest_whose_code_is_what_ran(tmp_path: Path) -> None:
    def ran(*texts: str) -> StageRecord:
        """The record of a stage that ran this code."""
        names = ("stages/__init__.py", "stages/one.py", "perceptio_core/__init__.py", "perceptio_core/a.py")
        code = dict(zip(names, ("", "from perceptio_core import a", "", *texts), strict=True))
        text = fingerprint("one", code, lambda name: source_of(name, code[name].encode()))
        for name, content in code.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        md5 = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        read = Recorded(path="artifacts/code/one.txt", hash=md5, size=len(text), files=1)
        return StageRecord(name="one@full", command="", reads=(read,), writes=(), parameters={})

    record = ran("a = 1")
    assert commit_of(record, folder=tmp_path) is None, "no repository"
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert commit_of(record, folder=tmp_path) is None, "no commit"
    ids = []
    for text in ("a = 0", "a = 1", "a = 1  # the same", "a = 2", "a = 2"):
        ran(text)
        (tmp_path / "other").write_text(str(len(ids)))
        subprocess.run(["git", "add", "--all"], cwd=tmp_path, check=True)
        ids.append(commit(tmp_path, "next"))
    found = {text: commit_of(ran(text), folder=tmp_path) for text in ("a = 0", "a = 1", "a = 2", "a = 3")}
    assert {text: one and one.id for text, one in found.items()} == {
        "a = 0": ids[0],
        "a = 1": ids[2],
        "a = 2": ids[3],
        "a = 3": None,
    }


def test_nested_values_become_rows() -> None:
    assert flat({"a": {"b": 1 / 3, "c": {}}, "d": [1, 2], "e": None}) == [("a.b", "0.333333"), ("d", "[1, 2]"), ("e", "None")]


def test_a_page_keeps_its_facts_out_of_sight_and_says_what_changed(
    finished: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.root)
    before = Facts(version="v1", seconds=61.0, size=5, metrics={"up": 1.0, "even": 2.0, "loss --> <b>": -1e-05})
    facts = Facts(version="v2", seconds=30.0, size=5, metrics={"up": 1.5, "even": 2.0, "fresh": 3.0})
    text = stage_page(
        "sources",
        profile="mini",
        graph=LineageGraph.from_lock(),
        downstream=["teacher_depth"],
        facts=facts,
        before=before,
        pages={},
        pictures=[Picture(uri="data:image/png;base64,AA==", caption="a|b](x) <script>")],
    )
    assert Facts.from_page(text) == facts
    assert Facts.from_page(before.comment()) == before
    assert before.comment().count("-->") == 1
    assert Facts.from_page("# another page") is None
    assert "Ran for 30s, the version before for 1m01s." in text
    assert {"| up | 1.5 | 1 | +0.5 |", "| even | 2 | 2 | 0 |", "| fresh | 3 |  | new |"} <= set(text.splitlines())
    assert r"![a\|b\](x) \<script\>](data:image/png;base64,AA==)" in text
    assert key_of("perceptio-1B", "evaluate@full") == "perceptio-1b-evaluate-full"


def test_every_stage_with_something_to_see_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").symlink_to(Path(__file__).resolve().parent.parent / "params.yaml")
    out = {name: tmp_path / "artifacts" / "mini" / name for name in (*SECTIONS, "cotrain/full", "evaluate/full")}
    for folder in out.values():
        folder.mkdir(parents=True, exist_ok=True)

    gray = Image.new("RGB", (40, 20), (90, 90, 90))
    (out["sources"] / "root").mkdir()
    gray.save(out["sources"] / "root" / "one.png")
    row = ImageRow(image_key="set/one", path="one.png", width=40, height=20, sha256="0" * 64, split="train")
    write_manifest(out["sources"], images=[row])

    ramp_HW = np.tile(np.linspace(1, 2, 40, dtype=np.float32), (20, 1))  # nearer to the right
    maps = [encode_depth("set/one", ramp_HW)]
    write_index(out["teacher_depth"], write_shard(out["teacher_depth"], name="depth-00000.tar", maps=maps))

    pictured = entry(gray, Annotation(record_id="r", task="marker", source="set", turns=[]))
    part = tars.write_shard(
        out["joint_shards"], name="train-00000", split="train", entries=[pictured], quarantine=[], records={}
    )
    tars.write_index(out["joint_shards"], [part], quarantine=[], manifest={}, about={})
    gray.save(out["depth_codebook"] / "samples.png")
    gray.save(out["report"] / "figure.png")
    curves = out["cotrain/full"] / "curves" / "plots" / "metrics" / "train"
    curves.mkdir(parents=True)
    (curves / "total.tsv").write_text("step\ttotal\n0\t2.0\n1\t1.0\n")
    left_HW = np.zeros((20, 40), bool)
    left_HW[:, :20] = True
    panel = {"image": "one.png", "question": "Where?", "mask": encode(left_HW), "truth": encode(left_HW)}
    without = panel | {"mask": None}
    (out["evaluate/full"] / "panels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (without, panel)))

    def only(stage: str) -> Image.Image:
        (shown,) = pictures_of(stage, profile="mini")
        return Image.open(io.BytesIO(base64.b64decode(shown.uri.partition("base64,")[2]))).convert("RGB")

    for stage in ("sources", "joint_shards", "depth_codebook", "report"):
        assert only(stage).getpixel((20, 10)) == (90, 90, 90), stage
    depth = np.asarray(only("teacher_depth").convert("L"), dtype=int)
    assert depth.shape == (20, 40)
    assert depth[10, 38] > depth[10, 20] > depth[10, 1], "near is bright"
    masked = only("evaluate@full")
    assert masked.getpixel((10, 10)) != (90, 90, 90)
    assert masked.getpixel((30, 10)) == (90, 90, 90)
    (curve,) = pictures_of("cotrain@full", profile="mini")
    assert b"<svg" in base64.b64decode(curve.uri.removeprefix("data:image/svg+xml;base64,"))
    assert pictures_of("foundations", profile="mini") == []
    (out["sources"] / "root" / "one.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"one\.png|image"):
        pictures_of("sources", profile="mini")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_three_clicks_lead_from_the_report_to_the_teacher_and_back(finished: FakePipeline, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with finished.start(*PERCEPTIO, "ui", "--port", str(port)) as ui:
        try:
            assert ui.stdout is not None
            address = next(found[1] for line in ui.stdout if (found := re.search(r"lineage of profile mini: (\S+)", line)))
            assert address == f"http://127.0.0.1:{port}/v2/artifacts/key/mini-lineage"
            assert "it runs already" in finished.run(*PERCEPTIO, "ui", expect=2)
            with browser(tmp_path / "browser") as tab:
                heading = "document.querySelector('[data-testid=markdown-display] h1')?.textContent"
                tab.open(f"http://127.0.0.1:{port}/v2/artifacts/key/mini-report")
                tab.click("a[href*='/artifacts/artifact/']", "")
                tab.wait_for(f"{heading} === 'report'")
                assert tab.wait_for("document.querySelector('[data-testid=markdown-display] img').naturalWidth === 2")

                tab.click("[data-testid=markdown-display] a", "The report of the last run")
                tab.wait_for("location.pathname === '/v2/reports/mini.html' && document.body.innerText.includes('knob')")
                tab.open(f"http://127.0.0.1:{port}/v2/artifacts/key/mini-report")
                tab.click("a[href*='/artifacts/artifact/']", "")
                tab.wait_for(f"{heading} === 'report'")

                tab.click("[data-testid=markdown-display] svg a", "evaluate@full")  # one: to what measured a number
                tab.wait_for(f"{heading} === 'evaluate@full'")
                tab.click("[data-testid=markdown-display] svg a", "depth_codebook")  # two
                tab.wait_for(f"{heading} === 'depth_codebook'")
                tab.click("[data-testid=markdown-display] svg a", "teacher_depth")  # three
                tab.wait_for(f"{heading} === 'teacher_depth'")
                lock = (finished.root / "dvc.lock").read_text()
                # The page's title can come before its tables.
                hashes = tab.wait_for(r"document.body.innerText.match(/\w{32}\.dir/g)")
                assert all(md5 in lock for md5 in hashes)

                tab.click("[data-testid=markdown-display] svg a", "joint_shards")  # and back, by way of all its versions
                tab.wait_for("location.pathname === '/v2/artifacts/key/mini-joint-shards'")
                tab.click("a[href*='/artifacts/artifact/']", "")
                tab.wait_for(f"{heading} === 'joint_shards'")
            output = finished.run(*PERCEPTIO, "repro", "sources", "--force")
            assert f"http://127.0.0.1:{port}/runs/flow-run/" in output, "a run reports to the server that is up"
        finally:
            ui.send_signal(signal.SIGINT)
            ui.communicate(timeout=120)
    assert ui.returncode == 0
    assert not (finished.root / ".prefect" / "perceptio-server").exists()
    assert subprocess.run(["pgrep", "-g", str(os.getpgid(0)), "-f", f"port {port}"], check=False).returncode == 1


def test_a_lock_file_gives_the_stages_of_one_profile_in_order(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(LOCK)
    records = read_lock(path=tmp_path / "dvc.lock", outputs=Path("artifacts/mini"))
    assert [record.name for record in records] == ["depth_codebook", "cotrain@full", "evaluate@full"]
    trained = records[1]
    assert trained.writes[0].hash == "77aa.dir"
    assert trained.parameters == {"cotrain": {"steps": 600, "seed": 0}, "variants.full": {}}
    assert read_lock(path=tmp_path / "none", outputs=Path("artifacts/mini")) == []
