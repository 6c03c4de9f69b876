"""Second phase of mini's InternVL (ours): generic language about procedural scenes.

With the vision tower frozen, the projector learns to put image tokens near the words for what they show (`alignment`); then
projector and language model learn to answer generic questions (captions, colours, shapes, counts, cells, marker letters).
Depth, depth order and segmentation are never asked.
"""

# ruff: noqa: N815 (shape suffixes of fields are upper case)

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from perceptio_core.data import markers as marker_language
from perceptio_core.data.markers import Marker
from perceptio_core.foundations.alignment import WordAlignment
from perceptio_core.foundations.cache import SceneCache
from perceptio_core.foundations.pointing import GATHERING, LOOKING, Attention, pointers, pointing_loss
from perceptio_core.foundations.run import PretrainingRun
from perceptio_core.foundations.vision_tower import (
    dense_batch,
    marked_images,
    pixel_tensor,
    random_markers,
    tower_config,
)
from perceptio_core.scenes.language import conversations, foundation_question, lookups, squares
from perceptio_core.scenes.render import Rendering
from perceptio_core.scenes.view import look

log = logging.getLogger(__name__)
SIZE, PATCH = 128, 16
IMAGE_TOKENS = (SIZE // PATCH) ** 2
VOCABULARY = 900
ALIGNMENT, POINTING = 0.3, 0.5  # weights of the helper losses
TURNS = 4  # questions about each image of a step
LOOKUP_SHARE, LOOKUP_TURNS = 0.4, 8  # the first steps ask many of the simplest questions about each image
SQUARES_SHARE = 0.15  # of the dialogues: what is in each square of the image
LONG_ANSWER = 16  # tokens; each token of a longer answer weighs as one of such an answer
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
# phrases of co-training, so that the tokenizer does not spell them out byte by byte; no answer to them is ever shown
REQUESTS = (
    marker_language.QUESTION,
    "What is the depth map for the image?",
    "Please segment the object in this image.",
    "Sure, it is",
)


def train_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of VOCABULARY tokens with InternVL's special tokens; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )


def model_config(tokenizer: PreTrainedTokenizerFast) -> InternVLConfig:
    """A 4.1 M-parameter InternVL: the tower of `vision_tower`, 64 image tokens, a four-layer Qwen2."""
    return InternVLConfig(
        vision_config=tower_config(),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=1.0,
        tie_word_embeddings=False,
    )


@torch.no_grad()
def initialise_language(model: InternVLForConditionalGeneration, *, gain: float = 8.0, copy: float = 0.5) -> None:
    """Start the language model at "look at tokens like yourself, and copy what they hold".

    In the manner of the mimetic initialisation of Trockman and Kolter (arXiv 2305.09828): queries near `gain` times the keys,
    output projections near `copy` times the transposed values. Image tokens are drawn to the words for what they show
    (`WordAlignment`), so a word of a question finds its place in the image from the first step on. Embeddings have unit
    variance: of smaller ones the first layer's output leaves no trace.
    """
    model.get_input_embeddings().weight.normal_()
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        attention.q_proj.weight.mul_(0.5).add_(gain * attention.k_proj.weight)
        values_HD = attention.v_proj.weight
        attention.o_proj.weight.mul_(0.5).add_(copy * values_HD.T / values_HD.square().sum(1).mean())


def dialogue(
    cache: SceneCache, index: int, markers: list[Marker], rng: np.random.Generator, turns: int, *, simple: bool = False
) -> list[tuple[str, str]]:
    """Generic questions and answers about one cached scene; `simple`: `lookups` in place of the full variety."""
    rendering, world = rendering_of(cache, index), cache.world(index)
    if rng.random() < SQUARES_SHARE:
        return [squares(world, rendering, rng)]
    if simple:
        return lookups(world, rendering, rng, turns, markers)
    if not markers:
        return conversations(world, rendering, rng, turns)
    return [foundation_question(world, rendering, rng, markers) for _ in range(turns)]


def rendering_of(cache: SceneCache, index: int) -> Rendering:
    """The cached rendering of a scene."""
    return Rendering(
        image=np.asarray(cache.images[index]),
        depth=np.asarray(cache.depth[index]),
        instances=np.asarray(cache.instances[index]),
    )


def _prompt(question: str, *, first: bool) -> str:
    image = f"<img>{'<IMG_CONTEXT>' * IMAGE_TOKENS}</img>\n" if first else ""
    return f"<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"


Encoded = tuple[list[int], list[float]]


def encode(tokenizer: PreTrainedTokenizerFast, turns: list[tuple[str, str]]) -> Encoded:
    """Token ids of a whole dialogue about one image, and the weight of each in the loss: the tokens of an answer and its end
    share a weight of 1 (more, if they are more than LONG_ANSWER), so that one word of colour counts as much as a caption;
    all others have none.
    """
    ids: list[int] = []
    weights: list[float] = []
    for number, (question, answer) in enumerate(turns):
        prompt = tokenizer.encode(_prompt(question, first=number == 0))
        reply = tokenizer.encode(f"{answer}<|im_end|>")
        newline = tokenizer.encode("\n")
        ids += prompt + reply + newline
        share = 1.0 / min(len(reply), LONG_ANSWER)
        weights += [0.0] * len(prompt) + [share] * len(reply) + [0.0] * len(newline)
    return ids, weights


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
    rng = np.random.default_rng(seed)
    corpus = [text for i in range(1500) for turn in dialogue(train, i, random_markers(SIZE, rng), rng, 3) for text in turn]
    corpus += [text for i in range(1500, 2500) for turn in dialogue(train, i, [], rng, 4) for text in turn]
    tokenizer = train_tokenizer([*corpus, *REQUESTS * 50])
    model = InternVLForConditionalGeneration(model_config(tokenizer))
    initialise_language(model)
    model.model.vision_tower.load_state_dict(load_file(tower / "tower.safetensors"))
    model.model.vision_tower.requires_grad_(False)
    alignment = WordAlignment(tokenizer)
    seen: dict[int, np.ndarray] = {}
    align_projector(model, alignment, train=train, steps=align_steps, seed=seed, work=work / "alignment", seen=seen)
    run = PretrainingRun(modules={"model": model}, steps=steps, lr=lr, warmup=100, weight_decay=0.05, work=work)
    for step in run.steps_left():
        rng = np.random.default_rng((seed, 1, step))
        indices = rng.choice(len(train.images), batch, replace=False)
        points = [random_markers(SIZE, rng) if rng.random() < 0.5 else [] for _ in indices]
        simple = step < LOOKUP_SHARE * steps
        turns = LOOKUP_TURNS if simple else TURNS
        dialogues = [dialogue(train, int(i), p, rng, turns, simple=simple) for i, p in zip(indices, points, strict=True)]
        rows = [encode(tokenizer, turns_of_one) for turns_of_one in dialogues]
        images, targets = dense_batch(train, indices, points, patch=PATCH, attribute_rows=seen)
        written = forward(model, tokenizer, pixel_tensor(images), rows)
        logits, truth, weight = written.logits_SV, written.truth_S, written.weight_S
        loss = (F.cross_entropy(logits, truth, reduction="none") * weight).sum() / weight.sum()
        aligned, words_right = alignment(written.projected_BND, model.get_input_embeddings().weight, targets)
        first_image = rows[0][0].index(model.config.image_token_id)
        words, patches = answer_places(tokenizer, train, indices, points, dialogues, first_image=first_image)
        gathered, gathers_right = pointing_loss(model, written.hidden[GATHERING], words, layer=GATHERING)
        looked, looks_right = pointing_loss(model, written.hidden[LOOKING], patches, layer=LOOKING)
        right = ((logits.argmax(-1) == truth) * weight).sum().item() / weight.sum().item()
        run.update(
            loss + ALIGNMENT * aligned + POINTING * (gathered + looked),
            {"lm": loss.item(), "tokens": right, "words": words_right, "gathers": gathers_right, "looks": looks_right},
        )
    run.finish()
    return model, tokenizer


@dataclass(frozen=True, kw_only=True)
class Written:
    """Logits at the S supervised places, the tokens there and their weights; the projected image tokens; the input of each
    layer.
    """

    logits_SV: Tensor
    truth_S: Tensor
    weight_S: Tensor
    projected_BND: Tensor
    hidden: tuple[Tensor, ...]


def forward(
    model: InternVLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pixels: Tensor,
    rows: list[Encoded],
    *,
    inputs: list[list[int]] | None = None,
) -> Written:
    """Run the model over encoded dialogues about the images in `pixels`, one each. `inputs`: ids that it is given in place of
    those it is to predict.
    """
    ids = padded([row for row, _ in rows], tokenizer.pad_token_id)
    given = ids if inputs is None else padded(inputs, tokenizer.pad_token_id)
    weights = padded([row for _, row in rows], 0.0)
    features = model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
    embeddings = model.get_input_embeddings()(given)
    projected = model.model.multi_modal_projector(features)
    embeddings = embeddings.masked_scatter((ids == model.config.image_token_id)[..., None], projected)
    mask = (torch.arange(ids.shape[1]) < torch.tensor([len(row) for row, _ in rows])[:, None]).long()
    states = model.model.language_model(inputs_embeds=embeddings, attention_mask=mask, output_hidden_states=True)
    where = weights[:, 1:] > 0
    return Written(
        logits_SV=model.lm_head(states.last_hidden_state[:, :-1][where]),
        truth_S=ids[:, 1:][where],
        weight_S=weights[:, 1:][where],
        projected_BND=projected,
        hidden=states.hidden_states,
    )


def answer_places(
    tokenizer: PreTrainedTokenizerFast,
    cache: SceneCache,
    indices: np.ndarray,
    markers: list[list[Marker]],
    dialogues: list[list[tuple[str, str]]],
    *,
    first_image: int,
) -> tuple[Attention, Attention]:
    """What the places where a batch's answers are predicted should attend to: the words of the names in the question, and
    the patches that show what they name.
    """
    words: list[tuple[int, int, list[int]]] = []
    patches: list[tuple[int, int, list[int]]] = []
    longest = 0
    for row, (index, points, turns) in enumerate(zip(indices.tolist(), markers, dialogues, strict=True)):
        rendering = rendering_of(cache, index)
        view, start = look(cache.world(index), rendering), 0
        for number, (question, answer) in enumerate(turns):
            prompt = _prompt(question, first=number == 0)
            spans = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
            begin, reply = prompt.rindex(question), len(tokenizer.encode(f"{answer}<|im_end|>"))
            found = pointers(question, view=view, instances_HW=rendering.instances, markers=points)
            if found:
                asked = [(begin + first, begin + last) for pointer in found for first, last in pointer.words]
                tokens = [start + i for i, (a, b) in enumerate(spans) if any(a < last and b > first for first, last in asked)]
                shown = first_image + np.flatnonzero(np.any([pointer.patches for pointer in found], axis=0))
                places = range(start + len(spans) - 1, start + len(spans) + reply - 2)
                words += [(row, place, tokens) for place in places]
                patches += [(row, place, shown.tolist()) for place in places]
            start += len(spans) + reply + len(tokenizer.encode("\n"))
        longest = max(longest, start)
    return _attention(words, longest), _attention(patches, longest)


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
    """Share of whole answers right under teacher forcing, by kind of picture, on 400 validation scenes."""
    scores = {}
    for kind in ("plain", "marked"):
        right = total = 0
        for start in range(0, min(400, len(val.images)), 25):
            rng = np.random.default_rng((11, start))
            indices = np.arange(start, start + 25)
            points = [random_markers(SIZE, rng) if kind == "marked" else [] for _ in indices]
            rows = [encode(tokenizer, dialogue(val, int(i), p, rng, 1)) for i, p in zip(indices, points, strict=True)]
            written = forward(model, tokenizer, pixel_tensor(marked_images(val, indices, points)), rows)
            hits = (written.logits_SV.argmax(-1) == written.truth_S).tolist()
            for _, row in rows:
                length = sum(weight > 0 for weight in row)
                right += all(hits[:length])
                total += 1
                hits = hits[length:]
        scores[f"answers_{kind}"] = round(100 * right / total, 1)
    return scores
