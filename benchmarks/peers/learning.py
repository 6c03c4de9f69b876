"""Teacher, codebook, co-training and answers beside their peers, with what a demo has made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.comparing import Figure, Program, compare
from benchmarks.peers.found import Found


def codebook(artifacts: Path, *, steps: int, repeats: int) -> Iterator[Found]:
    """Equal steps of the same auto-encoder on the same batches: speed, error and use of the codes.

    Args:
        artifacts: of a profile, made.
        steps: of each run.
        repeats: runs of each.
    """
    arguments = (str(artifacts), str(steps))
    figures = [
        Figure(f"codebook, {steps} steps", "steps/s", lambda printed: steps / printed["seconds"]),
        Figure(f"codebook after {steps} steps: exactness", "1 / MSE", lambda printed: 1 / printed["mse"]),
        Figure(f"codebook after {steps} steps: codes in use", "%", lambda printed: 100 * printed["used"]),
    ]
    yield from compare(
        figures,
        ours=Program("perceptio", "perceptio_codebook.py", arguments),
        peers=[Program("vector-quantize-pytorch", "vector_quantize_codebook.py", arguments)],
        repeats=repeats,
    )


def training(artifacts: Path, *, steps: int, repeats: int) -> Iterator[Found]:
    """Steps of the variant without perception tokens: useful tokens a second.

    Args:
        artifacts: of a profile, made.
        steps: of each run.
        repeats: runs of each.
    """
    arguments = (str(artifacts), str(steps))
    what = f"co-training, {artifacts.name}'s mix without perception tokens"
    yield from compare(
        [Figure(what, "useful tokens/s", lambda printed: printed["read"] / printed["seconds"])],
        ours=Program("perceptio", "perceptio_training.py", arguments),
        peers=[Program("transformers", "trainer_training.py", arguments)],
        repeats=repeats,
    )


def teacher(artifacts: Path, *, pictures: Path, count: int, repeats: int) -> Iterator[Found]:
    """Photographs in, a shard of 16-bit depth maps out.

    Args:
        artifacts: of a profile, made; its teacher.
        pictures: folder of JPEG photographs.
        count: photographs.
        repeats: runs of each.
    """
    arguments = (str(artifacts / "foundations" / "depth_anything"), str(pictures), str(count))
    yield from compare(
        [Figure(f"{artifacts.name}'s teacher, photographs", "images/s", lambda printed: count / printed["seconds"])],
        ours=Program("perceptio", "perceptio_teacher.py", arguments),
        peers=[Program("transformers", "transformers_teacher.py", arguments)],
        repeats=repeats,
    )


def answers(artifacts: Path, *, count: int, repeats: int) -> Iterator[Found]:
    """HardBLINK's questions, each answer with a depth span and text, the same to the last id: one at a time and 32 at a time.

    Args:
        artifacts: of a profile, made.
        count: questions.
        repeats: runs of each.
    """
    for size in (1, 32):
        arguments = (str(artifacts), str(size), str(count))
        yield from compare(
            [Figure(f"answers with depth tokens, {size} at a time", "questions/s", lambda printed: count / printed["seconds"])],
            ours=Program("perceptio", "answers.py", ("perceptio", *arguments)),
            peers=[Program("transformers", "answers.py", ("transformers", *arguments))],
            repeats=repeats,
        )
