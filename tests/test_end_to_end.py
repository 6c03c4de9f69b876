"""The smoke profile through DVC, from a checkout with nothing made yet: killed twice, completed, and then nothing to do."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fake_pipeline import REPOSITORY, as_cloned, environment, gone
from stages import report as report_stage

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(
        not (REPOSITORY / "foundations" / "mini" / "SHA256SUMS").is_file(),
        reason="foundations/mini holds no weights yet; make them with: make foundations",
    ),
]
DVC = (sys.executable, "-m", "dvc")
HEADLINES = {
    *("codebook_usage", "codebook_lookup_3", "codebook_lookup_4", "codebook_lookup_5", "codebook_absrel"),
    *("res_ciou", "res_giou", "hardblink_3", "hardblink_4", "hardblink_5", "hardblink_mean", "hardblink_lenient_mean"),
    *(f"codes_{codes}_hardblink_mean" for codes in ("oracle", "other", "random", "zeroed")),
    *(
        "without_depth_hardblink_mean",
        "hardblink_majority",
        "hardblink_shortcut",
        *("mmbench", "mmbench_longest", "seed_image", "seed_image_majority", "seed_image_longest"),
        *("mme_perception", "mme_perception_majority", "blind_mme_perception", "mme_cognition"),
        "unparsed",
    ),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new git repository with the files that a clone of this one would have, and the smoke profile active."""
    return as_cloned(tmp_path_factory.mktemp("checkout"), profile="smoke")


def test_the_smoke_profile_survives_kills_and_completes(checkout: Path) -> None:
    outputs, work = checkout / "artifacts" / "smoke", checkout / ".work" / "smoke" / "teacher_depth"
    kill_when_there_is(checkout, "teacher_depth", "*/parts/depth-*.tar.json")
    kept = {part.stem: modified(part.parents[1] / "out" / part.stem) for part in work.glob("*/parts/depth-*.tar.json")}
    assert not (outputs / "teacher_depth").exists()
    kill_when_there_is(checkout, "cotrain", "**/step-*")
    shards = {shard.name: modified(shard) for shard in (outputs / "teacher_depth").glob("depth-*.tar")}
    assert kept.items() < shards.items(), "what was finished is as it was, and the rest was missing"
    assert not any((outputs / "cotrain").rglob("*.json"))
    log = repro(checkout)
    assert re.search(r"resuming after step [1-9]", log)
    assert "Running stage 'cotrain@full'" in log
    assert "Running stage 'teacher_depth'" not in log

    report = checkout / "artifacts" / "smoke" / "report"
    metrics = json.loads((report / "metrics.json").read_text())
    assert {metric["name"] for metric in metrics} >= HEADLINES
    assert all(metric.keys() == {"name", "value", "low", "high", "n", "chance", "protocol"} for metric in metrics)
    assert all(metric["low"] < metric["high"] for metric in metrics if metric["low"] is not None)
    assert (report / "report.html").stat().st_size > 10_000
    shown = json.loads(dvc(checkout, "metrics", "show", "--json"))[""]["data"]["artifacts/smoke/report/summary.json"]["data"]
    assert shown == {metric["name"]: metric["value"] for metric in metrics}
    assert not any((checkout / ".work" / "smoke").glob("*/*/*")), "finished work leaves nothing behind"


def test_the_report_is_a_function_of_its_inputs(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process, on another commit, writes the same bytes."""
    report = checkout / "artifacts" / "smoke" / "report"
    before = {file.name: file.read_bytes() for file in report.iterdir()}
    commit = ("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "--allow-empty", "-m", "another")
    subprocess.run(["git", *commit], cwd=checkout, check=True)
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(sys, "argv", ["report"])
    report_stage.main()
    assert {file.name: file.read_bytes() for file in report.iterdir()} == before


def test_a_second_run_has_nothing_to_do(checkout: Path) -> None:
    assert re.findall(r"Running stage '(\S+)'", repro(checkout)) == ["code"]
    assert json.loads(dvc(checkout, "status", "--json")).keys() == {"code"}


def test_an_evaluation_parameter_reruns_evaluation_and_report_alone(checkout: Path) -> None:
    params = checkout / "params.yaml"
    before = params.read_text()
    head, mark, tail = before.partition("\nevaluate:\n")
    assert "bootstrap_samples: " in tail
    params.write_text(head + mark + tail.replace("bootstrap_samples: ", "bootstrap_samples: 1", 1))
    stale = set(json.loads(dvc(checkout, "status", "--json")))
    assert stale == {"code", "evaluate@full"}  # and the report, once evaluate has run
    params.write_text(before)


def modified(path: Path) -> int:
    """When a file was last written to, in nanoseconds."""
    return path.stat().st_mtime_ns


def dvc(checkout: Path, *arguments: str) -> str:
    """Run dvc to its end; what it wrote to stdout."""
    ended = subprocess.run([*DVC, *arguments], cwd=checkout, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def repro(checkout: Path) -> str:
    """Run `dvc repro` to its end; its log."""
    with (checkout / "repro.log").open("w") as log:
        ended = subprocess.run(
            [*DVC, "repro"], cwd=checkout, env=environment(), stdout=log, stderr=subprocess.STDOUT, check=False
        )
    text = (checkout / "repro.log").read_text()
    assert ended.returncode == 0, text[-8000:]
    return text


def kill_when_there_is(checkout: Path, stage: str, pattern: str) -> None:
    """Start `dvc repro`, and kill dvc itself when unfinished work of `stage` matches `pattern`; its command must end too."""
    with (checkout / "killed.log").open("w") as log:
        driver = subprocess.Popen([*DVC, "repro"], cwd=checkout, env=environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            while driver.poll() is None and not any((checkout / ".work" / "smoke" / stage).glob(pattern)):
                time.sleep(0.02)
            text = (checkout / "killed.log").read_text()
            assert driver.poll() is None, f"dvc ended before {stage} could be killed:\n{text[-8000:]}"
            children = children_of(driver.pid)
            assert children, f"{stage} was not running"
        finally:
            driver.kill()
            driver.wait()
    assert all(gone(pid) for pid in children)


def children_of(pid: int) -> list[int]:
    """Process ids of all that `pid` has started and that still run, whatever started what."""
    direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for text in direct for child in (int(text), *children_of(int(text)))]
