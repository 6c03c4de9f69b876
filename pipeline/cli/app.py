"""The command line: its sub-commands, and what a mistake, a stop or a broken pipe looks like."""

import ast
import errno
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from perceptio_core import __version__
from perceptio_core.params import PARAMS, SECTIONS, VARIED
from pipeline.cli import answers, data, models, runs

_SERVING = (["page"], ["look"], ["ui"])
STAGES_FOLDER = Path(__file__).resolve().parents[2] / "stages"
HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, context_settings=HELP)


def main() -> None:
    """Entry point; exits with 2 for a mistake in the command or the parameters, and 1 for a stage that failed or a stop.

    A stop is how a command that serves pages ends: with 0.
    """
    try:
        command = typer.main.get_command(app)
        _show_whole_lines(command)
        code = command.main(prog_name="perceptio", standalone_mode=False)
        sys.stdout.flush()
        if code == 128 + signal.SIGINT:  # what Typer makes of it
            raise KeyboardInterrupt
        if code:  # of a command that said so by `typer.Exit`
            sys.exit(code)
        return
    except KeyboardInterrupt:
        if sys.argv[1:2] in _SERVING:
            _say("stopped")
            sys.exit(0)
        _say("stopped; the same command goes on where this one stood")
        sys.exit(1)
    except TyperException as error:
        _explain(error)
    except (ValueError, FileNotFoundError) as error:
        _say(str(error))
    except BrokenPipeError:
        _leave_the_pipe()
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        _leave_the_pipe()  # within a command Typer makes 1 of it
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        _say(f"{error.filename}: {error.strerror}; whoever runs this must be able to write there")
    sys.exit(2)


def _leave_the_pipe() -> NoReturn:
    """End as `| head` wants it; what Python would still flush at its end goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(128 + signal.SIGPIPE)


def _show_whole_lines(group: object) -> None:
    """In lists of commands show all of each command's first sentence, which else is cut at the terminal's width."""
    for command in group.commands.values() if isinstance(group, typer.core.TyperGroup) else ():
        command.short_help = command.short_help or (command.help or "").partition(". ")[0].removesuffix(".")
        _show_whole_lines(command)


def _explain(error: TyperException) -> None:
    """A mistake on the command line in a sentence; a command without its arguments gets its help."""
    context = getattr(error, "ctx", None)
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if context is not None and message == context.get_help():
        print(message)
        return
    more = f" (`{context.command_path} --help` lists all)" if context is not None else ""
    _say(f"{message.removesuffix('.')}{more}")


def _say(text: str) -> None:
    print(f"perceptio: {text}", file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"perceptio {__version__}")
        raise typer.Exit


@app.callback()
def perceptio(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """From raw pictures to a vision-language model that writes what it sees before it answers, and its scores."""


_Params = Annotated[
    Path, typer.Option(metavar="FILE", help="The parameters: params.yaml, or a profile such as profiles/smoke.yaml.")
]


def _stage(context: typer.Context, params: _Params = PARAMS) -> None:
    _run_stage(str(context.info_name), "--params", str(params))


def _stage_of_variant(
    context: typer.Context,
    params: _Params = PARAMS,
    variant: Annotated[str, typer.Option(help="A name under variants.")] = "full",
) -> None:
    from perceptio_core.params.profile import Profile
    from perceptio_core.params.values import read_values

    Profile.of(read_values(params)).variant(variant)  # a mistake is told before the stage brings torch
    _run_stage(str(context.info_name), "--params", str(params), "--variant", variant)


def _run_stage(name: str, *arguments: str) -> None:
    sys.argv = [f"perceptio {name}", *arguments]
    runpy.run_module(f"stages.{name}", run_name="__main__")


def _explained(stage: str) -> tuple[str, str]:
    """What a stage says of itself, in a line and at length, read without importing it; Typer keeps lines after a backspace."""
    tree = ast.parse((STAGES_FOLDER / f"{stage}.py").read_text(encoding="utf-8"))
    line = (ast.get_docstring(tree) or "").partition("\n")[0]
    line = line.partition(": ")[2] or line
    texts = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DESCRIPTION"]
    parts = (str(ast.literal_eval(texts[0])) if texts else line).split("\n\n")
    return line[:1].upper() + line[1:], "\n\n".join(f"\b\n{part}" for part in parts)


for module in (runs, models, answers, data):
    app.add_typer(module.commands)
stages = typer.Typer()
for name in SECTIONS:
    line, text = _explained(name)
    stages.command(name, short_help=line, help=text)(_stage_of_variant if name in VARIED else _stage)
app.add_typer(stages)
