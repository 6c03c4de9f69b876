"""Every command of README and docs is there: programs, options, files, targets and modules; and its Python imports.

What is not run here is run elsewhere: `make test` and `make demo` by hand and by CI, the stages end to end by
tests/test_end_to_end.py, the Python of data.md by tests/test_data_streaming.py.
"""

import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import typer
from dvc.cli.parser import get_main_parser

from pipeline.cli.app import app

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "foundations/mini/README.md"]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
LANGUAGES = {"sh", "python", "yaml", "text"}
VALUES = {"DATA": "artifacts", "CHECKPOINT": "artifacts", "P": "1", "N": "1"}
"""Stand-ins of placeholders that have to be a path or a number."""


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Page and content of every block in a language."""
    for page in PAGES:
        for found in FENCE.finditer(page.read_text(encoding="utf-8")):
            if found[1] == language:
                yield page.name, found[2]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Page and words of every command."""
    for page, content in blocks("sh"):
        for line in content.replace("\\\n", " ").splitlines():
            line = re.sub(r"(\S*)\{(\w+),(\w+)\}(\S*)", r"\1\2\4 \1\3\4", re.sub(r"<[^>]*>", "PLACE", line))
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield page, words


def is_perceptio(words: Sequence[str]) -> None:
    """Typer knows the sub-command, and takes its arguments."""
    group = typer.main.get_command(app)
    if words and words[0].startswith("-"):
        assert words[0] in {option for param in group.params for option in param.opts} | {"--help"}
        return
    arguments = list(words)
    with group.make_context("perceptio", arguments) as context:
        name, command, rest = group.resolve_command(context, arguments)
        assert name
        assert command
        command.make_context(name, rest, parent=context).close()


def is_dvc(words: Sequence[str]) -> None:
    """DVC's own parser takes it."""
    get_main_parser().parse_args(list(words))


def is_make(words: Sequence[str]) -> None:
    """The target is in the Makefile, and so is a variable that is set."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_set, _ = word.partition("=")
        assert re.search(rf"\$\({name}\)" if is_set else rf"^{name}:", makefile, re.MULTILINE), word


def is_python(words: Sequence[str]) -> None:
    """The module is there, and reads the options."""
    assert words[0] == "-m"
    if words[1] == "lmms_eval":
        return  # it has an environment of its own: tests/test_evaluation_harnesses.py
    found = importlib.util.find_spec(words[1])
    assert found, words[1]
    assert found.origin
    place = Path(found.origin)
    source = (place.with_name("__main__.py") if place.name == "__init__.py" else place).read_text(encoding="utf-8")
    for word in words[2:]:
        if word.startswith("--"):
            option = word.partition("=")[0]
            assert f'"{option}"' in source or words[1].startswith("stages."), f"{words[1]} has no {option}"


def is_pytest(words: Sequence[str]) -> None:
    """The files of tests are there."""
    files = [word for word in words if word.endswith(".py")]
    assert files
    assert all((REPOSITORY / file).is_file() for file in files)


def is_in_the_repository(words: Sequence[str]) -> None:
    """The script is there."""
    assert (REPOSITORY / words[0]).is_file()


def needs_what_is_not_here(words: Sequence[str]) -> None:
    """Docker's engine, Prefect's workers, several hosts, root: tests/test_docker.py, test_deployed.py, test_two_hosts.py and
    test_storage.py try what can be tried.
    """


PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "perceptio": is_perceptio,
    "dvc": is_dvc,
    "make": is_make,
    "python": is_python,
    "pytest": is_pytest,
    "sh": is_in_the_repository,
    **dict.fromkeys(("docker", "prefect", "torchrun", "apt-get", "export", "pip", "ray", "(umask"), needs_what_is_not_here),
}


@pytest.mark.parametrize(
    ("page", "words"), [pytest.param(page, words, id=f"{page}: {' '.join(words)}") for page, words in commands()]
)
def test_a_documented_command_is_there(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    program = Path(words[0]).name
    assert program in PROGRAMS, f"{page}: say here how {program} is looked at"
    PROGRAMS[program]([VALUES.get(word, word) for word in words[1:]])


def test_every_block_says_what_it_is() -> None:
    bare = [(page.name, found[1]) for page in PAGES for found in FENCE.finditer(page.read_text()) if found[1] not in LANGUAGES]
    assert not bare


@pytest.mark.parametrize(("page", "source"), list(blocks("python")))
def test_documented_python_imports_what_is_there(page: str, source: str) -> None:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, name.name) for name in node.names), f"{page}: {ast.unparse(node)}"
        elif isinstance(node, ast.Import):
            assert all(importlib.import_module(name.name) for name in node.names)
