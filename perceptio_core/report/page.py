"""The page itself: everything in one HTML file that needs no network and no script."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import yaml

from perceptio_core.report.data import Realised, data_tables
from perceptio_core.report.figures import Figure
from perceptio_core.report.panels import Panel, panel_html
from perceptio_core.report.pictures import PREDICTED, TRUE
from perceptio_core.report.plots import COLOURS, Curve, loss_plot, usage_plot
from perceptio_core.report.provenance import StageRecord
from perceptio_core.report.published import Published
from perceptio_core.report.style import CSS
from perceptio_core.report.tables import headline_table, number, parts_table, published_table, tiles


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that the page shows.

    Attributes:
        title: heading.
        caveat: what to know before comparing; empty for nothing.
        profile: its name.
        commit: state of the checkout.
        figures: headline figures, the control's with its name in front.
        control: name of the control variant, or None.
        parts: per variant, the parts of its figures.
        published: what others published.
        data: what the stage sources counted.
        realised: samples, records and dropped ones per split, task and data set, as the joint shards' index says.
        curves: per variant, its training curves.
        training: per variant, the metrics of its training (flat).
        usage: uses of each depth code.
        samples: data URI of the codebook's reconstructions, or None.
        panels: qualitative panels of the first variant.
        stages: the stages behind the report.
    """

    title: str
    caveat: str
    profile: str
    commit: str
    figures: Sequence[Figure]
    control: str | None
    parts: Mapping[str, Sequence[Figure]]
    published: Published
    data: Mapping[str, Any]
    realised: Realised
    curves: Mapping[str, Mapping[str, Curve]]
    training: Mapping[str, Mapping[str, Any]]
    usage: Sequence[float]
    samples: str | None
    panels: Sequence[Panel]
    stages: Sequence[StageRecord]


def page(content: Content) -> str:
    """The whole HTML document."""
    sections = [
        ("results", "Results", _results(content)),
        ("panels", "What it sees, what it says", _panels(content)),
        ("data", "Data", data_tables(content.data, content.realised, content.training)),
        ("training", "Training", _training(content)),
        ("codebook", "Depth codebook", _codebook(content)),
        ("published", "Published figures", _published(content)),
        ("provenance", "Where each number comes from", _provenance(content)),
    ]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{html}</section>' for key, title, html in sections)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(content.title)}</title><style>{CSS}</style></head><body>"
        f'<header class="page"><div class="kicker">Perceptio · profile {escape(content.profile)}</div>'
        f"<h1>{escape(content.title)}</h1>"
        '<p class="soft">A vision-language model that writes down what it sees, first segmentation tokens, then depth'
        " tokens, before it answers; measured by the rules that stand below the name of each figure.</p>"
        f"<nav>{links}</nav>{tiles(content.figures, control=content.control)}</header><main>{body}"
        f"<footer>Perceptio, profile <code>{escape(content.profile)}</code>, commit <code>{escape(content.commit)}</code>."
        " This file holds everything it shows.</footer></main></body></html>\n"
    )


def _results(content: Content) -> str:
    note = f'<div class="note">{escape(content.caveat)}</div>' if content.caveat else ""
    lead = "Fractions in percent, with 95 % intervals. "
    if content.control:
        lead += (
            "The <b>control</b> is trained on the same base, the same data and the same number of samples (in place of depth"
            " maps on demand, which it cannot draw, samples of the other tasks), without any perception token; only a gap to"
            " the control speaks for the tokens. In the drawing the dot is this run, the band its interval, the ring the"
            " control."
        )
    else:
        lead += "The same-base control without perception tokens was not part of this run."
    table = headline_table(figures=content.figures, control=content.control, published=content.published)
    parts = ""
    if any(content.parts.values()):
        parts = (
            '<details class="card stage"><summary><b>Parts of these figures</b><span class="soft">subsets, categories,'
            f" baselines, other readings of the same answers</span></summary><div>{parts_table(content.parts)}</div></details>"
        )
    return f"{note}<p>{lead}</p>{table}{parts}"


