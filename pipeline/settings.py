"""params.yaml (which profile and which variants are active), and the environment that the driver gives to DVC and Prefect."""

import os
import re
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perceptio_core.params import load_profile
from perceptio_core.params.base import read_yaml
from perceptio_core.report.metrics import MAIN

PARAMS_FILE = Path("params.yaml")
ALL = "all"
"""In the place of a list of variants: every one that the profile has."""


@dataclass(frozen=True, kw_only=True)
class Active:
    """What params.yaml selects."""

    profile: str
    variants: tuple[str, ...]


def read_active() -> Active:
    """Read params.yaml.

    Raises:
        ValueError: it lacks one of its two keys or holds another type; names the key.
    """
    values = read_yaml(PARAMS_FILE)
    profile, variants = values.get("profile"), values.get("variants")
    if not isinstance(profile, str):
        raise ValueError(f"{PARAMS_FILE}: profile: expected the name of a profile, got {profile!r}")
    if not isinstance(variants, list) or not variants or not all(isinstance(name, str) for name in variants):
        raise ValueError(f"{PARAMS_FILE}: variants: expected a list of variant names, got {variants!r}")
    return Active(profile=profile, variants=tuple(variants))


def select(*, profile: str | None, variants: Sequence[str] | None) -> Active:
    """Check the selection against the profile's file, and write what differs into params.yaml (comments stay).

    The one variant `all` stands for all of the profile's. With another profile and no variants,
    the variants are those of its `default_variants`.

    Raises:
        ValueError: no such profile or variant, a profile that does not validate, or no `full` among the variants.
    """
    current = read_active()
    parameters = load_profile(profile or current.profile)
    if variants == [ALL]:
        variants = list(parameters.variants)
    kept = current.variants if parameters.name == current.profile else parameters.default_variants
    wanted = Active(profile=parameters.name, variants=tuple(variants or kept))
    for name in wanted.variants:
        parameters.variant(name)
    if MAIN not in wanted.variants:
        raise ValueError(f"variants: {', '.join(wanted.variants)}; {MAIN} must be among them, the report is about it")
    if wanted != current:
        text = PARAMS_FILE.read_text(encoding="utf-8")
        text = re.sub(r"^profile:.*$", f"profile: {wanted.profile}", text, flags=re.MULTILINE)
        text = re.sub(r"^variants:.*$", f"variants: [{', '.join(wanted.variants)}]", text, flags=re.MULTILINE)
        PARAMS_FILE.write_text(text, encoding="utf-8")
        if read_active() != wanted:
            raise ValueError(f"{PARAMS_FILE}: write profile and variants on one line each, as in 'variants: [full]'")
    return wanted


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


def prepare_environment() -> None:
    """Set what must be in the environment before DVC or Prefect is imported; what the user has set stays, but the shell."""
    # Stage commands say `python`: it must be the one that runs now, also where .venv is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # DVC runs stage commands in the user's shell, which may be one that runs none, or that reads its own settings first.
    os.environ["SHELL"] = "/bin/sh"
    # What we start talks to itself on loopback: never by way of a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        named = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join([*named, *(host for host in ("127.0.0.1", "localhost") if host not in named)])
    # Prefect's database and settings stay in the checkout, apart from other uses of Prefect on the machine.
    os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").absolute()))
    if "PREFECT_API_URL" not in os.environ and (api := running_server()):
        os.environ["PREFECT_API_URL"] = api
    for name, value in {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # A restart of the server takes some 15 seconds, and so do 3 more tries; by default each call to a lost one takes 60.
        "PREFECT_CLIENT_MAX_RETRIES": "3",
        "PYTHONUNBUFFERED": "1",
    }.items():
        os.environ.setdefault(name, value)
