"""Whatever is killed, and whenever: nothing that it started lives on. The kinds of children here; all stages on request, and
that what they make is the same.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from fake_pipeline import REPOSITORY, FakePipeline, as_cloned, environment, fake_pipeline
from perceptio_core.params.values import SECTIONS
from pipeline.launch.job import WIDE
from survivors import Marked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
DVC = (sys.executable, "-m", "dvc")
PERCEPTIO = (sys.executable, "-m", "pipeline.cli")
HERE = environment() | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}
MOMENTS_S = (0.0, 0.05, 0.4)
"""After the first sign of a child."""
AT_ONCE_S = 5.0
"""By when all processes are gone; Ray's own agents would take a minute."""
KILLS = int(os.environ.get("PERCEPTIO_TEST_KILLS", "50"))

SLEEPING = "import time\ntime.sleep(600)\n"

POOL = """
import time
from perceptio_core.engine import Local

def make():
    return time.sleep

if __name__ == "__main__":
    list(Local(2).map(make, [600, 600, 600]))
"""

RAY = """
import time
from stages.on_ray import OnRay

def make():
    return time.sleep

if __name__ == "__main__":
    list(OnRay("local", gpu=False).map(make, [600, 600, 600]))
"""

SCENES = """
import time
from pathlib import Path
from perceptio_core.scenes import writers

def never(*_):
    time.sleep(600)

if __name__ == "__main__":
    writers._make_chunk = never
    list(writers._work_off(Path("."), None, [("a", 0, 1), ("a", 1, 2)], 2))
"""

RANKS = """
import os, sys
from perceptio_core.tied import tied
from stages.cotrain import processes_here

_, *rank = tied("sleeping")
os.execv(sys.executable, [sys.executable, *processes_here(2), *rank])
"""

SIDE_BY_SIDE = """
from pathlib import Path
from benchmarks.study.side_by_side import Runner

Runner(seconds=None, threads=1).run("sleeping", "p")
"""


def test_a_process_whose_parent_is_gone_when_it_asks_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "sleeping.py").write_text(SLEEPING)
    ended = subprocess.run(
        [sys.executable, "-m", "perceptio_core.tied", str(2**22 + 1), "sleeping"], cwd=tmp_path, check=False, timeout=60
    )
    assert ended.returncode == -signal.SIGKILL


def test_a_tied_module_runs_as_by_python_m(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "said.py").write_text("import sys\nprint(__name__, __spec__.name, sys.argv)\nsys.exit(3)\n")
    command = [sys.executable, "-m", "perceptio_core.tied", str(os.getpid()), "package.said", "--one", "2"]
    ended = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 3, ended.stderr
    assert ended.stdout == f"__main__ package.said ['{tmp_path / 'package' / 'said.py'}', '--one', '2']\n"


@pytest.mark.parametrize("moment_s", MOMENTS_S)
@pytest.mark.parametrize("kind", ["pool", "scenes", "side_by_side"])
def test_children_end_with_a_driver_that_is_killed_as_they_start(tmp_path: Path, kind: str, moment_s: float) -> None:
    script, child = {
        "pool": (POOL, "spawn_main"),
        "scenes": (SCENES, "spawn_main"),
        "side_by_side": (SIDE_BY_SIDE, "stages.sleeping"),
    }[kind]
    (tmp_path / "driver.py").write_text(script)
    if kind == "side_by_side":
        (tmp_path / "stages").mkdir()
        (tmp_path / "stages" / "sleeping.py").write_text(SLEEPING)
    marked = Marked([sys.executable, "driver.py"], folder=tmp_path, environment=HERE)
    marked.wait_for(child)
    time.sleep(moment_s)
    marked.kill(group=False)
    assert marked.survivors() == {}


@pytest.fixture(scope="module")
def another_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Marked]:
    """One that is at work beside those of the tests, by the same user."""
    folder = tmp_path_factory.mktemp("another")
    (folder / "driver.py").write_text(RAY)
    marked = Marked([sys.executable, "driver.py"], folder=folder, environment=HERE)
    marked.wait_for("ray::Worker", count=2)
    yield marked
    marked.kill(group=False)
    assert marked.survivors(within_s=AT_ONCE_S) == {}


