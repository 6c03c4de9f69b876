"""A checkout whose stages are quick stand-ins: the real dvc.yaml, params.yaml and driver, without the real work.

Every stand-in writes the files that dvc.yaml names as another stage's dependency; what it writes depends on the section of
params.yaml that the real stage tracks, and on nothing else.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import yaml
from filelock import FileLock

from perceptio_core.files import whole
from perceptio_core.params.profile import complete
from perceptio_core.params.values import SECTIONS, read_values
from pipeline.settings import write_params

REPOSITORY = Path(__file__).resolve().parent.parent

FILES = {
    "sources": ["images.parquet", "records.parquet", "quarantine.jsonl", "data.json"],
    "foundations": ["depth_anything/model", "internvl/model", "sam2/model"],
    "teacher_depth": ["index.parquet"],
    "depth_codebook": ["config.json", "model.safetensors"],
    "joint_shards": ["index.json", "samples.parquet"],
    "cotrain": ["checkpoint/model", "curves/loss"],
    "evaluate": ["predictions", "summary.json", "metrics.json"],
    "report": ["report.html", "summary.json", "metrics.json", "figure.png"],
}

# A gray PNG of 2 x 2 pixels.
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGNoaGBoaAAABgYCASzBUNcAAAAASUVORK5CYII="

STAND_IN = """
import argparse, base64, json, os, pathlib, sys, time
import yaml
parser = argparse.ArgumentParser()
parser.add_argument("--params", default="params.yaml")
parser.add_argument("--variant", default="")
arguments = parser.parse_args()
with open("ran.log", "a") as log:
    print("STAGE" + (f"@{arguments.variant}" if arguments.variant else ""), os.getpid(), file=log)
print("STAGE says hello")
behaviour = json.loads(pathlib.Path("behaviour.json").read_text()).get("STAGE")
if behaviour == "fail":
    sys.exit("STAGE: no space left for jokes")
if behaviour == "sleep":
    time.sleep(120)
while behaviour == "wait" and not pathlib.Path("go").exists():
    time.sleep(0.05)
if behaviour == "try again":
    tried = pathlib.Path("tried-STAGE")
    if not tried.exists():
        tried.touch()
        sys.exit(os.EX_TEMPFAIL)
if behaviour == "meet":
    # Wait until another stage that meets is running as well.
    pathlib.Path("met-STAGE" + arguments.variant).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    end = time.monotonic() + 120
    while len(list(pathlib.Path().glob("met-*"))) < 2:
        if time.monotonic() > end:
            sys.exit("nobody came")
        time.sleep(0.05)
if behaviour == "alone":
    with open("alone", "x"):
        time.sleep(1)
    os.unlink("alone")
params = yaml.safe_load(pathlib.Path(arguments.params).read_text())
section = params["STAGE"]
out = pathlib.Path("artifacts", params.get("profile", pathlib.Path(arguments.params).stem), "STAGE", arguments.variant)
metric = {"name": "res_ciou", "value": 51.25, "low": 49.0, "high": 53.5, "n": 400, "chance": None, "protocol": "fake"}
for name in FILES:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    if name == "figure.png":
        (out / name).write_bytes(base64.b64decode(PICTURE))
        continue
    content = [metric] if name == "metrics.json" else {"res_ciou": 51.25} if name == "summary.json" else section
    (out / name).write_text(json.dumps(content))
"""

WIDE = """
import os, time
from stages.common import StagePaths
from stages.shards import ShardWork

def maker():
    def make(name):
        with open("made.log", "a") as log:
            print(name, os.environ.get("RAY_AUTH_MODE"), file=log)
        time.sleep(SECONDS)
        return name
    return make

if __name__ == "__main__":
    shards = {f"shard-{number}": 1 for number in range(12)}
    with ShardWork(StagePaths("mini"), "joint_shards", "key") as work:
        work.make(shards, maker, keep=lambda path, name: path.write_text(name), label="shards")
        print("assembles", flush=True)
        (work.out / "index.json").write_text("".join(work.part(name).read_text() for name in shards))
        work.publish()
"""
"""A stage that makes its shards by an engine, each in so many seconds, and notes which it has begun."""

INPUTS = """
def faults(profile, *, stages):
    return []
"""
"""In place of the look at every input: the stand-ins read none."""

PARAMETERS = """
from perceptio_core.params.base import Section


class CLASSParams(Section):
    knob: int = 1
    root: str | None = None
    render: int | None = 1
    long_side: int = 1
