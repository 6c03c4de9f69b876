"""What is written into params.yaml, and the environment that the driver gives to DVC and Prefect."""

import contextlib
import difflib
import json
import os
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from perceptio_core.files import whole
from perceptio_core.params.base import parse_yaml
from perceptio_core.params.profile import Profile, complete
from perceptio_core.params.values import PARAMS, PROFILES, Values, read_values
from perceptio_core.report.headline import MAIN

ALL = "all"
"""In the place of a list of variants: every one that the profile has."""
_HEAD = """\
# The parameters of the next run, all of them. `dvc repro` and `dvc exp run -S cotrain.steps=20` go by this file, edited or not.
# `perceptio repro` writes it: --profile NAME takes profiles/NAME.yaml, --variants and --set change what they name.
"""


def select(
    *, profile: str | None = None, variants: Sequence[str] | None = None, changes: Sequence[str] = (), look: bool = False
) -> Profile:
    """Make a profile, variants or single values the active ones: they are checked, and what differs is written and said.

    Args:
        profile: whose values are taken; None: those of params.yaml, as they stand.
        variants: to be made; the one `all` stands for all that there are. None: those that are active, and with another profile
            its own.
        changes: as in ``cotrain.steps=20``.
        look: what is written will be put back (`put_back`), and is said so.

    Raises:
        ValueError: no such profile, variant or key, a value that is refused, or no `full` among the variants. Then nothing is
            written.
    """
    before = None
    with contextlib.suppress(ValueError) if profile is not None else contextlib.nullcontext():
        before = complete(read_values())
    values = complete(read_values() if profile is None else read_values(PROFILES / f"{profile}.yaml"))
    plain, known = values.plain, list(values.plain["variants"])
    if variants is not None:
        plain["active"] = known if list(variants) == [ALL] else list(variants)
    elif before is not None and before.profile == values.profile:
        plain["active"] = [name for name in before.plain["active"] if name in known]
    for change in changes:
        _set(plain, change)
    chosen = Profile.of(values)
    for name in plain["active"]:
        chosen.variant(name)
    if MAIN not in plain["active"]:
        raise ValueError(f"active: {', '.join(plain['active'])}; {MAIN} must be among them, the report is about it")
    if before is None or (before.profile, before.plain) != (values.profile, plain):
        write_params(values)
        same = before is not None and before.profile == values.profile
        what = _differences(before.plain, plain) if before is not None and same else [f"profile {values.profile}"]
        print(f"with {'; '.join(what)} ({PARAMS} stays as it is)" if look else f"{PARAMS} is written anew: {'; '.join(what)}")
    else:
        _compare(values)
    return chosen


@contextlib.contextmanager
def put_back() -> Iterator[None]:
    """Leave params.yaml as it was before, for a look at what another one would mean."""
    before = PARAMS.read_bytes() if PARAMS.is_file() else None
    try:
        yield
    finally:
        if before is None:
            PARAMS.unlink(missing_ok=True)
        elif PARAMS.read_bytes() != before:
            with whole(PARAMS) as unfinished:
                unfinished.write_bytes(before)


def _set(plain: dict[str, Any], change: str) -> None:
    """Set one value; what stands at the end of its path must be there, but for keys of a variant."""
    path, sign, text = change.partition("=")
    *above, last = path.split(".")
    place: Any = plain
    for key in above:
        place = place.get(key) if isinstance(place, dict) else None
    if not sign or not isinstance(place, dict):
        raise ValueError(f"--set {change}: expected KEY=VALUE, as in cotrain.steps=20")
    if last not in place and above[:1] != ["variants"]:
        near = difflib.get_close_matches(last, place, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"--set {change}: there is no {path}{hint} allowed there are {', '.join(place)}")
    place[last] = parse_yaml(text, where=f"--set {path}")


def write_params(values: Values, path: Path = PARAMS) -> None:
    """Write a complete set in the form of params.yaml."""
    plain = json.loads(json.dumps({"profile": values.profile, **values.plain}))  # without YAML's anchors
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    with whole(path) as unfinished:
        unfinished.write_text(_HEAD + text, encoding="utf-8")


def _compare(values: Values) -> None:
    """Say where params.yaml is not what its profile says."""
    with contextlib.suppress(ValueError):  # a profile that is gone or broken is nothing to a run that does not ask for it
        theirs = complete(read_values(PROFILES / f"{values.profile}.yaml"))
        theirs.plain["active"] = values.plain["active"]
        if differing := _differences(theirs.plain, values.plain):
            print(f"{PARAMS} differs from the profile {values.profile}, whose values --profile {values.profile} would take:")
            print("\n".join(f"  {line}" for line in differing))


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    old, new = dict(_leaves(before, "")), dict(_leaves(after, ""))
    return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in {**old, **new} if old.get(key) != new.get(key)]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value):  # such as the benchmarks: a whole list says little of what differs in it
            yield from _leaves(inner, f"{name}.{number}")
    else:
        yield name, value


def server_file() -> Path:
    """Where `perceptio ui` leaves the address of its API while it runs."""
    return Path(os.environ["PREFECT_HOME"]) / "perceptio-server"


def running_server() -> str | None:
    """The API of this checkout's `perceptio ui`, or None if none answers."""
    if not server_file().is_file():
        return None
    api = server_file().read_text(encoding="utf-8").strip()
    return api if answers(api) else None


def answers(api: str) -> bool:
    """Whether a Prefect API is at work at an address."""
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=2) as answer:
            return bool(answer.read() == b"true")
    except (OSError, ValueError):
        return False


def loopback_past_proxies() -> None:
    """What we start talks to itself on loopback: never by way of a proxy."""
    for name in ("NO_PROXY", "no_proxy"):
        named = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join([*named, *(host for host in ("127.0.0.1", "localhost") if host not in named)])


def prepare_environment() -> None:
    """Set what must be in the environment before DVC or Prefect is imported; what the user has set stays, but the shell."""
    # Stage commands say `python`: it must be the one that runs now, also where .venv is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # DVC runs stage commands in the user's shell, which may be one that runs none, or that reads its own settings first.
    os.environ["SHELL"] = "/bin/sh"
    loopback_past_proxies()
    # Prefect's database and settings stay in the checkout, apart from other uses of Prefect on the machine.
    os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").absolute()))
    if "PREFECT_API_URL" not in os.environ and (api := running_server()):
        os.environ["PREFECT_API_URL"] = api
    for name, value in {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # A restart of the server takes some 15 seconds, and so do 3 more tries; by default each call to a lost one takes 60,
        # and to a silent one five minutes.
        "PREFECT_CLIENT_MAX_RETRIES": "3",
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504",
        "PREFECT_API_REQUEST_TIMEOUT": "20",
        "PYTHONUNBUFFERED": "1",
    }.items():
        os.environ.setdefault(name, value)
