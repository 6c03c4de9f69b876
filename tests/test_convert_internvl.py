"""InternVL in its original format: the same logits after the conversion, and what is refused."""

import json
import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, InternVLForConditionalGeneration, InternVLProcessor

import foreign
from perceptio_core.convert import tokenizer
from perceptio_core.convert.checkpoint_files import Section
from perceptio_core.convert.internvl import convert_internvl
from perceptio_core.convert.internvl_config import internvl_config
from perceptio_core.model.assembly import assemble
from tiny import CORPUS, LOSS_WEIGHTS, tiny_foundations, tiny_sample

QUESTION = "Which point is the closest to the camera?"


def logits(model: InternVLForConditionalGeneration, *, tiles: int = 2, length: int = 30) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 250, (1, length), generator=draw)
    ids[0, 3 : 3 + tiles * foreign.TILE_TOKENS] = model.config.image_token_id
    pixels = torch.randn(tiles, 3, foreign.SIDE, foreign.SIDE, generator=draw)
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits


@pytest.mark.parametrize(
    ("llm", "tied", "qk_norm", "sharded"),
    [
        ("qwen2", False, False, False),
        ("qwen2", True, True, True),
        ("internlm2", False, False, True),
    ],
)
def test_logits_are_the_same_bit_for_bit(tmp_path, llm, tied, qk_norm, sharded):
    native = foreign.write_internvl(tmp_path / "old", llm=llm, tied=tied, qk_norm=qk_norm)
    if sharded:
        foreign.shard(tmp_path / "old")
    convert_internvl(tmp_path / "old", tmp_path / "new")
    converted = InternVLForConditionalGeneration.from_pretrained(tmp_path / "new").eval()
    assert torch.equal(logits(converted), logits(native))
    names = {key for key, _ in native.named_parameters()}
    assert {key for key, _ in converted.named_parameters()} == names
    assert (converted.lm_head.weight is converted.get_input_embeddings().weight) == tied
    assert converted.config.text_config.rope_parameters == native.config.text_config.rope_parameters


@pytest.mark.parametrize("named", [("type",), ("rope_type",), ("rope_type", "type")], ids=" and ".join)
def test_dynamic_scaling_of_qwen2_gives_the_same_logits_on_short_and_long_texts(tmp_path: Path, named: tuple[str, ...]) -> None:
    """As InternVL3 has it; it acts beyond `max_position_embeddings` only, where the unscaled model says something else."""
    unscaled = foreign.write_internvl(tmp_path / "old", llm="qwen2")
    foreign.reconfigure(tmp_path / "old", "llm_config.rope_scaling", {"factor": 2.0, **dict.fromkeys(named, "dynamic")})
    config = deepcopy(unscaled.config)
    config.text_config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}
    native = InternVLForConditionalGeneration(config).eval()
    native.load_state_dict(unscaled.state_dict())
    convert_internvl(tmp_path / "old", tmp_path / "new")
    converted = InternVLForConditionalGeneration.from_pretrained(tmp_path / "new").eval()
    most = config.text_config.max_position_embeddings
    for length in (most, most + 100):
        expected = logits(native, length=length)
        assert torch.equal(logits(converted, length=length), expected)
        assert torch.equal(logits(unscaled, length=length), expected) == (length == most)


