"""The sub-commands about data: got and checked before anything runs, and brought to a store."""

from typing import Annotated

import typer

commands = typer.Typer()
data = typer.Typer(
    no_args_is_help=True, help="Get and check the data that a profile reads, before anything runs (docs/data.md)."
)
shards = typer.Typer(no_args_is_help=True, help="Bring the training's shards to an S3-compatible store (docs/storage.md).")
commands.add_typer(data, name="data")
commands.add_typer(shards, name="shards")

ProfileName = Annotated[str | None, typer.Option(metavar="PROFILE", help="profiles/PROFILE.yaml (default: the active one).")]


@data.command()
def check(profile: ProfileName = None) -> None:
    """Show what is there, can be read, is missing and where to get it, and the disk it takes."""
    from pipeline.data_check import check as look

    if not look(profile):
        raise typer.Exit(1)


@data.command()
def get(
    profile: ProfileName = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Only these data sets, benchmarks or archives, as in refcoco,coco."),
    ] = None,
    accept_licences: Annotated[
        bool, typer.Option("--accept-licences", help="Accept the licences that it names, without being asked.")
    ] = False,
) -> None:
    """Fetch what is missing from where its makers serve it, and lay it out."""
    from pipeline.data_get import get as fetch

    if not fetch(profile, only=only.split(",") if only else (), accept=accept_licences):
        raise typer.Exit(1)


@shards.command()
def push(
    store: Annotated[
        str,
        typer.Argument(metavar="STORE", help="s3://BUCKET[/PREFIX]; endpoint and credentials from the AWS_ variables."),
    ],
    profile: ProfileName = None,
) -> None:
    """Copy what joint_shards made; what is there already stays, and a killed copy goes on where it stood."""
    from perceptio_core.data.shards.remote import RemoteShards, StoreError
    from perceptio_core.params.values import read_values
    from stages.common import StagePaths

    remote = RemoteShards(store=store, folder=StagePaths(profile or read_values().profile).out("joint_shards"))
    try:
        remote.push()
    except StoreError as error:
        typer.echo(f"perceptio: {error}; the same command goes on where this one stood", err=True)
        raise typer.Exit(1) from error
    print(remote.url)
