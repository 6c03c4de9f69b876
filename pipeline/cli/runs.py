"""The sub-commands that run stages, and that show what was run."""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perceptio_core.params import PROFILES, SECTIONS, VARIED

if TYPE_CHECKING:
    from pipeline.dag import Plan  # brings DVC, which takes seconds

commands = typer.Typer()
CAUSES = 3
"""Most that are named of what has changed before a stage; `dvc status` names all."""


def _profiles(incomplete: str) -> list[str]:
    return sorted(file.stem for file in PROFILES.glob(f"{incomplete}*.yaml"))


def stages_completed(incomplete: str) -> list[str]:
    """The stages whose names begin so: what Tab offers. Bash, for which a word ends at ``@``, lists variants but adds none."""
    from perceptio_core.params.values import read_values

    names = list(SECTIONS)
    with contextlib.suppress(ValueError, OSError):  # no params.yaml here, or one with a mistake: Tab is not who says so
        names += [f"{stage}@{variant}" for stage in VARIED for variant in read_values().plain["variants"]]
    return [name for name in names if name.startswith(incomplete)]


ProfileName = Annotated[
    str | None,
    typer.Option(
        help="Write the values of profiles/PROFILE.yaml into params.yaml.", metavar="PROFILE", autocompletion=_profiles
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Every line of DVC, Prefect and the stages, as without a terminal.")]


@commands.command()
def repro(
    stages: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STAGE]...",
            help="Only these, and what they read from, as in evaluate@full; cotrain and evaluate stand for all their variants.",
            autocompletion=stages_completed,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run these stages (default: all) even if nothing has changed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")] = False,
    profile: ProfileName = None,
    variants: Annotated[
        str | None, typer.Option(help="The variants to train, as in full,control, or all (writes params.yaml).")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A value, as in cotrain.steps=20; may be given several times (writes params.yaml).",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Bring every stage up to date, from raw images to the report."""
    from pipeline.settings import prepare_environment, put_back, select

    start = time.monotonic()
    wanted = stages or []
    prepare_environment()
    from pipeline.dag import plan
    from pipeline.launch.clusters import cluster_for
    from pipeline.machine import Launch, read_machine

    what, be = ", ".join(wanted) or "Every stage", "are" if len(wanted) > 1 else "is"
    machine = read_machine()
    with put_back() if dry_run else contextlib.nullcontext():
        named = variants.split(",") if variants else None
        active = select(profile=profile, variants=named, changes=changes or (), look=dry_run)
        planned = plan(wanted=wanted, force=force)
    for stage in sorted({name.partition("@")[0] for name in planned.asked}):
        cluster_for(stage, machine.launch.get(stage, Launch()))  # a refusal comes before DVC removes the stage's output
    if not planned.asked:
        print(f"Nothing to do: {what[0].lower()}{what[1:]} of profile {active.name} {be} up to date.\n")
        _headline(planned, active.name)
        return
    if dry_run:
        _list(planned, active.name)
        return
    from pipeline.preflight import look_ahead

    look_ahead(planned, profile=active, machine=machine)
    from pipeline.terminal import screen_for

    with screen_for(planned, active.name, verbose=verbose) as screen:
        from pipeline.flow import reproduce  # brings Prefect, which takes seconds

        outcome = reproduce(planned, profile=active.name, limits=machine.limits, screen=screen)
    if outcome.failures:
        print(f"perceptio: a stage failed; its lines above say more:\n{outcome.failures}", file=sys.stderr)
    else:
        minutes = (time.monotonic() - start) / 60
        print(f"\n{what} of profile {active.name} {be} up to date after {minutes:.1f} min.\n")
        _headline(planned, active.name)
    if outcome.server_lost:
        print(
            f"perceptio: Prefect's server was lost ({outcome.server_lost}); once up again, `perceptio ui` shows the stages",
            file=sys.stderr,
        )
        sys.stdout.flush()
        os._exit(int(outcome.failures is not None))  # else Prefect would try for minutes to tell the server the rest
    if outcome.failures:
        raise typer.Exit(1)


def _headline(planned: "Plan", profile: str) -> None:
    if any(node.name == "report" for node in planned.stages):
        from pipeline.results import headline

        print(headline(profile))


def _list(planned: "Plan", profile: str) -> None:
    """What is up to date, and what would run; a stage after one that runs runs if that makes anything new."""
    from stages.common import StagePaths

    paths = StagePaths(profile)
    runs: set[str] = set()
    width = max(len(node.name) for node in planned.stages)
    for node in planned.stages:
        if node.name in planned.asked:
            why = planned.stale.get(node.name, ())
            if node.name in planned.forced:
                state = "would run"
            elif not paths.out(*node.name.split("@")).is_dir():
                state = "would run: not made yet"
            else:
                more = f" and {len(why) - CAUSES} more" if len(why) > CAUSES else ""
                state = f"would run: {', '.join(why[:CAUSES])}{more}"
            runs.add(node.name)
        elif runs & set(node.upstream):
            state = "would run if what it reads from changes"
            runs.add(node.name)
        else:
            state = "up to date"
        print(f"{node.name:{width}}  {state}")


@commands.command()
def status(
    stages: Annotated[
        list[str] | None, typer.Argument(metavar="[STAGE]...", help="As for repro.", autocompletion=stages_completed)
    ] = None,
) -> None:
    """Show which stages of the active profile are up to date, and what `repro` would run."""
    from perceptio_core.params.values import read_values
    from pipeline.settings import prepare_environment

    prepare_environment()
    from pipeline.dag import plan

    planned, profile = plan(wanted=stages or []), read_values().profile
    print(f"profile {profile}")
    _list(planned, profile)


@commands.command()
def run(
    stage: Annotated[
        str,
        typer.Argument(
            metavar="STAGE",
            help="As in evaluate@full; cotrain stands for all its variants, one by one.",
            autocompletion=stages_completed,
        ),
    ],
    launcher: Annotated[
        str | None, typer.Option("--on", help="local, ray, slurm or kubernetes (default: as machine.yaml says, else local).")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Of a Ray that is there (default: one for the stage alone, on this machine)."),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Of the cluster: for cotrain, and for all stages that Ray can take.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run it even if nothing has changed.")] = False,
    verbose: Verbose = False,
) -> None:
    """Run one stage through dvc, here or on a cluster; what it reads must be up to date."""
    from perceptio_core.params.values import read_values
    from pipeline.settings import prepare_environment

    prepare_environment()
    from pipeline.dag import plan
    from pipeline.launch.clusters import cluster_for
    from pipeline.machine import launching, read_machine
    from pipeline.terminal import screen_for
    from pipeline.work import run_alone

    planned = plan(wanted=[stage], force=True)
    if before := sorted(planned.stale.keys() - planned.forced):
        raise ValueError(f"{stage} reads from {', '.join(before)}, which `perceptio repro` must bring up to date first")
    given = {"launcher": launcher, "address": address, "nodes": nodes}
    changed = {name: value for name, value in given.items() if value is not None}
    if launcher in ("local", "ray"):
        changed.setdefault("nodes", 1)  # machine.yaml's are of its cluster
    name = stage.partition("@")[0]
    with launching(name, **changed):
        cluster_for(name, read_machine().launch[name])  # a refusal comes before DVC removes the stage's output
        alone = planned.alone(force=force)
        with screen_for(alone, read_values().profile, verbose=verbose) as screen:
            failures = run_alone(alone, profile=read_values().profile, screen=screen)
    if failures:
        print(f"perceptio: {failures.partition(':')[0]} failed; its lines above say why", file=sys.stderr)
        raise typer.Exit(1)


@commands.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the profile: writes profiles/NAME.yaml.")],
    pictures: Annotated[Path, typer.Option(metavar="FOLDER", help="Your pictures.")],
    questions: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help=".csv, .tsv, .jsonl or .parquet: image, question, answer, maybe mask."),
    ] = None,
    coco: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Objects of the pictures in COCO's instances format.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE",
            help="Take models and sizes from it, as perceptio-1b (default: the small ones).",
            autocompletion=_profiles,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of the training (default: by the number of questions).")] = None,
) -> None:
    """Make a profile for your own pictures and questions, and say what it assumes."""
    from pipeline.new import BUNDLED
    from pipeline.new import new as make

    make(name, pictures=pictures, questions=questions, coco=coco, base=base or BUNDLED, steps=steps)


@commands.command()
def lineage(path: Annotated[Path, typer.Argument(metavar="PATH", help="Such as artifacts/mini/report/metrics.json.")]) -> None:
    """Show everything that a file below artifacts/ was made from."""
    from pipeline.lineage.graph import LineageGraph
    from pipeline.lineage.tree import lineage_tree

    print(lineage_tree(path, graph=LineageGraph.from_lock()))


@commands.command()
def ui(port: Annotated[int, typer.Option(min=1, max=2**16 - 1, metavar="PORT", help="On 127.0.0.1.")] = 4200) -> None:
    """Serve Prefect's pages on this machine: runs, logs, and what came from what."""
    from perceptio_core.params.values import read_values
    from pipeline.settings import prepare_environment

    prepare_environment()
    from pipeline.ui import serve

    serve(profile=read_values().profile, port=port)


@commands.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this nothing is touched.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Also what the next run would go on with.")] = False,
) -> None:
    """List the unfinished work in .work/, and remove what no run will go on with."""
    from pipeline.clean import clean as clear

    clear(remove=yes, everything=everything)
