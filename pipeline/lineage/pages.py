"""The lineage of a stage, and of a whole run, as Markdown with Mermaid graphs for Prefect's pages.

A page lies at ``artifacts/artifact/<id>`` of the UI and the versions of one key at ``artifacts/key/<key>``, so links are
relative: they hold wherever a server is. What a stage comes from is linked to the very version; what it led to, which is
made later, to the key with all its versions.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from perceptio_core.progress import amount, duration
from pipeline.lineage.commits import commit_of, is_code
from pipeline.lineage.graph import LineageGraph, content
from pipeline.lineage.lock import Recorded
from pipeline.lineage.stage_pictures import Picture

_FACTS = "<!-- perceptio "


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a page says for the next run to compare with; kept in a comment at its head.

    Attributes:
        version: hash of the stage's record in dvc.lock.
        seconds: how long the stage ran; None if it was not run by the driver that wrote the page.
        size: bytes that it wrote.
        metrics: its numbers by name.
    """

    version: str
    seconds: float | None
    size: int
    metrics: Mapping[str, float]

    def comment(self) -> str:
        """The facts as a comment of HTML: "--", which would end it, is written as JSON's escape."""
        return f"{_FACTS}{json.dumps(vars(self)).replace('--', '-' + chr(92) + 'u002d')} -->"

    @classmethod
    def from_page(cls, markdown: str) -> "Facts | None":
        """Read them back; None from a page that has none."""
        first, _, _ = markdown.partition("\n")
        if not first.startswith(_FACTS):
            return None
        return cls(**json.loads(first.removeprefix(_FACTS).removesuffix(" -->")))


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page that is published: its id, and what it says.

    Attributes:
        id: by which a link finds it.
        facts: of this version.
        before: those of the version before; None for the first, and for a version that an earlier run published.
    """

    id: str
    facts: Facts
    before: Facts | None = None


def key_of(profile: str, name: str) -> str:
    """The key of a page in the letters that Prefect allows, as in ``mini-cotrain-full``."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in f"{profile}-{name}".lower())


def stage_page(
    stage: str,
    *,
    profile: str,
    graph: LineageGraph,
    downstream: Sequence[str],
    facts: Facts,
    before: Facts | None,
    pages: Mapping[str, Page],
    pictures: Sequence[Picture],
    report: str | None = None,
) -> str:
    """One stage: where it stands in the graph, what it wrote and measured, from what and with which parameters and code.

    Args:
        stage: its name in dvc.lock.
        profile: the profile that it ran with.
        graph: what dvc.lock records.
        downstream: the stages that read what it wrote; they may not have run yet.
        facts: of this version.
        before: those of the version before, or None.
        pages: the pages of the stages that it comes from.
        pictures: samples of what it made.
        report: where the server serves the report, on the page of the stage that makes it.
    """
    record = graph.records[stage]
    ancestors = graph.ancestors(stage)
    commit = commit_of(record)
    where = f"commit `{commit.id}` of {commit.day}" if commit else "changes that were in no commit"
    data = [read for read in record.reads if not is_code(read)]
    files = [line.split() for read in record.reads if is_code(read) for line in (content(read) or "").splitlines()]
    links = {name: pages[name].id for name in ancestors if name in pages}
    links |= {child: f"../key/{key_of(profile, child)}" for child in downstream}
    lines = [
        facts.comment(),
        f"# {stage}",
        "",
        f"Profile {profile}. {_duration(facts, before)} Code: {where}.",
        "",
        *([] if report is None else [_report(report, profile), ""]),
        "Click on a stage to go to it: upwards to the version that this one was made from, downwards to all versions.",
        "",
        *_mermaid(
            [*ancestors, stage],
            graph=graph,
            pages={**pages, stage: Page(id="", facts=facts, before=before)},
            links=links,
            marked=stage,
            downstream=downstream,
        ),
        "",
        *_pictures(pictures),
        *_metrics(facts, before, {} if downstream else _origins(stage, facts, graph, pages)),
        "## What it wrote",
        "",
        "| output, md5 | size | files |",
        "|---|---:|---:|",
        *(_row([_recorded(out), _unbroken(amount(out.size)), str(out.files)]) for out in record.writes),
        "",
        *_reads(data, graph, links),
        "## How it was made",
        "",
        f"Command: `{record.command}`",
        "",
        "Parameters:",
        "",
        "```yaml",
        yaml.safe_dump(dict(record.parameters), sort_keys=False, allow_unicode=True, width=100).rstrip(),
        "```",
        "",
        f"<details><summary>{len(files)} source files as in {where.replace('`', '')}</summary>",
        "",
        "| file | hash of its syntax |",
        "|---|---|",
        *(f"| `{path}` | `{syntax}` |" for syntax, path in files),
        "",
        "</details>",
        "",
        "## What it comes from, and leads to",
        "",
        f"Comes from: {_linked(ancestors, links) or 'nothing that the pipeline made'}.",
        "",
        f"Leads to: {_linked(downstream, links) or 'nothing that the pipeline makes'}.",
        "",
        f"The whole pipeline: [{key_of(profile, 'lineage')}](../key/{key_of(profile, 'lineage')}).",
    ]
    return "\n".join(lines) + "\n"


