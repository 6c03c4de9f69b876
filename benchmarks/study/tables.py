"""The study's rows as Markdown tables, put between the marks of ``docs/results.md``; the words around them stay as written.

A cell is a value with its 95 % interval over the questions; over several seeds it is the mean of the values, with the lowest
and the highest bound of any seed, which is wider than the interval of the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.rows import CODES, CODES_IN, LONGER, MAIN, MODELS, Row

NOT_RUN, NOT_ASKED = "not run", "–"
NAMES = {
    "full": "full",
    "no_depth": "no depth tokens",
    "no_seg": "no segmentation tokens",
    "control": "control: neither",
    "no_marker": "marker loss off",
    "no_token": "token loss off",
    "no_count": "count loss off",
    "no_reconstruction": "reconstruction loss off",
    "depth_first": "depth before segmentation",
    "no_code_words": "code rows start at random",
    "no_own_codes": "answers never learned from own codes",
    "k32": "K = 32",
    "k512": "K = 512",
    "n25": "N = 25",
    "n100": "N = 100",
    "codes_oracle": "the teacher's codes",
    "codes_random": "random codes",
    "codes_zero": "code 0 everywhere",
    "codes_other": "the teacher's codes of another picture",
}
COLUMNS = {
    "RES cIoU": "res_ciou",
    "depth order, 3": "hardblink_3",
    "4": "hardblink_4",
    "5 points": "hardblink_5",
    "mean": "hardblink_mean",
    "SEED": "seed_image",
    "MME P": "mme_perception",
    "MME C": "mme_cognition",
}
TESTED = {
    MAIN: ("all labels", "hardblink_mean"),
    "labels_100": ("100 marked pictures", "hardblink_mean"),
    "labels_100_equal": ("100 marked pictures, drawn as often by both, and no readings of codes", "hardblink_mean"),
    "labels_1000": ("1,000 marked pictures", "hardblink_mean"),
    "labels_10000": ("10,000 marked pictures", "hardblink_mean"),
    "more_points": ("trained on 2 and 3 points, tested on 5", "hardblink_5"),
    "new_scenes": ("tested on unlike scenes", "hardblink_mean"),
    "new_question": ("trained on pairs, tested on the nearest of several", "hardblink_mean"),
    "new_question_back": ("trained on the nearest of several, tested on pairs", "pairs_hardblink_mean"),
    LONGER: ("all labels, three times the training", "hardblink_mean"),
}
"""Per regime its description, and the metric that it is about."""
FIRST = {"hardblink_mean": "depth order, mean", "pairs_hardblink_mean": "one of two, mean"}
"""Metrics of the two kinds of depth-order questions, asked as the first question about a picture."""
MARGIN = 10.0
"""Points by which full has to beat the control in one regime other than labels_10000 and longer."""
CIOU = 65.0
"""The least RES cIoU of the full model."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A metric of one model over its seeds; `low` and `high` None where a seed has no interval."""

    value: float
    low: float | None
    high: float | None
    seeds: int

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" ({self.low:.1f} to {self.high:.1f})"
        return f"{self.value:.1f}{interval}"


def cell(rows: Sequence[Row], *, variant: str, regime: str, metric: str) -> Cell | None:
    """The metric over all seeds that have it; None if none has."""
    mine = [row.get(metric) for row in rows if (row.variant, row.regime) == (variant, regime)]
    values = [value for value in mine if value is not None]
    if not values:
        return None
    lows, highs = [value.low for value in values], [value.high for value in values]
    return Cell(
        value=sum(value.value for value in values) / len(values),
        low=None if None in lows else min(low for low in lows if low is not None),
        high=None if None in highs else max(high for high in highs if high is not None),
        seeds=len(values),
    )


def ablations(rows: Sequence[Row]) -> str:
    """Every model in the main regime."""
    lines = [["", *COLUMNS, "seeds"]]
    for variant in MODELS:
        found = [row for row in rows if (row.variant, row.regime) == (variant, MAIN)]
        cells = [_text(rows, variant=variant, regime=MAIN, metric=metric) for metric in COLUMNS.values()]
        lines.append([NAMES[variant], *cells, str(len(found))])
    return _table(lines)


def codes(rows: Sequence[Row]) -> str:
    """The full model with its own depth codes and with others in their place, where they were replaced."""
    ran = [any((row.variant, row.regime) == ("full", regime) for row in rows) for regime in CODES_IN]
    lines = [["depth order, mean", *(TESTED[regime][0] for regime in CODES_IN)]]
    for variant in ("full", *CODES):
        name = "its own codes" if variant == "full" else NAMES[variant]
        cells = [_text(rows, variant=variant, regime=regime, metric="hardblink_mean") for regime in CODES_IN]
        # Where the full model was run, a row that is absent is a replacement that was not asked for.
        lines.append([name, *(NOT_ASKED if text == NOT_RUN and ran[place] else text for place, text in enumerate(cells))])
    without = [_text(rows, variant="full", regime=regime, metric="without_depth_hardblink_mean") for regime in CODES_IN]
    return _table([*lines, ["no depth span", *without]])


