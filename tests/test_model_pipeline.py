"""`transformers`' own ways to ask a checkpoint: its pipeline, its processors' conventions, chats."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, ProcessorMixin, pipeline

from perceptio_core.model.inference import Perceptor, Prediction
from perceptio_core.model.processing import PerceptioProcessor
from tiny import lively, tiny_perceptio

QUESTIONS = ["Which point is the closest to the camera?", "yes", "Please segment the ball. [SEG]<depth_1><|im_end|>"]
SPANS = {"segment": True, "depth": True}


def asked() -> dict[str, Any]:
    """Options of a pipeline, which writes into them."""
    return {"generate_kwargs": {"max_new_tokens": 6, **SPANS}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = tiny_perceptio(tmp_path_factory.mktemp("tiny"), tied=False, max_tiles=4)
    lively(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in [(40, 48), (32, 32), (20, 60)]]


@pytest.fixture(scope="module")
def expected(checkpoint: Path, pictures: list[Image.Image]) -> list[Prediction]:
    predictions = Perceptor.from_pretrained(checkpoint, device="cpu").predict(pictures, QUESTIONS, max_new_tokens=6, **SPANS)
    assert len({answer.text for answer in predictions}) == 3, "texts that are all the same would prove little"
    assert all(answer.raw.startswith("[SEG]") and "<depth_end>" in answer.raw and answer.text for answer in predictions)
    return predictions


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> Any:
    return pipeline("image-text-to-text", model=str(checkpoint), device="cpu")


def chat(image: Any, question: str, *, before: tuple[tuple[str, str], ...] = ()) -> list[dict[str, Any]]:
    first, *later = [*(asked for asked, _ in before), question]
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": first}]}]
    for (_, answer), asked in zip(before, later, strict=True):
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        messages.append({"role": "user", "content": [{"type": "text", "text": asked}]})
    return messages


def test_a_chat_is_answered_as_predict_does(pipe: Any, pictures: list[Image.Image], expected: list[Prediction]) -> None:
    for image, question, answer in zip(pictures, QUESTIONS, expected, strict=True):
        (said,) = pipe(text=chat(image, question), return_full_text=False, **asked())
        assert said["generated_text"] == answer.text
        (said,) = pipe(text=chat(image, question), **asked())
        assert said["generated_text"][-1] == {"role": "assistant", "content": answer.text}


def test_chats_in_a_batch_are_answered_as_each_alone(
    pipe: Any, pictures: list[Image.Image], expected: list[Prediction]
) -> None:
    """Of other numbers of tiles and tokens each."""
    chats = [chat(image, question) for image, question in zip(pictures, QUESTIONS, strict=True)]
    said = pipe(text=chats, batch_size=3, return_full_text=False, **asked())
    assert [row[0]["generated_text"] for row in said] == [answer.text for answer in expected]


def test_pictures_and_texts_are_answered_as_predict_does(
    pipe: Any, pictures: list[Image.Image], expected: list[Prediction], tmp_path: Path
) -> None:
    for number, (image, question, answer) in enumerate(zip(pictures, QUESTIONS, expected, strict=True)):
        image.save(tmp_path / f"{number}.png")
        for given in (image, str(tmp_path / f"{number}.png")):
            (said,) = pipe(images=given, text=question, return_full_text=False, **asked())
            assert said["generated_text"] == answer.text
    said = pipe(images=pictures, text=QUESTIONS, return_full_text=False, **asked())
    assert [row["generated_text"] for row in said] == [answer.text for answer in expected]


def test_the_whole_answer_comes_with_its_special_tokens(
    pipe: Any, pictures: list[Image.Image], expected: list[Prediction]
) -> None:
    """As reported in huggingface/transformers#40356: a pipeline that drops special tokens drops what they say."""
    for image, question, answer in zip(pictures, QUESTIONS, expected, strict=True):
        options = {**asked(), "return_full_text": False, "skip_special_tokens": False}
        (said,) = pipe(text=chat(image, question), **options)
        assert said["generated_text"] == answer.raw + "<|im_end|>"


