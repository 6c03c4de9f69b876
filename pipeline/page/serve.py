"""``perceptio page`` and ``perceptio look``: Gradio on loopback, without a network."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Event

from perceptio_core.model.checkpoint import refuse_absent
from perceptio_core.params.values import PARAMS, Values, read_values
from pipeline.page.models import Models
from pipeline.server import HOST, refuse_a_taken_port
from pipeline.settings import loopback_past_proxies
from stages.common import StagePaths


def serve_page(*, checkpoints: Sequence[str], port: int, device: str | None, dtype: str | None) -> None:
    """Serve the page until it is stopped: a tab to ask, and in a checkout one to look at samples.

    Args:
        checkpoints: folders, or repositories of the hub, that stand before the trained models of the active profile.
        port: on loopback.
        device: torch device; by default the GPU where there is one.
        dtype: of the language models; by default as they were saved.

    Raises:
        ValueError: a model is not there or cannot be loaded, Gradio is not installed, or the port is taken.
    """
    _look_ahead(port)
    values = read_values() if PARAMS.is_file() else None
    if values is None and not checkpoints:
        raise ValueError(f"there is no {PARAMS} here that says which model was trained: name one by --checkpoint")
    models: dict[str, str | Path] = {name: name for name in checkpoints}
    if values is not None:
        models |= _trained(values, at_least_one=not checkpoints)
    for name in models.values():
        refuse_absent(name)
    _serve(Models(models, values=values, device=device, dtype=dtype), values, port=port, stage=None)


def serve_samples(*, stage: str | None, port: int) -> None:
    """Serve the samples of what the stages made until it is stopped, those of `stage` (as in ``evaluate@full``) first.

    Raises:
        ValueError: the stage has made nothing, Gradio is not installed, or the port is taken.
    """
    _look_ahead(port)
    _serve(None, read_values(), port=port, stage=stage)


def _trained(values: Values, *, at_least_one: bool) -> dict[str, str | Path]:
    """The active profile's checkpoints by variant, active ones first; `at_least_one`: or where the first would be."""
    paths = StagePaths(values.profile)
    made = {name: paths.out("cotrain", name) / "checkpoint" for name in [*values.plain["active"], *values.plain["variants"]]}
    first = next(iter(made))
    there: dict[str, str | Path] = {name: folder for name, folder in made.items() if (folder / "config.json").is_file()}
    return there or ({first: made[first]} if at_least_one else {})


def _serve(models: Models | None, values: Values | None, *, port: int, stage: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="perceptio-page-") as folder:
        loopback_past_proxies()
        # Read when Gradio is imported: what is uploaded goes when the page goes, and nobody is told of it.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "HF_HUB_DISABLE_TELEMETRY": "1"}
        from pipeline.page.app import build, launch

        page = build(models, values, stage=stage, folder=Path(folder))
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl-C, so that what was uploaded goes
        launch(page, port=port)
        try:
            print(f"Perceptio: http://{HOST}:{port}   Stop with Ctrl-C.", flush=True)
            if models is not None:  # now: a question waits for it, the page does not
                models.get(models.names[0])
            Event().wait()  # until Ctrl-C
        finally:
            page.close(verbose=False)


def _look_ahead(port: int) -> None:
    if find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: pip install 'perceptio[page]'")
    refuse_a_taken_port(port)
