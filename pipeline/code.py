"""The stage `code` of dvc.yaml, ``python -m pipeline.code``: a fingerprint of the code that each stage runs.

``artifacts/code/<stage>.txt`` lists the files that ``python -m stages.<stage>`` executes, each with a hash of its syntax:
comments, docstrings and formatting do not count. DVC re-runs a stage when its file changes. Nothing tells DVC that a module
has changed, so `code` is `always_changed`: each `dvc repro` runs it first. Libraries are pinned by constraints.txt.

Imports below ``if TYPE_CHECKING:`` execute nothing and are not followed; imports inside functions are. What is no Python in a
package, such as a page's template, counts with the package, by its bytes.
"""

import ast
import contextlib
import functools
import gc
import hashlib
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from perceptio_core.files import whole
from perceptio_core.params.profile import load_profile
from perceptio_core.params.values import SECTIONS

PACKAGES = ("perceptio_core", "stages")
STAGE = "code"
FOLDER = Path("artifacts/code")
"""Not a profile's: whatever the parameters, the code is the same."""
_MEMORY = Path(".work/syntax.json")
"""What was parsed before: to parse all takes more than a second, and `perceptio repro` begins with it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a file says.

    Attributes:
        hash: of its syntax.
        imports: per import statement the level (dots), the module, and the names that are taken from it.
    """

    hash: str
    imports: tuple[tuple[int, str, tuple[str, ...]], ...] = ()


def main() -> None:
    """Check the parameters of all stages, and write the file of each."""
    load_profile()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for stage, text in fingerprints().items():
        (FOLDER / f"{stage}.txt").write_text(text, encoding="utf-8")


def is_current() -> bool:
    """Whether the files agree with the code as it stands."""
    files = {stage: FOLDER / f"{stage}.txt" for stage in SECTIONS}
    written = {stage: file.read_text(encoding="utf-8") for stage, file in files.items() if file.is_file()}
    return written == fingerprints()


def fingerprints(root: Path = Path()) -> dict[str, str]:
    """The text of each stage's file, by the checkout below `root`. Files are parsed that have changed since the last call."""
    files = [file for package in PACKAGES for file in (root / package).rglob("*") if file.is_file()]
    names = {file.relative_to(root).as_posix() for file in files if "__pycache__" not in file.parts}
    known, used = _recall(root), {}

    def read(name: str) -> Source:
        content = (root / name).read_bytes()
        key = hashlib.sha256(f"{name}\0".encode() + content).hexdigest()
        used[key] = known.get(key) or source_of(name, content)
        return used[key]

    with no_collection():
        texts = {stage: fingerprint(stage, names, read) for stage in SECTIONS}
    if used.keys() != known.keys():
        _remember(root, used)
    return texts


def fingerprint(stage: str, files: Collection[str], read: Callable[[str], Source]) -> str:
    """A line ``<hash>  <path>`` for each file that a stage executes, in the order of the paths.

    Args:
        stage: its name.
        files: every file of `PACKAGES`, as a posix path relative to the checkout.
        read: gives what one of them says.

    Raises:
        ValueError: there is no such stage, or it reaches the pipeline, which lies above it.
    """
    found: dict[str, str] = {}
    waiting = [f"stages.{stage}"]
    while waiting:
        module = waiting.pop()
        name = _file_of(module, files)
        if name is None:
            raise ValueError(f"there is no module {module} below {', '.join(PACKAGES)}")
        if name in found:
            continue
        source = read(name)
        found[name] = source.hash
        above = module.rpartition(".")[0]
        waiting += [above] if above else []
        for imported in _imported(source, module if name.endswith("/__init__.py") else above):
            if imported.split(".")[0] == "pipeline":
                raise ValueError(f"{name} imports {imported}: the pipeline uses the stages, never the other way round")
            if imported.split(".")[0] in PACKAGES and _file_of(imported, files):
                waiting.append(imported)
    for name in files:
        if not name.endswith(".py") and _package_of(name, files) in found:
            found[name] = read(name).hash
    return "".join(f"{found[name]}  {name}\n" for name in sorted(found))


@functools.cache
def source_of(name: str, content: bytes) -> Source:
    """What a file of this name and content says. Raises SyntaxError where it is Python that cannot be parsed."""
    if not name.endswith(".py"):
        return Source(hash=_short(content))
    tree = ast.parse(content, name)
    imports = tuple(_imports(tree))
    for node in _blocks(tree):
        # A string that stands alone executes nothing: a docstring, of whatever.
        node.body = [one for one in node.body if not _is_text(one)] or [ast.Pass()]
    return Source(hash=_short(ast.unparse(tree).encode()), imports=imports)


def _recall(root: Path) -> dict[str, Source]:
    """What `_remember` wrote, by the sha256 of name and content; nothing where another Python or another rule wrote it."""
    try:
        kept = json.loads((root / _MEMORY).read_text(encoding="utf-8"))
        if kept["rule"] != _rule():
            return {}
        return {key: Source(hash=found, imports=_as_imports(imports)) for key, (found, imports) in kept["sources"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(root: Path, sources: Mapping[str, Source]) -> None:
    plain = {key: (source.hash, source.imports) for key, source in sources.items()}
    with contextlib.suppress(OSError):  # of a full disk, or a checkout that may only be read: then all is parsed again
        (root / _MEMORY).parent.mkdir(exist_ok=True)
        with whole(root / _MEMORY) as part:
            part.write_text(json.dumps({"rule": _rule(), "sources": plain}), encoding="utf-8")


def _as_imports(plain: Iterable[tuple[int, str, Iterable[str]]]) -> tuple[tuple[int, str, tuple[str, ...]], ...]:
    return tuple((level, module, tuple(names)) for level, module, names in plain)


@functools.cache
def _rule() -> str:
    """What a source's hash depends on beside its content: this file, and how this Python writes syntax."""
    return f"{sys.version} {_short(Path(__file__).read_bytes())}"


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _file_of(module: str, files: Collection[str]) -> str | None:
    path = module.replace(".", "/")
    return next((name for name in (f"{path}/__init__.py", f"{path}.py") if name in files), None)


def _package_of(name: str, files: Collection[str]) -> str | None:
    """The ``__init__.py`` of the package that a file lies in."""
    parents = (f"{parent}/__init__.py" for parent in PurePosixPath(name).parents)
    return next((parent for parent in parents if parent in files), None)


def _imported(source: Source, package: str) -> Iterator[str]:
    """Dotted names that are imported; ``from a import b`` gives both ``a`` and ``a.b``, for b may be a module."""
    for level, module, names in source.imports:
        above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
        base = ".".join([*above, *([module] if module else [])])
        yield base
        yield from (f"{base}.{name}" for name in names)


def _imports(node: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    if isinstance(node, ast.Import):
        yield from ((0, alias.name, ()) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.level, node.module or "", tuple(alias.name for alias in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
        for otherwise in node.orelse:
            yield from _imports(otherwise)
    else:
        for child in _below(node):
            yield from _imports(child)


def _blocks(node: ast.AST) -> Iterator[Any]:
    """The node and all below it that have a body of statements."""
    if isinstance(getattr(node, "body", None), list):
        yield node
    for child in _below(node):
        yield from _blocks(child)


def _below(node: ast.AST) -> Iterator[ast.AST]:
    """The statements in a statement: expressions, of which there are twenty times as many, hold none."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        yield from getattr(node, field, ())


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Without the garbage collector, which walks the growing syntax trees again and again: half of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


if __name__ == "__main__":
    main()
