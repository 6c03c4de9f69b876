"""Ties a process to the one that starts it: ``python -m perceptio_core.tied PARENT MODULE ...`` runs a module so.

A process that is ended by SIGKILL cannot end its children. On Linux the kernel does (PR_SET_PDEATHSIG), for a child that has
asked for it; so a child asks first of all, before imports that take seconds. If the parent died before that, the kernel says
nothing, and the child sees only the process that adopted it. So it is given the id of its parent, and looks once it has asked.

The tie outlasts `exec`. It is to the thread that started the process: one that starts a tied process has to outlive it.
"""

import ctypes
import multiprocessing
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tied(*module: str) -> list[str]:
    """The command that runs a module, with its arguments, as a child of this process that ends with it."""
    return [sys.executable, "-m", "perceptio_core.tied", str(os.getpid()), *module]


def tie(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends; send it at once if that has happened.

    Does nothing on other systems than Linux.

    Args:
        parent: the process id of the parent.
        number: the signal.

    Raises:
        OSError: the kernel refuses.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number)) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def tie_worker() -> None:
    """Tie a worker of a pool to the process that has the pool; else an idle worker would wait for its next job for ever.

    A worker's first own line comes after the imports of the module that it works for: some seconds, which it may live longer.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    tie(parent.pid)


def main() -> None:
    """Tie this process, then become the module."""
    tie(int(sys.argv[1]))
    module = sys.argv[2]
    del sys.argv[:2]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
