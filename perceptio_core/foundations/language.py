"""Second phase of mini's InternVL (ours): generic language about procedural scenes.

With the vision tower frozen, the projector learns to put image tokens near the words for what they show (`alignment`); then
projector and language model learn to answer what `dialogues` asks: at first only to go through the picture square by square,
then to look up single things, at last everything, and from then on the vision tower learns with them. Depth, depth order and
masks are never asked.
"""

# ruff: noqa: N815 (shape suffixes of fields are upper case)

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from perceptio_core.data.shards.markers import Marker
from perceptio_core.foundations.alignment import WordAlignment
from perceptio_core.foundations.cache import SceneCache
from perceptio_core.foundations.dialogues import SIMPLE, Encoded, Turn, dialogue, encode, prompt, rendering_of
from perceptio_core.foundations.internvl_model import (
    PATCH,
    REQUESTS,
    SIZE,
    initialise_language,
    model_config,
    train_tokenizer,
)
from perceptio_core.foundations.pointing import (
    CHOOSING,
    GATHERING,
    HEADS,
    LOOKING,
    READING_HEADS,
    Attention,
    pointers,
    pointing_loss,
)
from perceptio_core.foundations.run import PretrainingRun
from perceptio_core.foundations.vision_tower import DenseTargets, dense_batch, marked_images, pixel_tensor, random_markers
from perceptio_core.scenes.view import look
from perceptio_core.training.precision import detect_precision
from perceptio_core.weights import load_exactly, read_safetensors

log = logging.getLogger(__name__)
ALIGNMENT, POINTING, BOXES, GROWTH = 0.1, 0.5, 0.2, 1.0  # weights of the helper losses
LARGEST = 3.0  # root mean square of a hidden state, in units of the embeddings
TURNS, SIMPLE_TURNS = 4, 6  # about each image of a step
MARKED_SHARE = 0.3  # share of the images with markers
TOWER_RATE = 0.3  # learning rate of the vision tower, as a share of the others'
BOX_SCALE = 0.05  # share of the picture by which a box may be off before the loss grows linearly


class Dialogues(NamedTuple):
    """B encoded dialogues of at most T tokens, right-padded, about one image each.

    Attributes:
        images_BHW3: uint8, markers drawn in.
        ids_BT, heard_BT: int64; what is said, and what the model is given in its place.
        row_S, token_S, weight_S: the S tokens that are predicted, and their weights in the loss.
    """

    images_BHW3: Tensor
    ids_BT: Tensor
    heard_BT: Tensor
    row_S: Tensor
    token_S: Tensor
    weight_S: Tensor


class LanguageBatch(NamedTuple):
    """What one step learns from.

    Attributes:
        dialogues: what is said.
        targets: of the dense tasks, for the helper that ties image tokens to words.
        wanted: what heads of a layer (by number, and the first of the heads) should attend to.
        box_row_M, box_token_M, box_M4: places of the leads of finds, and the boxes of what is to be found.
    """

    dialogues: Dialogues
    targets: DenseTargets
    wanted: dict[tuple[int, range], Attention]
    box_row_M: Tensor
    box_token_M: Tensor
    box_M4: Tensor


def padded_dialogues(images_BHW3: Tensor, rows: Sequence[Encoded], *, pad: int) -> Dialogues:
    """Encoded dialogues as tensors. There is no attention mask: what pads stands after all that attends."""
    longest = max(len(row.ids) for row in rows)
    ids, heard = (
        torch.tensor([said + [pad] * (longest - len(said)) for said in texts])
        for texts in ([row.ids for row in rows], [row.heard for row in rows])
    )
    weights_BT = torch.tensor([row.weights + [0.0] * (longest - len(row.ids)) for row in rows])
    row_S, token_S = torch.nonzero(weights_BT, as_tuple=True)
    return Dialogues(
        images_BHW3=images_BHW3,
        ids_BT=ids,
        heard_BT=heard,
        row_S=row_S,
        token_S=token_S,
        weight_S=weights_BT[row_S, token_S],
    )


