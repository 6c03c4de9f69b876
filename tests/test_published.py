"""Bases as they are published: two matrices that differ stay two, one stays one, through everything that is done with them.

The published InternVL3 ``-hf`` configurations do not say whether the output head is the input embedding, and the class's
default is that it is. As reported of other models in huggingface/transformers#42612 (a head replaced by the embedding
because the configuration says so), vllm-project/vllm#51063 (asked of the wrong one of two configurations),
huggingface/transformers#36221 (a head drawn anew after rows were added), huggingface/transformers#45127 (added rows lost in
a merged checkpoint whose configuration still ties).
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration

import foreign
import published
from perceptio_core.convert.internvl import convert_internvl
from perceptio_core.convert.sam2 import convert_sam2
from perceptio_core.depth.teacher import Teacher
from perceptio_core.model.adapters import add_adapters, merge_adapters
from perceptio_core.model.assembly import assemble
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.processing import PerceptioProcessor
from perceptio_core.segmentation.sam2 import load_sam2
from perceptio_core.weights import load_pretrained
from tiny import LOSS_WEIGHTS, tiny_foundations, tiny_sample

EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
ANSWER = """
import json, sys
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.processing import PerceptioProcessor
from tiny import tiny_sample
model = PerceptioForConditionalGeneration.from_pretrained(sys.argv[1]).eval()
processor = PerceptioProcessor.from_pretrained(sys.argv[1])
prompts = processor.prompts([tiny_sample(0, masks=0, depth=False).image], ["Which point?"])
ids = model.answer(prompts, segment=False, depth=False, max_new_tokens=8)[0].ids
print(json.dumps([float(model.vlm.get_output_embeddings().weight.double().square().sum()), ids]))
"""


def assembled(tmp_path: Path, **base) -> tuple[PerceptioForConditionalGeneration, PerceptioProcessor, dict[str, torch.Tensor]]:
    """A fresh model on a published InternVL, its processor, and the published weights."""
    foundations, codebook = tiny_foundations(tmp_path)
    weights = published.write_internvl(foundations / "internvl", **base)
    model, processor = assemble(
        foundations=foundations,
        codebook=codebook,
        order=("segmentation", "depth"),
        loss_weights=LOSS_WEIGHTS,
        max_tiles=1,
        seed=0,
    )
    return model, processor, weights


def train(model, processor, *, steps: int = 3) -> None:
    groups = add_adapters(model, rank=4, alpha=8, dropout=0.0, train_vision_tower=False)
    optimizer = torch.optim.AdamW([one for group in groups.values() for one in group.values()], lr=1e-2)
    batch = processor.collate([tiny_sample(0, masks=1, depth=True), tiny_sample(1, masks=0, depth=True)])
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=model.vlm.dtype == torch.bfloat16):
            loss = model(batch)["total"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    merge_adapters(model)


@pytest.mark.parametrize(
    ("base", "one"),
    [
        ({"head": "own", "dtype": torch.bfloat16}, False),
        ({"head": "own", "tie_word_embeddings": True, "text__tie_word_embeddings": True}, False),
        ({"head": "own", "tie_word_embeddings": False, "text__tie_word_embeddings": True}, False),
        ({"head": "copy"}, True),
        ({"head": "copy", "tie_word_embeddings": False}, False),
        ({"head": "none", "dtype": torch.bfloat16}, True),
        ({"head": "none", "text__tie_word_embeddings": True}, True),
    ],
    ids=lambda value: None if isinstance(value, bool) else "-".join(f"{k}={v}" for k, v in value.items()),
)
def test_matrices_stay_as_many_as_they_are(tmp_path, base, one):
    """From the published file through added rows, training, merging, saving and loading."""
    model, processor, weights = assembled(tmp_path, **base)
    rows = len(weights[EMBEDDING])
    start = model.vlm.get_output_embeddings().weight.detach().clone()

    def check(model):
        embedding, head = model.vlm.get_input_embeddings().weight, model.vlm.get_output_embeddings().weight
        assert (head is embedding) == one
        for config in (model.vlm.config, model.vlm.config.text_config):
            assert config.tie_word_embeddings is one
        assert torch.equal(embedding[:rows], weights[EMBEDDING]), "old rows"
        assert torch.equal(head[:rows], weights[EMBEDDING] if one else weights[HEAD]), "old rows of the head"
        assert len(embedding) == len(head) == rows + len(model.config.vocabulary.ids)
        return head

    check(model)
    train(model, processor)
    trained = check(model)
    assert not torch.equal(trained[rows:], start[rows:]), "the added rows have learned"
    model.save_pretrained(tmp_path / "checkpoint")
    stored = load_file(tmp_path / "checkpoint/model.safetensors")
    assert any(key.endswith(HEAD) for key in stored) is not one
    again = PerceptioForConditionalGeneration.from_pretrained(tmp_path / "checkpoint")
    assert torch.equal(check(again), trained)


def test_a_process_that_knows_the_folder_alone_answers_the_same(tmp_path):
    model, processor, _ = assembled(tmp_path, head="own")
    train(model, processor)
    model.eval().save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    prompts = processor.prompts([tiny_sample(0, masks=0, depth=False).image], ["Which point?"])
    expected = model.answer(prompts, segment=False, depth=False, max_new_tokens=8)[0].ids
    assert len(expected) > 1
    again = subprocess.run(
        [sys.executable, "-c", ANSWER, tmp_path / "checkpoint"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
    )
    digest, ids = json.loads(again.stdout.splitlines()[-1])
    assert ids == expected
    assert digest == float(model.vlm.get_output_embeddings().weight.double().square().sum())


def test_a_checkpoint_whose_configuration_ties_two_matrices_keeps_them(tmp_path):
    """As one that was written by other hands; also when rows are asked for once more."""
    model, _, _ = assembled(tmp_path, head="own")
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for part in (config["vlm_config"], config["vlm_config"]["text_config"]):
        part.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    again = PerceptioForConditionalGeneration.from_pretrained(folder)
    again.tie_weights()
    again.vlm.resize_token_embeddings(len(model.vlm.get_input_embeddings().weight) + 8)
    head = again.vlm.get_output_embeddings().weight
    assert torch.equal(head[:-8], model.vlm.get_output_embeddings().weight)
    assert head is not again.vlm.get_input_embeddings().weight


def test_a_head_that_the_configuration_promises_must_be_there(tmp_path):
    """As reported of another model in QwenLM/Qwen3-VL-Embedding#89."""
    with pytest.raises(ValueError, match=r"internvl: .*keys 1 missing: lm_head\.weight$"):
        assembled(tmp_path, head="none", tie_word_embeddings=False)


