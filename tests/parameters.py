"""Parameters for tests: a profile of this repository as plain values, and sections in place of a file's."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from perceptio_core.params.profile import complete
from perceptio_core.params.values import PROFILES, read_values

REPOSITORY = Path(__file__).resolve().parent.parent


def values_of(name: str) -> dict[str, Any]:
    """The values of a profile, with what it extends, to be changed and written as another that extends none."""
    return deepcopy(complete(read_values(REPOSITORY / PROFILES / f"{name}.yaml")).plain)


def given(profile: str = "t", *, variant: Any = None, **sections: Any) -> SimpleNamespace:
    """What a stage may take for the values of a file: these sections, and this one for each variant."""
    return SimpleNamespace(
        profile=profile, section=lambda name, _kind: sections[name], variant=lambda _name, _kind: variant or sections["cotrain"]
    )
