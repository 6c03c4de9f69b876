"""The sub-commands about a model: asked, published, converted."""

import sys
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from perceptio_core.params import PARAMS
from pipeline.cli.runs import stages_completed

commands = typer.Typer()
convert = typer.Typer(no_args_is_help=True, help="Bring a foreign checkpoint into the form that the stages read.")
commands.add_typer(convert, name="convert")

_CONVERSIONS = {
    "internvl": "An InternVL2.5 or InternVL3 folder in OpenGVLab's original format -> a native transformers folder",
    "sam2": "A SAM2 checkpoint (.pt), or a folder of transformers' Sam2Model -> config.json and model.safetensors",
    "codebook": "The depth VQ-VAE of AURORA or MolmoAct (vae-final.pt) -> a depth codebook folder",
    "sa2va": "A Sa2VA folder on InternVL -> internvl/ and sam2/ for co-training, its [SEG] and prompt MLP included",
}


class Dtype(StrEnum):
    """Of the weights and the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@commands.command()
def predict(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PICTURE... [QUESTION]", help="Pictures and folders of them, the question behind them."),
    ],
    questions: Annotated[
        list[str] | None,
        typer.Option("--question", "-q", metavar="QUESTION", help="Asked of every picture; may be given several times."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Folder, or OWNER/NAME on the hub (default: artifacts/<active profile>/cotrain/full/checkpoint)."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for masks and depth maps (default: this one).", show_default=False)
    ] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON per picture and question.")] = False,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1 (default: the GPU where there is one).")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights (default: as the checkpoint was saved).")] = None,
) -> None:
    """Answer questions about pictures; write masks and depth maps as pictures."""
    from perceptio_core.params.values import read_values
    from stages.common import StagePaths

    *pictures, last = paths
    if questions:
        pictures = paths
    elif not pictures or Path(last).exists():
        raise ValueError(f"{last}: the last argument is the question, or --question gives one or several")
    if checkpoint is None and not PARAMS.is_file():
        raise ValueError(f"there is no {PARAMS} here that says which model was trained: name one by --checkpoint")
    from pipeline.predict import predict as ask  # brings torch, which takes seconds

    read = ask(
        paths=[Path(path) for path in pictures],
        questions=questions or [last],
        checkpoint=checkpoint or StagePaths(read_values().profile).out("cotrain", "full") / "checkpoint",
        out=out,
        as_json=as_json,
        device=device,
        dtype=dtype and dtype.value,
    )
    if not read:
        raise typer.Exit(1)


_Port = Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1.")]


@commands.command()
def page(
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            help="As for predict; may be given several times, to be compared (default: the active profile's trained models).",
        ),
    ] = None,
    port: _Port = 7860,
    device: Annotated[str | None, typer.Option(help="As for predict.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="As for predict.")] = None,
) -> None:
    """Ask a trained model in the browser, and look at samples of what the stages made."""
    from pipeline.page.serve import serve_page

    serve_page(checkpoints=checkpoints or [], port=port, device=device, dtype=dtype and dtype.value)


@commands.command()
def look(
    stage: Annotated[
        str | None,
        typer.Argument(
            metavar="[STAGE]",
            help="The first to show, as in evaluate@full (default: sources).",
            autocompletion=stages_completed,
        ),
    ] = None,
    port: _Port = 7860,
) -> None:
    """Look at samples of what the stages made, and at what went to quarantine and why."""
    from pipeline.page.serve import serve_samples

    serve_samples(stage=stage, port=port)


@commands.command()
def publish(
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Made if absent.")],
    variant: Annotated[str, typer.Option(help="Of the active profile.")] = "full",
    private: Annotated[bool, typer.Option("--private", help="A repository that is made is private.")] = False,
) -> None:
    """Bring a trained checkpoint, its scores in its card, to the Hugging Face hub."""
    from perceptio_core.params.values import read_values
    from pipeline.publish import publish as bring
    from stages.common import StagePaths

    paths = StagePaths(read_values().profile)
    checkpoint = paths.made("cotrain", variant) / "checkpoint"
    scores = paths.out("evaluate", variant) / "metrics.json"
    print(bring(checkpoint, repo, scores=scores if scores.is_file() else None, private=private))


def _conversion(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The folder or file as published.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; it must not exist yet.")],
) -> None:
    kind = context.info_name
    getattr(import_module(f"perceptio_core.convert.{kind}"), f"convert_{kind}")(source, out)
    print(out)
    sys.stdout.flush()


for name, line in _CONVERSIONS.items():
    more = "Loads tensors only and runs no code of the checkpoint; a key too many, too few or of another shape is named."
    convert.command(name, short_help=line, help=f"{line}. {more}")(_conversion)
