"""Which source files a stage runs, read from its import statements, and the same written into dvc.yaml.

DVC re-runs a stage when a file among its ``deps`` changes, so the list must be complete, and it should be exact: a file
too many re-trains a model for nothing. ``python -m pipeline.dependencies`` tells whether dvc.yaml agrees with the imports;
with ``--write`` it rewrites the code part of each ``deps``. The closure is followed inside this repository alone: libraries
are pinned by constraints.txt. Imports below ``if TYPE_CHECKING:`` run nothing and do not count; imports inside functions do.
"""

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

PACKAGES = ("perceptio_core", "stages")
DVC_FILE = Path("dvc.yaml")


def import_closure(*modules: str, root: Path = Path()) -> set[str]:
    """The files, as posix paths relative to `root`, that importing the modules executes, the modules' own included.

    Raises:
        ValueError: a module does not exist, or reaches a package outside `PACKAGES` that lies in this repository.
    """
    files: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        file = _file_of(module, root)
        if file is None:
            raise ValueError(f"there is no module {module} below {', '.join(PACKAGES)}")
        name = file.relative_to(root).as_posix()
        if name in files:
            continue
        files.add(name)
        package, _, _ = module.rpartition(".")
        waiting += [package] if package else []
        is_package = file.name == "__init__.py"
        for imported in _imports(ast.parse(file.read_text(encoding="utf-8"), name), module if is_package else package):
            if imported.split(".")[0] == "pipeline":
                raise ValueError(f"{name} imports {imported}: the pipeline uses the stages, never the other way round")
            if imported.split(".")[0] in PACKAGES and _file_of(imported, root):
                waiting.append(imported)
    return files


def code_of_stage(name: str, definition: dict[str, Any], root: Path = Path()) -> list[str]:
    """The code that a stage of dvc.yaml runs: its command's closure and the classes of the sections that it tracks."""
    sections = {
        str(key).split(".")[0]
        for entry in definition["params"]
        if isinstance(entry, dict)
        for keys in entry.values()
        for key in keys
    }
    classes = [f"perceptio_core.params.{section}" for section in sorted(sections - {"variants"})]
    return sorted(import_closure(f"stages.{name}", *classes, root=root))


def is_code(dependency: str) -> bool:
    """Whether an entry of ``deps`` is a source file of this repository rather than data."""
    return dependency.endswith(".py") and dependency.startswith(tuple(f"{package}/" for package in PACKAGES))


def main() -> None:
    """Compare dvc.yaml with the imports, or rewrite it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite the code part of every stage's deps in dvc.yaml")
    write = parser.parse_args().write
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10_000
    document = yaml.load(DVC_FILE.read_text(encoding="utf-8"))
    stale = []
    for name, definition in document["stages"].items():
        dependencies = definition.setdefault("deps", [])
        wanted = code_of_stage(name, definition)
        if [entry for entry in dependencies if is_code(entry)] == wanted:
            continue
        stale.append(name)
        for entry in [entry for entry in dependencies if is_code(entry)]:
            dependencies.remove(entry)
        dependencies.extend(wanted)
    if stale and write:
        with DVC_FILE.open("w", encoding="utf-8") as stream:
            yaml.dump(document, stream)
        print(f"rewrote the deps of {', '.join(stale)}")
    elif stale:
        sys.exit(f"dvc.yaml does not list the code of {', '.join(stale)}; run: python -m pipeline.dependencies --write")


def _file_of(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that the code imports; ``from a import b`` gives both ``a`` and ``a.b``, for b may be a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)
    else:
        children: Iterable[ast.AST] = ast.iter_child_nodes(node)
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            children = node.orelse
        for child in children:
            yield from _imports(child, package)


if __name__ == "__main__":
    main()