@pytest.mark.parametrize("llm", ["qwen2", "internlm2"])
def test_a_converted_base_keeps_a_head_that_its_configuration_ties(tmp_path, llm):
    native = foreign.write_internvl(tmp_path / "old", llm=llm)
    foreign.reconfigure(tmp_path / "old", "llm_config.tie_word_embeddings", True)
    convert_internvl(tmp_path / "old", tmp_path / "new")
    converted = load_pretrained(InternVLForConditionalGeneration, tmp_path / "new")
    assert converted.config.tie_word_embeddings is converted.config.text_config.tie_word_embeddings is False
    assert torch.equal(converted.lm_head.weight, native.lm_head.weight)
    assert torch.equal(converted.get_input_embeddings().weight, native.get_input_embeddings().weight)


def test_the_published_teacher_and_sam2_are_read_whole(tmp_path):
    """Every weight that these files hold has its place (of SAM2 those for still images), and no other one is drawn anew."""
    published.write_depth_anything(tmp_path / "teacher")
    teacher = Teacher.from_pretrained(tmp_path / "teacher")
    stored = load_file(tmp_path / "teacher/model.safetensors")
    assert len(stored) == len(teacher.model.state_dict())
    assert torch.equal(teacher.model.state_dict()["head.conv1.weight"].cpu(), stored["head.conv1.weight"])
    published.write_sam2(tmp_path / "sam2.1")
    convert_sam2(tmp_path / "sam2.1", tmp_path / "sam2")
    stored = load_file(tmp_path / "sam2.1/model.safetensors")
    assert torch.equal(load_sam2(tmp_path / "sam2").no_mem_embed, stored["no_memory_embedding"])


@pytest.mark.parametrize("part", ["internvl", "teacher", "sam2"])
@pytest.mark.parametrize("fault", ["missing", "unexpected", "of another shape"])
def test_published_weights_that_do_not_fit_are_named(tmp_path, part, fault):
    keys = {"internvl": "vision_tower.embeddings.cls_token", "teacher": "head.conv1.bias", "sam2": "no_memory_embedding"}
    folder, key = tmp_path / part, keys[part]
    if part == "internvl":
        published.write_internvl(folder, head="own")
    else:
        {"teacher": published.write_depth_anything, "sam2": published.write_sam2}[part](folder)
    weights = load_file(folder / "model.safetensors")
    if fault == "missing":
        del weights[key]
    elif fault == "unexpected":
        key = key.rpartition(".")[0] + ".stranger"
        weights[key] = torch.ones(1)
    else:
        weights[key] = torch.ones(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load = {
        "internvl": lambda: load_pretrained(InternVLForConditionalGeneration, folder),
        "teacher": lambda: Teacher.from_pretrained(folder),
        "sam2": lambda: convert_sam2(folder, tmp_path / "converted"),
    }[part]
    words = {"unexpected": "(unexpected|unknown)"}.get(fault, fault)
    name = key.lstrip(".").replace(".", r"\.")
    with pytest.raises(ValueError, match=rf"{part}.*1 {words}: .*{name}"):
        load()