def run_page(
    *, profile: str, graph: LineageGraph, pages: Mapping[str, Page], states: Mapping[str, str], report: str | None = None
) -> str:
    """The whole pipeline after a run.

    Args:
        profile: the profile that ran.
        graph: what dvc.lock records.
        pages: the page of every stage that has one.
        states: stage -> how it ended in this run, such as "Completed" or "Cached".
        report: where the server serves the report, if there is one.
    """
    shown = [name for name in graph.records if name in pages]
    links = {name: pages[name].id for name in shown}
    lines = [
        f"# Profile {profile}",
        "",
        *([] if report is None else [_report(report, profile), ""]),
        *_mermaid(shown, graph=graph, pages=pages, links=links),
        "",
        "| stage, md5 of what it wrote | this run | took | size | change |",
        "|---|---|---:|---:|---:|",
    ]
    for name in dict.fromkeys([*shown, *states]):
        page, state = pages.get(name), states.get(name, "not asked for")
        if page is None:
            lines.append(_row([name, state, "", "", ""]))
            continue
        facts, before = page.facts, page.before
        took = "" if facts.seconds is None else duration(facts.seconds)
        change = "" if before is None else _grown(facts.size - before.size)
        hashes = "<br/>".join(f"`{out.hash}`" for out in graph.records[name].writes)
        lines.append(_row([f"{_link(name, page.id)}<br/>{hashes}", state, *map(_unbroken, (took, amount(facts.size), change))]))
    for name in shown:
        if not graph.downstream(name):
            lines += ["", *_metrics(pages[name].facts, pages[name].before, _origins(name, pages[name].facts, graph, pages))]
    return "\n".join(lines) + "\n"


def _report(link: str, profile: str) -> str:
    return (
        f"[The report of the last run]({link}), as `perceptio ui` serves it; on disk `artifacts/{profile}/report/report.html`."
    )


def _mermaid(
    stages: Sequence[str],
    *,
    graph: LineageGraph,
    pages: Mapping[str, Page],
    links: Mapping[str, str],
    marked: str | None = None,
    downstream: Sequence[str] = (),
) -> list[str]:
    """The graph of the stages; of those downstream, which may change yet, the names only."""
    numbers = {name: f"n{number}" for number, name in enumerate([*stages, *downstream])}
    # Many that read from one are readable below each other only.
    lines = ["```mermaid", f"flowchart {'LR' if len(downstream) > len(stages) else 'TB'}"]
    for name in stages:
        record = graph.records[name]
        seconds = pages[name].facts.seconds if name in pages else None
        size = amount(sum(out.size for out in record.writes))
        words = [
            f"<b>{name}</b>",
            *([] if seconds is None else [duration(seconds)]),
            size,
            *(out.hash[:8] for out in record.writes),
        ]
        lines.append(f'  {numbers[name]}["{"<br/>".join(words)}"]')
        lines += [f"  {numbers[above]} --> {numbers[name]}" for above in graph.upstream(name) if above in numbers]
    for name in downstream:
        lines += [f'  {numbers[name]}(["{name}"])', f"  {numbers[marked or name]} -.-> {numbers[name]}"]
    lines += [f'  click {numbers[name]} "{link}"' for name, link in links.items() if name in numbers]
    if marked is not None:
        lines.append(f"  style {numbers[marked]} stroke:#e0218a,stroke-width:3px")
    return [*lines, "```"]


