"""Stage `evaluate`: every configured benchmark, by its official rules, for one variant of the trained model."""

import logging
import shutil
from functools import partial
from pathlib import Path

from perceptio_core.data.manifest.manifest import data_root
from perceptio_core.evaluation.running.depth_codes import CodeMaker, TeacherEncoder
from perceptio_core.evaluation.running.suite import Asker, evaluate
from perceptio_core.metrics import write_metrics
from perceptio_core.model.inference import Perceptor
from perceptio_core.params.evaluate import EvaluateParams
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.teacher_depth import TeacherDepthParams
from perceptio_core.params.values import read_values
from stages.common import StagePaths, fingerprint, publish, stage_arguments
from stages.engines import engine

DESCRIPTION = """Evaluate one variant of the co-trained model.

Reads   artifacts/<profile>/cotrain/<variant>/checkpoint, and the benchmarks below the data root
        (artifacts/<profile>/sources/root, or the folder that sources.root names); for controls with the
        teacher's depth codes, artifacts/<profile>/foundations/depth_anything.
Does    generates an answer to every question (a killed run goes on where it stood) and scores it.
Writes  artifacts/<profile>/evaluate/<variant>/
          predictions/<benchmark>.jsonl  question, raw and stripped answer, masks, depth codes, expected, correct
          metrics.json                   list of {name, value, low, high, n, chance, protocol}
          summary.json                   {name: value}
          breakdown.jsonl                parts of the metrics: subsets, categories, other readings, parts of the controls
          panels.jsonl                   the questions that the report shows
          quarantine.jsonl               images that could not be read (their questions count as wrong)
"""


def main() -> None:
    """Run the stage."""
    arguments = stage_arguments(DESCRIPTION, variant=True)
    values = read_values(arguments.params)
    params, sources = values.section("evaluate", EvaluateParams), values.section("sources", SourcesParams)
    paths = StagePaths(values.profile)
    paths.claim("evaluate", arguments.variant)
    checkpoint = paths.made("cotrain", arguments.variant) / "checkpoint"
    root = data_root(sources, paths.made("sources"))
    # The manifest stands for the benchmarks' files: hashing every picture of them would take longer than it saves.
    manifest = paths.made("sources") / "images.parquet"
    teacher = paths.made("foundations") / "depth_anything"
    long_side = values.section("teacher_depth", TeacherDepthParams).long_side
    key = fingerprint(params, sources, long_side, manifest, checkpoint, teacher)
    work = paths.work("evaluate", f"{arguments.variant}-{key}")
    journals, out = work / "journals", work / "out"
    journals.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)

    metrics = evaluate(
        engine(gpu=True),
        partial(_asker, checkpoint, teacher, long_side, params),
        params,
        variant=arguments.variant,
        root=root,
        journals=journals,
        out=out,
    )
    write_metrics(out, metrics)
    answers = [file.read_bytes().count(b"\n") for file in (out / "predictions").glob("*.jsonl")]
    publish(out, paths.out("evaluate", arguments.variant))
    shutil.rmtree(work)  # kept answers would outlive a change of the model's code
    log = logging.getLogger("evaluate")
    for metric in metrics:
        interval = "" if metric.low is None else f" [{metric.low:.1f}, {metric.high:.1f}]"
        log.info("%s = %.2f%s, n = %d", metric.name, metric.value, interval, metric.n)
    log.info("%d answers to the questions of %d benchmarks", sum(answers), len(answers))


def _asker(checkpoint: Path, teacher: Path, long_side: int, params: EvaluateParams) -> Asker:
    perceptor = Perceptor.from_pretrained(checkpoint, batch_size=params.batch_size)
    codebook = perceptor.model.codebook
    codes = CodeMaker(
        encode=TeacherEncoder(teacher=teacher, codebook=codebook, long_side=long_side),
        num_codes=codebook.num_codes,
        depth_tokens=perceptor.model.config.depth_tokens,
        seed=params.seed,
    )
    return Asker(perceptor.predict, params, codes)


if __name__ == "__main__":
    main()