def test_a_follow_up_is_told_the_turns_before(checkpoint: Path, pipe: Any, pictures: list[Image.Image]) -> None:
    before = (("yes", "[SEG]no"), ("Which point?", "(A)"))
    (answer,) = Perceptor.from_pretrained(checkpoint, device="cpu").predict(
        pictures[:1], ["yes"], history=[before], max_new_tokens=6, **SPANS
    )
    (said,) = pipe(text=chat(pictures[0], "yes", before=before), return_full_text=False, **asked())
    assert said["generated_text"] == answer.text


def test_a_pipeline_is_made_of_parts_that_are_there_already(
    checkpoint: Path, pictures: list[Image.Image], expected: list[Prediction]
) -> None:
    """As reported in huggingface/transformers#36911: "cannot guess which processor to use", where the model is loaded."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    made = pipeline("image-text-to-text", model=model, processor=AutoProcessor.from_pretrained(checkpoint), device="cpu")
    (said,) = made(text=chat(pictures[0], QUESTIONS[0]), return_full_text=False, **asked())
    assert said["generated_text"] == expected[0].text


def test_a_fresh_process_answers_after_one_import(
    checkpoint: Path, pictures: list[Image.Image], expected: list[Prediction], tmp_path: Path
) -> None:
    pictures[0].save(tmp_path / "picture.png")
    code = (
        "import sys; from transformers import AutoModel, pipeline; import perceptio_core.model.modeling;"
        "print(type(AutoModel.from_pretrained(sys.argv[1])).__name__);"
        "pipe = pipeline('image-text-to-text', model=sys.argv[1], device='cpu');"
        "print(type(pipe.processor).__name__);"
        f"print(pipe(images=sys.argv[2], text=sys.argv[3], return_full_text=False, **{asked()}))"
    )
    command = [sys.executable, "-c", code, str(checkpoint), str(tmp_path / "picture.png"), QUESTIONS[0]]
    *_, model, processor, answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert (model, processor) == ("PerceptioForConditionalGeneration", "PerceptioProcessor")
    assert repr(expected[0].text) in answer


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> PerceptioProcessor:
    return AutoProcessor.from_pretrained(checkpoint)


def test_a_processor_is_one_of_transformers_and_comes_back_whole(
    processor: PerceptioProcessor, pictures: list[Image.Image], tmp_path: Path
) -> None:
    """As reported in huggingface/transformers#33459 (no chat template after a round trip) and #44623 (files are missing)."""
    assert isinstance(processor, ProcessorMixin)
    processor.save_pretrained(tmp_path / "a")
    again = PerceptioProcessor.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    assert [(file.name, file.read_bytes()) for file in sorted((tmp_path / "a").iterdir())] == [
        (file.name, file.read_bytes()) for file in sorted((tmp_path / "b").iterdir())
    ]
    assert again.chat_template == processor.chat_template
    assert again.config.to_dict() == processor.config.to_dict()
    first, second = (one(images=pictures, text=QUESTIONS) for one in (processor, again))
    assert all(torch.equal(first[name], second[name]) for name in ("input_ids", "attention_mask", "pixel_values"))


