"""Sa2VA as foundations: LoRA merged, SAM2, and what `assemble` starts [SEG] and the prompt MLP from."""

import json
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration

import foreign
from perceptio_core.convert import sam2 as sam2_conversion
from perceptio_core.convert.internvl import convert_internvl
from perceptio_core.convert.sa2va import convert_sa2va
from perceptio_core.model.assembly import SEGMENTATION_START, WIRING, assemble
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.segmentation.bridge import sam2_pixels, to_original
from perceptio_core.segmentation.sam2 import build_sam2, load_sam2, mini_config
from tiny import LOSS_WEIGHTS, tiny_foundations, tiny_sample

RANK = 3
SAM_WIDTH = 96
SPECIAL = ("[SEG]", "<p>", "</p>", "<vp>", "</vp>")


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """As if mini's SAM2 were a published one, with a parameter `gamma` as the others have."""
    monkeypatch.setattr(sam2_conversion, "OFFICIAL", ("mini",))
    monkeypatch.setattr(sam2_conversion, "official_config", lambda _: sam_config())


def sam_config():
    config = mini_config()
    config["memory_encoder"]["fuser"] |= {"num_layers": 1}
    config["memory_encoder"]["fuser"]["layer"] |= {"dim": SAM_WIDTH}
    return config


