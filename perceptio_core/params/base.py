"""The base of every parameter section, and the reading of YAML.

Each section of ``params.yaml`` is mirrored one to one by a class derived from `Section` in the module of the same name beside
this one.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


class Section(BaseModel):
    """One section of the parameters: immutable, and closed to keys it does not know.

    Rules that tie several keys together belong into a ``@model_validator(mode="after")`` of the derived class, which
    raises ``ValueError`` with the keys' names and what is allowed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def from_mapping(cls, values: Any, *, where: str) -> Self:
        """Build the section from plain YAML values, without converting one type into another.

        Args:
            values: what the YAML file holds under the section's key.
            where: how errors name the place, e.g. ``"profiles/mini.yaml: cotrain"``.

        Raises:
            ValueError: for an unknown key, a wrong type or a refused value; names place, key and what is allowed.
        """
        try:
            # Strict JSON mode refuses "3" for 3 and true for 1, yet takes a list for a tuple and a string for a path.
            return cls.model_validate_json(json.dumps(values), strict=True)
        except TypeError as error:
            raise ValueError(f"{where}: only plain YAML values are allowed ({error})") from error
        except ValidationError as error:
            raise ValueError("\n".join(_explain(cls, error, where))) from error


def _explain(section: type[Section], error: ValidationError, where: str) -> list[str]:
    """One line per refused key."""
    lines = []
    for fault in error.errors():
        key = ".".join([where, *(str(part) for part in fault["loc"])])
        if fault["type"] == "extra_forbidden":
            hint = "unknown key"
            if len(fault["loc"]) == 1:
                hint += f"; allowed are {', '.join(section.model_fields)}"
        elif fault["type"] == "missing":
            hint = "missing"
        else:
            hint = f"{fault['msg'].removeprefix('Value error, ')}, got {fault['input']!r}"
        lines.append(f"{key}: {hint}")
    return lines


def expanded(setting: str, *, key: str, holds: str) -> Path:
    """A folder that a profile names, with its environment variables, as in ``$PERCEPTIO_DATA``, filled in.

    Args:
        setting: what the profile says.
        key: where, for messages.
        holds: what the folder holds, for messages.

    Raises:
        ValueError: a variable is not set, or there is no such folder; says which.
    """
    for variable in _VARIABLE.findall(setting):
        if not os.environ.get(variable):
            raise ValueError(
                f"{key} is {setting!r}, but the environment variable {variable} is not set: "
                f"export {variable}=<the folder that holds {holds}>"
            )
    path = Path(_VARIABLE.sub(lambda match: os.environ[match[1]], setting)).expanduser()
    if not path.is_dir():
        raise ValueError(f"{key}: {path} is not a folder")
    return path


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers (``1e-4`` is a float, as DVC reads it) and no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice in one mapping, where plain YAML keeps the last one silently."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ValueError(f"line {key_node.start_mark.line + 1}: the key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ValueError: the file is not valid YAML, repeats a key, or is not a mapping; names the file.
    """
    values = parse_yaml(path.read_text(encoding="utf-8"), where=str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping at the top level, got {type(values).__name__}")
    return values


def parse_yaml(text: str, *, where: str) -> Any:
    """A value from its YAML. Raises ValueError, beginning with `where`, if it is none or repeats a key."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (derived from SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
