"""A complete set of parameters as plain values: that of ``params.yaml``, or a profile with all that it extends.

Both have one form: `seed`, `active` (the variants of co-training that a run makes), a section per stage, and `variants` (per
variant the keys of `cotrain` that it changes). ``params.yaml`` says by `profile` whose outputs it makes. A profile may say
``extends: OTHER``, and then only what differs: mapping by mapping; a list or a plain value is replaced whole, and so are the
`variants`.

A stage reads its own sections here, with the classes that it imports, and so depends on no other's; all sections at once are
`perceptio_core.params.profile`'s.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from perceptio_core.params import PARAMS as PARAMS
from perceptio_core.params import PROFILES as PROFILES
from perceptio_core.params import SECTIONS as SECTIONS
from perceptio_core.params.base import Section, read_yaml

_EXTENDS, _PROFILE = "extends", "profile"
_ALONE = ["full"]
"""What is active where a profile does not say."""

Kind = TypeVar("Kind", bound=Section)


@dataclass(frozen=True, kw_only=True)
class Values:
    """A complete set.

    Attributes:
        path: the file, for messages.
        profile: whose outputs are made with it.
        plain: the values, as they would stand in ``params.yaml``.
    """

    path: Path
    profile: str
    plain: dict[str, Any]

    def section(self, name: str, kind: type[Kind]) -> Kind:
        """A section as its class; the seed is the common one where the section has none of its own.

        Raises:
            ValueError: an unknown key, a wrong type or a refused value; names file, key and what is allowed.
        """
        return self._made(self.plain[name], kind, f"{self.path}: {name}")

    def variant(self, name: str, kind: type[Kind]) -> Kind:
        """`cotrain` with the overrides of a variant.

        Raises:
            ValueError: there is no such variant; or as for `section`.
        """
        variants, where = self.plain["variants"], f"{self.path}: variants.{name}"
        if name not in variants:
            raise ValueError(f"{self.path}: variants has no {name!r}; allowed are {', '.join(variants)}")
        return self._made(overlay(self.plain["cotrain"], variants[name] or {}, where), kind, where)

    def _made(self, values: Any, kind: type[Kind], where: str) -> Kind:
        if "seed" in kind.model_fields and isinstance(values, dict):
            values = {"seed": self.plain["seed"], **values}
        return kind.from_mapping({} if values is None else values, where=where)


def read_values(path: Path = PARAMS) -> Values:
    """Read a complete set.

    Args:
        path: ``params.yaml``, a profile, or a copy of the first.

    Raises:
        ValueError: there is no such file; it, or what it extends, lacks a section or holds an unknown one; `active` names no
            variant, or the seed is none. Names file and key.
    """
    plain = _extended(path, ())
    profile = plain.pop(_PROFILE, path.stem)
    if unknown := plain.keys() - {"seed", "active", "variants", *SECTIONS}:
        raise ValueError(
            f"{path}: unknown sections {sorted(unknown)}; allowed are seed, active, {', '.join(SECTIONS)}, variants"
        )
    if missing := {"variants", *SECTIONS} - plain.keys():
        raise ValueError(f"{path}: missing sections {sorted(missing)}")
    plain = {"seed": 0, "active": _ALONE} | plain
    seed, active, variants = plain["seed"], plain["active"], plain["variants"]
    if not isinstance(profile, str) or not profile:
        raise ValueError(f"{path}: {_PROFILE}: expected the name of a profile, got {profile!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"{path}: seed: expected a whole number from 0 on, got {seed!r}")
    if not isinstance(variants, dict) or not variants:
        raise ValueError(f"{path}: variants: expected a mapping of variant names to overrides of cotrain")
    if not isinstance(active, list) or not active or not all(isinstance(one, str) and one in variants for one in active):
        raise ValueError(f"{path}: active: expected a list of names under variants ({', '.join(variants)}), got {active!r}")
    return Values(path=path, profile=profile, plain={key: plain[key] for key in ("seed", "active", *SECTIONS, "variants")})


def overlay(base: Any, changes: Any, where: str) -> dict[str, Any]:
    """`base` with `changes` put on top, mapping by mapping; a list or a plain value is replaced whole.

    Raises:
        ValueError: one of the two is no mapping.
    """
    if not isinstance(base, dict) or not isinstance(changes, dict):
        raise ValueError(f"{where}: expected a mapping over a mapping, got {changes!r}")
    both = {key: (base.get(key), value) for key, value in changes.items()}
    return base | {
        key: overlay(old, new, f"{where}.{key}") if isinstance(old, dict) and isinstance(new, dict) else new
        for key, (old, new) in both.items()
    }


def _extended(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a file put on top of what it extends."""
    if not path.is_file():
        if path == PARAMS:
            raise ValueError(f"there is no {path} here")
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        near = difflib.get_close_matches(path.stem, known, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"there is no profile {path}{hint} profiles here: {', '.join(known) or 'none'}")
    if path in above:
        raise ValueError(f"{path}: extends itself, by way of {', '.join(map(str, above))}")
    values = read_yaml(path)
    base = None if path == PARAMS else values.pop(_EXTENDS, None)  # which DVC could not follow
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"{path}: {_EXTENDS}: expected the name of a profile, got {base!r}")
    below = _extended(path.with_name(f"{base}.yaml"), (*above, path))
    merged = overlay(below, {key: value for key, value in values.items() if key != "variants"}, str(path))
    return merged | {key: value for key, value in values.items() if key == "variants"}
