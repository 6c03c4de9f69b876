"""From a benchmark's parameters to the benchmark: the one place that knows which class reads which kind."""

from __future__ import annotations

from pathlib import Path

from perceptio_core.evaluation.benchmarks.ai2d import AI2D
from perceptio_core.evaluation.benchmarks.benchmark import Benchmark
from perceptio_core.evaluation.benchmarks.blink import BlinkDepth
from perceptio_core.evaluation.benchmarks.grefcoco import GeneralisedReferring
from perceptio_core.evaluation.benchmarks.hardblink import SUBSETS, HardBlink
from perceptio_core.evaluation.benchmarks.mmbench import MMBench
from perceptio_core.evaluation.benchmarks.mme import MME
from perceptio_core.evaluation.benchmarks.own import OwnMasks, OwnQuestions
from perceptio_core.evaluation.benchmarks.reason_seg import ReasonSeg
from perceptio_core.evaluation.benchmarks.res import ReferringSegmentation
from perceptio_core.evaluation.benchmarks.scienceqa import ScienceQA
from perceptio_core.evaluation.benchmarks.seed_bench import SeedImage
from perceptio_core.params.evaluate import BenchmarkParams


def load_benchmark(params: BenchmarkParams, *, root: Path, pictures: bool = True) -> Benchmark:
    """Read one benchmark's official files below the data root.

    Args:
        params: which one.
        root: data root.
        pictures: whether the pictures are wanted; to score answers none is needed (but reasonseg's, for their sizes).

    Raises:
        ValueError: they are missing or malformed.
    """
    path = root / params.path
    images = None if params.images is None else root / params.images
    match params.kind:
        case "refer":
            assert params.split is not None  # checked with the parameters
            return ReferringSegmentation(
                path,
                split=params.split,
                split_by=params.split_by,
                images=images,
                name=params.label,
                protocol=params.protocol,
                limit=params.limit,
            )
        case "grefcoco":
            assert params.split is not None  # checked with the parameters
            return GeneralisedReferring(path, split=params.split, images=images, name=params.label, limit=params.limit)
        case "reasonseg":
            return ReasonSeg(path, name=params.label, limit=params.limit)
        case "hardblink":
            subsets = SUBSETS if params.split is None else (int(params.split),)
            return HardBlink(path, limit=params.limit, subsets=subsets)
        case "blink_depth":
            return BlinkDepth(path, limit=params.limit)
        case "mmbench":
            return MMBench(path, split=params.split, limit=params.limit, pictures=pictures)
        case "seedbench":
            return SeedImage(path, limit=params.limit, pictures=pictures)
        case "mme":
            return MME(path, limit=params.limit, pictures=pictures)
        case "ai2d":
            return AI2D(path, limit=params.limit, pictures=pictures)
        case "scienceqa":
            return ScienceQA(path, split=params.split, limit=params.limit, pictures=pictures)
        case "questions":
            return OwnQuestions(params, root=root)
        case "masks":
            return OwnMasks(params, root=root)
