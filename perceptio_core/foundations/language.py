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
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from perceptio_core.data.markers import Marker
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
from perceptio_core.foundations.vision_tower import dense_batch, marked_images, pixel_tensor, random_markers
from perceptio_core.scenes.view import look
from perceptio_core.training.precision import detect_precision

log = logging.getLogger(__name__)
ALIGNMENT, POINTING, BOXES, GROWTH = 0.1, 0.5, 0.2, 1.0  # weights of the helper losses
LARGEST = 3.0  # root mean square of a hidden state, in units of the embeddings
TURNS, SIMPLE_TURNS = 4, 6  # about each image of a step
MARKED_SHARE = 0.3  # share of the images with markers
TOWER_RATE = 0.3  # learning rate of the vision tower, as a share of the others'
BOX_SCALE = 0.05  # share of the picture by which a box may be off before the loss grows linearly


def padded(rows: list[list[int]] | list[list[float]], filler: float) -> Tensor:
    """Right-padded matrix."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def align_projector(
    model: InternVLForConditionalGeneration,
    alignment: WordAlignment,
    *,
    train: SceneCache,
    steps: int,
    seed: int,
    work: Path,
    seen: dict[int, np.ndarray],
) -> None:
    """Teach the projector alone, in place, to put image tokens near the (still random) embeddings of their words."""
    projector, words = model.model.multi_modal_projector, model.get_input_embeddings().weight.detach()
    run = PretrainingRun(modules={"projector": projector}, steps=steps, lr=3e-3, warmup=20, weight_decay=0.01, work=work)
    for step in run.steps_left():
        rng = np.random.default_rng((seed, 2, step))
        indices = rng.choice(len(train.images), 32, replace=False)
        points = [random_markers(SIZE, rng) if rng.random() < 0.7 else [] for _ in indices]
        images, targets = dense_batch(train, indices, points, patch=PATCH, attribute_rows=seen)
        with torch.no_grad():
            features = model.model.vision_tower(pixel_values=pixel_tensor(images)).last_hidden_state[:, 1:]
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
) -> tuple[InternVLForConditionalGeneration, PreTrainedTokenizerFast]:
    """Second phase, from the vision tower in the folder `tower`."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(train, seed)
    model = InternVLForConditionalGeneration(model_config(tokenizer))
    initialise_language(model)
    model.model.vision_tower.load_state_dict(load_file(tower / "tower.safetensors"))
    boxes = nn.Linear(model.config.text_config.hidden_size, 4)
    alignment = WordAlignment(tokenizer)
    seen: dict[int, np.ndarray] = {}
    align_projector(model, alignment, train=train, steps=align_steps, seed=seed, work=work / "alignment", seen=seen)
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
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=detect_precision() == "bf16")
    for step in run.steps_left():
        rng = np.random.default_rng((seed, 1, step))
        indices = rng.choice(len(train.images), batch, replace=False)
        points = [random_markers(SIZE, rng) if rng.random() < MARKED_SHARE else [] for _ in indices]
        progress = step / steps
        model.model.vision_tower.requires_grad_(progress >= SIMPLE)
        turns = SIMPLE_TURNS if progress < SIMPLE else TURNS
        dialogues = [
            dialogue(train, int(i), p, rng, turns=turns, progress=progress) for i, p in zip(indices, points, strict=True)
        ]
        rows = [encode(tokenizer, turns_of_one, rng) for turns_of_one in dialogues]
        images, targets = dense_batch(train, indices, points, patch=PATCH, attribute_rows=seen)
        with autocast:
            written = forward(model, tokenizer, pixel_tensor(images), rows)
        loss = (F.cross_entropy(written.logits_SV, written.truth_S, reduction="none") * written.weight_S).sum()
        loss = loss / written.weight_S.sum()
        aligned, words_right = alignment(written.projected_BND, model.get_input_embeddings().weight, targets)
        figures = {
            "lm": loss.item(),
            "rms": float(written.hidden[-2].detach().square().mean().sqrt()),
            "tokens": written.right(),
            "words": words_right,
        }
        total = loss + ALIGNMENT * aligned + GROWTH * growth(written.hidden)
        first_image = rows[0].ids.index(model.config.image_token_id)
        wanted = wanted_attention(tokenizer, train, indices, points, dialogues, rows, first_image=first_image)
        for (layer, heads), attention in wanted.items():
            if len(attention.row_M):
                pointed, share = pointing_loss(model, written.hidden[layer], attention, layer=layer, heads=heads)
                total = total + POINTING * pointed
                figures[f"attention_{layer}_{heads.start}"] = share
        where, truth_M4 = boxes_of(dialogues, rows)
        if len(truth_M4):
            off_M4 = boxes(written.last_BTD[where]) - truth_M4
            total = total + BOXES * F.smooth_l1_loss(off_M4, torch.zeros_like(off_M4), beta=BOX_SCALE) / BOX_SCALE
            figures["box_off"] = float(off_M4[:, :2].detach().abs().mean())
        run.update(total, figures)
    run.finish()
    return model, tokenizer


@dataclass(frozen=True, kw_only=True)
class Written:
    """Logits at the S supervised places, the tokens there and their weights; the projected image tokens; the input of each
    layer; the last layer's output, normalised.
    """

    logits_SV: Tensor
    truth_S: Tensor
    weight_S: Tensor
    projected_BND: Tensor
    hidden: tuple[Tensor, ...]
    last_BTD: Tensor

    def right(self) -> float:
        """Weighted share of the tokens that are predicted."""
        hits_S = self.logits_SV.detach().argmax(-1) == self.truth_S
        return float((hits_S * self.weight_S).sum() / self.weight_S.sum())


def forward(
    model: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pixels: Tensor, rows: Sequence[Encoded]
) -> Written:
    """Run the model over encoded dialogues about the images in `pixels`, one each."""
    ids = padded([row.ids for row in rows], tokenizer.pad_token_id)
    heard = padded([row.heard for row in rows], tokenizer.pad_token_id)
    weights = padded([row.weights for row in rows], 0.0)
    features = model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
    embeddings = model.get_input_embeddings()(heard)
    projected = model.model.multi_modal_projector(features)
    embeddings = embeddings.masked_scatter((ids == model.config.image_token_id)[..., None], projected.to(embeddings.dtype))
    mask = (torch.arange(ids.shape[1]) < torch.tensor([len(row.ids) for row in rows])[:, None]).long()
    states = model.model.language_model(inputs_embeds=embeddings, attention_mask=mask, output_hidden_states=True)
    where = weights[:, 1:] > 0
    return Written(
        logits_SV=model.lm_head(states.last_hidden_state[:, :-1][where]).float(),
        truth_S=ids[:, 1:][where],
        weight_S=weights[:, 1:][where],
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
            text = prompt(turn.question, first=order == 0)
            spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            begin = text.rindex(turn.question)
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
            written = forward(model, tokenizer, pixel_tensor(marked_images(val, indices, points)), rows)
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