def regimes(rows: Sequence[Row]) -> str:
    """Full beside control in every regime, by the metric that the regime is about."""
    lines = [["regime", "what", "full", "control", "full - control", "intervals apart (either way)"]]
    for regime, (what, metric) in TESTED.items():
        full, control = (cell(rows, variant=variant, regime=regime, metric=metric) for variant in ("full", "control"))
        told = [_text(rows, variant=variant, regime=regime, metric=metric) for variant in ("full", "control")]
        difference, apart = NOT_RUN, NOT_RUN
        if full and control:
            difference, apart = f"{full.value - control.value:+.1f}", "yes" if _apart(full, control) else "no"
        lines.append([f"`{regime}`", what, *told, difference, apart])
    return _table(lines)


def reading(rows: Sequence[Row]) -> str:
    """What the tasks that teach reading codes do for depth order."""
    places = {
        "full": ((MAIN, "full"), ("no_reading", "full")),
        "control: neither": ((MAIN, "control"), ("new_question_back", "control")),
    }
    lines = [["depth order, mean", "with comparisons and depth maps", "without"]]
    for name, pairs in places.items():
        cells = [_text(rows, variant=variant, regime=regime, metric="hardblink_mean") for regime, variant in pairs]
        lines.append([name, *cells])
    return _table(lines)


def first_turn(rows: Sequence[Row]) -> str:
    """What the kind of the first question in training does for both kinds, asked first."""
    lines = [["", *(f"{kind}, {which} first in training" for kind in FIRST.values() for which in ("nearest", "either"))]]
    for variant in ("full", "control"):
        cells = [_text(rows, variant=variant, regime=regime, metric=m) for m in FIRST for regime in (MAIN, "either_first")]
        lines.append([NAMES[variant], *cells])
    return _table(lines)


def bars(rows: Sequence[Row]) -> str:
    """What was set as the bars before the runs, and whether they are met."""
    lines = [["bar", "met", "found"]]
    found = []
    for regime, (_, metric) in TESTED.items():
        full, control = (cell(rows, variant=variant, regime=regime, metric=metric) for variant in ("full", "control"))
        if full and control and regime not in (MAIN, "labels_10000", LONGER):
            found.append((full.value - control.value, _apart(full, control), regime))
    met = [regime for difference, apart, regime in found if difference >= MARGIN and apart]
    best = max(found, default=None)
    lines.append(
        [
            f"in a regime other than `labels_10000` and `longer`, full beats control on depth order by {MARGIN:.0f} points, "
            "intervals apart",
            NOT_RUN if best is None else "yes" if met else "no",
            NOT_RUN if best is None else f"largest difference {best[0]:+.1f} in `{best[2]}`, of {len(found)} regimes run",
        ]
    )
    names = ("codes_oracle", "full", "codes_random")
    order = [cell(rows, variant=variant, regime=MAIN, metric="hardblink_mean") for variant in names]
    values = [one.value for one in order if one is not None]
    complete = len(values) == len(names)
    lines.append(
        [
            "depth order: the teacher's codes >= its own > random ones",
            NOT_RUN if not complete else "yes" if values[0] >= values[1] > values[2] else "no",
            " / ".join(NOT_RUN if one is None else str(one) for one in order),
        ]
    )
    masks = cell(rows, variant="full", regime=MAIN, metric="res_ciou")
    met_masks, found_masks = (NOT_RUN, NOT_RUN) if masks is None else ("yes" if masks.value >= CIOU else "no", str(masks))
    lines.append([f"RES cIoU >= {CIOU:.0f}", met_masks, found_masks])
    return _table(lines)


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "bars": bars,
    "ablations": ablations,
    "codes": codes,
    "regimes": regimes,
    "reading": reading,
    "first turn": first_turn,
}


def fill(page: Path, rows: Sequence[Row]) -> None:
    """Renew the tables of a page, each between ``<!-- study: NAME -->`` and ``<!-- end of study: NAME -->``.

    Raises:
        ValueError: the page is missing, or lacks the marks of a table; names them.
    """
    if not page.is_file():
        raise ValueError(f"{page}: not found; it holds the words around the study's tables")
    text = page.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        start, end = f"<!-- study: {name} -->", f"<!-- end of study: {name} -->"
        if (text.count(start), text.count(end)) != (1, 1) or text.index(start) > text.index(end):
            raise ValueError(f"{page}: expected {start} and, after it, {end}, each once")
        before, after = text[: text.index(start)], text[text.index(end) :]
        text = f"{before}{start}\n{table(rows)}\n{after}"
    page.write_text(text, encoding="utf-8")


def _apart(one: Cell, other: Cell) -> bool:
    """Whether the interval of one, whichever it is, lies wholly above that of the other."""
    pairs = ((one.low, other.high), (other.low, one.high))
    return any(low is not None and high is not None and low > high for low, high in pairs)


def _text(rows: Sequence[Row], *, variant: str, regime: str, metric: str) -> str:
    if not any((row.variant, row.regime) == (variant, regime) for row in rows):
        return NOT_RUN
    found = cell(rows, variant=variant, regime=regime, metric=metric)
    return NOT_ASKED if found is None else str(found)


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|".join(["", "---", *["---:"] * (len(lines[0]) - 1), ""]), *body])