def align_projector(
    model: InternVLForConditionalGeneration,
    alignment: WordAlignment,
    *,
    train: SceneCache,
    steps: int,
    seed: int,
    work: Path,
    workers: int,
) -> None:
    """Teach the projector alone, in place, to put image tokens near the (still random) embeddings of their words."""
    projector = model.model.multi_modal_projector
    run = PretrainingRun(modules={"projector": projector}, steps=steps, lr=3e-3, warmup=20, weight_decay=0.01, work=work)
    vision_tower = model.model.vision_tower.to(run.device)
    words = model.get_input_embeddings().weight.detach().to(run.device)

    def make(step: int) -> tuple[Tensor, DenseTargets]:
        rng = np.random.default_rng((seed, 2, step))
        indices = rng.choice(len(train.images), 32, replace=False)
        points = [random_markers(SIZE, rng) if rng.random() < 0.7 else [] for _ in indices]
        return dense_batch(train, indices, points, patch=PATCH)

    for _, (images, targets) in run.batches(make, workers=workers):
        with torch.no_grad():
            features = vision_tower(pixel_values=pixel_tensor(images)).last_hidden_state[:, 1:]
        loss, right = alignment(projector(features), words, targets)
        run.update(loss, {"words_right": right})
    run.finish()


def make_tokenizer(train: SceneCache, seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer of all that is said in pretraining, and of co-training's requests."""
    rng = np.random.default_rng(seed)
    corpus = list(REQUESTS) * 50
    for index in range(2500):
        points = random_markers(SIZE, rng) if index < 1500 else []
        for turn in dialogue(train, index, points, rng, turns=TURNS, progress=1.0):
            corpus += [turn.question, turn.answer, "".join(f" {word}" for word in turn.squares)]
    return train_tokenizer(corpus)


def pretrain_language(
    *,
    train: SceneCache,
    tower: Path,
    align_steps: int,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    work: Path,
    workers: int,
) -> tuple[InternVLForConditionalGeneration, PreTrainedTokenizerFast]:
    """Second phase, from the vision tower in the folder `tower`; `workers` processes prepare batches."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(train, seed)
    model = InternVLForConditionalGeneration(model_config(tokenizer))
    initialise_language(model)
    weights = tower / "tower.safetensors"
    load_exactly(model.model.vision_tower, read_safetensors(weights), source=weights)
    boxes = nn.Linear(model.config.text_config.hidden_size, 4)
    alignment = WordAlignment(tokenizer)
    align_projector(model, alignment, train=train, steps=align_steps, seed=seed, work=work / "alignment", workers=workers)
    run = PretrainingRun(
        modules={"model": model, "boxes": boxes},
        steps=steps,
        lr=lr,
        warmup=30,
        weight_decay=0.05,
        work=work,
        slow=model.model.vision_tower,
        slow_rate=TOWER_RATE,
    )

    def make(step: int) -> LanguageBatch:
        rng = np.random.default_rng((seed, 1, step))
        return language_batch(tokenizer, train, rng, batch=batch, progress=step / steps)

    # On GPUs so small a model waits for its kernels to be launched, and casts are more of them.
    bf16 = run.device.type == "cpu" and detect_precision() == "bf16"
    for step, learned in run.batches(make, workers=workers):
        model.model.vision_tower.requires_grad_(step / steps >= SIMPLE)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
            written = forward(model, learned.dialogues)
        weight_S = learned.dialogues.weight_S
        loss = (F.cross_entropy(written.logits_SV, written.truth_S, reduction="none") * weight_S).sum() / weight_S.sum()
        aligned, words_right = alignment(written.projected_BND, model.get_input_embeddings().weight, learned.targets)
        figures: dict[str, Tensor | float] = {
            "lm": loss,
            "rms": written.hidden[-2].detach().square().mean().sqrt(),
            "tokens": written.right(weight_S),
            "words": words_right,
        }
        total = loss + ALIGNMENT * aligned + GROWTH * growth(written.hidden)
        for (layer, heads), attention in learned.wanted.items():
            if len(attention.row_M):
                pointed, share = pointing_loss(model, written.hidden[layer], attention, layer=layer, heads=heads)
                total = total + POINTING * pointed
                figures[f"attention_{layer}_{heads.start}"] = share
        if len(learned.box_M4):
            off_M4 = boxes(written.last_BTD[learned.box_row_M, learned.box_token_M]) - learned.box_M4
            total = total + BOXES * F.smooth_l1_loss(off_M4, torch.zeros_like(off_M4), beta=BOX_SCALE) / BOX_SCALE
            figures["box_off"] = off_M4[:, :2].detach().abs().mean()
        run.update(total, figures)
    run.finish()
    return model, tokenizer


def language_batch(
    tokenizer: PreTrainedTokenizerFast, train: SceneCache, rng: np.random.Generator, *, batch: int, progress: float
) -> LanguageBatch:
    """Random scenes, and dialogues about them as they are drawn at a share `progress` of the steps."""
    indices = rng.choice(len(train.images), batch, replace=False)
    points = [random_markers(SIZE, rng) if rng.random() < MARKED_SHARE else [] for _ in indices]
    turns = SIMPLE_TURNS if progress < SIMPLE else TURNS
    dialogues = [dialogue(train, int(i), p, rng, turns=turns, progress=progress) for i, p in zip(indices, points, strict=True)]
    rows = [encode(tokenizer, turns_of_one, rng) for turns_of_one in dialogues]
    images, targets = dense_batch(train, indices, points, patch=PATCH)
    first_image = rows[0].ids.index(tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))
    (box_row_M, box_token_M), box_M4 = boxes_of(dialogues, rows)
    return LanguageBatch(
        dialogues=padded_dialogues(images, rows, pad=tokenizer.pad_token_id),
        targets=targets,
        wanted=wanted_attention(tokenizer, train, indices, points, dialogues, rows, first_image=first_image),
        box_row_M=box_row_M,
        box_token_M=box_token_M,
        box_M4=box_M4,
    )


@dataclass(frozen=True, kw_only=True)
class Written:
    """Logits of the S predicted tokens, and what they are; the projected image tokens; the input of each layer; the last
    layer's output, normalised.
    """

    logits_SV: Tensor
    truth_S: Tensor
    projected_BND: Tensor
    hidden: tuple[Tensor, ...]
    last_BTD: Tensor

    def right(self, weight_S: Tensor) -> Tensor:
        """Weighted share of the tokens that are predicted rightly."""
        hits_S = self.logits_SV.detach().argmax(-1) == self.truth_S
        return (hits_S * weight_S).sum() / weight_S.sum()


def forward(model: InternVLForConditionalGeneration, dialogues: Dialogues) -> Written:
    """Run the model over encoded dialogues."""
    features = model.model.vision_tower(pixel_values=pixel_tensor(dialogues.images_BHW3)).last_hidden_state[:, 1:]
    embeddings = model.get_input_embeddings()(dialogues.heard_BT)
    projected = model.model.multi_modal_projector(features)
    shows_BT = dialogues.ids_BT == model.config.image_token_id
    embeddings = embeddings.masked_scatter(shows_BT[..., None], projected.to(embeddings.dtype))
    states = model.model.language_model(inputs_embeds=embeddings, output_hidden_states=True)
    return Written(
        logits_SV=model.lm_head(states.last_hidden_state[dialogues.row_S, dialogues.token_S - 1]).float(),
        truth_S=dialogues.ids_BT[dialogues.row_S, dialogues.token_S],
        projected_BND=projected.float(),
        hidden=states.hidden_states,
        last_BTD=states.last_hidden_state,
    )


def growth(hidden: Sequence[Tensor]) -> Tensor:
    """Mean square of what the hidden states (each (B, T, D)) exceed LARGEST by.

    A small model at a high learning rate lets its first layer write ever more of the same into every token, which costs it
    nothing, as each layer normalises what it reads; after some hundred steps nothing is left of what the tokens mean.
    """
    sizes = torch.stack([states_BTD.square().mean(-1).clamp(min=1e-6).sqrt() for states_BTD in hidden[1:-1]])
    return F.relu(sizes - LARGEST).square().mean()


def boxes_of(dialogues: Sequence[Sequence[Turn]], rows: Sequence[Encoded]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The places (row, token) of the leads of all finds, and the boxes (M, 4) of what is to be found."""
    entries = [
        (number, places[1], turn.box)
        for number, (turns, row) in enumerate(zip(dialogues, rows, strict=True))
        for turn, places in zip(turns, row.answers, strict=True)
        if turn.box is not None
    ]
    rows_M, tokens_M = (torch.tensor([entry[column] for entry in entries], dtype=torch.int64) for column in (0, 1))
    return (rows_M, tokens_M), torch.tensor([entry[2] for entry in entries]).reshape(-1, 4)


def wanted_attention(
    tokenizer: PreTrainedTokenizerFast,
    cache: SceneCache,
    indices: np.ndarray,
    markers: Sequence[list[Marker]],
    dialogues: Sequence[Sequence[Turn]],
    rows: Sequence[Encoded],
    *,
    first_image: int,
) -> dict[tuple[int, range], Attention]:
    """By layer and heads, what the places from which a batch's answers are predicted should attend to: the words of the names
    in the question, the patches that show what they name, and among these (or the words of a drawn map for these) those that
    the answer is about. And what the words of maps should attend to: the patches that they stand for.
    """
    gathering, looking, choosing = (GATHERING, HEADS), (LOOKING, HEADS), (CHOOSING, HEADS)
    reading = (LOOKING, READING_HEADS)
    entries: dict[tuple[int, range], list[tuple[int, int, list[int]]]] = {
        gathering: [],
        looking: [],
        choosing: [],
        reading: [],
    }
    for number, (index, points, turns, row) in enumerate(zip(indices.tolist(), markers, dialogues, rows, strict=True)):
        rendering = rendering_of(cache, index)
        view = look(cache.world(index), rendering)
        entries[reading] += [(number, place, [first_image + square]) for square, place in enumerate(row.squares)]
        for order, (turn, places, start) in enumerate(zip(turns, row.answers, row.prompts, strict=True)):
            spans, begin = _spans(tokenizer, turn.question, first=order == 0)
            found = pointers(turn.question, view=view, instances_HW=rendering.instances, markers=points)
            if found:
                asked = [(begin + first, begin + last) for pointer in found for first, last in pointer.words]
                tokens = [start + i for i, (a, b) in enumerate(spans) if any(a < last and b > first for first, last in asked)]
                shown = first_image + np.flatnonzero(np.any([pointer.patches for pointer in found], axis=0))
                entries[gathering] += [(number, place, tokens) for place in places]
                entries[looking] += [(number, place, shown.tolist()) for place in places]
            if turn.chosen_N is not None:
                squares = np.flatnonzero(turn.chosen_N).tolist()
                chosen = [row.squares[square] if turn.drawn else first_image + square for square in squares]
                entries[choosing] += [(number, place, chosen) for place in places]
    longest = max(len(row.ids) for row in rows)
    return {where: _attention(places, longest) for where, places in entries.items()}


@lru_cache(maxsize=4096)
def _spans(tokenizer: PreTrainedTokenizerFast, question: str, *, first: bool) -> tuple[list[tuple[int, int]], int]:
    """Where each token of a prompt begins and ends in its text, and where the question begins there."""
    text = prompt(question, first=first)
    return tokenizer(text, return_offsets_mapping=True)["offset_mapping"], text.rindex(question)


def _attention(entries: list[tuple[int, int, list[int]]], length: int) -> Attention:
    wanted_MT = torch.zeros(len(entries), length, dtype=torch.bool)
    for number, (_, _, targets) in enumerate(entries):
        wanted_MT[number, targets] = True
    rows, tokens = (torch.tensor([entry[column] for entry in entries], dtype=torch.int64) for column in (0, 1))
    return Attention(row_M=rows, token_M=tokens, wanted_MT=wanted_MT)


@torch.no_grad()
def language_scores(
    model: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, val: SceneCache
) -> dict[str, float]:
    """Shares in percent under teacher forcing, on 400 validation scenes: whole answers right by kind of question, with and
    without markers in the picture, and squares of maps right.
    """
    hits: dict[str, list[bool]] = {}
    for start in range(0, min(400, len(val.images)), 25):
        for marked in (False, True):
            rng = np.random.default_rng((11, start, marked))
            indices = np.arange(start, start + 25)
            points = [random_markers(SIZE, rng) if marked else [] for _ in indices]
            dialogues = [dialogue(val, int(i), p, rng, turns=TURNS, progress=1.0) for i, p in zip(indices, points, strict=True)]
            rows = [encode(tokenizer, turns, rng) for turns in dialogues]
            images = torch.from_numpy(marked_images(val, indices, points))
            written = forward(model, padded_dialogues(images, rows, pad=tokenizer.pad_token_id))
            right = iter((written.logits_SV.argmax(-1) == written.truth_S).tolist())
            for turns in dialogues:
                for turn in turns:
                    lead = [next(right) for _ in range(turn.find)]
                    asked = 0 if turn.drawn or not turn.squares else len(turn.squares) + 2
                    squares = [next(right) for _ in range(asked)][1:-1]
                    answer = [next(right) for _ in range(len(tokenizer.encode(turn.answer)) + 1)]
                    hits.setdefault("map_squares", []).extend(squares)
                    choice = "read" if turn.drawn else "choose"
                    kind = "find" if lead else choice if turn.chosen_N is not None else "marked" if marked else "plain"
                    if turn.answer:
                        hits.setdefault(f"answers_{kind}", []).append(all(answer))
    return {kind: round(100 * float(np.mean(values)), 1) for kind, values in hits.items()}
