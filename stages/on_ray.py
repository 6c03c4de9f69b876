"""An engine on Ray Core: as many actors as the cluster has room for at the time, on all its nodes.

Actors are not restarted. When a node dies, Ray's own restart waits for processors that are gone, and holds the unit meanwhile;
here the unit of a dead actor goes back to the queue, and only an actor that has made its model gets one.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from perceptio_core.files import whole
from perceptio_core.guard import guard

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Keeps every port of a Ray on 127.0.0.1; ``--node-ip-address=127.0.0.1`` is silently replaced (Ray 2.60)."""
TRIES = 4
"""How many workers may die of a unit, and how many before they have a model, one after the other."""

Unit = TypeVar("Unit")
Result = TypeVar("Result")
_LOOK_EVERY_S = 1.0
_log = logging.getLogger(__name__)


def closed(token: Path) -> dict[str, str]:
    """The environment of a Ray that is closed to whoever does not have the file `token`, and reports home nothing."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}


def write_token(path: Path) -> None:
    """Make a file with a token, for this user alone."""
    with whole(path) as unfinished, os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(secrets.token_hex(32))


class OnRay:
    """Works on all nodes of a Ray, which share the disk that holds the checkout.

    Args:
        address: ``local`` starts one for this process, on the loopback; else ``host:port`` of one that is there.
        gpu: whether a worker has a model. It takes a GPU, if there are any at the start; else as many cores as this process
            has threads (OMP_NUM_THREADS), for on other numbers of threads a model computes other last bits. Without a model a
            worker takes one core.

    Raises:
        ValueError: Ray is not installed, or none answers at the address.
    """

    def __init__(self, address: str, *, gpu: bool) -> None:
        if address == "local":
            self._folder = tempfile.TemporaryDirectory(prefix="perceptio-ray-")
            token = Path(self._folder.name) / "token"
            write_token(token)
            guard()
            os.environ |= LOOPBACK | closed(token)
        try:
            import ray
        except ImportError as error:
            raise ValueError("Ray is not installed here: pip install 'perceptio[ray]'") from error
        threads = 1
        if gpu:
            import torch

            threads = torch.get_num_threads()
        try:
            path = os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])])
            dashboard = False if address == "local" else None  # not ours to say of another's
            environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
            ray.init(address, runtime_env={"env_vars": environment}, include_dashboard=dashboard)
        except Exception as error:  # a Ray that takes over 30 s to start, on a busy machine, says so by no other class
            raise ValueError(f"Ray at {address}: {' '.join(str(error).split())}") from error
        self._ray: Any = ray  # half of its functions have no types
        of_gpus = gpu and self._ray.cluster_resources().get("GPU")
        self._resource, self._share = ("GPU", 1) if of_gpus else ("CPU", threads)

    def map(self, make: Callable[[], Callable[[Unit], Result]], units: Iterable[Unit]) -> Iterator[tuple[Unit, Result]]:
        """See `perceptio_core.engine.Engine.map`.

        Raises:
            RuntimeError: `TRIES` workers died of one unit, or so many times all workers before one was ready.
        """
        ray = self._ray
        needs = {"num_cpus": 0, "num_gpus": 1} if self._resource == "GPU" else {"num_cpus": self._share}
        worker = ray.remote(max_restarts=0, **needs)(Worker)
        coming = ((unit, 0) for unit in units)
        todo = deque(islice(coming, 1))  # a unit, and how many workers have died of it
        doing: dict[Any, tuple[Any, tuple[Unit, int] | None]] = {}  # by what is waited for; without a unit: until it is ready
        idle: list[Any] = []
        size, next_look, stillborn = 0, 0.0, 0
        try:
            while todo or any(job is not None for _, job in doing.values()):
                if (now := time.monotonic()) >= next_look:
                    size = int(ray.cluster_resources().get(self._resource, 0)) // self._share
                    next_look = now + _LOOK_EVERY_S
                for _ in range(size - len(idle) - len(doing)):
                    actor = worker.remote(str(Path.cwd()), make)
                    doing[actor.ready.remote()] = actor, None
                while idle and todo:
                    actor, job = idle.pop(), todo.popleft()
                    doing[actor.work.remote(job[0])] = actor, job
                    todo.extend(islice(coming, 0 if todo else 1))
                if not doing:  # no node is left; one may come
                    time.sleep(_LOOK_EVERY_S)
                    continue
                for one in ray.wait(list(doing), timeout=_LOOK_EVERY_S)[0]:
                    actor, lost = doing.pop(one)
                    try:
                        result = ray.get(one)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause or error from error
                    except ray.exceptions.RayError as error:
                        ray.kill(actor)  # it may live, where it is not seen
                        _log.warning("a worker is lost: %s", str(error).partition("\n")[0])
                        stillborn += lost is None
                        if stillborn > TRIES * size or (lost is not None and lost[1] + 1 == TRIES):
                            raise RuntimeError(f"{TRIES} workers died of the same work; the last: {error}") from error
                        todo.extend([] if lost is None else [(lost[0], lost[1] + 1)])
                        # Who has nothing to do may be dead as well, and says so before a unit is lost to it.
                        doing.update({actor.ready.remote(): (actor, None) for actor in idle})
                        idle.clear()
                        continue
                    idle.append(actor)
                    if lost is None:
                        stillborn = 0
                    else:
                        yield lost[0], result
        finally:
            for actor in [*idle, *(actor for actor, _ in doing.values())]:
                ray.kill(actor)


class Worker:
    """An actor: works in the folder that the stage runs in."""

    def __init__(self, folder: str, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._folder, self._make = folder, make
        self._work: Callable[[Any], Any] | None = None

    def ready(self) -> None:
        """Make what works on units, once. Not in `__init__`, whose errors Ray reports as an actor's death."""
        if self._work is None:
            os.chdir(self._folder)
            self._work = self._make()

    def work(self, unit: Any) -> Any:
        """The result of a unit."""
        assert self._work is not None
        return self._work(unit)
