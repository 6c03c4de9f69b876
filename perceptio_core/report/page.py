"""The page itself: everything in one HTML file that needs no network and no script, made of the templates beside this file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2

from perceptio_core.metrics import Metric
from perceptio_core.report.data_tables import Realised, drawn_table, images_table, samples_table
from perceptio_core.report.panels import Panel
from perceptio_core.report.pictures import PREDICTED, TRUE, data_uri
from perceptio_core.report.plots import COLOURS, loss_names, loss_plot, usage_plot
from perceptio_core.report.published import Published
from perceptio_core.report.tables import (
    Control,
    Table,
    beside,
    count,
    headline_groups,
    number,
    parts_table,
    published_table,
    tiles,
)
from perceptio_core.training.curve_files import Curve

SECTIONS = {
    "results": "Results",
    "panels": "What it sees, what it says",
    "data": "Data",
    "training": "Training",
    "codebook": "Depth codebook",
    "published": "Published figures",
    "inputs": "What this page is made from",
}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("perceptio_core.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"number": number, "count": count, "data_uri": data_uri}


@dataclass(frozen=True, kw_only=True)
class Input:
    """A file that the page is made from.

    Attributes:
        path: relative to the repository root.
        sha256: of its content.
        gives: what the page shows of it.
    """

    path: str
    sha256: str
    gives: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that the page shows.

    Attributes:
        title: heading.
        caveat: what to know before comparing; empty for nothing.
        profile: its name.
        metrics: headline metrics, a control's with its name in front.
        controls: those that were evaluated.
        parts: per variant, the parts of its metrics.
        published: what others published.
        counts: what the stage `sources` counted, by name.
        realised: samples, records and dropped ones per split, task and data set, as the joint shards' index says.
        curves: per variant, its training curves.
        training: per variant, the metrics of its training by name.
        usage: uses of each depth code.
        samples: data URI of the codebook's reconstructions, or None.
        panels: qualitative panels of the first variant.
        inputs: the files behind it all.
    """

    title: str
    caveat: str
    profile: str
    metrics: Sequence[Metric]
    controls: Sequence[Control]
    parts: Mapping[str, Sequence[Metric]]
    published: Published
    counts: Mapping[str, float]
    realised: Realised
    curves: Mapping[str, Mapping[str, Curve]]
    training: Mapping[str, Mapping[str, float]]
    usage: Sequence[float]
    samples: str | None
    panels: Sequence[Panel]
    inputs: Sequence[Input]


def page(content: Content) -> str:
    """The whole HTML document."""
    return _TEMPLATES.get_template("report.html").render(
        content=content,
        sections=SECTIONS,
        tiles=tiles(content.metrics, controls=content.controls),
        groups=headline_groups(content.metrics, controls=content.controls, published=content.published),
        models=beside(content.metrics, content.published),
        parts=parts_table(content.parts) if any(content.parts.values()) else None,
        colours={"predicted": PREDICTED, "outline": TRUE},
        images=images_table(content.counts),
        samples=samples_table(content.realised),
        drawn=drawn_table(content.training),
        curve_colours=list(zip(content.curves, COLOURS, strict=False)),
        losses=[loss_plot(content.curves, [name]) for name in loss_names(content.curves)],
        training=_training(content.training),
        usage=usage_plot(content.usage) if content.usage else None,
        codes_used=sum(uses > 0 for uses in content.usage),
        published=published_table(content.published),
        inputs=_inputs(content.inputs),
    )


def _training(training: Mapping[str, Mapping[str, float]]) -> Table:
    return Table(
        caption="Trainings",
        heads=["variant", "steps", "samples a step", "loss at the end", "on the validation split"],
        rows=[
            [variant, *(f"{m[key]:,.0f}" for key in ("steps", "batch_size")), *(_loss(m, key) for key in ("train", "val"))]
            for variant, m in training.items()
        ],
    )


def _loss(metrics: Mapping[str, float], split: str) -> str:
    return number(metrics[f"{split}_total"]) if f"{split}_total" in metrics else ""


def _inputs(inputs: Sequence[Input]) -> Table:
    return Table(
        caption="Files behind this page",
        heads=["file", "what it gives", "sha256"],
        rows=[[one.path, one.gives, one.sha256] for one in inputs],
        words={"what it gives", "sha256"},
    )