def test_internlm2_computes_what_its_packed_matrices_say(tmp_path):
    """The original language model, written out in float64 from the original keys."""
    foreign.write_internvl(tmp_path / "old", llm="internlm2")
    old = {key: value.double() for key, value in load_file(tmp_path / "old" / "model.safetensors").items()}
    convert_internvl(tmp_path / "old", tmp_path / "new")
    converted = InternVLForConditionalGeneration.from_pretrained(tmp_path / "new", dtype=torch.float64).eval()
    ids = torch.randint(0, 250, (17,), generator=torch.Generator().manual_seed(2))

    def norm(x, weight):
        return weight * x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5)

    def rotate(x):  # one head (T, size): pairs (i, i + size / 2) turn by t * theta ** (-2 i / size)
        size = x.shape[1]
        turns = torch.arange(len(x)).double()[:, None] * 1e6 ** (-torch.arange(0, size, 2).double() / size)
        first, second = x[:, : size // 2], x[:, size // 2 :]
        return torch.cat([first * turns.cos() - second * turns.sin(), second * turns.cos() + first * turns.sin()], 1)

    size, groups = foreign.WIDTH // foreign.HEADS, foreign.HEADS // foreign.KEY_HEADS
    x = old["language_model.model.tok_embeddings.weight"][ids]
    causal = torch.full((len(ids), len(ids)), -math.inf).triu(1)
    for n in range(foreign.LAYERS):
        at = f"language_model.model.layers.{n}."
        rows = (norm(x, old[f"{at}attention_norm.weight"]) @ old[f"{at}attention.wqkv.weight"].T).split(size, dim=1)
        heads = []
        for key_head in range(foreign.KEY_HEADS):
            *queries, key, value = rows[key_head * (groups + 2) : (key_head + 1) * (groups + 2)]
            heads += [(rotate(q) @ rotate(key).T / size**0.5 + causal).softmax(-1) @ value for q in queries]
        x = x + torch.cat(heads, 1) @ old[f"{at}attention.wo.weight"].T
        y = norm(x, old[f"{at}ffn_norm.weight"])
        w1, w2, w3 = (old[f"{at}feed_forward.w{i}.weight"] for i in (1, 2, 3))
        x = x + (F.silu(y @ w1.T) * (y @ w3.T)) @ w2.T
    expected = norm(x, old["language_model.model.norm.weight"]) @ old["language_model.output.weight"].T
    with torch.no_grad():
        found = converted(input_ids=ids[None]).logits[0]
    # transformers turns with angles in float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("llm", ["qwen2", "internlm2"])
def test_the_processor_sees_tiles_and_turns_as_the_original(tmp_path, llm):
    foreign.write_internvl(tmp_path / "old", llm=llm)
    convert_internvl(tmp_path / "old", tmp_path / "new")
    processor = InternVLProcessor.from_pretrained(tmp_path / "new")
    image = np.random.default_rng(0).integers(0, 256, (foreign.SIDE, 2 * foreign.SIDE, 3), dtype=np.uint8)
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    begin = "<s>" if llm == "internlm2" else ""
    assert text == f"{begin}<|im_start|>user\n<IMG_CONTEXT>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(images=[Image.fromarray(image)], text=[text], return_tensors="pt")
    pixels = inputs["pixel_values"]
    assert pixels.shape == (3, 3, foreign.SIDE, foreign.SIDE), "two tiles and a thumbnail"
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    tiles = ((image / 255 - mean) / std).transpose(2, 0, 1)
    for tile, part in zip(pixels, (tiles[:, :, : foreign.SIDE], tiles[:, :, foreign.SIDE :]), strict=False):
        torch.testing.assert_close(tile, torch.from_numpy(part).float(), rtol=0, atol=1e-5)
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert tokens.count("<IMG_CONTEXT>") == 3 * foreign.TILE_TOKENS
    assert processor.tokenizer.eos_token == "<|im_end|>"
    assert processor.tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize("llm", ["qwen2", "internlm2"])
def test_tokens_keep_their_ids(tmp_path, llm):
    (tmp_path / "old").mkdir()
    ids = foreign.write_tokenizer(tmp_path / "old", whole=llm == "internlm2", added=foreign.ADDED)
    foreign.write_internvl(tmp_path / "full", llm=llm)
    convert_internvl(tmp_path / "full", tmp_path / "new")
    converted = AutoTokenizer.from_pretrained(tmp_path / "new")
    known = converted.get_vocab()
    assert {token: known[token] for token in ids} == ids
    assert set(known) - set(ids) == {"<video>"}
    text = "Which point, <IMG_CONTEXT> é 点?<|im_end|>"
    assert converted.decode(converted.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("llm", ["qwen2", "internlm2"])
def test_perceptio_is_assembled_on_a_converted_model(tmp_path, llm):
    foundations, codebook = tiny_foundations(tmp_path)
    foreign.write_internvl(tmp_path / "old", llm=llm)
    convert_internvl(tmp_path / "old", tmp_path / "base" / "internvl")
    (foundations / "sam2").rename(tmp_path / "base" / "sam2")
    model, processor = assemble(
        foundations=tmp_path / "base",
        codebook=codebook,
        order=("segmentation", "depth"),
        loss_weights=LOSS_WEIGHTS,
        max_tiles=6,
        seed=0,
    )
    prompts = processor.prompts([Image.new("RGB", (foreign.SIDE, 2 * foreign.SIDE))], [QUESTION])
    assert len(prompts.pixels_PCHW) == 3
    assert model.vlm.get_input_embeddings().weight.shape[0] > max(model.config.vocabulary.ids)
    losses = model(processor.collate([tiny_sample(0, masks=1, depth=True), tiny_sample(1, masks=0, depth=True)]))
    assert losses["total"].isfinite()


@pytest.mark.parametrize(
    ("llm", "sizes", "millions"),
    [
        ("qwen2", (151674, 896, 4864, 24, 14, 2), 938.2),  # InternVL2_5-1B, InternVL3-1B
        ("internlm2", (92553, 4096, 14336, 32, 32, 8), 8075.0),  # InternVL2_5-8B
    ],
)
def test_published_configurations_have_the_published_sizes(tmp_path, llm, sizes, millions):
    config = foreign.original_config(llm=llm, vocabulary=sizes[0], tied=False)
    config["force_image_size"] = 448
    config["vision_config"] |= {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    config["vision_config"] |= {"intermediate_size": 4096, "image_size": 448, "patch_size": 14}
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    config["llm_config"] |= dict(zip(names, sizes, strict=True))
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    native = internvl_config(Section.read(tmp_path / "config.json"), image_token_id=5, tokens=tokens)
    assert native.image_seq_length == 256
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(native)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.5)


# What is refused


@pytest.mark.parametrize(
    ("llm", "change", "told"),
    [
        ("qwen2", {"vision_model.head.weight": torch.ones(1)}, r"1 unknown: vision_model\.head\.weight"),
        ("qwen2", {"language_model.model.layers.0.stranger": torch.ones(1)}, r"unknown: language_model\.model\.layers\.0\.str"),
        ("qwen2", {"mlp1.3.bias": None}, r"1 missing: mlp1\.3\.bias"),
        ("qwen2", {"language_model.lm_head.weight": None}, r"1 missing: language_model\.lm_head\.weight"),
        (
            "qwen2",
            {"vision_model.encoder.layers.1.attn.qkv.bias": None},
            r"1 missing: vision_model\.encoder\.layers\.1\.attn\.qkv",
        ),
        ("qwen2", {"vision_model.encoder.layers.0.ls1": torch.ones(5)}, r"layers\.0\.ls1 \(5,\) instead of \(24,\)"),
        ("qwen2", {"mlp1.0.bias": torch.ones(24)}, r"mlp1\.0\.bias \(24,\) instead of \(96,\)"),
        (
            "internlm2",
            {"language_model.model.layers.1.attention.wqkv.weight": None},
            r"1 missing: .*layers\.1\.attention\.wqkv",
        ),
        (
            "internlm2",
            {"language_model.model.layers.1.attention.wqkv.weight": torch.ones(72, 32)},
            r"layers\.1\.attention\.wqkv\.weight \(36, 32\) instead of \(32, 32\)",
        ),
        ("internlm2", {"language_model.model.embed_tokens.weight": torch.ones(2, 2)}, r"unknown: language_model\.model\.embed"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, llm, change, told):
    foreign.write_internvl(tmp_path / "old", llm=llm)
    foreign.edit(tmp_path / "old", change)
    with pytest.raises(ValueError, match=told):
        convert_internvl(tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_can_be_computed_may_be_there(tmp_path):
    native = foreign.write_internvl(tmp_path / "old", llm="qwen2", tied=True)
    embedding = native.get_input_embeddings().weight.detach().clone()
    computed = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
        "language_model.lm_head.weight": embedding,
    }
    foreign.edit(tmp_path / "old", computed)
    convert_internvl(tmp_path / "old", tmp_path / "new")
    assert torch.equal(logits(InternVLForConditionalGeneration.from_pretrained(tmp_path / "new").eval()), logits(native))


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("model_type", "internvl", r"config\.json: model_type is 'internvl'; allowed is 'internvl_chat'"),
        ("select_layer", -4, "select_layer is -4; allowed is -1"),
        ("ps_version", "v1", "ps_version is 'v1'; allowed is 'v2'"),
        ("ps_version", ..., "ps_version is missing"),
        ("use_backbone_lora", 8, "use_backbone_lora is 8; allowed is 0"),
        ("pad2square", True, "pad2square is True"),
        ("use_thumbnail", False, "use_thumbnail is False; allowed is True"),
        ("force_image_size", 32, "force_image_size is 32; allowed is 64 or None"),
        ("downsample_ratio", 0.3, "downsample_ratio is 0.3; allowed is what divides the 64 / 16 patches"),
        ("llm_config.architectures", ["Phi3ForCausalLM"], r"llm_config\.architectures is \['Phi3ForCausalLM'\]"),
        ("llm_config.hidden_act", "gelu", r"llm_config\.hidden_act is 'gelu'; allowed is 'silu'"),
        ("llm_config.use_sliding_window", True, r"llm_config\.use_sliding_window is True"),
        ("llm_config.rope_scaling", {"type": "yarn", "factor": 2.0}, r"llm_config\.rope_scaling\.type is 'yarn'"),
        ("llm_config.vocab_size", 10, r"llm_config\.vocab_size is 10; allowed is at least"),
        ("llm_config.num_key_value_heads", ..., r"llm_config\.num_key_value_heads is missing; allowed is int"),
        ("vision_config.norm_type", "batch_norm", r"vision_config\.norm_type is 'batch_norm'; allowed is 'layer_norm'"),
        ("vision_config", ..., "vision_config is missing; allowed is an object"),
        (
            "llm_config.num_attention_heads",
            3,
            r"llm_config\.num_attention_heads is 3; allowed is a divisor of hidden_size = 32",
        ),
        ("llm_config.num_key_value_heads", 3, r"num_key_value_heads is 3; allowed is a divisor of num_attention_heads = 4"),
        ("vision_config.num_attention_heads", 5, r"vision_config\.num_attention_heads is 5; allowed is a divisor"),
    ],
)
def test_configurations_that_are_not_supported_tell_key_and_what_is_allowed(tmp_path, place, value, told):
    foreign.write_internvl(tmp_path / "old", llm="qwen2")
    foreign.reconfigure(tmp_path / "old", place, value)
    with pytest.raises(ValueError, match=told):
        convert_internvl(tmp_path / "old", tmp_path / "new")


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    foreign.write_internvl(tmp_path / "old", llm="qwen2")
    foreign.write_tokenizer(tmp_path / "old", whole=False, added=foreign.ADDED[:-1])
    with pytest.raises(ValueError, match="its tokenizer lacks <IMG_CONTEXT>"):
        convert_internvl(tmp_path / "old", tmp_path / "new")
    (tmp_path / "old" / "vocab.json").unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        convert_internvl(tmp_path / "old", tmp_path / "new")
    foreign.write_internvl(tmp_path / "lm2", llm="internlm2")
    (tmp_path / "lm2" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer; expected is tokenizer\.json, or tokenizer\.model"):
        convert_internvl(tmp_path / "lm2", tmp_path / "new")
    (tmp_path / "lm2" / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr(tokenizer, "is_sentencepiece_available", lambda: False)
    with pytest.raises(ValueError, match=r"tokenizer\.model: it takes two packages .*pip install sentencepiece protobuf"):
        convert_internvl(tmp_path / "lm2", tmp_path / "new")


def write_sentencepiece(folder, *, dummy_prefix):
    """A byte-fallback BPE as InternLM2's, whose unused pieces the configuration renames; returns its ids and SentencePiece."""
    package = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    (folder / "corpus.txt").write_text("\n".join(CORPUS * 20))
    package.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]"],
        minloglevel=2,
    )
    original = package.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = {original.id_to_piece(i): i for i in range(330)}
    ids["<|im_end|>"], ids["<|im_start|>"] = ids.pop("[UNUSED_TOKEN_1]"), ids.pop("[UNUSED_TOKEN_2]")
    ids |= {"<img>": 330, "</img>": 331, "<IMG_CONTEXT>": 332}
    fields = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    named = ("<unk>", "<s>", "</s>", "<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"pad_token": "</s>", "added_tokens_decoder": {str(ids[name]): {"content": name, **fields} for name in named}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").unlink()
    foreign.reconfigure(folder, "llm_config.vocab_size", len(ids))
    return ids, original


def test_internlm2s_own_tokenizer_is_read_as_sentencepiece_reads_it(tmp_path):
    foreign.write_internvl(tmp_path / "old", llm="internlm2")
    ids, original = write_sentencepiece(tmp_path / "old", dummy_prefix=False)
    read = tokenizer.read_tokenizer(tmp_path / "old", Section.read(tmp_path / "old" / "config.json"))
    assert {name: read.get_vocab()[name] for name in ids} == ids
    assert set(read.get_vocab()) - set(ids) == {"<video>"}
    draw = np.random.default_rng(0)
    words = [*" ".join(CORPUS).split(), "", "12", "é", "点", "\n", "▁", "zzz"]
    for _ in range(200):
        text = " ".join(draw.choice(words, draw.integers(1, 8)))
        assert read.encode(text, add_special_tokens=False) == original.encode(text), text


def test_a_sentencepiece_model_that_comes_out_different_is_refused(tmp_path):
    foreign.write_internvl(tmp_path / "old", llm="internlm2")
    write_sentencepiece(tmp_path / "old", dummy_prefix=True)
    with pytest.raises(ValueError, match="reads it as another tokenizer than SentencePiece"):
        convert_internvl(tmp_path / "old", tmp_path / "new")
