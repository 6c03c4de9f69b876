"""The peers' environments."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

FOLDER = Path(".peers")

PACKAGES = {
    "perceptio": None,
    "webdataset": None,  # the one that this project pins
    "pillow": None,
    "transformers": None,
    "litdata": "litdata==0.2.76",
    "mosaicml-streaming": "mosaicml-streaming==0.13.0",
    "vector-quantize-pytorch": None,
}
"""What pip installs for each; None: the project's own environment has it."""


def python_of(peer: str) -> Path:
    """The Python of a peer's environment, which is made where it is not there.

    Raises:
        subprocess.CalledProcessError: pip could not install it.
    """
    package = PACKAGES[peer]
    if package is None:
        return Path(sys.executable)
    folder = FOLDER / package
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if not stamp.exists():
        print(f"setting up {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        # Behind its own: what pip finds there already it does not install, what it needs in another version it does.
        (packages / "ours.pth").write_text(sysconfig.get_path("purelib"))
        subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
        stamp.touch()
    return python.absolute()