"""

PROFILE = {
    "seed": 0,
    **{section: {"knob": 1, "root": None, "render": 1, "long_side": 1} for section in SECTIONS},
    "variants": {"full": {}, "control": {"knob": 2}},
}


class FakePipeline:
    """The checkout below `root`, and the ways to run it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.params = root / "params.yaml"

    def run(self, *command: str, expect: int = 0) -> str:
        """Run a command to its end in the checkout; returns what it wrote."""
        ended = subprocess.run(
            command, cwd=self.root, env=environment(), capture_output=True, text=True, check=False, timeout=300
        )
        output = ended.stdout + ended.stderr
        assert ended.returncode == expect, output
        return output

    def dvc(self, *arguments: str, expect: int = 0) -> str:
        """Run dvc."""
        return self.run(sys.executable, "-m", "dvc", *arguments, expect=expect)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command without waiting for it."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Of a shell's background jobs, among which the tests may be, the children ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def behave(self, **behaviour: str) -> None:
        """Let stages "fail", "sleep", "wait" for the file "go", "try again" (fail once, for now), "meet" another one, or insist
        on being "alone".
        """
        (self.root / "behaviour.json").write_text(json.dumps(behaviour))

    def ran(self) -> list[str]:
        """The stages that ran since the last call, in order."""
        log = self.root / "ran.log"
        names = [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    def change(self, section: str, **values: object) -> None:
        """Change parameters in params.yaml."""
        params = yaml.safe_load(self.params.read_text())
        params[section].update(values)
        self.params.write_text(yaml.safe_dump(params))

    def activate(self, *variants: str) -> None:
        """Make other variants the active ones, by hand."""
        params = yaml.safe_load(self.params.read_text())
        self.params.write_text(yaml.safe_dump(params | {"active": list(variants)}))


KEPT_SETTINGS: dict[str, str] = {}
"""Settings that a test adds to the environment of its commands."""


def environment() -> dict[str, str]:
    """The environment of commands: this Python first, and nothing of a Prefect or DVC that runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DVC_", "PYTHONPATH"))}
    return (
        kept
        | KEPT_SETTINGS
        | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), "PYTHONPATH": ""}
    )


def fake_pipeline(root: Path) -> FakePipeline:
    """Make the checkout in the empty folder `root`."""
    for name in (
        "perceptio_core",
        "stages",
        "pipeline",
        "profiles",
        ".dvc",
        "dvc.yaml",
        ".dvcignore",
        ".gitignore",
    ):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("cache", "tmp"))
        else:
            shutil.copy(source, root / name)
    for stage in SECTIONS:
        text = STAND_IN.replace("STAGE", stage).replace("FILES", repr(FILES[stage])).replace("PICTURE", repr(PICTURE))
        (root / "stages" / f"{stage}.py").write_text(text)
        name = "".join(part.capitalize() for part in stage.split("_"))
        (root / "perceptio_core" / "params" / f"{stage}.py").write_text(PARAMETERS.replace("CLASS", name))
    (root / "stages" / "inputs.py").write_text(INPUTS)
    (root / "foundations" / "mini").mkdir(parents=True)
    (root / "foundations" / "mini" / "SHA256SUMS").write_text("")
    (root / "docs").mkdir()
    (root / "docs" / "published.json").write_text("{}\n")
    pipeline = FakePipeline(root)
    pipeline.behave()
    (root / "profiles" / "mini.yaml").write_text(yaml.safe_dump(PROFILE))
    pipeline.params.write_text(yaml.safe_dump({"profile": "mini", "active": ["full"], **PROFILE}))
    pipeline.run("git", "init", "-q")
    (root / ".prefect").mkdir()
    shutil.copy(_prefect_database(), root / ".prefect" / "prefect.db")
    return pipeline


def _prefect_database() -> Path:
    """A new database of Prefect's, to copy: to make its tables takes a server longer than to start."""
    made = REPOSITORY / ".pytest_cache" / f"prefect-{version('prefect')}.db"
    made.parent.mkdir(exist_ok=True)
    with FileLock(made.with_suffix(".lock")):
        if not made.is_file():
            with tempfile.TemporaryDirectory() as home, whole(made) as unfinished:
                settings = environment() | {"PREFECT_HOME": home, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
                command = [sys.executable, "-m", "prefect", "--no-prompt", "server", "database", "upgrade", "--yes"]
                subprocess.run(command, cwd=home, env=settings, capture_output=True, check=True)
                shutil.copy(Path(home, "prefect.db"), unfinished)
    return made


def copy_of(pipeline: FakePipeline, root: Path) -> FakePipeline:
    """Copy a checkout, with what it has made, into the empty folder `root`."""
    shutil.copytree(pipeline.root, root, dirs_exist_ok=True)
    return FakePipeline(root)


def as_cloned(folder: Path, *, profile: str) -> Path:
    """A new git repository with the files that a clone of this one would have, and a profile active."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listing.split("\0")):
        if name != "dvc.lock" and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    write_params(complete(read_values(folder / "profiles" / f"{profile}.yaml")), folder / "params.yaml")
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for step in (("init", "-q"), ("add", "-A"), (*author, "commit", "-q", "-m", "As cloned")):  # DVCLive asks for the commit
        subprocess.run(["git", *step], cwd=folder, check=True)
    return folder


def started(fake: FakePipeline, stage: str, *, times: int = 1, within_s: float = 240.0) -> int:
    """Wait until a stage was started so often; the process of that start."""
    log, end = fake.root / "ran.log", time.monotonic() + within_s
    while time.monotonic() < end:
        found = re.findall(rf"^{stage} (\d+)$", log.read_text(), re.MULTILINE) if log.exists() else []
        if len(found) >= times:
            return int(found[times - 1])
        time.sleep(0.1)
    raise AssertionError(f"{stage} was not started {times} times")


def gone(pid: int, *, within_s: float = 20.0, kill: bool = True) -> bool:
    """Whether the process ends (or is a zombie) in time; one that does not is killed unless it may go on."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    if kill:
        os.kill(pid, signal.SIGKILL)
    return False
