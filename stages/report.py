"""Stage `report`: one page with every metric, curve and picture of a run."""

import csv
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data.manifest.manifest import data_root
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.teacher import Teacher
from perceptio_core.jsonl import read_jsonl
from perceptio_core.metrics import Metric, read_metrics, write_metrics
from perceptio_core.params.report import ReportParams
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.values import read_values
from perceptio_core.report.headline import MAIN, gather
from perceptio_core.report.page import Content, Input, page
from perceptio_core.report.panels import read_panels
from perceptio_core.report.pictures import data_uri
from perceptio_core.report.published import read_published
from perceptio_core.report.readme_figure import readme_figure
from perceptio_core.report.tables import CONTROLS
from perceptio_core.training.curve_files import read_curves
from stages.common import StagePaths, fingerprint, publish, stage_arguments

DESCRIPTION = """Make the report of a run.

Reads   artifacts/<profile>/{sources,foundations,depth_codebook,cotrain,evaluate}, joint_shards/index.json,
        docs/published.json, and of the parameters `active` and the section `report`.
Does    gathers the headline metrics of every variant, draws curves, masks and depth maps, and names the files that each
        comes from with their hashes. The same inputs give the same bytes.
Writes  artifacts/<profile>/report/
          report.html    one self-contained page
          metrics.json   headline metrics as a list of {name, value, low, high, n, chance, protocol}
          summary.json   the same as {name: value}, for `dvc metrics`
          figure.png     image, mask, depth and answer of one question
"""
PUBLISHED = Path("docs/published.json")


def main() -> None:
    """Run the stage."""
    arguments = stage_arguments(DESCRIPTION)
    values = read_values(arguments.params)
    params, paths = values.section("report", ReportParams), StagePaths(values.profile)
    paths.claim("report")
    variants = values.plain["active"]
    if MAIN not in variants:
        raise ValueError(f"{values.path}: active: {', '.join(variants)}; a report needs {MAIN} among them")
    folder = paths.made("depth_codebook")
    sources, shards = paths.made("sources"), paths.made("joint_shards")
    evaluations = {variant: paths.made("evaluate", variant) for variant in variants}
    trained = {variant: paths.made("cotrain", variant) for variant in variants}
    metrics = gather(
        codebook=folder / "metrics.json", evaluations={name: path / "metrics.json" for name, path in evaluations.items()}
    )
    codebook = DepthCodebook.from_pretrained(folder)
    teacher = Teacher.from_pretrained(paths.made("foundations") / "depth_anything")

    def decode(codes: list[int]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return codebook.decode(torch.tensor([codes]))[0, 0].numpy()

    def look(image: Image.Image) -> NDArray[np.float32]:
        return teacher.inverse_depth([teacher.pixels(image)], [(image.height, image.width)])[0]

    panels = read_panels(
        path=evaluations[MAIN] / "panels.jsonl",
        root=data_root(values.section("sources", SourcesParams), sources),
        count=params.max_panels,
        decode_depth=lambda codes: decode(list(codes)),
        teacher=look,
    )
    with (folder / "plots" / "codes.csv").open(newline="", encoding="utf-8") as stream:
        usage = [float(row["uses"]) for row in csv.DictReader(stream)]
    with Image.open(folder / "samples.png") as image:
        samples = data_uri(image.convert("RGB"))
    gives = {
        sources / "metrics.json": "how many images there are",
        folder / "metrics.json": "metrics of the codebook",
        folder / "plots" / "codes.csv": "uses of its codes",
        shards / "index.json": "what training drew from",
        **{path / "metrics.json": f"training of {name}" for name, path in trained.items()},
        **{path / "metrics.json": f"metrics of {name}" for name, path in evaluations.items()},
        **{path / "breakdown.jsonl": f"parts of the metrics of {name}" for name, path in evaluations.items()},
        evaluations[MAIN] / "panels.jsonl": "questions and answers that are shown",
        PUBLISHED: "published figures",
    }
    content = Content(
        title=params.title,
        caveat=params.caveat,
        profile=values.profile,
        metrics=metrics,
        controls=[control for control in CONTROLS if control.variant in variants],
        parts={
            name: [Metric(**row) for row in read_jsonl(path / "breakdown.jsonl", keys=("name", "value"))]
            for name, path in evaluations.items()
        },
        published=read_published(PUBLISHED),
        counts=_by_name(sources / "metrics.json"),
        realised=json.loads((shards / "index.json").read_text(encoding="utf-8"))["data"],
        curves={name: read_curves(path / "curves") for name, path in trained.items()},
        training={name: _by_name(path / "metrics.json") for name, path in trained.items()},
        usage=usage,
        samples=samples,
        panels=panels,
        inputs=[Input(path=file.as_posix(), sha256=_sha256(file), gives=words) for file, words in gives.items()],
    )
    work = paths.work("report", fingerprint(params, folder, *evaluations.values()))
    shutil.rmtree(work)
    work.mkdir()
    (work / "report.html").write_text(page(content), encoding="utf-8")
    (work / "figure.png").write_bytes(readme_figure(panels))
    write_metrics(work, metrics)
    publish(work, paths.out("report"))
    logging.getLogger("report").info("%d numbers, %d questions with their answers", len(metrics), len(panels))


def _by_name(file: Path) -> Mapping[str, float]:
    return {metric.name: metric.value for metric in read_metrics(file)}


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