def _metrics(facts: Facts, before: Facts | None, origins: Mapping[str, str]) -> list[str]:
    if not facts.metrics:
        return []
    columns = ["metric", "value", *(["before", "change"] if before else []), *(["measured by"] if origins else [])]
    lines = [
        "## Metrics",
        "",
        _row(columns),
        _row(["---", "---:", *(["---:", "---:"] if before else []), "---"][: len(columns)]),
    ]
    for name, value in facts.metrics.items():
        cells = [name, f"{value:.6g}"]
        if before is not None:
            old = before.metrics.get(name)
            cells += ["", "new"] if old is None else [f"{old:.6g}", "0" if value == old else f"{value - old:+.4g}"]
        if origins:
            cells.append(origins.get(name, ""))
        lines.append(_row(cells))
    return [*lines, ""]


def _grown(by: int) -> str:
    return "same size" if by == 0 else f"{'-' if by < 0 else '+'}{amount(abs(by))}"


def _recorded(recorded: Recorded) -> str:
    return f"`{recorded.path}`<br/>`{recorded.hash}`"


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _origins(stage: str, facts: Facts, graph: LineageGraph, pages: Mapping[str, Page]) -> dict[str, str]:
    """For numbers that a stage took over from one before it: a link to that one.

    A variant's numbers may bear its name in front, as those of the control do in the report. The value has to be the same.
    """
    found: dict[str, str] = {}
    for above in graph.upstream(stage):
        if above not in pages:
            continue
        variant = above.partition("@")[2]
        for name, value in pages[above].facts.metrics.items():
            for candidate in (name, f"{variant}_{name}"):
                if candidate not in found and facts.metrics.get(candidate) == value:
                    found[candidate] = _link(above, pages[above].id)
    return found


def _reads(data: Sequence[Recorded], graph: LineageGraph, links: Mapping[str, str]) -> list[str]:
    if not data:
        return []
    lines = ["## What it read", "", "| input, md5 | size | made by |", "|---|---:|---|"]
    for read in data:
        stands = " (which has run since: no longer these bytes)" if graph.agrees(read) is False else ""
        maker = _linked(graph.makers(read.path), links) or "kept in git"
        lines.append(_row([_recorded(read), _unbroken(amount(read.size)), f"{maker}{stands}"]))
    return [*lines, ""]


def _pictures(pictures: Sequence[Picture]) -> list[str]:
    if not pictures:
        return []
    captions = [_plain(picture.caption) for picture in pictures]
    images = [f"![{caption}]({picture.uri})" for caption, picture in zip(captions, pictures, strict=True)]
    return ["## Samples", "", _row(images), _row(["---"] * len(images)), _row(captions), ""]


def _plain(text: str) -> str:
    """Text of a user as it stands: nothing in it is markup."""
    return re.sub(r"([\\`*_\[\]<>|#&!$~])", r"\\\1", " ".join(text.split()))


def _duration(facts: Facts, before: Facts | None) -> str:
    if facts.seconds is None:
        return "Not run by the driver: it was up to date, came from DVC's cache, or ran by plain `dvc`."
    earlier = None if before is None else before.seconds
    return f"Ran for {duration(facts.seconds)}{'' if earlier is None else f', the version before for {duration(earlier)}'}."


def _linked(stages: Sequence[str], links: Mapping[str, str]) -> str:
    return ", ".join(_link(name, links[name]) if name in links else name for name in stages)


def _link(stage: str, target: str) -> str:
    return f"[{stage}]({target})"
