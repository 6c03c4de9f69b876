"""The tables of the page as HTML: headline figures beside published ones, published figures, parts of the figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from perceptio_core.report.figures import Figure
from perceptio_core.report.published import Published, PublishedModel


@dataclass(frozen=True, kw_only=True)
class Label:
    """How a headline metric is called on the page; `top` ends its scale (None: none is drawn); baselines are grey."""

    name: str
    title: str
    top: float | None = 100.0
    baseline: bool = False


GROUPS: tuple[tuple[str, tuple[Label, ...]], ...] = (
    (
        "Your own validation pictures",
        (
            Label(name="questions_exact", title="questions: exact answer"),
            Label(name="questions_contained", title="questions: right answer contained"),
            Label(name="questions_majority", title="baseline: most frequent answer", baseline=True),
            Label(name="questions_majority_by_kind", title="baseline: most frequent answer of the kind", baseline=True),
            Label(name="masks_giou", title="masks, gIoU (mean IoU)"),
            Label(name="masks_ciou", title="masks, cIoU"),
            Label(name="objects_giou", title="objects of the COCO file, gIoU (mean IoU)"),
            Label(name="objects_ciou", title="objects of the COCO file, cIoU"),
        ),
    ),
    (
        "Depth order: HardBLINK",
        (
            Label(name="blink_depth", title="2 points (BLINK)"),
            Label(name="hardblink_3", title="3 points"),
            Label(name="hardblink_4", title="4 points"),
            Label(name="hardblink_5", title="5 points"),
            Label(name="hardblink_mean", title="mean, strict"),
            Label(name="hardblink_lenient_mean", title="mean, lenient"),
            Label(name="hardblink_majority", title="baseline: majority letter", baseline=True),
            Label(name="hardblink_shortcut", title="baseline: best image-plane short cut", baseline=True),
        ),
    ),
    (
        "What the depth codes do: HardBLINK, mean, with other codes in the model's depth spans",
        (
            Label(name="codes_oracle_hardblink_mean", title="the teacher's codes of this picture"),
            Label(name="codes_other_hardblink_mean", title="the teacher's codes of another picture"),
            Label(name="codes_random_hardblink_mean", title="random codes"),
            Label(name="codes_zeroed_hardblink_mean", title="code 0 everywhere"),
            Label(name="without_depth_hardblink_mean", title="no depth span"),
        ),
    ),
    (
        "Referring segmentation",
        (
            Label(name="res_ciou", title="cIoU"),
            Label(name="res_giou", title="gIoU"),
            Label(name="grefcoco_ciou", title="gRefCOCO, cIoU"),
            Label(name="grefcoco_giou", title="gRefCOCO, gIoU"),
            Label(name="grefcoco_n_acc", title="gRefCOCO, N-acc"),
            Label(name="grefcoco_t_acc", title="gRefCOCO, T-acc"),
            Label(name="reasonseg_giou", title="ReasonSeg, gIoU"),
            Label(name="reasonseg_ciou", title="ReasonSeg, cIoU"),
        ),
    ),
    (
        "General questions",
        (
            Label(name="mmbench", title="MMBench, circular"),
            Label(name="seed_image", title="SEED-Image"),
            Label(name="mme_perception", title="MME perception", top=2000.0),
            Label(name="mme_cognition", title="MME cognition", top=800.0),
            Label(name="ai2d", title="AI2D"),
            Label(name="scienceqa_image", title="ScienceQA-image"),
            Label(name="unparsed", title="answers that could not be read"),
        ),
    ),
    (
        "Depth codebook",
        (
            Label(name="codebook_usage", title="codes in use"),
            Label(name="codebook_lookup_3", title="look-up on decoded maps, 3 points"),
            Label(name="codebook_lookup_4", title="look-up, 4 points"),
            Label(name="codebook_lookup_5", title="look-up, 5 points"),
            Label(name="codebook_absrel", title="reconstruction, AbsRel", top=None),
            Label(name="codebook_mse", title="reconstruction, squared error", top=None),
            Label(name="codebook_perplexity", title="perplexity of the codes", top=None),
        ),
    ),
)


def number(value: float) -> str:
    """One decimal below 1000, none above; two digits that count below 1."""
    if value and abs(value) < 1:
        return f"{value:.2g}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def headline_table(*, figures: Sequence[Figure], control: str | None, published: Published) -> str:
    """Every headline metric: its protocol, value and interval, the control's, a drawing of both, n, published figures.

    Args:
        figures: all of them; those of the control have its name and `_` in front.
        control: name of the control variant, if one was evaluated.
        published: its models marked `beside` get a column, where they have any of these figures.
    """
    by_name = {figure.name: figure for figure in figures}
    beside = [
        model
        for model in published.models
        if model.beside and any(published.value(model=model, metric=name) is not None for name in by_name)
    ]
    rows = []
    for group, labels in GROUPS:
        shown = [label for label in labels if label.name in by_name]
        if shown:
            rows.append(f'<tr class="group"><th colspan="{4 + len(beside) + bool(control)}">{escape(group)}</th></tr>')
            rows += [_headline_row(label, by_name, control, published, beside) for label in shown]
    rest = [f for f in figures if f.name.removeprefix(f"{control}_") not in {label.name for _, g in GROUPS for label in g}]
    if rest:
        rows.append(f'<tr class="group"><th colspan="{4 + len(beside) + bool(control)}">More</th></tr>')
        rows += [_headline_row(Label(name=f.name, title=f.name, top=None), by_name, control, published, beside) for f in rest]
    heads = ["<th>metric</th>", '<th class="num">this run</th>']
    heads += ['<th class="num">control, same base</th>'] if control else []
    heads += ["<th></th>", '<th class="num">n</th>']
    heads += [f'<th class="num pub" title="{escape(m.source)}">{escape(m.name)}</th>' for m in beside]
    return _table(heads, rows)


def published_table(published: Published) -> str:
    """Every published figure."""
    heads = ["<th>model</th>", *(f'<th class="num">{escape(b.title)}</th>' for b in published.benchmarks), "<th>source</th>"]
    rows = []
    for model in published.models:
        cells = [f"<th>{escape(model.name)}</th>"]
        for benchmark in published.benchmarks:
            value = model.figures.get(benchmark.key)
            cells.append(f'<td class="num">{"" if value is None else number(value)}</td>')
        cells.append(f'<td class="protocol">{escape(model.source)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return _table(heads, rows, kind="dense")


def parts_table(parts: Mapping[str, Sequence[Figure]]) -> str:
    """The parts of the figures (subsets, categories, other readings) per variant."""
    several = len(parts) > 1
    heads = ["<th>part</th>", *(["<th>variant</th>"] if several else [])]
    heads += ['<th class="num">value</th>', '<th class="num">n</th>', "<th>protocol</th>"]
    rows = []
    for variant, figures in parts.items():
        for figure in figures:
            which = f"<td>{escape(variant)}</td>" if several else ""
            rows.append(
                f"<tr><th><code>{escape(figure.name)}</code></th>{which}{_value_cell(figure)}"
                f'<td class="num">{_count(figure)}</td><td class="protocol">{escape(figure.protocol)}</td></tr>'
            )
    return _table(heads, rows, kind="dense")


def tiles(figures: Sequence[Figure], *, control: str | None) -> str:
    """The four figures that matter most, large."""
    by_name = {figure.name: figure for figure in figures}
    chosen = {
        "questions_exact": "Your questions, exact answer",
        "masks_giou": "Your masks, gIoU",
        "objects_giou": "Your objects, gIoU",
        "hardblink_mean": "Depth order, 3 to 5 points",
        "res_ciou": "Referring segmentation, cIoU",
        "mmbench": "MMBench, circular",
        "codebook_lookup_5": "Codebook look-up, 5 points",
    }
    out = []
    for name, title in chosen.items():
        if (figure := by_name.get(name)) is None:
            continue
        notes = [] if figure.low is None or figure.high is None else [f"95 %: {number(figure.low)} to {number(figure.high)}"]
        if control and (other := by_name.get(f"{control}_{name}")):
            notes.append(f"control {number(other.value)}")
        if name == "hardblink_mean" and (majority := by_name.get("hardblink_majority")):
            notes.append(f"majority {number(majority.value)}")
        out.append(
            f'<div class="tile"><span class="name">{title}</span><b>{number(figure.value)}</b>'
            f'<span class="soft">{"".join(f"<span>{note}</span>" for note in notes)}</span></div>'
        )
    return f'<div class="tiles">{"".join(out)}</div>'


def _headline_row(
    label: Label,
    by_name: Mapping[str, Figure],
    control: str | None,
    published: Published,
    beside: Sequence[PublishedModel],
) -> str:
    figure = by_name[label.name]
    other = by_name.get(f"{control}_{label.name}") if control else None
    protocol = f'<span class="protocol">{escape(figure.protocol)}</span>'
    cells = [f'<th title="{escape(label.name)}">{escape(label.title)}{protocol}</th>', _value_cell(figure)]
    if control:
        cells.append(_value_cell(other) if other else '<td class="num pub" title="not asked: it needs tokens">–</td>')
    cells.append(f"<td>{'' if label.top is None else _range(figure, other, top=label.top)}</td>")
    cells.append(f'<td class="num">{_count(figure)}</td>')
    for model in beside:
        value = published.value(model=model, metric=label.name)
        cells.append(f'<td class="num pub">{"–" if value is None else number(value)}</td>')
    kind = ' class="baseline"' if label.baseline else ""
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _value_cell(figure: Figure) -> str:
    interval = ""
    if figure.low is not None and figure.high is not None:
        interval = f'<span class="interval">{number(figure.low)} – {number(figure.high)}</span>'
    return f'<td class="num value">{number(figure.value)}{interval}</td>'


def _count(figure: Figure) -> str:
    return "" if figure.n is None else f"{figure.n:,}".replace(",", "\u202f")


def _range(figure: Figure, other: Figure | None, *, top: float) -> str:
    """The value as a dot on a track from 0 to `top`, its interval as a band, the control as a ring."""

    def x(value: float) -> float:
        return 4 + 112 * min(max(value / top, 0.0), 1.0)

    parts = ['<line x1="4" x2="116" y1="8" y2="8" stroke="var(--line)" stroke-width="2"/>']
    if figure.low is not None and figure.high is not None:
        parts.append(
            f'<line x1="{x(figure.low):.1f}" x2="{x(figure.high):.1f}" y1="8" y2="8" stroke="var(--accent)"'
            ' stroke-opacity=".4" stroke-width="6" stroke-linecap="round"/>'
        )
    if other:
        parts.append(
            f'<circle cx="{x(other.value):.1f}" cy="8" r="3.6" fill="var(--card)" stroke="var(--cool)" stroke-width="1.8"/>'
        )
    parts.append(f'<circle cx="{x(figure.value):.1f}" cy="8" r="3.6" fill="var(--accent)"/>')
    return f'<svg class="range" viewBox="0 0 120 16" aria-hidden="true">{"".join(parts)}</svg>'


def _table(heads: Sequence[str], rows: Sequence[str], *, kind: str = "") -> str:
    head, body = "".join(heads), "".join(rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
