"""``perceptio ui``: Prefect's server and pages for this checkout, on loopback only and without a network.

What earlier runs published is in the database below .prefect/, so it is there again. While the server runs, `perceptio
repro` in the same checkout reports to it. Stages that ran by plain `dvc` get their pages when the server starts.
"""

import logging
import os
import signal
from types import FrameType
from typing import NoReturn

from pipeline.server import CONSOLE_LEVEL, HOST, refuse_a_taken_port, serving
from pipeline.settings import running_server, server_file


def serve(*, profile: str, port: int) -> None:
    """Start the server, publish what dvc.lock records, say where it is, and serve until it is stopped.

    Raises:
        ValueError: the port is taken, or a server of this checkout runs already; says where.
    """
    if (running := running_server()) is not None:
        raise ValueError(f"it runs already: {running.removesuffix('/api')}")
    refuse_a_taken_port(port)
    signal.signal(signal.SIGTERM, _interrupt)
    with serving(port=port) as (api, server):
        server_file().write_text(api, encoding="utf-8")
        try:
            os.environ |= {"PREFECT_API_URL": api, CONSOLE_LEVEL: "CRITICAL"}
            page = _publish(profile)
            print(
                f"Prefect: http://{HOST}:{port}   lineage of profile {profile}: http://{HOST}:{port}{page}\nStop with Ctrl-C.",
                flush=True,
            )
            server.wait()
        finally:
            server_file().unlink(missing_ok=True)


def _publish(profile: str) -> str:
    """Publish what dvc.lock records of the profile and has no page yet; the path of the pages of the whole pipeline."""
    from prefect import flow  # only now: it reads the server's address when it is imported

    from pipeline.dag import plan
    from pipeline.lineage.graph import LineageGraph
    from pipeline.lineage.pages import key_of
    from pipeline.lineage.publisher import Publisher

    recorded, planned = LineageGraph.from_lock(), plan()
    finished = [node for node in planned.stages if node.name in recorded.records and node.name not in planned.stale]

    @flow(name="lineage", description="What dvc.lock records of stages that ran without Prefect")
    def publish() -> None:
        publisher = Publisher(profile)
        for node in finished:
            publisher.stage(node.name, downstream=node.downstream, seconds=None, logger=logging.getLogger("perceptio"))
        if publisher.published:
            names = {node.name for node in finished}
            publisher.run({node.name: "Cached" if node.name in names else "not up to date" for node in planned.stages})

    if finished:
        publish()
    return f"/v2/artifacts/key/{key_of(profile, 'lineage')}"


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)
