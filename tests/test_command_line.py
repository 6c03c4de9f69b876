"""The command `perceptio`: mistakes, help, completion, what is up to date, and how a run is told."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fake_pipeline import FakePipeline, copy_of, fake_pipeline
from perceptio_core import __version__
from perceptio_core.params.values import SECTIONS
from pipeline.dag import Plan, StageNode
from pipeline.machine import Limits, Machine, Slots, read_machine
from pipeline.terminal import _Lines
from pipeline.work import _cause

REPOSITORY = Path(__file__).resolve().parent.parent
PERCEPTIO = (sys.executable, "-m", "pipeline.cli")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> FakePipeline:
    """For tests that change nothing in it."""
    return fake_pipeline(tmp_path_factory.mktemp("untouched"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("repro", "--profile", "nonesuch"), "no profile profiles/nonesuch.yaml; profiles here: "),
        (("repro", "--variants", "full,nonesuch"), "variants has no 'nonesuch'; allowed are"),
        (("predict", "absent.png", "What?"), "absent.png"),
        (("ui", "--port", "65536"), "perceptio: Invalid value for '--port': Input should be less than or equal to 65535"),
        (("repro", "--jobs"), "perceptio: No such option: --jobs (`perceptio repro --help` lists all)"),
        (("repro", "--forse"), "perceptio: No such option: --forse (Possible options: --force"),
        (("rerpo",), "perceptio: No such command 'rerpo'. Did you mean 'repro', 'report'?"),
        (("data", "chek"), "perceptio: No such command 'chek'. Did you mean 'check'?"),
        (("run",), "perceptio: Missing argument 'STAGE'"),
        (("cotrain", "--variant", "nonesuch"), "perceptio: profile mini: variants has no 'nonesuch'; allowed are "),
        (("report", "--variant", "full"), "perceptio: No such option: --variant"),
        (("repro", "cotrain@ful"), "there is no stage 'cotrain@ful', did you mean 'cotrain@full'? dvc.yaml has foundations, "),
        (("repro", "nonesuch"), "there is no stage 'nonesuch'; dvc.yaml has foundations, sources, "),
        (("lineage", "artifacts/mini/report"), "dvc.lock records no stage that wrote below artifacts/"),
    ],
)
def test_mistakes_on_the_command_line_are_explained(untouched: FakePipeline, arguments: tuple[str, ...], message: str) -> None:
    before = untouched.params.read_text()
    output = untouched.run(*PERCEPTIO, *arguments, expect=2)
    assert message in output, output
    assert len(output.splitlines()) == 1, output
    assert untouched.params.read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits: {gpus: 2}", "machine.yaml: limits.gpus: unknown key; allowed are gpu, cpu"),
        ("limits: {cpu: 0}", "machine.yaml: limits.cpu: Input should be greater than or equal to 1, got 0"),
        ("limit: {cpu: 1}", "machine.yaml: limit: unknown key; allowed are limits"),
        ("shards: {store: bucket, cache: c, cache_gib: 1}", "machine.yaml: shards.store: String should match pattern '^s3://"),
        ("curves: paper", "machine.yaml: curves: 'paper'; allowed are tensorboard, wandb"),
        ("limits: {gpu: 3}", "limits.gpu: 3 stages at once, but 2 GPUs; allowed are 1 to 2"),
    ],
)
def test_mistakes_in_the_machines_file_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert read_machine() == Machine(limits=Limits(gpu=1, cpu=2))
    Path("machine.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        Slots(read_machine().limits)
    monkeypatch.setenv("PERCEPTIO_MACHINE", "elsewhere.yaml")
    with pytest.raises(ValueError, match=re.escape("PERCEPTIO_MACHINE names elsewhere.yaml, which is not a file")):
        read_machine()


def perceptio(*arguments: str, expect: int = 0, **environment: str) -> str:
    ended = subprocess.run(
        [*PERCEPTIO, *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == expect, ended.stderr
    return ended.stdout


def test_help_shows_every_stage_and_command_with_a_whole_line() -> None:
    shown = perceptio("--help")
    for name in (*SECTIONS, "repro", "status", "predict", "convert", "data", "shards"):
        assert re.search(rf"^ +{name}\s+\S+ \S+", shown, flags=re.MULTILINE), name
    assert "...\n" not in shown.partition("Commands:")[2]
    assert perceptio(expect=2) == shown, "alone"
    assert perceptio("--version") == f"perceptio {__version__}\n"


def test_a_stages_help_is_its_own_text_line_by_line_and_needs_no_torch() -> None:
    script = (
        "import sys, pipeline.cli; sys.argv[1:] = ['cotrain', '--help']; pipeline.cli.main(); assert 'torch' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "\n  Writes  artifacts/<profile>/cotrain/<variant>/\n            checkpoint/   the model with merged" in ended.stdout
    assert "\n  --variant <str>  A name under variants.  [default: full]\n" in ended.stdout


@pytest.mark.parametrize(
    ("imported", "without"),
    [
        ("pipeline.cli", {"torch", "dvc", "prefect", "pydantic", "numpy"}),
        ("pipeline.flow, pipeline.preflight, perceptio_core.report.plots", {"torch", "transformers", "dvclive"}),
    ],
    ids=["help", "a run and the pages of its stages"],
)
def test_commands_bring_nothing_that_is_slow_to_import_and_not_needed(imported: str, without: set[str]) -> None:
    look = f"import sys, {imported}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", look], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert not without & set(modules.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    script = perceptio(_PERCEPTIO_COMPLETE=f"source_{shell}")
    assert "perceptio" in script
    assert f"complete_{shell}" in script
    typed = {"bash": {"COMP_WORDS": "perceptio repro --profile smo", "COMP_CWORD": "3"}}.get(
        shell, {"_TYPER_COMPLETE_ARGS": "perceptio repro --profile smo", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    )
    assert "smoke" in perceptio(_PERCEPTIO_COMPLETE=f"complete_{shell}", **typed)


def test_status_and_a_dry_run_say_what_would_run_and_change_nothing(up_to_codebook: FakePipeline, tmp_path: Path) -> None:
    fake = copy_of(up_to_codebook, tmp_path)
    before = fake.params.read_text()
    said = fake.run(*PERCEPTIO, "status")
    assert re.search(r"^teacher_depth +up to date$", said, re.MULTILINE), said
    assert re.search(r"^joint_shards +would run: not made yet$", said, re.MULTILINE), said
    said = fake.run(*PERCEPTIO, "repro", "--dry-run", "--set", "depth_codebook.knob=2", "depth_codebook")
    assert said.startswith("with depth_codebook.knob: 1 -> 2 (params.yaml stays as it is)\n"), said
    assert re.search(r"^depth_codebook +would run: depth_codebook modified", said, re.MULTILINE), said
    assert "joint_shards" not in said
    assert fake.params.read_text() == before
    assert "Nothing to do" in fake.run(*PERCEPTIO, "repro", "--dry-run", "depth_codebook")
    assert fake.ran() == []


def test_of_a_stage_that_says_nothing_the_folder_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    node = StageNode(name="report", upstream=(), downstream=(), needs="cpu")
    with _Lines(Plan(stages=(node,), forced=frozenset(), stale={"report": ()}), "mini") as screen:
        screen.begins("report")
        screen.says("report", "WARNING: 'artifacts/mini/sources/quarantine.jsonl' is empty.")
        screen.ends("report", seconds=1.0, failure=None)
    assert capsys.readouterr().out.splitlines()[1:] == ["+ report      1s  artifacts/mini/report"]


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (
            ["> exec python -m stages.a", "no space left", "ERROR: failed to reproduce 'a': ... exited with 1"],
            "no space left (exit code 1)",
        ),
        (
            ["> exec python -m stages.a", "ERROR: failed to reproduce 'a': ... exited with 9"],
            "it said nothing (exit code 9)",
        ),
        (
            ["INFO all is well", "ERROR: failed to reproduce 'a': output 'artifacts/a' does not exist"],
            "failed to reproduce 'a': output 'artifacts/a' does not exist",
        ),
        (["Traceback", "ImportError: No module named dvc"], "ImportError: No module named dvc"),
    ],
)
def test_the_cause_of_a_failure_is_the_stages_last_line_or_dvcs(lines: list[str], cause: str) -> None:
    assert _cause(lines) == cause
