"""From a foreign checkpoint's key layout to another one, by a table of rules; nothing is ignored in silence.

A key layout is written as a template: ``layers.{n}.norm.{p}``. What the placeholders stand for is in `PLACEHOLDERS`; a
placeholder that a source template binds may stand in its targets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from perceptio_core.weights import refuse

PLACEHOLDERS = {"n": r"\d+", "m": r"\d+", "p": "weight|bias", "rest": ".+"}
"""What each placeholder of a template matches: numbers, the kind of a parameter, and anything."""


@dataclass(frozen=True)
class Rule:
    """What becomes of the source keys that a template matches.

    Attributes:
        source: template of the source keys.
        targets: templates of the keys that come out.
        split: the parts of a source tensor, as many as `targets` and in their order, for more than one target; a tensor of
            a wrong size gives parts of a wrong size.
    """

    source: str
    targets: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]] | None = None


def renames(table: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules that only rename, from templates to templates."""
    return tuple(Rule(source, (target,)) for source, target in table.items())


def translate(
    weights: Mapping[str, Tensor],
    rules: Sequence[Rule],
    *,
    expected: Mapping[str, tuple[int, ...]],
    dropped: Mapping[str, str],
    source: Path,
) -> dict[str, Tensor]:
    """Apply to each key the first rule that matches.

    Args:
        weights: of the source layout.
        rules: cover every key that may occur, but for `dropped`.
        expected: shape of every key that must come out.
        dropped: templates of source keys that carry nothing, each with the reason.
        source: where the weights come from, for messages.

    Returns:
        Exactly the keys of `expected`.

    Raises:
        ValueError: keys are unknown, missing, of a wrong shape or twice there; every one is listed.
    """
    faults: dict[str, list[str]] = {"unknown": [], "missing": [], "of another shape": [], "double": []}
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        if any(_match(template, key) is not None for template in dropped):
            continue
        matches = ((rule, _match(rule.source, key)) for rule in rules)
        rule, groups = next(((rule, groups) for rule, groups in matches if groups is not None), (None, {}))
        targets = [target.format(**groups) for target in rule.targets] if rule else []
        if rule is None or not expected.keys() >= set(targets):
            faults["unknown"].append(key)
            continue
        parts = rule.split(value) if rule.split else [value]
        faults["double"] += [f"{key} (as {target})" for target in targets if target in found]
        faults["of another shape"] += [
            f"{key} {tuple(part.shape)} instead of {expected[target]}"
            for target, part in zip(targets, parts, strict=True)
            if tuple(part.shape) != expected[target]
        ]
        found.update(zip(targets, parts, strict=True))
    faults["missing"] = sorted({_origin(target, rules) for target in expected.keys() - found.keys()})
    refuse(faults, source=source)
    return found


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    names = [f"(?P<{piece}>{PLACEHOLDERS[piece]})" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)]
    return re.compile("".join(names))


def _match(template: str, key: str) -> dict[str, str] | None:
    match = _pattern(template).fullmatch(key)
    return None if match is None else match.groupdict()


def _origin(target: str, rules: Sequence[Rule]) -> str:
    """The source key that a target comes from, by the first rule that leads to it; the target itself where none does."""
    for rule in rules:
        for template in rule.targets:
            groups = _match(template, target)
            if groups is not None:
                return rule.source.format(**groups)
    return target