def test_a_chat_makes_the_inputs_of_its_question(processor: PerceptioProcessor, pictures: list[Image.Image]) -> None:
    question = processor(images=pictures[2], text=QUESTIONS[2])
    told = processor.apply_chat_template(
        chat(pictures[2], QUESTIONS[2]), tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    assert question.keys() == told.keys() == {"input_ids", "attention_mask", "pixel_values"}
    assert all(torch.equal(question[name], told[name]) for name in question)
    for special in (*processor.config.vocabulary.ids, processor.config.end_token_id):
        assert (question["input_ids"] == special).sum() == (special == processor.config.end_token_id), (
            "only the question's own end"
        )


def test_a_rendered_prompt_is_tokenized_as_the_base_models_processor_does(
    processor: PerceptioProcessor, pictures: list[Image.Image]
) -> None:
    """`apply_chat_template` to text, then the processor: the two steps of most examples for other models."""
    texts = [
        processor.apply_chat_template(chat(image, question), add_generation_prompt=True)
        for image, question in zip(pictures, QUESTIONS[:2] * 2, strict=False)
    ]
    two_steps = processor(images=pictures, text=texts)
    one_step = processor(images=pictures, text=[*QUESTIONS[:2], QUESTIONS[0]])
    assert all(torch.equal(two_steps[name], one_step[name]) for name in one_step)


def test_pictures_come_in_every_form_that_transformers_takes(
    processor: PerceptioProcessor, pictures: list[Image.Image], tmp_path: Path
) -> None:
    pictures[0].save(tmp_path / "a.png")
    lying = pictures[0].transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "lying.png", exif=exif)
    path = str(tmp_path / "a.png")
    plain = processor.apply_chat_template(chat(pictures[0], "yes"), tokenize=True, return_dict=True)["pixel_values"]
    for part in (
        {"type": "image", "path": path},
        {"type": "image", "url": path},
        {"type": "image_url", "image_url": {"url": path}},
        {"type": "image", "image": Image.open(tmp_path / "lying.png")},
    ):
        messages = [{"role": "user", "content": [{"type": "text", "text": "yes"}, part]}]
        told = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        assert torch.equal(told["pixel_values"], plain), part


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], r"a chat of \[\]; allowed is user"),
        ([{"role": "system", "content": "Be brief."}], r"a chat of \['system'\]; allowed is user, assistant, user"),
        ([{"role": "user", "content": "yes"}], "a chat with 0 pictures in message 1 of 1"),
        ([*chat("a.png", "yes"), {"role": "assistant", "content": "It"}], r"a chat of \['user', 'assistant'\]"),
        (chat(None, "yes"), "None: "),
        (chat("nowhere.png", "yes"), "nowhere.png: "),
        ([{"role": "user", "content": [*chat("a", "b")[0]["content"], {"type": "image", "path": "b"}]}], "with 2 pictures"),
        ([{"role": "user", "content": [*chat("a", "b")[0]["content"], {"type": "video", "path": "b"}]}], "a chat with video"),
    ],
)
def test_a_chat_of_another_form_is_refused_in_a_sentence(processor: PerceptioProcessor, messages: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        processor.apply_chat_template([messages], tokenize=True)


def test_inputs_that_do_not_belong_together_are_refused(processor: PerceptioProcessor, pictures: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="0 images but 1 questions"):
        processor(text="yes")
    with pytest.raises(ValueError, match="takes text and images"):
        processor(images=pictures)
    with pytest.raises(ValueError, match="takes text and images"):
        processor(images=pictures[:1], text="yes", videos=["a.mp4"])
    with pytest.raises(ValueError, match="no answer is continued"):
        processor.apply_chat_template(chat(pictures[0], "yes"), tokenize=True, continue_final_message=True)
    with pytest.raises(ValueError, match="holds none as `config`"):
        PerceptioProcessor(processor.image_processor, processor.tokenizer)


def test_sampling_is_refused_and_greedy_by_another_name_is_not(
    checkpoint: Path, processor: PerceptioProcessor, pictures: list[Image.Image], expected: list[Prediction]
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    inputs = processor(images=pictures[0], text=QUESTIONS[0])
    for options in ({"do_sample": True}, {"num_beams": 4}, {"temperature": 0.7}, {"stop_strings": ["a"]}):
        with pytest.raises(ValueError, match=f"answers are decoded greedily, by the grammar; {next(iter(options))} cannot"):
            model.generate(**inputs, **options)
    greedy = GenerationConfig(max_new_tokens=6, do_sample=False, num_beams=1)
    written = model.generate(**inputs, generation_config=greedy, **SPANS)
    assert processor.post_process_image_text_to_text(written[:, inputs["input_ids"].shape[1] :]) == [expected[0].text]
    assert processor.batch_decode(written[:, inputs["input_ids"].shape[1] :]) == [expected[0].raw + "<|im_end|>"]
    with pytest.raises(ValueError, match="needs input_ids and pixel_values"):
        model.generate(inputs["input_ids"])