def _panels(content: Content) -> str:
    if not content.panels:
        return '<p class="soft">No panels.</p>'
    legend = (
        f'<p class="legend soft"><span class="key" style="background:rgb{PREDICTED}"></span>predicted mask'
        f'<span class="key" style="background:rgb{TRUE}"></span>outline of the true mask'
        '<span class="key" style="background:linear-gradient(90deg,#000004,#bc3754,#fcffa4)"></span>depth, far to near</p>'
    )
    lead = (
        "<p>Questions spread evenly over each benchmark, not chosen by result. The tokens are shown as the model wrote"
        " them; a click opens the depth codes.</p>"
    )
    return f'{lead}{legend}<div class="panels">{"".join(panel_html(panel) for panel in content.panels)}</div>'


def _training(content: Content) -> str:
    rows = []
    for variant, metrics in content.training.items():
        cells = [
            f"{metrics['steps']:,} steps of {metrics['batch_size']} samples",
            f"{metrics['seconds'] / 60:.1f} min",
            f"{metrics['samples_per_second']:.1f} samples/s",
            f"{metrics['peak_memory_gib']:.1f} GiB at the peak",
            "bf16" if metrics["precision"] == "bf16" else "float32",
        ]
        rows.append(f"<tr><th>{escape(variant)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    table = f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>' if rows else ""
    from_colours = "".join(
        f'<span class="key" style="background:{colour}"></span>{escape(variant)}'
        for colour, variant in zip(COLOURS, content.curves, strict=False)
    )
    lead = (
        "<p>Each loss by itself: every step (faint), smoothed (line), on the validation split (points). The total is"
        " the weighted sum.</p>"
    )
    return f'{lead}<p class="legend soft">{from_colours}</p><div class="card">{loss_plot(content.curves)}</div>{table}'


def _codebook(content: Content) -> str:
    usage = ""
    if content.usage:
        used = sum(count > 0 for count in content.usage)
        usage = (
            f"<p>{used} of {len(content.usage)} codes are in use on the validation split; the dashed line is an even"
            f' share.</p><div class="card">{usage_plot(content.usage)}</div>'
        )
    samples = ""
    if content.samples:
        samples = (
            "<h3>Depth maps before and after the codebook</h3>"
            f'<div class="card"><img src="{content.samples}" alt="teacher depth maps and their reconstructions"></div>'
        )
    return usage + samples


def _published(content: Content) -> str:
    return f"<p>{escape(content.published.note)}</p>{published_table(content.published)}"


def _provenance(content: Content) -> str:
    if not content.stages:
        return '<p class="soft">No lock file: this report was made outside the pipeline.</p>'
    lead = (
        "<p>The stages behind this page as <code>dvc.lock</code> records them, at commit"
        f" <code>{escape(content.commit)}</code>. The hashes are DVC's: <code>dvc checkout</code> brings these very"
        " bytes back.</p>"
    )
    return lead + "".join(_stage(record) for record in content.stages)


def _stage(record: StageRecord) -> str:
    size = sum(out.size for out in record.writes)
    files = sum(out.files for out in record.writes)
    summary = f"{files:,} {'file' if files == 1 else 'files'}, {_bytes(size)}"
    tables = []
    for title, items in (
        ("writes", record.writes),
        ("reads", [item for item in record.reads if not item.path.endswith(".py")]),
    ):
        cells = "".join(
            f"<tr><td><code>{escape(item.path)}</code></td><td><code>{escape(item.hash)}</code></td>"
            f'<td class="num">{_bytes(item.size)}</td></tr>'
            for item in items
        )
        if cells:
            tables.append(f"<h3>{title}</h3><table><tbody>{cells}</tbody></table>")
    code = [item for item in record.reads if item.path.endswith(".py")]
    if code:
        listed = "\n".join(f"{item.hash[:12]}  {item.path}" for item in code)
        tables.append(f"<h3>code</h3><details><summary>{len(code)} files</summary><pre>{escape(listed)}</pre></details>")
    parameters = yaml.safe_dump(
        json.loads(json.dumps(dict(record.parameters))), sort_keys=False, default_flow_style=None, width=110
    )
    return (
        f'<details class="card stage"><summary><b>{escape(record.name)}</b><span class="soft">{summary}</span></summary><div>'
        f"<h3>command</h3><pre>{escape(record.command)}</pre>{''.join(tables)}"
        f"<h3>parameters</h3><pre>{escape(parameters)}</pre></div></details>"
    )


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{number(value) if unit != 'B' else int(value)} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
