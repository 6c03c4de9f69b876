"""Set up ``.venv``: the pinned dependencies of constraints.txt, and this project in editable form.

Run as ``python3 pipeline/environment.py`` by any Python from 3.11 on; it needs nothing but the standard library, and does
nothing when the environment is already the one that pyproject.toml and constraints.txt ask for.

The packages are brought by ``uv``, which downloads and unpacks in parallel (a quarter of pip's time for these). uv does not
read pip's configuration, so a machine's own package index is handed over to it; where uv fails all the same, pip does the
work. ``sam2`` is built last, against the torch just installed and without its optional CUDA extension.

PERCEPTIO_VENV names another folder than ``.venv``: an image keeps its environment apart from the checkout (docker/Dockerfile).
"""

import ast
import hashlib
import os
import re
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("PERCEPTIO_VENV", ROOT / ".venv"))
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "perceptio.stamp"
CONSTRAINTS = ROOT / "constraints.txt"
PYPROJECT = ROOT / "pyproject.toml"

_BUILT_HERE = ("sam2", "perceptio")
_UV_OPTION_OF_PIP_KEY = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "trusted-host": "--allow-insecure-host",
}


def main() -> None:
    """Bring ``.venv`` up to date."""
    wanted = _wanted()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        return
    if VENV.exists() and not os.access(VENV, os.W_OK):
        sys.exit(f"perceptio: {VENV} is not what pyproject.toml and constraints.txt ask for now: build the image again")
    start = time.monotonic()
    _say(f"setting up {VENV.name}: about 4 GB to download, once")
    _make_venv()
    _run([PYTHON, "-m", "pip", "install", "--quiet", _pin("uv"), _pin("setuptools")])
    requirements = _requirements()
    installers: list[list[str | Path]] = [
        _uv_command(),
        [PYTHON, "-m", "pip", "install", "--no-compile", "--quiet", "--no-build-isolation"],
    ]
    for number, installer in enumerate(installers):
        environment = _environment_for_uv() if number == 0 else dict(os.environ)
        environment["SAM2_BUILD_CUDA"] = "0"
        try:
            _run([*installer, "--constraint", CONSTRAINTS, *requirements], environment)
            _run([*installer, "--constraint", CONSTRAINTS, _pin("sam2"), "--editable", ROOT], environment)
            break
        except subprocess.CalledProcessError:
            if number == len(installers) - 1:
                sys.exit("perceptio: the packages could not be installed; the last lines above say why.")
            _say("uv could not install the packages (see above); trying pip")
    STAMP.write_text(wanted)
    _say(f"the environment is ready after {time.monotonic() - start:.0f} s")


def _wanted() -> str:
    """What the environment is made from, as one hash; it also changes when the folder moves, for scripts name their place."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    for path in (PYPROJECT, CONSTRAINTS, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _make_venv() -> None:
    try:
        venv.create(VENV, with_pip=True, clear=True)
    except (subprocess.CalledProcessError, ImportError) as error:
        sys.exit(f"perceptio: no virtual environment could be made ({error}). On Debian and Ubuntu: apt install python3-venv")


def _requirements() -> list[str]:
    """The project's requirements with all extras, less those that are built in the second step."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *(item for extra in project["optional-dependencies"].values() for item in extra)]
    return [item for item in listed if not item.startswith(_BUILT_HERE)]


def _pin(package: str) -> str:
    """``package==version`` as constraints.txt has it."""
    found = re.search(rf"^{package}==.*$", CONSTRAINTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if found is None:
        sys.exit(f"perceptio: {CONSTRAINTS.name} has no line {package}==...")
    return found.group()


def _uv_command() -> list[str | Path]:
    isolation = [option for package in _BUILT_HERE for option in ("--no-build-isolation-package", package)]
    # pip looks into all its indexes alike; uv would stop at the first that knows a package.
    command: list[str | Path] = [
        VENV / "bin" / "uv",
        "pip",
        "install",
        "--python",
        PYTHON,
        "--index-strategy",
        "unsafe-best-match",
        *isolation,
    ]
    for key, values in _pip_settings().items():
        if key in _UV_OPTION_OF_PIP_KEY:
            command += [part for value in values for part in (_UV_OPTION_OF_PIP_KEY[key], value)]
    return command


def _environment_for_uv() -> dict[str, str]:
    environment = {"UV_HTTP_TIMEOUT": "180", "UV_PYTHON_DOWNLOADS": "never", **os.environ}
    settings = _pip_settings()
    if "cert" in settings:
        environment.setdefault("SSL_CERT_FILE", settings["cert"][0])
    if "proxy" in settings:
        environment.setdefault("ALL_PROXY", settings["proxy"][0])
    return environment


def _pip_settings() -> dict[str, list[str]]:
    """Settings of pip from its files and from PIP_ variables: key -> values; an environment variable wins over a file."""
    listing = subprocess.run([PYTHON, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    settings: dict[str, list[str]] = {}
    for line in sorted(listing.splitlines(), reverse=True):  # ":env:." sorts before the files' sections: here it comes last
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = str(ast.literal_eval(value)).split()
    return settings


def _run(command: list[str | Path], environment: dict[str, str] | None = None) -> None:
    # A user's pip may be set to install for the user alone, which pip refuses in a virtual environment.
    environment = {**(os.environ if environment is None else environment), "PIP_USER": "0"}
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env=environment)


def _say(text: str) -> None:
    print(f"perceptio: {text}", flush=True)


if __name__ == "__main__":
    main()
