"""Fingerprints of code: what a stage runs, in whatever form it is written; and which way imports go."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from perceptio_core.params.base import read_yaml
from perceptio_core.params.values import SECTIONS
from pipeline.code import fingerprint, fingerprints, source_of

REPOSITORY = Path(__file__).resolve().parent.parent


def code_below(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def listed(stage: str, folder: Path) -> dict[str, str]:
    """The files of a stage's fingerprint, with the hash of each."""
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    text = fingerprint(stage, names, lambda name: source_of(name, (folder / name).read_bytes()))
    return {name: syntax for syntax, name in (line.split("  ") for line in text.splitlines())}


def test_a_fingerprint_follows_what_runs(tmp_path: Path) -> None:
    files = {
        "stages/__init__.py": "",
        "stages/one.py": "import json\nfrom perceptio_core.a import x\nfrom . import two\n",
        "stages/two.py": "def f():\n    import perceptio_core.late\n",
        "perceptio_core/__init__.py": "",
        "perceptio_core/a/__init__.py": "from .inner import thing\n",
        "perceptio_core/a/x.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import perceptio_core.unused\n"
            "else:\n    from ..b import y\n"
        ),
        "perceptio_core/a/inner.py": "thing = 1\n",
        "perceptio_core/a/pages/page.html": "<p>",
        "perceptio_core/b.py": "try:\n    import perceptio_core.c\nexcept ImportError:\n    pass\n",
        "perceptio_core/c.py": "import perceptio_core.a.x\n",
        "perceptio_core/late.py": "",
    }
    unused = {"perceptio_core/unused.py": "", "perceptio_core/d/__init__.py": "", "perceptio_core/d/page.html": ""}
    code_below(tmp_path, files | unused)
    before = listed("one", tmp_path)
    assert before.keys() == files.keys()
    (tmp_path / "perceptio_core/a/pages/page.html").write_text("<b>")
    assert {name for name, syntax in listed("one", tmp_path).items() if syntax != before[name]} == {
        "perceptio_core/a/pages/page.html"
    }
    (tmp_path / "perceptio_core" / "c.py").write_text("import pipeline.flow\n")
    with pytest.raises(ValueError, match=r"perceptio_core/c\.py imports pipeline\.flow"):
        listed("one", tmp_path)
    with pytest.raises(ValueError, match=r"no module stages\.three"):
        listed("three", tmp_path)


BEFORE = """import math

def half(value: float = 1.5) -> float:
    return math.floor(value) / 2
"""


@pytest.mark.parametrize(
    ("after", "same"),
    [
        (f'"""A module."""\n# a comment\n{BEFORE}', True),
        (BEFORE.replace("    return", '    """A function."""\n\n    # a comment\n    return'), True),
        (BEFORE.replace("math.floor(value) / 2", "(\n        math.floor( value ) / 2  # why\n    )"), True),
        (f"{BEFORE}\n\nLIMIT = 3\n", False),
        (BEFORE.replace("1.5", "2.5"), False),
        (BEFORE.replace("math.floor", "math.ceil"), False),
        (BEFORE.replace("    return", '    print("""A text.""")\n    return'), False),
    ],
)
def test_comments_docstrings_and_formatting_are_no_syntax(after: str, same: bool) -> None:
    assert (source_of("a.py", after.encode()).hash == source_of("a.py", BEFORE.encode()).hash) == same


def test_a_comment_in_every_file_changes_no_stages_fingerprint_and_a_statement_those_that_reach_it(tmp_path: Path) -> None:
    """On the real code: each file gets a comment, and each module and function another docstring."""
    for package in ("perceptio_core", "stages"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = fingerprints(tmp_path)
    assert before == fingerprints(REPOSITORY)
    documented = 0
    for file in tmp_path.rglob("*.py"):
        text = file.read_text()
        documented += '"""' in text
        file.write_text(text.replace('"""', '"""Said in other words. ', 1) + "# the end\n")
    assert documented > 150
    assert fingerprints(tmp_path) == before
    for name in ("perceptio_core/progress.py", "perceptio_core/depth/lookup.py", "perceptio_core/report/plots.py"):
        file, text = tmp_path / name, (tmp_path / name).read_text()
        file.write_text(f"{text}\n\nADDED = 1\n")
        changed = {stage for stage, listing in fingerprints(tmp_path).items() if listing != before[stage]}
        assert changed == {stage for stage, listing in before.items() if f"  {name}\n" in listing} != set()
        file.write_text(text)
    for memory in ("", "{", "[]", '{"rule": "another", "sources": {}}'):  # of what was parsed before
        (tmp_path / ".work/syntax.json").write_text(memory)
        assert fingerprints(tmp_path) == before


@pytest.mark.parametrize("stage", ["sources", "foundations"])
def test_a_fingerprint_lists_all_that_python_imports(stage: str) -> None:
    """Python is the oracle: what a stage has imported before it begins its work is listed."""
    look = (
        f"import sys, stages.{stage}\nprint(*(one.__file__ for one in list(sys.modules.values()) if hasattr(one, '__file__')))"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    files = {Path(file) for file in done.stdout.split() if Path(file).is_relative_to(REPOSITORY)}
    ours = {file.relative_to(REPOSITORY).as_posix() for file in files if ".venv" not in file.parts}
    assert len(ours) >= 10
    assert ours <= {line.split("  ")[1] for line in fingerprints(REPOSITORY)[stage].splitlines()}


def test_dvc_yaml_is_read_in_a_minute_and_knows_the_code_of_every_stage() -> None:
    assert len((REPOSITORY / "dvc.yaml").read_bytes()) < 5000
    stages = read_yaml(REPOSITORY / "dvc.yaml")["stages"]
    assert {stage for stage in stages if f"artifacts/code/{stage}.txt" in stages[stage].get("deps", [])} == set(SECTIONS)


FLOORS = {"vocabulary": 0, "grammar": 0, "depth": 1, "segmentation": 1, "data": 2, "model": 2, "training": 3, "evaluation": 3}


@pytest.mark.parametrize("file", sorted((REPOSITORY / "perceptio_core").rglob("*.py")), ids=lambda file: file.stem)
def test_imports_go_downward_only(file: Path) -> None:
    room = file.relative_to(REPOSITORY / "perceptio_core").parts[0].removesuffix(".py")
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(?:from|import) (?:stages|pipeline)\b", text, flags=re.MULTILINE)
    for other in re.findall(r"^\s*(?:from|import) perceptio_core\.(\w+)", text, flags=re.MULTILINE):
        if room in FLOORS and other in FLOORS and other != room:
            assert FLOORS[other] < FLOORS[room] or (FLOORS[other] == FLOORS[room] == 0)
