"""The sub-commands about answers to benchmarks: scored, compared, exported."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()

Benchmark = Annotated[
    str, typer.Argument(metavar="BENCHMARK", help="Such as hardblink, mme, mmbench, refcoco_val; a wrong name lists all.")
]
Predictions = Annotated[Path, typer.Option(metavar="PATH", help="The answers: a file, or MME's folder.")]
Root = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The folder that holds the benchmarks' official files (default: the answers' own file where it holds the right "
        "answers, as MME's and MMBench's do; else the active profile's benchmark of that name).",
    ),
]


@commands.command()
def score(
    benchmark: Benchmark,
    predictions: Predictions,
    root: Root = None,
    protocol: Annotated[
        str | None, typer.Option(metavar="NAME", help="For RefCOCO, by whose rules: canonical, lisa, sa2va, xsam.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of {name, value, low, high, n, protocol}.")] = False,
) -> None:
    """Score a file of answers without the model, ours or anyone's official result file."""
    from pipeline.score import score as by_the_rules

    by_the_rules(benchmark, predictions=predictions, root=root, protocol=protocol, as_json=as_json)


@commands.command()
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="Such as artifacts/mini/evaluate/full/predictions/hardblink.jsonl.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another model's answers to the same questions.")],
) -> None:
    """Compare two predictions files of one benchmark, question by question."""
    from perceptio_core.evaluation.statistics.compare import compare as paired

    print(paired(first, second))


@commands.command()
def export(
    benchmark: Benchmark,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="New .xlsx or .tsv (tables), .jsonl, .json, or folder (MME, HardBLINK)."),
    ],
    predictions: Predictions,
    root: Root = None,
) -> None:
    """Write answers as the files that the benchmarks' own tools and servers take."""
    from pipeline.score import export as write

    write(benchmark, predictions=predictions, root=root, out=out)
