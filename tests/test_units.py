"""Claims on units of work: one worker each, held while it lives, taken over by one when it is dead."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from perceptio_core.data import units as module
from perceptio_core.data.units import Units

NAMES = [f"unit-{number}" for number in range(5)]
ABROAD = {"host": "elsewhere", "kernel": "another boot", "pid": 1, "started": "1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "claims"


def units(folder: Path, *, names: list[str] = NAMES, stale_after_s: float = 3600.0) -> Units:
    """Units that are finished when there is a file of their name beside the claims."""
    return Units(folder, names, finished=lambda name: (folder.parent / name).exists(), stale_after_s=stale_after_s)


def at_once(work: Callable[[], None]) -> None:
    """Run it in eight threads; raises what one of them raises."""
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work) for _ in range(8)]:
            future.result()


def test_each_unit_goes_to_one_of_the_workers_that_ask_at_once(folder: Path) -> None:
    names = [f"unit-{number}" for number in range(200)]
    start, taken = threading.Barrier(8, timeout=60), []

    def work() -> None:
        with units(folder, names=names) as mine:
            start.wait()
            while mine.left:
                for name in mine.free():
                    taken.append(name)
                    (folder.parent / name).touch()
                mine.wait(ask_every_s=0.01)

    at_once(work)
    assert sorted(taken) == sorted(names)


def test_a_live_claim_is_respected_and_a_still_one_is_not(folder: Path) -> None:
    with units(folder, stale_after_s=1.0) as one, units(folder, stale_after_s=1.0) as other:
        assert sorted(one.free()) == NAMES
        end = time.monotonic() + 2
        while time.monotonic() < end:
            assert list(other.free()) == []
            time.sleep(0.05)
        one.__exit__(None)  # it beats no more
        taken: list[str] = []
        while len(taken) < len(NAMES):
            other.wait(ask_every_s=0.05)
            taken += other.free()
        assert sorted(taken) == NAMES


@pytest.mark.parametrize("claim", [json.dumps(ABROAD), ""], ids=["another machine's", "never written"])
def test_of_many_takers_of_a_stale_claim_one_wins(folder: Path, claim: str) -> None:
    folder.mkdir()
    (folder / "unit-0.0").write_text(claim)
    start, taken = threading.Barrier(8, timeout=60), []

    def work() -> None:
        with units(folder, names=NAMES[:1], stale_after_s=0.5) as mine:
            start.wait()
            assert list(mine.free()) == [], "it may be alive: we have not watched it yet"
            time.sleep(0.7)
            start.wait()
            taken.extend(mine.free())
            start.wait()  # the winner beats as long as others might take over from it

    at_once(work)
    assert taken == ["unit-0"]
    assert sorted(file.name for file in folder.iterdir()) == ["unit-0.0", "unit-0.1"]


WORKER = """
import sys, time
from pathlib import Path
from perceptio_core.data.units import Units
with Units(Path("claims"), sys.argv[1:], finished=lambda name: Path(name).exists()) as units:
    for name in units.free():
        print(name, flush=True)
        time.sleep(600)
"""


def test_a_killed_workers_unit_is_taken_over_at_once_on_its_machine(folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2])}
    command = [sys.executable, "-c", WORKER, *NAMES]
    with subprocess.Popen(command, cwd=folder.parent, env=environment, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        held = worker.stdout.readline().strip()
        with units(folder) as mine:
            free = sorted(mine.free())
            assert free == [name for name in NAMES if name != held]
            for name in free:
                (folder.parent / name).touch()
            mine.wait()
            assert list(mine.left) == [held]
            worker.send_signal(signal.SIGKILL)
            mine.wait(ask_every_s=0.05)  # for a zombie, as this process has not asked for its end
            assert list(mine.free()) == [held]


def test_a_process_number_that_was_given_again_is_no_sign_of_life(folder: Path) -> None:
    folder.mkdir()
    myself = module._myself()
    if myself["kernel"] is None:
        pytest.skip("only Linux tells when a process started")
    (folder / "unit-0.0").write_text(json.dumps(myself))
    (folder / "unit-1.0").write_text(json.dumps(myself | {"started": "1"}))
    with units(folder, names=NAMES[:2]) as mine:
        assert list(mine.free()) == ["unit-1"]


def test_what_others_have_finished_is_told_once(folder: Path) -> None:
    with units(folder) as one, units(folder) as other:
        mine = one.free()
        ours, theirs = list(islice(mine, 2)), list(islice(other.free(), 2))
        for name in ours + theirs:
            (folder.parent / name).touch()
        ours.append(next(mine))
        assert one.made_by_others() == theirs
        (folder.parent / ours[-1]).touch()
        one.wait()
        assert not one.left
        assert one.made_by_others() == []


def test_claims_in_a_folder_that_is_gone_are_an_error(folder: Path) -> None:
    with units(folder) as mine:
        folder.rmdir()
        with pytest.raises(FileNotFoundError):
            list(mine.free())
