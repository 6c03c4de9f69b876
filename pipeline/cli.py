"""The command ``perceptio``: the pipeline or a stage, what a file came from, a model asked or published, answers
scored, compared or exported, a conversion, shards brought to a store.
"""

from __future__ import annotations

import argparse
import ast
import errno
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from perceptio_core.params.values import PARAMS, SECTIONS, read_values

if TYPE_CHECKING:
    from pipeline.dag import Plan  # brings DVC, which takes seconds

ROOT = Path(__file__).resolve().parent.parent
CONVERSIONS = {
    "internvl": "an InternVL2.5 or InternVL3 folder in OpenGVLab's original format -> a native `transformers` folder",
    "sam2": "a SAM2 checkpoint (.pt), or a folder of transformers' Sam2Model -> config.json and model.safetensors",
    "codebook": "the depth VQ-VAE of AURORA or MolmoAct (vae-final.pt) -> a depth codebook folder",
    "sa2va": "a Sa2VA folder on InternVL -> internvl/ and sam2/ for co-training, its [SEG] and prompt MLP included",
}
_PREDICT_USAGE = """perceptio predict [options] PICTURE... QUESTION
       perceptio predict [options] PICTURE... -q QUESTION [-q QUESTION ...]"""


def main() -> None:
    """Entry point; exits with 2 for a mistake in the command or the parameters, and 1 for a stage that failed."""
    stages = {stage: _first_line(stage) for stage in SECTIONS}
    parser = argparse.ArgumentParser(prog="perceptio", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    repro = commands.add_parser("repro", help="bring every stage up to date, from raw images to the report")
    repro.add_argument(
        "stages",
        nargs="*",
        metavar="STAGE",
        help="only these, and what they read from, as in evaluate@full; cotrain and evaluate stand for all their variants",
    )
    repro.add_argument("--force", action="store_true", help="run these stages (default: all) even if nothing has changed")
    repro.add_argument("--profile", help="write the values of profiles/PROFILE.yaml into params.yaml")
    repro.add_argument("--variants", help="the variants to train, as in full,control, or all (writes params.yaml)")
    repro.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a value, as in cotrain.steps=20; may be given several times (writes params.yaml)",
    )

    new = commands.add_parser("new", help="make a profile for your own pictures and questions, and say what it assumes")
    new.add_argument("name", metavar="NAME", help="of the profile: writes profiles/NAME.yaml")
    new.add_argument("--pictures", type=Path, required=True, metavar="FOLDER", help="your pictures")
    new.add_argument(
        "--questions", type=Path, metavar="TABLE", help=".csv, .tsv, .jsonl or .parquet: image, question, answer, maybe mask"
    )
    new.add_argument("--coco", type=Path, metavar="FILE", help="objects of the pictures in COCO's instances format")
    new.add_argument(
        "--base", metavar="PROFILE", help="take models and sizes from it, as perceptio-1b (default: the small ones)"
    )
    new.add_argument("--steps", type=int, metavar="N", help="of the training (default: by the number of questions)")

    predict = commands.add_parser(
        "predict", help="answer questions about pictures; write masks and depth maps as pictures", usage=_PREDICT_USAGE
    )
    predict.add_argument("paths", nargs="+", metavar="PICTURE", help="pictures and folders of them, the question behind them")
    predict.add_argument(
        "-q", "--question", action="append", metavar="QUESTION", help="asked of every picture; may be given several times"
    )
    predict.add_argument(
        "--checkpoint", help="folder, or OWNER/NAME on the hub (default: artifacts/<active profile>/cotrain/full/checkpoint)"
    )
    predict.add_argument("--out", type=Path, default=Path(), help="folder for masks and depth maps (default: this one)")
    predict.add_argument("--json", action="store_true", help="print a line of JSON per picture and question")
    predict.add_argument("--device", help="such as cpu or cuda:1 (default: the GPU where there is one)")
    predict.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="(default: as the checkpoint was saved)")

    publish = commands.add_parser("publish", help="bring a trained checkpoint, its scores in its card, to the Hugging Face hub")
    publish.add_argument("repo", metavar="OWNER/NAME", help="made if absent")
    publish.add_argument("--variant", default="full", help="of the active profile (default: full)")
    publish.add_argument("--private", action="store_true", help="a repository that is made is private")

    run = commands.add_parser("run", help="run one stage through dvc, here or on a cluster; what it reads must be up to date")
    run.add_argument("stage", metavar="STAGE", help="as in evaluate@full; cotrain stands for all its variants, one by one")
    run.add_argument("--on", dest="launcher", help="local, ray, slurm or kubernetes (default: as in machine.yaml, else local)")
    run.add_argument("--address", help="of a Ray that is there, HOST:PORT (default: one for the stage alone, on this machine)")
    run.add_argument("--nodes", type=int, help="of the cluster: for cotrain, and for all stages that Ray can take")
    run.add_argument("--force", action="store_true", help="run it even if nothing has changed")

    lineage = commands.add_parser("lineage", help="show everything that a file below artifacts/ was made from")
    lineage.add_argument("path", type=Path, metavar="PATH", help="such as artifacts/mini/report/metrics.json")

    ui = commands.add_parser("ui", help="serve Prefect's pages on this machine: runs, logs, and what came from what")
    ui.add_argument("--port", type=_port, default=4200, help="on 127.0.0.1 (default: 4200)")

    against = commands.add_parser("compare", help="compare two predictions files of one benchmark, question by question")
    against.add_argument(
        "first", type=Path, metavar="A", help="such as artifacts/mini/evaluate/full/predictions/hardblink.jsonl"
    )
    against.add_argument("second", type=Path, metavar="B", help="another model's answers to the same questions")

    score = commands.add_parser(
        "score", help="score a file of answers without the model, ours or anyone's official result file"
    )
    score.add_argument(
        "benchmark", metavar="BENCHMARK", help="such as hardblink, mme, mmbench, refcoco_val; a wrong name lists all"
    )
    score.add_argument("--predictions", type=Path, required=True, metavar="PATH", help="the answers: a file, or MME's folder")
    score.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="the folder that holds the benchmarks' official files (default: the answers' own file where it holds the right "
        "answers, as MME's and MMBench's do; else the active profile's benchmark of that name)",
    )
    score.add_argument("--protocol", metavar="NAME", help="for RefCOCO, by whose rules: canonical, lisa, sa2va, xsam")
    score.add_argument("--json", action="store_true", help="print a list of {name, value, low, high, n, protocol}")

    exported = commands.add_parser("export", help="write answers as the files that the benchmarks' own tools and servers take")
    exported.add_argument("benchmark", metavar="BENCHMARK", help="as for score")
    exported.add_argument("--predictions", type=Path, required=True, metavar="PATH", help="the answers, as for score")
    exported.add_argument("--root", type=Path, metavar="DIR", help="as for score")
    exported.add_argument(
        "out", type=Path, metavar="OUT", help="new .xlsx or .tsv (tables), .jsonl, .json, or folder (MME, HardBLINK)"
    )

    shards = commands.add_parser("shards", help="bring the training's shards to an S3-compatible store (docs/storage.md)")
    push = shards.add_subparsers(dest="action", required=True, metavar="push").add_parser(
        "push", help="copy what joint_shards made; what is there already stays, and a killed copy goes on where it stood"
    )
    push.add_argument("store", metavar="STORE", help="s3://BUCKET[/PREFIX]; endpoint and credentials from the AWS_ variables")
    push.add_argument("--profile", help="whose shards (default: the active profile's)")

    data = commands.add_parser("data", help="get and check the data that a profile reads, before anything runs (docs/data.md)")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    checked = actions.add_parser(
        "check", help="what is there, can be read, is missing and where to get it, and the disk it takes"
    )
    got = actions.add_parser("get", help="fetch what is missing from where its makers serve it, and lay it out")
    for action in (checked, got):
        action.add_argument("--profile", help="profiles/PROFILE.yaml (default: the active one)")
    got.add_argument("--only", metavar="NAMES", help="only these data sets, benchmarks or archives, as in refcoco,coco")
    got.add_argument("--accept-licences", action="store_true", help="accept the licences that it names, without being asked")

    cleaning = commands.add_parser("clean", help="list the unfinished work in .work/, and remove what no run will go on with")
    cleaning.add_argument("--yes", action="store_true", help="remove it; without this nothing is touched")
    cleaning.add_argument("--all", action="store_true", help="also what the next run would go on with")

    convert = commands.add_parser("convert", help="bring a foreign checkpoint into the form that the stages read")
    kinds = convert.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, line in CONVERSIONS.items():
        conversion = kinds.add_parser(
            kind,
            help=line,
            description=f"{line}. Loads tensors only and runs no code of the checkpoint; a key too many, too few or of another "
            "shape is an error that names it.",
        )
        conversion.add_argument("source", type=Path, metavar="SOURCE", help="the folder or file as published")
        conversion.add_argument("out", type=Path, metavar="OUT", help="the folder to make; it must not exist yet")

    for stage, line in stages.items():
        commands.add_parser(stage, help=line, add_help=False)  # the stage explains itself

    arguments, rest = parser.parse_known_args()
    if arguments.command in stages:
        sys.argv = [f"perceptio {arguments.command}", *rest]
        runpy.run_module(f"stages.{arguments.command}", run_name="__main__")
        return
    if arguments.command == "predict" and not any(text.startswith("-") for text in rest):
        arguments.paths, rest = [*arguments.paths, *rest], []  # argparse leaves what comes behind an option
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        _COMMANDS[arguments.command](arguments)
        sys.stdout.flush()
    except (ValueError, FileNotFoundError) as error:
        print(f"perceptio: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # as `| head` leaves; what Python would still flush at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        print(f"perceptio: {error.filename}: {error.strerror}; whoever runs this must be able to write there", file=sys.stderr)
        sys.exit(2)


def _repro(arguments: argparse.Namespace) -> None:
    from pipeline.settings import prepare_environment, select

    start = time.monotonic()
    active = select(
        profile=arguments.profile,
        variants=arguments.variants.split(",") if arguments.variants else None,
        changes=arguments.changes,
    )
    prepare_environment()
    from pipeline.dag import plan
    from pipeline.launch.clusters import cluster_for
    from pipeline.machine import Launch, read_machine

    what = ", ".join(arguments.stages) or "Every stage"
    machine = read_machine()
    planned = plan(wanted=arguments.stages, force=arguments.force)
    for stage in sorted({name.partition("@")[0] for name in planned.stale | planned.forced}):
        cluster_for(stage, machine.launch.get(stage, Launch()))  # a refusal comes before DVC removes the stage's output
    if planned.stale or planned.forced:
        from pipeline.preflight import look_ahead

        look_ahead(planned, profile=active, machine=machine)
        from pipeline.flow import reproduce  # brings Prefect, which takes seconds

        try:
            outcome = reproduce(planned, profile=active.name, limits=machine.limits)
        except KeyboardInterrupt:
            sys.exit("perceptio: stopped; the same command goes on where this one stood")
        if outcome.failures:
            print(f"perceptio: a stage failed; its lines above say more:\n{outcome.failures}", file=sys.stderr)
        else:
            print(f"\n{what} of profile {active.name} is up to date after {(time.monotonic() - start) / 60:.1f} min.\n")
            _headline(planned, active.name)
        if outcome.server_lost:
            print("perceptio: Prefect's server was lost; once up again, `perceptio ui` shows the stages", file=sys.stderr)
            sys.stdout.flush()
            os._exit(int(outcome.failures is not None))  # else Prefect would try for minutes to tell the server the rest
        if outcome.failures:
            sys.exit(1)
    else:
        print(f"Nothing to do: {what[0].lower() + what[1:]} of profile {active.name} is up to date.\n")
        _headline(planned, active.name)


def _headline(planned: Plan, profile: str) -> None:
    if any(node.name == "report" for node in planned.stages):
        from pipeline.results import headline

        print(headline(profile))


def _new(arguments: argparse.Namespace) -> None:
    from pipeline.new import BUNDLED, new

    new(
        arguments.name,
        pictures=arguments.pictures,
        questions=arguments.questions,
        coco=arguments.coco,
        base=arguments.base or BUNDLED,
        steps=arguments.steps,
    )


def _run(arguments: argparse.Namespace) -> None:
    from pipeline.settings import prepare_environment

    prepare_environment()
    from pipeline.dag import plan, repro_command
    from pipeline.launch.clusters import cluster_for
    from pipeline.machine import launching, read_machine

    planned = plan(wanted=[arguments.stage], force=True)
    if before := sorted(planned.stale - planned.forced):
        raise ValueError(
            f"{arguments.stage} reads from {', '.join(before)}, which `perceptio repro` must bring up to date first"
        )
    changed = {name: value for name in ("launcher", "address", "nodes") if (value := getattr(arguments, name)) is not None}
    if arguments.launcher in ("local", "ray"):
        changed.setdefault("nodes", 1)  # machine.yaml's are of its cluster
    stage = arguments.stage.partition("@")[0]
    with launching(stage, **changed):
        cluster_for(stage, read_machine().launch[stage])  # a refusal comes before DVC removes the stage's output
        for node in planned.stages:
            if node.name not in planned.forced:
                continue
            command = repro_command(node.name, *(["--force"] if arguments.force else []))
            with subprocess.Popen(command) as child:
                try:
                    code = child.wait()
                except KeyboardInterrupt:
                    child.wait()  # Ctrl-C has reached the stage as well: it cancels its job and ends
                    sys.exit("perceptio: stopped; the same command goes on where this one stood")
            if code != 0:
                sys.exit(f"perceptio: {node.name} failed; its lines above say why")


def _lineage(arguments: argparse.Namespace) -> None:
    from pipeline.lineage.graph import LineageGraph
    from pipeline.lineage.tree import lineage_tree

    print(lineage_tree(arguments.path, graph=LineageGraph.from_lock()))


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port; allowed are 1 to 65535")
    return int(text)


def _ui(arguments: argparse.Namespace) -> None:
    from pipeline.settings import prepare_environment

    prepare_environment()
    from pipeline.ui import serve

    serve(profile=read_values().profile, port=arguments.port)


def _predict(arguments: argparse.Namespace) -> None:
    from stages.common import StagePaths

    *paths, last = arguments.paths
    questions = arguments.question or []
    if questions:
        paths = [*paths, last]
    elif not paths or Path(last).exists():
        raise ValueError(f"{last}: the last argument is the question, or --question gives one or several")
    else:
        questions = [last]
    if arguments.checkpoint is None and not PARAMS.is_file():
        raise ValueError(f"there is no {PARAMS} here that says which model was trained: name one by --checkpoint")
    checkpoint = arguments.checkpoint or StagePaths(read_values().profile).out("cotrain", "full") / "checkpoint"
    from pipeline.predict import predict  # brings torch, which takes seconds

    read = predict(
        paths=[Path(path) for path in paths],
        questions=questions,
        checkpoint=checkpoint,
        out=arguments.out,
        as_json=arguments.json,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    if not read:
        sys.exit(1)


def _publish(arguments: argparse.Namespace) -> None:
    from pipeline.publish import publish
    from stages.common import StagePaths

    paths = StagePaths(read_values().profile)
    checkpoint = paths.made("cotrain", arguments.variant) / "checkpoint"
    scores = paths.out("evaluate", arguments.variant) / "metrics.json"
    print(publish(checkpoint, arguments.repo, scores=scores if scores.is_file() else None, private=arguments.private))


def _compare(arguments: argparse.Namespace) -> None:
    from perceptio_core.evaluation.statistics.compare import compare

    print(compare(arguments.first, arguments.second))


def _score(arguments: argparse.Namespace) -> None:
    from pipeline.score import score

    score(
        arguments.benchmark,
        predictions=arguments.predictions,
        root=arguments.root,
        protocol=arguments.protocol,
        as_json=arguments.json,
    )


def _export(arguments: argparse.Namespace) -> None:
    from pipeline.score import export

    export(arguments.benchmark, predictions=arguments.predictions, root=arguments.root, out=arguments.out)


def _shards(arguments: argparse.Namespace) -> None:
    from perceptio_core.data.shards.remote import RemoteShards, StoreError
    from stages.common import StagePaths

    folder = StagePaths(arguments.profile or read_values().profile).out("joint_shards")
    remote = RemoteShards(store=arguments.store, folder=folder)
    try:
        remote.push()
    except StoreError as error:
        sys.exit(f"perceptio: {error}; the same command goes on where this one stood")
    print(remote.url)


def _data(arguments: argparse.Namespace) -> None:
    if arguments.action == "check":
        from pipeline.data_check import check

        well = check(arguments.profile)
    else:
        from pipeline.data_get import get

        well = get(
            arguments.profile, only=arguments.only.split(",") if arguments.only else (), accept=arguments.accept_licences
        )
    if not well:
        sys.exit(1)


def _clean(arguments: argparse.Namespace) -> None:
    from pipeline.clean import clean

    clean(remove=arguments.yes, everything=arguments.all)


def _convert(arguments: argparse.Namespace) -> None:
    from importlib import import_module

    module = import_module(f"perceptio_core.convert.{arguments.kind}")
    getattr(module, f"convert_{arguments.kind}")(arguments.source, arguments.out)
    print(arguments.out)


_COMMANDS = {
    "new": _new,
    "repro": _repro,
    "run": _run,
    "lineage": _lineage,
    "ui": _ui,
    "predict": _predict,
    "publish": _publish,
    "compare": _compare,
    "score": _score,
    "export": _export,
    "convert": _convert,
    "shards": _shards,
    "data": _data,
    "clean": _clean,
}


def _first_line(stage: str) -> str:
    """What a stage does: the first line of its module's docstring, read without importing it."""
    source = (ROOT / "stages" / f"{stage}.py").read_text(encoding="utf-8")
    text = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    return text.partition(": ")[2] or text


if __name__ == "__main__":
    main()
