"""Asking a checkpoint: what is forced is there, and answers, masks and depth maps are those of plain passes one by one."""

from __future__ import annotations

import re
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from perceptio_core.grammar import strip_perception
from perceptio_core.model.decoding import MAX_MASKS, GrammarLogitsProcessor
from perceptio_core.model.inference import Perceptor, Prediction
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.processing import PerceptioProcessor
from perceptio_core.segmentation.bridge import sam2_pixels, to_original
from tiny import MASK_TOLERANCE, lively, telling_masks, tiny_perceptio

QUESTIONS = ["Which point is the closest to the camera?", "yes", "Please segment the ball."]


@pytest.fixture(scope="module")
def perceptor(tmp_path_factory: pytest.TempPathFactory) -> Perceptor:
    model, processor = tiny_perceptio(tmp_path_factory.mktemp("tiny"), tied=False)
    return Perceptor(model=lively(model), processor=processor, batch_size=2)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in [(40, 48), (32, 32), (20, 60)]]


@pytest.fixture(scope="module")
def forced(perceptor: Perceptor, images: list[Image.Image]) -> list[Prediction]:
    """Answers with both spans, written two at a time."""
    with telling_masks(perceptor.model):
        return perceptor.predict(images, QUESTIONS, segment=True, depth=True, max_new_tokens=5)


FOLLOW_UPS = ["yes", "Please segment the ball.", "yes"]


@pytest.fixture(scope="module")
def followed(perceptor: Perceptor, images: list[Image.Image], forced: list[Prediction]) -> list[Prediction]:
    """Answers to follow-ups; the first answers, in which there are masks already, are theirs to read."""
    history = [[(question, answer.raw)] for question, answer in zip(QUESTIONS, forced, strict=True)]
    with telling_masks(perceptor.model):
        return perceptor.predict(images, FOLLOW_UPS, history=history, segment=True, depth=True, max_new_tokens=5)


def test_forced_spans_are_all_there(forced: list[Prediction], images: list[Image.Image], perceptor: Perceptor) -> None:
    assert len(forced) == 3
    for prediction, image in zip(forced, images, strict=True):
        assert prediction.raw.startswith("[SEG]")
        assert len(prediction.masks) == prediction.raw.count("[SEG]")
        assert all(mask.shape == (image.height, image.width) and mask.dtype == bool for mask in prediction.masks)
        assert prediction.depth_codes is not None
        assert prediction.depth_codes.shape == (4,)
        assert 0 <= prediction.depth_codes.min() <= prediction.depth_codes.max() < 6
        assert prediction.depth_map is not None
        assert prediction.depth_map.shape == (16, 16)
        assert prediction.depth_map.dtype == np.float32
        assert strip_perception(prediction.raw) == prediction.text
        decoded = perceptor.model.codebook.decode(torch.tensor(prediction.depth_codes)[None])[0, 0].detach().numpy()
        assert np.allclose(decoded, prediction.depth_map, atol=1e-6)


@pytest.mark.parametrize("codes", [None, [5, 0, 3, 3]])
def test_an_answer_that_is_watched_grows_to_what_predict_gives(
    perceptor: Perceptor, images: list[Image.Image], codes: list[int] | None
) -> None:
    """Tokens only come; masks are there when they are written, the depth map when all codes are."""
    options: dict[str, Any] = {"segment": True, "depth": True, "max_new_tokens": 5}
    given = None if codes is None else np.array(codes)
    several = False
    for image, question in zip(images, QUESTIONS, strict=True):
        *growing, last = perceptor.predicting(image, question, depth_codes=given, **options)
        (answer,) = perceptor.predict([image], [question], depth_codes=None if given is None else given[None], **options)
        assert (last.raw, last.text, last.passes) == (answer.raw, answer.text, answer.passes)
        assert last.depth_codes is not None
        assert last.depth_map is not None
        assert np.array_equal(last.depth_codes, answer.depth_codes)
        assert np.array_equal(last.depth_map, answer.depth_map)
        assert all((mask != other).mean() < MASK_TOLERANCE for mask, other in zip(last.masks, answer.masks, strict=True))
        assert [one.passes for one in growing] == list(range(1, len(growing) + 1))
        spans = [re.findall(r"<depth_\d+>", one.raw) for one in growing]
        for before, after in pairwise([*growing, last]):
            assert len(before.masks) <= len(after.masks)
            assert after.raw.startswith(before.raw.rstrip("\N{REPLACEMENT CHARACTER}"))
        for one, span in zip(growing, spans, strict=True):
            assert one.raw.count("[SEG]") - len(one.masks) in (0, 1), "the newest one is not read yet"
            assert (one.depth_map is not None) == ("<depth_end>" in one.raw)
            assert (0 if one.depth_codes is None else len(one.depth_codes)) == len(span)
        several |= len({len(span) for span in spans}) > 2
    assert several or codes is not None, "no span was seen to grow"