@pytest.mark.on_request  # a Ray each, which a busy machine takes a minute to start
@pytest.mark.parametrize(("sign", "moment_s"), [("perceptio_core.guard", 0.0), ("raylet/raylet", 0.3), ("ray::Worker", 0.0)])
def test_a_ray_of_this_machine_ends_with_its_driver_and_no_other_does(
    tmp_path: Path, another_ray: Marked, sign: str, moment_s: float
) -> None:
    (tmp_path / "driver.py").write_text(RAY)
    others = another_ray.running()
    marked = Marked([sys.executable, "driver.py"], folder=tmp_path, environment=HERE)
    marked.wait_for(sign)
    time.sleep(moment_s)
    marked.kill(group=True)
    assert marked.survivors(within_s=AT_ONCE_S) == {}
    assert another_ray.running().keys() == others.keys()


@pytest.mark.on_request  # this Ray listens on all of the machine's addresses, if with a token
def test_the_node_of_a_job_takes_its_ray_with_it(tmp_path: Path) -> None:
    (tmp_path / "sleeping.py").write_text(SLEEPING)
    address = f"{socket.gethostbyname(socket.gethostname())}:29700"
    node = [sys.executable, "-m", "pipeline.launch.ray_node", "0", address, "token", "1", "sleeping"]
    marked = Marked(node, folder=tmp_path, environment=HERE)
    marked.wait_for("tied " + str(marked.driver.pid) + " sleeping")
    marked.wait_for("ray::DashboardAgent")
    marked.kill(group=False)
    assert marked.survivors(within_s=AT_ONCE_S) == {}


@pytest.mark.parametrize("moment_s", [0.0, pytest.param(0.1, marks=pytest.mark.on_request)])
def test_ranks_end_with_a_launcher_that_is_killed_as_they_start(tmp_path: Path, moment_s: float) -> None:
    """As reported in pytorch/pytorch#76287 and others: ranks are sessions of their own, which no signal to a group reaches."""
    (tmp_path / "driver.py").write_text(RANKS)
    (tmp_path / "sleeping.py").write_text(SLEEPING)
    marked = Marked([sys.executable, "driver.py"], folder=tmp_path, environment=HERE)
    marked.wait_for("sleeping")
    time.sleep(moment_s)
    marked.kill(group=True)
    assert marked.survivors() == {}


@pytest.fixture
def fake(tmp_path: Path) -> FakePipeline:
    made = fake_pipeline(tmp_path)
    made.behave(sources="sleep", foundations="sleep")
    return made


@pytest.mark.parametrize("moment_s", [0.0, 0.1])
def test_a_stage_ends_with_a_dvc_that_is_killed_as_it_starts(fake: FakePipeline, moment_s: float) -> None:
    """DVC is killed alone, and is in no position to tell its stage; the stage has not begun to import."""
    fake.dvc("repro", "code")  # which `-s` leaves out
    marked = Marked([sys.executable, "-m", "dvc", "repro", "-s", "sources"], folder=fake.root, environment=environment())
    marked.wait_for("pipeline.launch sources")
    time.sleep(moment_s)
    marked.kill(group=False)
    assert marked.survivors() == {}


@pytest.mark.parametrize("moment", ["server start", pytest.param("dvc ", marks=pytest.mark.on_request), "pipeline.launch"])
def test_a_killed_run_takes_its_own_server_dvc_and_stages_with_it(fake: FakePipeline, moment: str) -> None:
    marked = Marked([*PERCEPTIO, "repro", "sources"], folder=fake.root, environment=environment())
    marked.wait_for(moment)
    marked.kill(group=False)
    assert marked.survivors() == {}


STAGES = [f"{name}@full" if name in ("cotrain", "evaluate") else name for name in SECTIONS]


