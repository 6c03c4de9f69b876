"""The tab that shows samples of what the stages made."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from pipeline.page.drawing import TEMPLATES
from pipeline.page.refusals import shown_if_refused
from pipeline.page.samples import Samples

AT_ONCE = 6
"""Samples that are shown at a time."""


class Looking:
    """What the tab's lists and buttons do.

    Args:
        samples: of all stages.
    """

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def kinds(self, stage: str) -> tuple[Any, int, str]:
        """The kinds of a stage's samples for their list, the first place, and the first samples as HTML."""
        kinds = shown_if_refused(self._samples.kinds, stage)
        choices = [(f"{name} ({kind.count:,})", name) for name, kind in kinds.items()]
        first = next(iter(kinds), None)
        return gr.update(choices=choices, value=first), 1, self.shown(stage, first, 1)

    def shown(self, stage: str, kind: str | None, start: float) -> str:
        """Samples from a place on (from 1) as HTML."""
        kinds = shown_if_refused(self._samples.kinds, stage)
        if kind not in kinds:
            return "<p class='soft'>This stage has no samples to show.</p>"
        found, first = kinds[kind], max(1, int(start or 1))
        stop = min(found.count, first + AT_ONCE - 1)
        made = [shown_if_refused(found.make, number) for number in range(first - 1, stop)]
        return TEMPLATES.get_template("samples.html").render(samples=made, first=first, stop=stop, count=found.count, kind=kind)

    def moved(self, by: int, stage: str, kind: str | None, start: float) -> tuple[int, str]:
        """The place `by` further, inside what there is, and the samples from there on."""
        kinds = shown_if_refused(self._samples.kinds, stage)
        last = max(1, kinds[kind].count - AT_ONCE + 1) if kind in kinds else 1
        place = min(max(1, int(start or 1) + by), last)
        return place, self.shown(stage, kind, place)


def look_tab(opened: Any, samples: Samples, *, stage: str | None) -> None:
    """Lay the tab out, inside a `gr.Blocks`.

    Args:
        opened: the event after which samples are read.
        samples: of all stages.
        stage: whose come first; None: the first stage's that has made something.
    """
    looking = Looking(samples)
    stages = samples.stages()
    with gr.Row():
        chosen = gr.Dropdown(stages, value=stage or stages[0], label="Stage", filterable=False, min_width=160)
        kind = gr.Dropdown([], label="Samples", filterable=False, min_width=280)
        place = gr.Number(1, label="From", precision=0, minimum=1, min_width=80)
    with gr.Row():
        previous = gr.Button("Previous", size="sm", scale=0, min_width=120)
        following = gr.Button("Next", size="sm", scale=0, min_width=120)
    shown = gr.HTML(elem_id="samples", apply_default_css=False)
    inputs = [chosen, kind, place]
    gr.on([chosen.input, opened], looking.kinds, chosen, [kind, place, shown], api_name="kinds")
    kind.input(lambda stage, kind: (1, looking.shown(stage, kind, 1)), [chosen, kind], [place, shown], api_name="samples")
    place.submit(looking.shown, inputs, shown, api_visibility="private")
    previous.click(partial(looking.moved, -AT_ONCE), inputs, [place, shown], api_visibility="private")
    following.click(partial(looking.moved, AT_ONCE), inputs, [place, shown], api_visibility="private")