def test_the_model_may_be_forbidden_to_perceive(perceptor: Perceptor, images: list[Image.Image]) -> None:
    for prediction in perceptor.predict(images[:1], QUESTIONS[:1], segment=False, depth=False, max_new_tokens=3):
        assert prediction.masks == []
        assert prediction.depth_codes is None
        assert prediction.depth_map is None
        assert prediction.raw.strip() == prediction.text


def test_left_to_itself_it_still_follows_the_grammar(perceptor: Perceptor, images: list[Image.Image]) -> None:
    assert len(perceptor.predict(images, QUESTIONS, max_new_tokens=3)) == 3


@pytest.mark.parametrize(("segment", "masks"), [(True, [1, 2, 1]), (None, [1, 0, 1])])
def test_a_batch_answers_as_each_alone(
    perceptor: Perceptor, images: list[Image.Image], segment: bool | None, masks: list[int]
) -> None:
    """Texts, masks and depth maps; each image has its own masks also where the one before it has two, or none."""
    model, processor = perceptor.model, perceptor.processor
    with telling_masks(model):
        batch, alone = (
            Perceptor(model=model, processor=processor, batch_size=size).predict(
                images, QUESTIONS, segment=segment, depth=True, max_new_tokens=5
            )
            for size in (3, 1)
        )
    assert [len(answer.masks) for answer in batch] == masks
    assert len({answer.raw for answer in batch}) == 3
    for together, single in zip(batch, alone, strict=True):
        assert single.raw == together.raw
        for mask, other in zip(single.masks, together.masks, strict=True):
            assert (mask != other).mean() < MASK_TOLERANCE
        assert single.depth_map is not None
        assert together.depth_map is not None
        assert np.allclose(single.depth_map, together.depth_map, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("follow_up", [False, True])
def test_answers_and_masks_are_those_of_plain_passes_without_cache(
    perceptor: Perceptor,
    images: list[Image.Image],
    forced: list[Prediction],
    followed: list[Prediction],
    number: int,
    follow_up: bool,
) -> None:
    """Greedy by full passes over the unpadded sequence; each mask from the state at its own [SEG] of such a pass."""
    model, processor = perceptor.model, perceptor.processor
    config, image = model.config, images[number]
    if follow_up:
        told, prediction = [(QUESTIONS[number], forced[number].raw)], followed[number]
        prompts = processor.prompts([image], [FOLLOW_UPS[number]], history=[told])
    else:
        prediction, prompts = forced[number], processor.prompts([image], [QUESTIONS[number]])
    ids, start = prompts.input_ids_BT, prompts.input_ids_BT.shape[1]
    grammar = GrammarLogitsProcessor(
        grammar=config.grammar,
        vocabulary=config.vocabulary,
        prompt_length=start,
        end_id=config.end_token_id,
        segment=True,
        depth=True,
        max_text_tokens=5,
        never=processor.image_token_ids,
    )
    while ids[0, -1] != config.end_token_id:
        logits = model.vlm(input_ids=ids, pixel_values=prompts.pixels_PCHW).logits[:, -1]
        ids = torch.cat([ids, grammar(ids, logits).argmax(-1, keepdim=True)], dim=1)
    assert processor.decode(ids[0, start:-1].tolist()) == prediction.raw

    hidden_BTD = model.vlm.model(input_ids=ids, pixel_values=prompts.pixels_PCHW).last_hidden_state
    hidden_MD = hidden_BTD[:, start:][ids[:, start:] == config.vocabulary.seg]
    pixels = sam2_pixels([np.array(image)], size=config.sam_size)
    logits = model.bridge.masks(
        model.bridge.image_features(pixels), image_index_M=torch.zeros(len(hidden_MD), dtype=torch.int64), hidden_MD=hidden_MD
    )
    expected = to_original(logits, [(image.height, image.width)] * len(hidden_MD))
    for got, want in zip(prediction.masks, expected, strict=True):
        assert (got != want).mean() < MASK_TOLERANCE


def test_modes_of_images_and_wrong_counts(perceptor: Perceptor, images: list[Image.Image]) -> None:
    grey = perceptor.predict([images[0].convert("L")], ["yes"], segment=False, depth=False, max_new_tokens=1)
    assert len(grey) == 1
    assert perceptor.predict([], []) == []
    ramp = np.linspace(0, 65535, 48, dtype=np.uint16).reshape(6, 8)
    deep = perceptor.processor.prompts([Image.fromarray(ramp)], ["yes"]).images[0]
    np.testing.assert_array_equal(deep, np.repeat((ramp // 256)[..., None], 3, axis=2), "16 bits are scaled, not clipped")
    with pytest.raises(ValueError, match="0 images but 0 questions"):
        perceptor.processor.prompts([], [])
    with pytest.raises(ValueError, match="2 images but 1 questions"):
        perceptor.predict(images[:2], QUESTIONS[:1])
    with pytest.raises(ValueError, match="3 images but 3 questions, 1 histories"):
        perceptor.predict(images, QUESTIONS, history=[[("yes", "no")]])
    for flat in ([("yes", "no")], [["ab"]]):
        with pytest.raises(ValueError, match=r"history is a list of \(question, answer\) pairs; got"):
            perceptor.predict(images[:1], QUESTIONS[:1], history=flat)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_masks is 0; allowed is 1 or more"):
        perceptor.predict(images[:1], QUESTIONS[:1], segment=True, max_masks=0)
    with pytest.raises(ValueError, match="no trained model here"):
        Perceptor.from_pretrained("nowhere")
    for rows in (1, 4):
        codes = np.zeros((rows, 4), np.int64)
        with pytest.raises(ValueError, match=f"3 images but {rows} rows of depth codes"):
            perceptor.predict(images, QUESTIONS, depth=True, depth_codes=codes)
        with pytest.raises(ValueError, match=f"3 prompts but {rows} rows of depth codes"):
            perceptor.model.answer(perceptor.processor.prompts(images, QUESTIONS), depth=True, depth_codes=codes)


def test_masks_are_as_many_as_allowed(perceptor: Perceptor, images: list[Image.Image]) -> None:
    """The second image has two by itself."""
    with telling_masks(perceptor.model):
        free, one = (
            perceptor.predict(images, QUESTIONS, segment=True, depth=True, max_new_tokens=5, max_masks=most)
            for most in (MAX_MASKS, 1)
        )
    assert [len(answer.masks) for answer in free] == [1, 2, 1]
    assert [len(answer.masks) for answer in one] == [1, 1, 1]


def test_a_model_in_training_is_put_into_evaluation(perceptor: Perceptor) -> None:
    model = perceptor.model.train()
    assert not Perceptor(model=model, processor=perceptor.processor).model.training


def test_a_checkpoint_answers_as_the_model_did(
    perceptor: Perceptor, images: list[Image.Image], forced: list[Prediction], tmp_path: Path
) -> None:
    perceptor.model.save_pretrained(tmp_path)
    perceptor.processor.save_pretrained(tmp_path)
    again = Perceptor.from_pretrained(tmp_path, device="cpu").predict(
        images[:2], QUESTIONS[:2], segment=True, depth=True, max_new_tokens=5
    )
    for first, second in zip(forced, again, strict=False):
        assert first.raw == second.raw
        np.testing.assert_array_equal(second.depth_map, first.depth_map)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText])
def test_the_auto_classes_know_a_checkpoint(
    perceptor: Perceptor, images: list[Image.Image], forced: list[Prediction], tmp_path: Path, auto: Any
) -> None:
    perceptor.model.save_pretrained(tmp_path)
    perceptor.processor.save_pretrained(tmp_path)
    model, processor = auto.from_pretrained(tmp_path).eval(), AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(model, PerceptioForConditionalGeneration)
    assert isinstance(processor, PerceptioProcessor)
    answers = model.answer(processor.prompts(images[:2], QUESTIONS[:2]), segment=True, depth=True, max_new_tokens=5)
    for answer, expected in zip(answers, forced, strict=False):
        assert processor.decode(answer.ids) == expected.raw
        np.testing.assert_array_equal(answer.parsed.depth_codes, expected.depth_codes)
        np.testing.assert_array_equal(answer.depth_map, expected.depth_map)
        assert all(np.array_equal(mask, other) for mask, other in zip(answer.masks, expected.masks, strict=True))


def test_the_readme_example_runs(
    perceptor: Perceptor,
    images: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = tmp_path / "artifacts/mini/cotrain/full/checkpoint"
    perceptor.model.save_pretrained(checkpoint)
    perceptor.processor.save_pretrained(checkpoint)
    images[0].save(tmp_path / "picture.png")
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    answer = runpy.run_path("example.py")["answer"]
    assert capsys.readouterr().out.startswith(f"{answer.text} [")
    assert answer.raw


def test_a_processor_comes_back_without_its_model(perceptor: Perceptor, images: list[Image.Image], tmp_path: Path) -> None:
    perceptor.processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, PerceptioProcessor)
    assert again.tokenizer.chat_template == perceptor.processor.tokenizer.chat_template
    first, second = (processor.prompts(images, QUESTIONS) for processor in (perceptor.processor, again))
    assert torch.equal(first.input_ids_BT, second.input_ids_BT)
    assert torch.equal(first.pixels_PCHW, second.pixels_PCHW)


def test_images_of_different_sizes_and_tiles_share_a_batch(tmp_path: Path) -> None:
    """InternVL's dynamic tiling: 1 to 12 tiles of 32 pixels, a thumbnail beside those that are more than one.

    Tokens and masks of each are those of its image alone.
    """
    model, processor = tiny_perceptio(tmp_path, tied=False, max_tiles=12)
    lively(model).double()
    model.bridge.float()
    model.codebook.float()
    draw = np.random.default_rng(1)
    sizes = [(32, 32), (32, 64), (80, 80), (96, 128), (40, 120)]
    images = [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]
    questions = ["yes", "Which point is the closest?", "no", "Please segment the ball.", "(A)"]
    prompts = processor.prompts(images, questions)
    image_tokens = (prompts.input_ids_BT == processor.image_token_id).sum(1).tolist()
    assert image_tokens == [4 * tiles for tiles in (1, 3, 10, 13, 4)]
    assert len(prompts.pixels_PCHW) == 31
    with telling_masks(model):
        together = model.answer(prompts, segment=True, depth=True, max_new_tokens=4)
    assert len({tuple(answer.ids) for answer in together}) == 5
    for answer, image, question in zip(together, images, questions, strict=True):
        (alone,) = model.answer(processor.prompts([image], [question]), segment=True, depth=True, max_new_tokens=4)
        assert answer.ids == alone.ids
        assert [mask.shape for mask in answer.masks] == [(image.height, image.width)] * alone.parsed.masks
        for mask, other in zip(answer.masks, alone.masks, strict=True):
            assert (mask != other).mean() < MASK_TOLERANCE


def test_a_control_cannot_be_forced(tmp_path: Path, images: list[Image.Image]) -> None:
    model, processor = tiny_perceptio(tmp_path, order=())
    control = Perceptor(model=model, processor=processor)
    assert control.predict(images[:1], ["yes"], max_new_tokens=2)[0].masks == []
    with pytest.raises(ValueError, match="cannot force a segmentation span"):
        control.predict(images[:1], ["yes"], segment=True)