def prompt_mlp():
    draw = torch.Generator().manual_seed(7)
    shapes = {"0.weight": (32, 32), "0.bias": (32,), "2.weight": (SAM_WIDTH, 32), "2.bias": (SAM_WIDTH,)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def write(folder, *, llm="qwen2", rank=0, dtype=torch.float32):
    """A Sa2VA folder, `rank` > 0 with its LoRA apart; returns the InternVL's original weights in float64, LoRA added."""
    foreign.write_internvl(folder, llm=llm, added=SPECIAL)
    foreign.reconfigure(folder, "model_type", "sa2va_chat")
    foreign.reconfigure(folder, "use_llm_lora", rank)
    plain = load_file(folder / "model.safetensors")
    stored, merged = {}, {}
    draw = torch.Generator().manual_seed(5)
    for key, value in plain.items():
        value = value.to(dtype)
        merged[key] = value.double()
        if not rank or not key.startswith("language_model."):
            stored[key] = value
            continue
        name = key.replace("language_model.", "language_model.base_model.model.").removesuffix(".weight")
        linear = any(part in key for part in ("_proj.weight", "attention.w", "feed_forward.w"))
        if linear:
            down, up = (
                torch.randn(rank, value.shape[1], generator=draw) * 0.2,
                torch.randn(len(value), rank, generator=draw) * 0.2,
            )
            down, up = down.to(dtype), up.to(dtype)
            stored |= {f"{name}.base_layer.weight": value}
            stored |= {f"{name}.lora_A.default.weight": down, f"{name}.lora_B.default.weight": up}
            merged[key] = value.double() + 2 * up.double() @ down.double()
        elif any(part in key for part in ("embed", "head", "output")):
            stored |= {f"{name}.original_module.weight": value * 0, f"{name}.modules_to_save.default.weight": value}
        else:
            stored[key.replace("language_model.", "language_model.base_model.model.")] = value
    torch.manual_seed(11)
    sam = build_sam2(sam_config()).state_dict()
    for key, value in sam.items():
        stored[f"grounding_encoder.sam2_model.{key.replace('.gamma', '.g_weight')}"] = value
    stored |= {f"text_hidden_fcs.{name}": value for name, value in prompt_mlp().items()}
    save_file({key: value.contiguous() for key, value in stored.items()}, folder / "model.safetensors")
    return merged, sam


def seg_id(folder):
    return next(
        int(i)
        for i, token in json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"].items()
        if token["content"] == "[SEG]"
    )


def logits(model):
    ids = torch.randint(0, 250, (1, 20), generator=torch.Generator().manual_seed(1))
    ids[0, 3 : 3 + foreign.TILE_TOKENS] = model.config.image_token_id
    pixels = torch.ones(1, 3, foreign.SIDE, foreign.SIDE, dtype=torch.float64)
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits


@pytest.mark.parametrize("llm", ["qwen2", "internlm2"])
def test_merged_lora_is_w_plus_scale_b_a(tmp_path, llm):
    expected, _ = write(tmp_path / "apart", llm=llm, rank=RANK)
    convert_sa2va(tmp_path / "apart", tmp_path / "out")
    # the same conversion of a plain checkpoint whose weights have been added up in float64
    foreign.write_internvl(tmp_path / "whole", llm=llm, added=SPECIAL)
    save_file(expected, tmp_path / "whole" / "model.safetensors")
    convert_internvl(tmp_path / "whole", tmp_path / "reference")
    found, reference = (
        InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float64).eval()
        for folder in (tmp_path / "out" / "internvl", tmp_path / "reference")
    )
    for (name, value), (other, right) in zip(found.named_parameters(), reference.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(value, right, rtol=1e-6, atol=1e-6, msg=name)
    right = logits(reference)
    torch.testing.assert_close(logits(found), right, rtol=0, atol=1e-5 * float(right.abs().max()))
    write(tmp_path / "plain", llm=llm)
    convert_sa2va(tmp_path / "plain", tmp_path / "none")
    other = InternVLForConditionalGeneration.from_pretrained(tmp_path / "none" / "internvl", dtype=torch.float64).eval()
    assert (logits(other) - right).abs().max() > 0.1, "the adapters change something"


def test_half_precision_is_rounded_once(tmp_path):
    expected, _ = write(tmp_path / "old", rank=RANK, dtype=torch.bfloat16)
    convert_sa2va(tmp_path / "old", tmp_path / "out")
    model = InternVLForConditionalGeneration.from_pretrained(tmp_path / "out" / "internvl")
    weight = model.model.language_model.layers[1].self_attn.q_proj.weight
    right = expected["language_model.model.layers.1.self_attn.q_proj.weight"]
    assert weight.dtype == torch.bfloat16
    different = weight != right.to(torch.bfloat16)  # where float32 falls on the other side of a rounding
    assert different.float().mean() < 0.01
    torch.testing.assert_close(weight.double(), right, rtol=2**-8, atol=1e-6)


def assembled(foundations, codebook, *, order=("segmentation", "depth")):
    return assemble(foundations=foundations, codebook=codebook, order=order, loss_weights=LOSS_WEIGHTS, max_tiles=1, seed=0)


def test_assemble_starts_from_sa2va(tmp_path):
    _, codebook = tiny_foundations(tmp_path)
    old, sam = write(tmp_path / "old")
    seg = seg_id(tmp_path / "old")
    convert_sa2va(tmp_path / "old", tmp_path / "out")
    loaded = load_sam2(tmp_path / "out" / "sam2").state_dict()
    assert loaded.keys() == sam.keys()
    assert all(torch.equal(loaded[key], sam[key]) for key in sam)

    model, processor = assembled(tmp_path / "out", codebook)
    assert model.config.vocabulary.seg == seg, "the token of Sa2VA's tokenizer, not a second one"
    embedding, head = model.vlm.get_input_embeddings().weight, model.vlm.get_output_embeddings().weight
    for rows, key in ((embedding, "language_model.model.embed_tokens.weight"), (head, "language_model.lm_head.weight")):
        assert torch.equal(rows[: len(old[key])].double(), old[key]), "every row of Sa2VA arrives, [SEG] included"
    hidden = torch.randn(4, 32)
    mlp = prompt_mlp()
    prompts = torch.relu(hidden @ mlp["0.weight"].T + mlp["0.bias"]) @ mlp["2.weight"].T + mlp["2.bias"]
    torch.testing.assert_close(model.bridge.prompt(hidden), prompts, rtol=1e-5, atol=1e-4)

    # a prompt MLP that has learned is not centred
    model.centre_prompt([processor.collate([tiny_sample(0, masks=1, depth=True)])])
    assert torch.equal(model.bridge.prompt[0].bias, mlp["0.bias"])

    # what is new is drawn as without the file
    (tmp_path / "out" / "internvl" / SEGMENTATION_START).unlink()
    fresh, _ = assembled(tmp_path / "out", codebook)
    assert fresh.fresh_prompt
    ids = model.config.vocabulary.ids
    assert not torch.equal(fresh.vlm.get_input_embeddings().weight[seg], embedding[seg])
    assert torch.equal(fresh.vlm.get_input_embeddings().weight[ids[1:]], embedding[ids[1:]])
    assert not torch.equal(fresh.bridge.prompt[0].weight, model.bridge.prompt[0].weight)


def test_a_converted_sa2va_segments_in_its_own_wiring(tmp_path):
    """At train, at predict, and again from the saved checkpoint, whose configuration says so; a base without keeps ours."""
    foundations, codebook = tiny_foundations(tmp_path)
    write(tmp_path / "old")
    convert_sa2va(tmp_path / "old", tmp_path / "out")
    assert assembled(foundations, codebook)[0].config.segmentation_wiring == "perceptio"
    model, processor = assembled(tmp_path / "out", codebook)
    model.eval()
    assert model.config.segmentation_wiring == model.bridge.wiring == "sa2va"
    sample = tiny_sample(0, masks=2, depth=True)
    image = np.array(sample.image)
    batch = processor.collate([sample])
    assert torch.equal(batch.sam_pixels_SCHW, sam2_pixels([image], size=128, wiring="sa2va"))

    prompts = processor.prompts([sample.image], ["Please segment the ball."])
    with patch.object(model.bridge, "masks", wraps=model.bridge.masks) as drawn:
        (answer,) = model.answer(prompts, segment=True, depth=False)
    ((features,), given) = drawn.call_args
    assert torch.equal(features.embedding, model.bridge.image_features(batch.sam_pixels_SCHW).embedding)
    with torch.inference_mode():
        logits = model.bridge.masks(features, **given)
    expected = to_original(logits, [image.shape[:2]] * len(logits), through=128)
    assert len(answer.masks) > 0
    assert all(np.array_equal(a, b) for a, b in zip(answer.masks, expected, strict=True))

    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    assert json.loads((tmp_path / "checkpoint/config.json").read_text())["segmentation_wiring"] == "sa2va"
    again = PerceptioForConditionalGeneration.from_pretrained(tmp_path / "checkpoint").eval()
    (same,) = again.answer(prompts, segment=True, depth=False)
    assert same.ids == answer.ids
    assert all(np.array_equal(a, b) for a, b in zip(same.masks, answer.masks, strict=True))


@pytest.mark.parametrize("metadata", [None, {WIRING: "lisa"}])
def test_a_start_that_does_not_say_how_it_segments_is_refused(tmp_path, metadata):
    _, codebook = tiny_foundations(tmp_path)
    write(tmp_path / "old")
    convert_sa2va(tmp_path / "old", tmp_path / "out")
    start = tmp_path / "out" / "internvl" / SEGMENTATION_START
    save_file(load_file(start), start, metadata=metadata)
    with pytest.raises(
        ValueError, match=rf"{SEGMENTATION_START}: its metadata name segmentation_wiring .*; allowed are perceptio, sa2va"
    ):
        assembled(tmp_path / "out", codebook)


def test_a_head_that_differs_from_a_tied_embedding_stays(tmp_path):
    """Sa2VA trains input embedding and output head each by itself, whatever its language model's configuration says."""
    _, codebook = tiny_foundations(tmp_path)
    old, _ = write(tmp_path / "old")
    foreign.reconfigure(tmp_path / "old", "llm_config.tie_word_embeddings", True)
    convert_sa2va(tmp_path / "old", tmp_path / "out")
    model, _ = assembled(tmp_path / "out", codebook)
    head = model.vlm.get_output_embeddings().weight
    right = old["language_model.lm_head.weight"]
    assert torch.equal(head[: len(right)].double(), right)
    assert not torch.equal(head, model.vlm.get_input_embeddings().weight)


def test_without_the_file_nothing_changes(tmp_path):
    foundations, codebook = tiny_foundations(tmp_path)
    one, _ = assembled(foundations, codebook)
    other, _ = assembled(foundations, codebook, order=())
    assert one.fresh_prompt
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seg.output": None}, r"1 missing: seg\.output"),
        ({"prompt.2.bias": torch.ones(7)}, r"prompt\.2\.bias \(7,\) instead of \(96,\)"),
        ({"stranger": torch.ones(1)}, r"1 unexpected: stranger"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(tmp_path, change, told):
    foundations, codebook = tiny_foundations(tmp_path)
    start = {"seg.input": torch.ones(32), "seg.output": torch.ones(32)}
    start |= {f"prompt.{name}": value for name, value in prompt_mlp().items()}
    changed = {key: value for key, value in (start | change).items() if value is not None}
    save_file(changed, foundations / "internvl" / SEGMENTATION_START, metadata={WIRING: "sa2va"})
    with pytest.raises(ValueError, match=told):
        assembled(foundations, codebook)


@pytest.mark.parametrize(
    ("rank", "change", "told"),
    [
        (0, {"mask_head.weight": torch.ones(1)}, r"1 unknown: mask_head\.weight"),
        (0, {"text_hidden_fcs.4.weight": torch.ones(1)}, r"1 unknown: text_hidden_fcs\.4\.weight"),
        (0, {"text_hidden_fcs.2.bias": None}, r"1 missing: text_hidden_fcs\.2\.bias"),
        (0, {"grounding_encoder.sam2_model.no_mem_embed": None}, r"1 missing: grounding_encoder\.sam2_model\.no_mem_embed"),
        (
            0,
            {"grounding_encoder.sam2_model.memory_encoder.fuser.layers.0.g_weight": None},
            r"1 missing: grounding_encoder\.sam2_model\.memory_encoder\.fuser\.layers\.0\.g_weight",
        ),
        (0, {"grounding_encoder.sam2_model.stranger": torch.ones(1)}, r"1 unknown: grounding_encoder\.sam2_model\.stranger"),
        (0, {"mlp1.0.weight": None}, r"1 missing: mlp1\.0\.weight"),
        (0, {"language_model.model.norm.weight": torch.ones(3)}, r"model\.norm\.weight \(3,\) instead of \(32,\)"),
        (
            RANK,
            {"language_model.base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight": None},
            r"1 with half an adapter: language_model\.model\.layers\.0\.mlp\.up_proj\.weight",
        ),
        (
            RANK,
            {f"language_model.base_model.model.model.layers.0.mlp.up_proj.lora_{half}.default.weight": None for half in "AB"},
            r"1 of layers whose adapter is missing: language_model\.model\.layers\.0\.mlp\.up_proj\.weight",
        ),
        (
            RANK,
            {"language_model.base_model.model.stranger.original_module.weight": torch.ones(1)},
            r"1 of original modules without one that replaces them: language_model\.stranger\.weight",
        ),
        (
            RANK,
            {"language_model.model.norm.weight": torch.ones(32)},
            r"1 that mean the same as another: language_model\.",
        ),
        (
            RANK,
            {"language_model.base_model.model.model.layers.0.mlp.up_proj.base_layer.weight": None},
            r"1 of adapters without a weight below them: language_model\.model\.layers\.0\.mlp\.up_proj\.weight",
        ),
        (
            RANK,
            {"language_model.base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight": torch.ones(RANK + 1, 32)},
            r"1 of adapters that are not of rank 3, use_llm_lora in config\.json: .*up_proj\.weight",
        ),
        (
            RANK,
            {"language_model.base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight": torch.ones(RANK, 31)},
            r"1 of another shape: .*up_proj\.weight \(48, 32\) with adapters \(48, 3\) and \(3, 31\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, rank, change, told):
    write(tmp_path / "old", rank=rank)
    foreign.edit(tmp_path / "old", change)
    with pytest.raises(ValueError, match=told):
        convert_sa2va(tmp_path / "old", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_models_are_refused(tmp_path):
    write(tmp_path / "old")
    foreign.write_tokenizer(tmp_path / "old", whole=False, added=[*foreign.ADDED, "[NONE]"])
    with pytest.raises(ValueError, match=r"its tokenizer lacks \[SEG\]"):
        convert_sa2va(tmp_path / "old", tmp_path / "out")
    foreign.reconfigure(tmp_path / "old", "llm_config.architectures", ["Qwen3ForCausalLM"])
    with pytest.raises(ValueError, match=r"llm_config\.architectures is \['Qwen3ForCausalLM'\]"):
        convert_sa2va(tmp_path / "old", tmp_path / "out")
    foreign.reconfigure(tmp_path / "old", "model_type", "internvl_chat")
    with pytest.raises(ValueError, match="model_type is 'internvl_chat'; allowed is 'sa2va_chat'"):
        convert_sa2va(tmp_path / "old", tmp_path / "out")
