"""The set-up of .venv, less the downloads."""

import zipfile
from pathlib import Path

import pytest

from pipeline import environment


def test_pip_installs_into_the_environment_whatever_the_user_has_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PIP_USER=1 pip would say: Can not perform a '--user' install. User site-packages are not visible."""
    wheel = tmp_path / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing.py", "")
        archive.writestr("thing-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1\n")
        archive.writestr("thing-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setattr(environment, "VENV", tmp_path / "venv")
    monkeypatch.setattr(environment, "PYTHON", tmp_path / "venv" / "bin" / "python")
    environment._make_venv()
    environment._run([environment.PYTHON, "-m", "pip", "install", "--quiet", "--no-index", wheel])
    assert list((tmp_path / "venv").rglob("site-packages/thing.py"))
