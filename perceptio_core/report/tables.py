"""What the page's tables hold: headline metrics beside published ones, published figures, parts of the metrics."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from perceptio_core.metrics import Metric
from perceptio_core.report.published import Published, PublishedModel


@dataclass(frozen=True, kw_only=True)
class Table:
    """A plain table of texts.

    Attributes:
        caption: what it shows.
        heads: of the columns.
        rows: cells; the first of a row is its header.
        words: heads of the columns, other than the first, that hold words rather than numbers.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Collection[str] = ()


@dataclass(frozen=True, kw_only=True)
class Label:
    """How a headline metric is called on the page; `top` ends its scale (None: none is drawn); baselines are grey."""

    name: str
    title: str
    top: float | None = 100.0
    baseline: bool = False


@dataclass(frozen=True, kw_only=True)
class Control:
    """A variant that stands beside the full model: trained on the same base and data, with less of what it writes.

    Attributes:
        variant: its name.
        title: of its column.
        short: how notes call it.
        writes: what it writes, and what the gap to it says.
    """

    variant: str
    title: str
    short: str
    writes: str


CONTROLS = (
    Control(
        variant="no_depth",
        title="without depth tokens, same base",
        short="without depth",
        writes="segmentation tokens but no depth tokens; it does the same tasks, so the gap to it is what depth tokens bring",
    ),
    Control(
        variant="control",
        title="control, same base",
        short="control",
        writes="no perception token at all; the gap to it is what both kinds bring together",
    ),
)
"""The fairest first."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A headline metric, each control's (None where it was not asked), and what each of some models published."""

    label: Label
    metric: Metric
    controls: Sequence[tuple[Control, Metric | None]]
    published: Sequence[tuple[PublishedModel, float | None]]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Headline metrics under one title."""

    title: str
    rows: Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the metrics that matter most, and short notes on it."""

    title: str
    value: str
    notes: Sequence[str]


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
            Label(name="blink_depth_majority", title="baseline: majority letter, 2 points", baseline=True),
            Label(name="blink_depth_longest", title="baseline: longest option, 2 points", baseline=True),
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
            Label(name="mmbench_longest", title="baseline: longest option", baseline=True),
            Label(name="blind_mmbench", title="MMBench, circular, asked with a gray picture", baseline=True),
            Label(name="seed_image", title="SEED-Image"),
            Label(name="seed_image_majority", title="baseline: majority letter", baseline=True),
            Label(name="seed_image_longest", title="baseline: longest option", baseline=True),
            Label(name="blind_seed_image", title="SEED-Image, asked with a gray picture", baseline=True),
            Label(name="mme_perception", title="MME perception", top=None),
            Label(name="mme_perception_majority", title="baseline: majority answer of each subtask", top=None, baseline=True),
            Label(name="blind_mme_perception", title="MME perception, asked with a gray picture", top=None, baseline=True),
            Label(name="mme_cognition", title="MME cognition", top=None),
            Label(name="mme_cognition_majority", title="baseline: majority answer of each subtask", top=None, baseline=True),
            Label(name="ai2d", title="AI2D"),
            Label(name="ai2d_majority", title="baseline: majority letter", baseline=True),
            Label(name="ai2d_longest", title="baseline: longest option", baseline=True),
            Label(name="scienceqa_image", title="ScienceQA-image"),
            Label(name="scienceqa_image_majority", title="baseline: majority letter", baseline=True),
            Label(name="scienceqa_image_longest", title="baseline: longest option", baseline=True),
        ),
    ),
    (
        "Answers",
        (
            Label(name="unparsed", title="could not be read"),
            Label(name="decode_passes", title="passes of the model for each", top=None),
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

TILES = {
    "questions_exact": "Your questions, exact answer",
    "masks_giou": "Your masks, gIoU",
    "objects_giou": "Your objects, gIoU",
    "hardblink_mean": "Depth order, 3 to 5 points",
    "res_ciou": "Referring segmentation, cIoU",
    "seed_image": "SEED-Image",
    "codebook_lookup_5": "Codebook look-up, 5 points",
}
"""The metrics that stand large at the head of the page, where a run has them."""


def number(value: float) -> str:
    """One decimal below 1000, none above; two digits that count below 1."""
    if value and abs(value) < 1:
        return f"{value:.2g}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def count(n: int | None) -> str:
    """A count with thin spaces between its thousands; empty for None."""
    return "" if n is None else f"{n:,}".replace(",", "\u202f")


def beside(metrics: Sequence[Metric], published: Published) -> list[PublishedModel]:
    """The published models that stand in the headline table: those marked so that have any of its metrics."""
    names = [metric.name for metric in metrics]
    return [
        model
        for model in published.models
        if model.beside and any(published.value(model=model, metric=name) is not None for name in names)
    ]


def headline_groups(metrics: Sequence[Metric], *, controls: Sequence[Control], published: Published) -> list[Group]:
    """Every headline metric with the controls' and the published ones.

    Args:
        metrics: all of them; those of a control have its name and `_` in front.
        controls: those that were evaluated.
        published: what others published.
    """
    by_name = {metric.name: metric for metric in metrics}
    models = beside(metrics, published)

    def row(label: Label) -> Row:
        metric = by_name[label.name]
        if "mme_" in label.name and metric.chance:  # per subtask that was asked 200 points, 75 by chance
            label = replace(label, top=metric.chance / 75 * 200)
        return Row(
            label=label,
            metric=metric,
            controls=[(control, by_name.get(f"{control.variant}_{label.name}")) for control in controls],
            published=[(model, published.value(model=model, metric=label.name)) for model in models],
        )

    known = {label.name for _, labels in GROUPS for label in labels}
    known |= {f"{control.variant}_{name}" for control in controls for name in known}
    rest = [Label(name=name, title=name, top=None) for name in by_name if name not in known]
    groups = [(title, [label for label in labels if label.name in by_name]) for title, labels in [*GROUPS, ("More", rest)]]
    return [Group(title=title, rows=[row(label) for label in labels]) for title, labels in groups if labels]


def published_table(published: Published) -> Table:
    """Every published figure."""
    rows = []
    for model in published.models:
        values = [model.figures.get(benchmark.key) for benchmark in published.benchmarks]
        rows.append([model.name, *("" if value is None else number(value) for value in values), model.source])
    heads = ["model", *(benchmark.title for benchmark in published.benchmarks), "source"]
    return Table(caption="Published figures", heads=heads, rows=rows, words={"source"})


def parts_table(parts: Mapping[str, Sequence[Metric]]) -> Table:
    """The parts of the metrics (subsets, categories, other readings) per variant."""
    rows = []
    for variant, metrics in parts.items():
        for metric in metrics:
            interval = "" if metric.low is None or metric.high is None else f"{number(metric.low)} – {number(metric.high)}"
            chance = "" if metric.chance is None else number(metric.chance)
            rows.append([metric.name, variant, number(metric.value), interval, chance, count(metric.n), metric.protocol])
    heads = ["part", "variant", "value", "95 % interval", "chance", "n", "protocol"]
    return Table(caption="Parts of the metrics", heads=heads, rows=rows, words={"variant", "protocol"})


def tiles(metrics: Sequence[Metric], *, controls: Sequence[Control]) -> list[Tile]:
    """The metrics of `TILES` that were measured."""
    by_name = {metric.name: metric for metric in metrics}
    found = []
    for name, title in TILES.items():
        if (metric := by_name.get(name)) is None:
            continue
        notes = [] if metric.low is None or metric.high is None else [f"95 %: {number(metric.low)} to {number(metric.high)}"]
        notes += [] if metric.chance is None else [f"chance {number(metric.chance)}"]
        for control in controls:
            if other := by_name.get(f"{control.variant}_{name}"):
                notes.append(f"{control.short} {number(other.value)}")
        if name == "hardblink_mean" and (majority := by_name.get("hardblink_majority")):
            notes.append(f"majority {number(majority.value)}")
        found.append(Tile(title=title, value=number(metric.value), notes=notes))
    return found
