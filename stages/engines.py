"""Which engine works on a stage's units: this machine's own processes, or Ray where `VARIABLE` says so."""

import os

from perceptio_core.engine import Engine, Local, visible_gpus

VARIABLE = "PERCEPTIO_RAY"
"""``local``, a Ray for this stage alone, or the address of one, ``host:port``. Not set: no Ray."""


def engine(*, workers: int = 1, gpu: bool = False) -> Engine:
    """What works on the units of a stage.

    Args:
        workers: most processes of this machine; on Ray it is the cluster that says how many.
        gpu: whether a worker has a model: then there is one for each GPU, where there are GPUs.

    Raises:
        ValueError: Ray is wanted, and not installed, or not there.
    """
    address = os.environ.get(VARIABLE)
    if address is None:
        return Local(workers, gpus=visible_gpus() if gpu else [])
    from stages.on_ray import OnRay

    return OnRay(address, gpu=gpu)