@pytest.mark.on_request
def test_nothing_lives_on_whenever_a_stage_of_smoke_is_killed(tmp_path: Path) -> None:
    """Every stage, killed with DVC's group or by DVC's end alone, as it starts and in its first seconds; then run to its end.

    ``pytest -m on_request tests/test_survivors.py -k whenever`` takes some ten minutes on two free cores.
    """
    checkout = as_cloned(tmp_path / "checkout", profile="smoke")
    to_its_end(checkout, "code")
    for stage in STAGES:
        module = f"stages.{stage.partition('@')[0]}"
        # What starts: DVC's command, the stage that it becomes; and of cotrain, which becomes torchrun, the two ranks.
        signs = [("pipeline.launch", 1), (module, 1), *([(module, 3)] if stage == "cotrain@full" else [])]
        for (text, count), (moment_s, group) in product(signs, [(0.0, True), (0.1, False), (2.0, True)]):
            marked = Marked([*DVC, "repro", "-s", "-f", stage], folder=checkout, environment=environment())
            marked.wait_for(text, count=count)
            time.sleep(moment_s)
            marked.kill(group=group)
            assert marked.survivors(within_s=AT_ONCE_S) == {}, (stage, text, count, moment_s)
        to_its_end(checkout, stage)


@pytest.mark.on_request
def test_smoke_is_the_same_bytes_however_often_its_stages_are_killed(tmp_path: Path) -> None:
    """Each stage is killed at random moments of its time, with DVC's group or by DVC's end alone, and run to its end.

    Half of the kills find the stages here, half find a wide one on a Ray. Nothing may live on, nor be lost or made twice.
    ``pytest -m on_request tests/test_survivors.py -k same_bytes`` took a quarter of an hour on two cores.
    """
    undisturbed, disturbed = (as_cloned(tmp_path / name, profile="smoke") for name in ("undisturbed", "disturbed"))
    for checkout in (undisturbed, disturbed):
        to_its_end(checkout, "code")
    wide = [stage for stage in STAGES if stage.partition("@")[0] in WIDE]
    kills = [(STAGES[number % len(STAGES)], "local") for number in range(KILLS - KILLS // 2)]
    kills += [(wide[number % len(wide)], "ray") for number in range(KILLS // 2)]
    chance = random.Random(0)
    chance.shuffle(kills)
    for stage in STAGES:
        took_s = to_its_end(undisturbed, stage)
        for launcher in (launcher for killed, launcher in kills if killed == stage):
            launch = {stage.partition("@")[0]: {"launcher": launcher}}
            (disturbed / "machine.yaml").write_text(json.dumps({"launch": launch}))
            kill(disturbed, stage, within_s=took_s, chance=chance)
        to_its_end(disturbed, stage)
    status = subprocess.run([*DVC, "status", "--json"], cwd=disturbed, check=True, capture_output=True, text=True).stdout
    assert json.loads(status).keys() == {"code"}
    made, whole = contents(disturbed), contents(undisturbed)
    assert made.keys() == whole.keys()
    assert [name for name, content in whole.items() if made[name] != content] == []


def contents(checkout: Path) -> dict[str, bytes]:
    """What the stages have made, without how long they took for it."""
    files = (path for path in (checkout / "artifacts").rglob("*") if path.is_file())
    return {str(path.relative_to(checkout)): path.read_bytes() for path in files if "measured" not in path.parts}


def to_its_end(checkout: Path, stage: str) -> float:
    """Run a stage by DVC; the seconds that it took."""
    began = time.monotonic()
    ended = subprocess.run([*DVC, "repro", "-s", stage], cwd=checkout, env=environment(), check=False, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()[-4000:]
    return time.monotonic() - began


def kill(checkout: Path, stage: str, *, within_s: float, chance: random.Random) -> None:
    """Run a stage by DVC and kill it; where it was faster, again."""
    while True:
        marked = Marked([*DVC, "repro", "-s", "-f", stage], folder=checkout, environment=environment())
        marked.wait_for("pipeline.launch")
        moment_s, group = chance.uniform(0, within_s), chance.random() < 0.5
        try:
            marked.driver.wait(moment_s)
        except subprocess.TimeoutExpired:
            running = len(marked.running())
            marked.kill(group=group)
            assert marked.survivors(within_s=AT_ONCE_S) == {}, (stage, moment_s, group, marked.log.read_text()[-2000:])
            launch = (checkout / "machine.yaml").read_text()
            print(f"killed {stage} after {moment_s:.1f} s, {'group' if group else 'driver'} of {running} processes; {launch}")
            return
        assert marked.driver.returncode == 0, marked.log.read_text()[-4000:]
