"""Engines: every unit once, errors as they are, GPUs and cores one by one; here and on a Ray that loses workers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from engine_units import squares
from perceptio_core.engine import Local, visible_gpus
from stages.engines import VARIABLE, engine

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}


def test_one_worker_works_in_this_process_and_in_order(tmp_path: Path) -> None:
    done = list(Local().map(partial(squares, tmp_path / "log"), iter(range(5))))
    assert [(unit, result[0], result[2]) for unit, result in done] == [(n, n * n, os.getpid()) for n in range(5)]
    assert (tmp_path / "log").read_text() == f"{os.getpid()}\n", "one model"
    assert list(Local(7).map(partial(squares, tmp_path / "log"), [])) == []
    assert next(Local(7).map(squares, [3]))[1][2] == os.getpid(), "one unit starts no processes"
    assert (tmp_path / "log").read_text() == f"{os.getpid()}\n", "without units no model"


@pytest.mark.parametrize("workers", [2, 7])
def test_a_pool_does_every_unit_once_and_makes_one_model_a_process(tmp_path: Path, workers: int) -> None:
    done = dict(Local(workers).map(partial(squares, tmp_path / "log"), range(12)))
    assert {unit: result[0] for unit, result in done.items()} == {n: n * n for n in range(12)}
    made = (tmp_path / "log").read_text().split()
    assert os.getpid() not in map(int, made)
    assert len(made) == len(set(made)) <= workers


def test_units_are_taken_as_workers_become_free() -> None:
    taken = []

    def units() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number + 20

    done = Local(2).map(squares, units())
    next(done)
    assert len(taken) <= 6
    done.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_went_wrong_is_what_is_raised(workers: int) -> None:
    with pytest.raises(ValueError, match=r"^unlucky$"):
        list(Local(workers).map(squares, [12, 13, 14]))
    with pytest.raises(ValueError, match=r"^no model here$"):
        list(Local(workers).map(partial(squares, fail=True), [1, 2]))


def test_a_machine_with_several_gpus_has_a_worker_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    monkeypatch.delenv(VARIABLE, raising=False)
    seen = {result[1:] for _, result in engine(gpu=True).map(squares, range(20, 40))}
    assert sorted(gpus for gpus, _ in seen) == ["3", "GPU-5"]
    assert len({process for _, process in seen}) == 2
    assert {result[2] for _, result in engine(gpu=False).map(squares, range(20, 24))} == {os.getpid()}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert {result[2] for _, result in engine(gpu=True).map(squares, range(20, 24))} == {os.getpid()}


def test_gpus_are_counted_by_the_drivers_own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: H200'; echo '  MIG 1g'; echo 'GPU 1: H200'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus() == ["0", "1"]


def test_no_stage_imports_ray_unless_it_is_asked_for() -> None:
    stages = ("sources", "teacher_depth", "joint_shards", "evaluate")
    script = f"""
import sys
from stages import {", ".join(stages)}
from stages.engines import engine
from engine_units import squares
assert len(list(engine(workers=2, gpu=True).map(squares, [1, 2, 3]))) == 3
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], env={**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}, check=True)


def test_without_ray_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"Ray is not installed here: pip install 'perceptio\[ray\]'"):
        engine()


# All on one Ray, which takes seconds to start. Units of which a worker dies say so by a file.
ON_RAY = """
import os, signal, subprocess, sys
import psutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from stages.engines import engine
from engine_units import squares

def dying(folder, times):
    work = squares()
    def maybe(number):
        if number == 7:
            deaths = len(list(folder.glob("death-*")))
            if deaths < times:
                (folder / f"death-{deaths}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return work(number)
    return maybe

folder = Path.cwd()
ray = engine()
done = dict(ray.map(partial(squares, folder / "log"), range(12)))
assert {unit: result[0] for unit, result in done.items()} == {n: n * n for n in range(12)}
made = (folder / "log").read_text().split()
assert 1 <= len(made) == len(set(made)) <= len(os.sched_getaffinity(0)) and os.getpid() not in map(int, made), made

results = [(unit, result[0]) for unit, result in ray.map(partial(dying, folder, 3), range(12))]
assert sorted(results) == [(n, n * n) for n in range(12)], results
assert len(list(folder.glob("death-*"))) == 3
try:
    list(ray.map(partial(dying, folder, 9), range(12)))
except RuntimeError as error:
    print(str(error).partition(':')[0])
assert len(list(folder.glob("death-*"))) == 7, "three, and four more"

for make, units in ((squares, [12, 13]), (partial(squares, fail=True), [1])):
    try:
        list(ray.map(make, units))
    except ValueError as error:
        print(error)

listening = []
for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
    with suppress(psutil.NoSuchProcess):  # one that has just ended
        listening += [one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
print("ports", len(listening) > 3, {ip.removeprefix("::ffff:") for ip in listening})
print("token", oct(Path(os.environ["RAY_AUTH_TOKEN_PATH"]).stat().st_mode)[-3:], os.environ["RAY_USAGE_STATS_ENABLED"])
import ray
address = ray.get_runtime_context().gcs_address
stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
command = [sys.executable, "-c", "import sys, ray; ray.init(sys.argv[1])", address]
for told in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
    refused = subprocess.run(command, env=stranger | told, capture_output=True, text=True)
    print("stranger", refused.returncode, "uthenticat" in refused.stderr)
    sys.stderr.write(refused.stderr[-600:])
"""


@pytest.mark.on_request  # two minutes; test_launch has a Ray in every run of the tests
def test_a_ray_of_this_machine_loses_workers_and_no_unit(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ON_RAY]
    run = subprocess.run(
        command, cwd=tmp_path, env={**ENVIRONMENT, VARIABLE: "local"}, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    lines = [line for line in run.stdout.splitlines() if not line.startswith("\x1b")]
    assert lines == [
        "4 workers died of the same work; the last",
        "unlucky",
        "no model here",
        "ports True {'127.0.0.1'}",
        "token 600 0",
        "stranger 1 True",
        "stranger 1 True",
    ]


ON_GPUS = """
import os, time
from functools import partial
from pathlib import Path
from stages.engines import engine

def meeting(folder):
    def meet(number):
        (folder / f"{number}-{os.getpid()}").touch()
        while len(list(folder.iterdir())) < 4:  # until there is a worker for each GPU
            time.sleep(0.05)
        return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()
    return meet

folder = Path("met")
folder.mkdir()
met = [result for _, result in engine(gpu=True).map(partial(meeting, folder.resolve()), range(4))]
print(sorted(gpu for gpu, _ in met), len({process for _, process in met}))
"""


@pytest.mark.on_request  # a Ray each, which a busy machine takes a minute to start
@pytest.mark.parametrize("visible", [None, "4,5,6,7"])
def test_a_ray_has_a_worker_for_each_gpu_and_each_sees_its_own(tmp_path: Path, visible: str | None) -> None:
    """GPUs that are not there: Ray is told of four."""
    told = {VARIABLE: "local", "RAY_OVERRIDE_RESOURCES": '{"CPU": 2, "GPU": 4}'}
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "CUDA_VISIBLE_DEVICES"} | told
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    run = subprocess.run(
        [sys.executable, "-c", ON_GPUS], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert f"{(visible or '0,1,2,3').split(',')} 4" in run.stdout.splitlines(), run.stdout
