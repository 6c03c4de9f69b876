"""``perceptio lineage PATH``: everything that a file below artifacts/ comes from, as a tree in the terminal."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from perceptio_core.progress import amount
from pipeline.lineage.commits import commit_of, is_code
from pipeline.lineage.graph import LOCK_FILE, LineageGraph, listing
from pipeline.lineage.lock import Recorded, StageRecord


def lineage_tree(target: Path, *, graph: LineageGraph) -> str:
    """The tree of what made `target`: stages with their commit, parameters and what they read, down to the sources.

    Args:
        target: a file or folder below artifacts/, relative to the checkout or absolute; it need not exist.
        graph: what dvc.lock records.

    Raises:
        ValueError: no recorded stage made it; says which outputs there are.
    """
    path = PurePosixPath(target.absolute().relative_to(Path.cwd()) if target.absolute().is_relative_to(Path.cwd()) else target)
    makers = graph.makers(str(path))
    if not makers:
        outputs = sorted(out.path for record in graph.records.values() for out in record.writes)
        if not outputs:
            raise ValueError(
                f"{LOCK_FILE} records no stage that wrote below artifacts/: `perceptio repro` or `dvc repro` makes it"
            )
        raise ValueError(
            f"{LOCK_FILE} does not say what made {path}; it records {', '.join(outputs)}. It knows one profile, the one that "
            "ran last: `perceptio repro --profile NAME` brings another's record back from DVC's cache"
        )
    told: set[str] = set()
    lines = [_heading(str(path), makers, graph)]
    for number, maker in enumerate(makers):
        lines += _stage(maker, graph, told, last=number == len(makers) - 1)
    used_by = [name for name in graph.records if set(graph.upstream(name)) & set(makers)]
    lines += ["", f"used by: {', '.join(used_by) or 'no stage'}"]
    return "\n".join(lines)


def _heading(path: str, makers: list[str], graph: LineageGraph) -> str:
    """The target with its hash, or with that of the folder that it lies in."""
    output = graph.records[makers[0]].writes[0]
    if len(makers) > 1 or output.path == path:
        return f"{path}  {_recorded(output)}" if output.path == path else path
    inside = dict(listing(output) or [])
    within = path.removeprefix(f"{output.path}/")
    own = f"  md5 {inside[within]}" if within in inside else ""
    return f"{path}{own}  in {output.path}, {_recorded(output)}"


def _stage(name: str, graph: LineageGraph, told: set[str], *, last: bool) -> Iterator[str]:
    branch, indent = ("└─ ", "   ") if last else ("├─ ", "│  ")
    if name in told:
        yield f"{branch}{name}  (above)"
        return
    told.add(name)
    record = graph.records[name]
    yield f"{branch}{name}"
    yield f"{indent}  command     {record.command}"
    yield f"{indent}  code        {_code(record)}"
    for number, (key, value) in enumerate(flat(record.parameters)):
        yield f"{indent}  {'' if number else 'parameters':<11} {key}: {value}"
    data = [read for read in record.reads if not is_code(read)]
    for number, read in enumerate(data):
        stands = " (its maker has run since: no longer these bytes)" if graph.agrees(read) is False else ""
        yield f"{indent}  {'' if number else 'read':<11} {read.path}  {_recorded(read)}{stands}"
    for output in record.writes:
        yield f"{indent}  wrote       {output.path}  {_recorded(output)}"
    upstream = graph.upstream(name)
    for number, above in enumerate(upstream):
        for line in _stage(above, graph, told, last=number == len(upstream) - 1):
            yield indent + line


def _code(record: StageRecord) -> str:
    commit = commit_of(record)
    if commit is None:
        return "no commit of this branch: changes that were not committed"
    return f"as in commit {commit.id[:12]} of {commit.day}"


def _recorded(recorded: Recorded) -> str:
    files = f" in {recorded.files} files" if recorded.files > 1 else ""
    return f"md5 {recorded.hash}, {amount(recorded.size)}{files}"


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows of dotted key and value; floats to six digits, lists as they stand."""
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in flat(inner, f"{name}.{key}" if name else str(key))]
    return [(name, f"{value:.6g}" if isinstance(value, float) else str(value))]
