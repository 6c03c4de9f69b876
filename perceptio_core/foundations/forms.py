"""Third phase of mini's InternVL (ours): the forms of answers that co-training will fill with perception tokens.

A real InternVL has read millions of answers of every form; to mini's, a long answer that goes through the picture square by
square, or a token it has never seen where an answer begins, would be new. So it writes raster maps of colours and shapes at
the places of a sequence where co-training writes depth codes, and finds objects at the place of ``[SEG]``. Most tokens of these
answers are replaced by random ones on the input side (word dropout, arXiv 1511.06349): what is to be read next then follows
from the place alone, as it must for tokens that are added later. Still nothing of depth, depth order or masks.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from perceptio_core.data.markers import QUESTION, Marker
from perceptio_core.foundations.cache import SceneCache
from perceptio_core.foundations.language import (
    PATCH,
    POINTING,
    SIZE,
    SPECIAL,
    TURNS,
    Encoded,
    answer_places,
    dialogue,
    encode,
    forward,
    rendering_of,
)
from perceptio_core.foundations.pointing import GATHERING, LOOKING, pointing_loss
from perceptio_core.foundations.run import PretrainingRun
from perceptio_core.foundations.vision_tower import dense_batch, pixel_tensor, random_markers
from perceptio_core.scenes.expressions import referring_expressions
from perceptio_core.scenes.language import CAPTION_REQUESTS, SQUARES, raster
from perceptio_core.scenes.subjects import pick
from perceptio_core.scenes.view import look

LEAD = ":"  # stands where a perception span begins
MARKED = QUESTION[: QUESTION.index("Which point")]
MAPS, FINDS = 0.45, 0.3  # shares of the dialogues; the others are those of the phase before
REPLACED = 0.6  # share of the answers' tokens that are random on the input side


def form(cache: SceneCache, index: int, markers: list[Marker], rng: np.random.Generator) -> tuple[str, str] | None:
    """A question of a form to come, and its answer; None where the picture holds nothing to be found."""
    world, rendering = cache.world(index), rendering_of(cache, index)
    if rng.random() < MAPS / (MAPS + FINDS):
        kind = pick(tuple(SQUARES), rng)
        if markers:
            question = f"{MARKED}Which is the {kind} map for the image?"
        else:
            # a few other lengths of question: the squares must be found from there, too
            before = f"{pick(CAPTION_REQUESTS, rng)} " if rng.random() < 0.25 else ""
            question = f"{before}What is the {kind} map for the image?"
        return question, f"{LEAD} {raster(world, rendering, kind)}"
    view = look(world, rendering)
    if not view.objects:
        return None
    target = view.objects[int(rng.integers(len(view.objects)))]
    for expression in referring_expressions(view=view, target=target, rng=rng, count=1):
        return f"Please find {expression} in this image.", f"{LEAD}{target.cell[0]}, {target.cell[1]}"
    return None


def heard(row: Encoded, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator) -> list[int]:
    """The ids of a dialogue with the first token of the answer, and REPLACED of the others, exchanged for random ones."""
    ids = np.array(row[0])
    answer = np.flatnonzero(row[1])
    replaced = answer[(rng.random(len(answer)) < REPLACED) | (answer == answer[0])]
    ids[replaced] = rng.integers(len(SPECIAL), len(tokenizer), len(replaced))
    return [int(i) for i in ids]


def pretrain_forms(
    model: InternVLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    train: SceneCache,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    work: Path,
) -> None:
    """Train projector and language model further, in place."""
    seen: dict[int, np.ndarray] = {}
    run = PretrainingRun(modules={"model": model}, steps=steps, lr=lr, warmup=30, weight_decay=0.05, work=work)
    for step in run.steps_left():
        rng = np.random.default_rng((seed, 3, step))
        indices = rng.choice(len(train.images), batch, replace=False)
        points = [random_markers(SIZE, rng) if rng.random() < 0.5 else [] for _ in indices]
        dialogues, inputs = [], []
        for index, markers in zip(indices.tolist(), points, strict=True):
            asked = form(train, index, markers, rng) if rng.random() < MAPS + FINDS else None
            dialogues.append([asked] if asked else dialogue(train, index, markers, rng, TURNS))
            row = encode(tokenizer, dialogues[-1])
            inputs.append(heard(row, tokenizer, rng) if asked else row[0])
        rows = [encode(tokenizer, turns) for turns in dialogues]
        images, _ = dense_batch(train, indices, points, patch=PATCH, attribute_rows=seen)
        written = forward(model, tokenizer, pixel_tensor(images), rows, inputs=inputs)
        loss = (F.cross_entropy(written.logits_SV, written.truth_S, reduction="none") * written.weight_S).sum()
        loss = loss / written.weight_S.sum()
        first_image = rows[0][0].index(model.config.image_token_id)
        words, patches = answer_places(tokenizer, train, indices, points, dialogues, first_image=first_image)
        gathered, _ = pointing_loss(model, written.hidden[GATHERING], words, layer=GATHERING)
        looked, looks_right = pointing_loss(model, written.hidden[LOOKING], patches, layer=LOOKING)
        with torch.no_grad():
            right = ((written.logits_SV.argmax(-1) == written.truth_S) * written.weight_S).sum() / written.weight_S.sum()
        run.update(loss + POINTING * (gathered + looked), {"lm": loss.item(), "tokens": right.item(), "looks": looks_right})
    run.finish()
