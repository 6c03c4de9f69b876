"""Stage `report`: one page with every figure, curve and picture of a run."""

import base64
import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data.manifest.manifest import data_root
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.teacher import Teacher
from perceptio_core.params.report import ReportParams
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.values import read_values
from perceptio_core.report.figures import MAIN, Figure, gather, write_figures
from perceptio_core.report.page import Content, page
from perceptio_core.report.panels import read_panels
from perceptio_core.report.plots import read_curves
from perceptio_core.report.provenance import git_state, read_lock
from perceptio_core.report.published import read_published
from perceptio_core.report.readme_figure import readme_figure
from stages.common import StagePaths, fingerprint, publish, stage_arguments

DESCRIPTION = """Make the report of a run.

Reads   artifacts/<profile>/{sources,foundations,depth_codebook,cotrain,evaluate}, joint_shards/index.json,
        docs/published.json, dvc.lock, and of the parameters `active` and the section `report`.
Does    gathers the headline figures of every variant, draws curves, masks and depth maps, and says which stage, hashes and
        parameters each number comes from.
Writes  artifacts/<profile>/report/
          report.html    one self-contained page
          metrics.json   headline figures as a list of {name, value, low, high, n, protocol}
          summary.json   the same as {name: value}, for `dvc metrics`
          figure.png     image, mask, depth and answer of one question
"""


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
    evaluations = {variant: paths.made("evaluate", variant) for variant in variants}
    figures = gather(
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
        root=data_root(values.section("sources", SourcesParams), paths.made("sources")),
        count=params.max_panels,
        decode_depth=lambda codes: decode(list(codes)),
        teacher=look,
    )
    with (folder / "plots" / "codes.csv").open(newline="", encoding="utf-8") as stream:
        usage = [float(row["uses"]) for row in csv.DictReader(stream)]
    trained = {variant: paths.made("cotrain", variant) for variant in variants}
    lock = Path("dvc.lock")
    content = Content(
        title=params.title,
        caveat=params.caveat,
        profile=values.profile,
        commit=git_state(folder=Path()),
        figures=figures,
        control="control" if "control" in variants else None,
        parts={name: _parts(path) for name, path in evaluations.items()},
        published=read_published(Path("docs/published.json")),
        data=json.loads((paths.made("sources") / "metrics.json").read_text(encoding="utf-8")),
        realised=json.loads((paths.made("joint_shards") / "index.json").read_text(encoding="utf-8"))["data"],
        curves={name: read_curves(path / "curves") for name, path in trained.items()},
        training={name: json.loads((path / "metrics.json").read_text(encoding="utf-8")) for name, path in trained.items()},
        usage=usage,
        samples=_data_uri(folder / "samples.png"),
        panels=panels,
        stages=read_lock(path=lock, outputs=paths.out("sources").parent) if lock.is_file() else [],
    )
    work = paths.work("report", fingerprint(params, folder, *evaluations.values()))
    shutil.rmtree(work)
    work.mkdir()
    (work / "report.html").write_text(page(content), encoding="utf-8")
    (work / "figure.png").write_bytes(readme_figure(panels))
    write_figures(figures=figures, folder=work)
    publish(work, paths.out("report"))


def _parts(folder: Path) -> list[Figure]:
    lines = (folder / "breakdown.jsonl").read_text(encoding="utf-8").split("\n")  # splitlines takes more for a line's end
    return [Figure(**json.loads(line)) for line in lines if line]


def _data_uri(path: Path) -> str:
    with Image.open(path) as image:
        stream = io.BytesIO()
        image.save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


if __name__ == "__main__":
    main()
