from dataclasses import replace
from itertools import pairwise
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, DynamicCache, InternVLForConditionalGeneration

from perceptio_core.grammar import PAPER_ORDER, Role
from perceptio_core.model import modeling
from perceptio_core.model.adapters import ADAPTER, add_adapters, merge_adapters
from perceptio_core.model.assembly import assemble
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.packed_attention import packed_attention, packed_places
from perceptio_core.model.processing import PerceptioProcessor
from perceptio_core.segmentation.losses import mask_losses
from perceptio_core.segmentation.sam2 import build_sam2
from tiny import LOSS_WEIGHTS, lively, tiny_foundations, tiny_perceptio, tiny_sample

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
ALL = {"llm", "seg_ce", "seg_dice", "marker", "token", "count", "reconstruction", "total"}


@pytest.fixture
def parts(tmp_path):
    return tiny_perceptio(tmp_path)


@pytest.fixture
def mixed(parts):
    """Masks and depth, masks alone, depth alone, neither."""
    samples = [tiny_sample(n, masks=m, depth=d) for n, (m, d) in enumerate([(1, True), (2, False), (0, True), (0, False)])]
    return parts[1].collate(samples)


def train(model, batch, *, steps, **options):
    groups = add_adapters(model, **LORA, **options)
    parameters = [parameter for group in groups.values() for parameter in group.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    model.train()
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        losses.append(model(batch))
        optimizer.zero_grad()
        losses[-1]["total"].backward()
        optimizer.step()
    return groups, losses


def test_total_is_the_weighted_sum_of_the_parts(parts, mixed):
    model, _ = parts
    torch.manual_seed(0)
    losses = model(mixed)
    assert set(losses) == ALL
    weighted = sum(model.config.loss_weights[name] * float(value) for name, value in losses.items() if name != "total")
    assert float(losses["total"]) == pytest.approx(weighted, rel=1e-5)
    assert all(float(value) > 0 for value in losses.values())


def test_losses_are_those_of_the_plain_model_on_each_sample_alone(parts, mixed, tmp_path):
    """Language and marker loss against the logits of `transformers`' own InternVL, shifted here by hand."""
    model, _ = parts
    model.eval()
    model.vlm.save_pretrained(tmp_path / "plain")
    plain = InternVLForConditionalGeneration.from_pretrained(tmp_path / "plain").eval()
    assert plain.config._attn_implementation == "sdpa"
    log_p, roles = [], []
    with torch.no_grad():
        losses = model(mixed)
        for number, (ids, own) in enumerate(
            zip(mixed.input_ids_T.split(mixed.lengths), mixed.roles_T.split(mixed.lengths), strict=True)
        ):
            logits = plain(input_ids=ids[None], pixel_values=mixed.pixels_PCHW[number, None]).logits[0].double()
            log_p.append(logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0])
            roles.append(own[1:])
    log_p, roles = torch.cat(log_p), torch.cat(roles)
    text = (roles == Role.ANSWER) | (roles == Role.END) | (roles == Role.SEG)
    markers = (roles == Role.DEPTH_START) | (roles == Role.DEPTH_END)
    assert float(losses["llm"]) == pytest.approx(-float(log_p[text].mean()), rel=1e-5)
    assert float(losses["marker"]) == pytest.approx(-float(log_p[markers].mean()), rel=1e-5)


def test_spans_are_read_with_the_models_own_codes_while_the_targets_stay(parts, mixed, tmp_path):
    """Against `transformers`' own InternVL: one pass for the likeliest codes, by hand, and one that reads them."""
    model, _ = parts
    model.eval()
    model.vlm.save_pretrained(tmp_path / "plain")
    plain = InternVLForConditionalGeneration.from_pretrained(tmp_path / "plain").eval()
    vocabulary = model.config.vocabulary
    log_p, roles, changed = [], [], 0
    with torch.no_grad():
        losses = model(replace(mixed, own_codes=True))
        for number, (ids, own) in enumerate(
            zip(mixed.input_ids_T.split(mixed.lengths), mixed.roles_T.split(mixed.lengths), strict=True)
        ):
            pixels, read = mixed.pixels_PCHW[number, None], ids.clone()
            for place in torch.nonzero(own == Role.DEPTH_CODE)[:, 0].tolist():
                scores = plain(input_ids=ids[None], pixel_values=pixels).logits[0, place - 1]
                codes = scores[vocabulary.first_code : vocabulary.first_code + vocabulary.num_codes]
                read[place] = vocabulary.first_code + int(codes.argmax())
            changed += int((read != ids).sum())
            logits = plain(input_ids=read[None], pixel_values=pixels).logits[0].double()
            log_p.append(logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0])
            roles.append(own[1:])
        assert changed > 0
        told = model(mixed)
    log_p, roles = torch.cat(log_p), torch.cat(roles)
    text = (roles == Role.ANSWER) | (roles == Role.END) | (roles == Role.SEG)
    assert float(losses["llm"]) == pytest.approx(-float(log_p[text].mean()), rel=1e-5)
    assert float(losses["token"]) == pytest.approx(-float(log_p[roles == Role.DEPTH_CODE].mean()), rel=1e-5)
    assert float(losses["llm"]) != float(told["llm"])


def test_losses_of_spans_are_the_mean_over_the_samples_alone(
    parts: tuple[PerceptioForConditionalGeneration, PerceptioProcessor],
) -> None:
    """Count and reconstruction loss: one span a sample, so of a packed row they are the mean of those that have one."""
    model, processor = parts
    lively(model).eval()
    samples = [tiny_sample(n, masks=masks, depth=n != 2, turns=1 + n % 2) for n, masks in enumerate([2, 0, 1, 0, 1])]
    with torch.no_grad():
        packed = model(processor.collate(samples))
        alone = [model(processor.collate([sample])) for sample in samples if sample.depth_codes]
    for name in ("count", "reconstruction"):
        values = [float(losses[name]) for losses in alone]
        ordered = sorted(values)
        assert all(high > 1.01 * low for low, high in pairwise(ordered)), "spans that are all the same would prove little"
        assert float(packed[name]) == pytest.approx(np.mean(values), rel=1e-4), name


def test_every_mask_is_drawn_and_judged_as_in_its_sample_alone(parts, monkeypatch):
    model, processor = parts
    lively(model).eval()
    samples = [tiny_sample(n, masks=masks, depth=n == 1) for n, masks in enumerate([2, 0, 1, 3])]
    seen = []

    def remember(logits_Mhw, targets_M, *, num_points):
        seen.append((logits_Mhw, targets_M))
        assert num_points == logits_Mhw[0].numel() < 12544, "all points of masks that have fewer than Sa2VA's number"
        return mask_losses(logits_Mhw, targets_M, num_points=num_points)

    monkeypatch.setattr("perceptio_core.model.modeling.mask_losses", remember)
    with torch.no_grad():
        for chosen in (samples, *([sample] for sample in samples if len(sample.masks))):
            model(processor.collate(chosen))
    (together, targets), *alone = seen
    torch.testing.assert_close(together, torch.cat([logits for logits, _ in alone]), rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1:]).abs().amax((1, 2)).min() > 1e-3, "masks that are all the same would prove little"
    wanted = [mask for sample in samples for mask in sample.masks]
    assert all(np.array_equal(target, mask) for target, mask in zip(targets, wanted, strict=True))


def test_own_codes_under_autocast_leave_every_gradient_in_place(parts, mixed):
    """Autocast's cache holds what the pass without a graph has cast; gradients are those of a run that keeps no cache."""
    model, _ = parts
    groups = add_adapters(model, **LORA, train_vision_tower=True)
    parameters = [parameter for group in groups.values() for parameter in group.values()]
    gradients = []
    for cached in (True, False):
        torch.manual_seed(0)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            losses = model(replace(mixed, own_codes=True))
        losses["total"].backward()
        gradients.append([parameter.grad for parameter in parameters])
    assert all(one is not None and torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert sum(float(one.abs().sum()) > 0 for one in gradients[0]) > len(parameters) / 2


def test_a_centred_prompt_sees_what_differs_between_objects(parts, mixed):
    model, processor = parts
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.centre_prompt([processor.collate([tiny_sample(0, masks=0, depth=True)])])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "no [SEG], no change"
    seen = []
    handle = model.bridge.prompt[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model.centre_prompt([mixed])
    model(mixed)
    handle.remove()
    assert seen[0].shape[0] == 3, "one row a mask"
    torch.testing.assert_close(seen[0].mean(0), torch.zeros_like(seen[0][0]), rtol=0, atol=1e-5)
    assert {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)} == {
        "bridge.prompt.0.bias"
    }


def test_a_prompt_is_centred_under_a_half_precision_language_model(parts, mixed):
    model, _ = parts
    model.vlm.to(torch.bfloat16)
    before = model.bridge.prompt[0].bias.clone()
    model.centre_prompt([mixed])
    after = model.bridge.prompt[0].bias
    assert after.dtype == torch.float32
    assert after.isfinite().all()
    assert not torch.equal(before, after)


def test_nothing_leaks_between_the_samples_of_a_row(parts):
    model, processor = parts
    model.eval()
    second = tiny_sample(1, masks=1, depth=True)

    def states(first):
        batch = processor.collate([first, second])
        places = packed_places(batch.lengths, device=torch.device("cpu"))
        ids, positions = batch.input_ids_T[None], batch.positions_T[None]
        with torch.no_grad():
            output = model.vlm.model(
                input_ids=ids, position_ids=positions, pixel_values=batch.pixels_PCHW, use_cache=False, **places
            )
        return output.last_hidden_state[0].split(batch.lengths)

    one, other = states(tiny_sample(0, masks=1, depth=True)), states(tiny_sample(2, masks=1, depth=True))
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
def test_packed_attention_is_attention_under_the_mask_of_each_sample(heads, key_heads):
    lengths, dim = (3, 1, 5), 8
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, n, sum(lengths), dim, generator=draw, dtype=torch.float32, requires_grad=True)
        for n in (heads, key_heads, key_heads)
    )
    cu_seq_lens = packed_places(lengths, device=query.device)["cu_seq_lens_q"]
    got, _ = packed_attention(nn.Module(), query, key, value, None, cu_seq_lens_q=cu_seq_lens, scaling=0.3)

    q, k, v = (tensor.detach().double().requires_grad_() for tensor in (query, key, value))
    mask = torch.block_diag(*[torch.ones(n, n).tril() for n in lengths]) == 0
    repeats = heads // key_heads
    scores = (q @ k.repeat_interleave(repeats, 1).transpose(-1, -2) * 0.3).masked_fill(mask, -torch.inf)
    want = (scores.softmax(-1) @ v.repeat_interleave(repeats, 1)).transpose(1, 2)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    weights = torch.randn(want.shape, generator=draw)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    for mine, theirs in zip((query, key, value), (q, k, v), strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


def test_a_loss_of_weight_zero_is_not_computed(tmp_path, monkeypatch):
    model, processor = tiny_perceptio(tmp_path, count=0.0, reconstruction=0.0, seg_ce=0.0, seg_dice=0.0)
    for name in ("count_loss", "reconstruction_loss", "mask_losses"):
        monkeypatch.setattr(modeling, name, Mock(side_effect=AssertionError("computed")))
    losses = model(processor.collate([tiny_sample(0, masks=1, depth=True)]))
    assert set(losses) == {"llm", "marker", "token", "total"}


def test_a_batch_without_perception_reaches_every_trainable_parameter(parts):
    model, processor = parts
    batch = processor.collate([tiny_sample(0, masks=0, depth=False)])
    groups, losses = train(model, batch, steps=1, train_vision_tower=False)
    assert {name for name, value in losses[0].items() if value == 0} == ALL - {"llm", "total"}
    assert all(parameter.grad is not None for group in groups.values() for parameter in group.values())


def test_the_control_has_no_perception(tmp_path):
    model, processor = tiny_perceptio(tmp_path, order=())
    groups = add_adapters(model, **LORA, train_vision_tower=False)
    assert set(groups) == {"adapters", "added_rows", "projector"}
    losses = model(processor.collate([tiny_sample(0, masks=1, depth=True)]))
    assert float(losses["total"].detach()) == pytest.approx(float(losses["llm"].detach()))
    assert "seg_ce" not in losses


@pytest.mark.parametrize("tied", [True, False])
def test_only_what_should_train_trains(tmp_path, tied):
    model, processor = tiny_perceptio(tmp_path, tied=tied)
    batch = processor.collate([tiny_sample(0, masks=1, depth=True), tiny_sample(1, masks=0, depth=True)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups, losses = train(model, batch, steps=6, train_vision_tower=False)
    assert set(groups) == {"adapters", "added_rows", "projector", "prompt", "mask_decoder"}
    assert float(losses[-1]["total"].detach()) < float(losses[0]["total"].detach())
    merge_adapters(model)
    after = model.state_dict()
    assert after.keys() == before.keys(), "merging restores the names of a fresh model"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = ("vlm.model.vision_tower.", "bridge.sam.image_encoder.", "bridge.sam.sam_prompt_encoder.", "codebook.")
    assert not [name for name in changed if name.startswith(frozen)]
    for start in ("bridge.prompt.", "bridge.sam.sam_mask_decoder.", "vlm.model.multi_modal_projector."):
        assert [name for name in changed if name.startswith(start)], start
    assert "vlm.model.language_model.layers.0.self_attn.q_proj.weight" in changed
    assert "vlm.model.language_model.norm.weight" not in changed

    added = model.config.vocabulary.ids
    old = [row for row in range(len(after["vlm.lm_head.weight"])) if row not in added]
    for name in ("vlm.model.language_model.embed_tokens.weight", "vlm.lm_head.weight"):
        assert torch.equal(before[name][old], after[name][old]), "old rows stay equal to the bit, weight decay included"
        assert (before[name][added] != after[name][added]).any(1).sum() >= len(added) - 2, "rows of the batch's tokens moved"
    assert (model.vlm.lm_head.weight is model.vlm.model.language_model.embed_tokens.weight) == tied


def test_merged_weights_answer_as_the_adapters_did(parts, mixed):
    model, _ = parts
    train(model, mixed, steps=2, train_vision_tower=True)
    model.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        adapted = model(mixed)
        merge_adapters(model)
        torch.manual_seed(0)
        merged = model(mixed)
    for name, value in adapted.items():
        assert float(merged[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    with pytest.raises(ValueError, match="no adapters"):
        merge_adapters(model)


def test_adapters_start_equal_and_leave_the_generator_alone(parts, tmp_path):
    model, _ = parts
    state = torch.random.get_rng_state()
    groups = add_adapters(model, **LORA | {"dropout": 0.25}, train_vision_tower=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert set(groups) == {"adapters", "added_rows", "projector", "prompt", "mask_decoder", "vision_tower"}
    other, _ = tiny_perceptio(tmp_path / "again")
    add_adapters(other, **LORA, train_vision_tower=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    layer = model.vlm.model.language_model.layers[0].mlp.up_proj
    assert (layer.r[ADAPTER], layer.scaling[ADAPTER], layer.lora_dropout[ADAPTER].p) == (4, 2.0, 0.25)  # 8 / 4
    with pytest.raises(ValueError, match="already"):
        add_adapters(model, **LORA, train_vision_tower=False)


@pytest.mark.parametrize("adapters", [True, False])
def test_depth_losses_reach_the_language_model_and_not_the_codebook(parts, adapters):
    model, processor = parts
    batch = processor.collate([tiny_sample(0, masks=0, depth=True)])
    if adapters:
        add_adapters(model, **LORA, train_vision_tower=False)
    model(batch)["reconstruction"].backward()
    name = "trainable_tokens_delta" if adapters else "embed_tokens.weight"
    row = next(p for n, p in model.named_parameters() if name in n)
    assert row.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.codebook.parameters())
    model.train()
    assert not model.codebook.training


def test_words_for_levels_are_single_tokens_of_the_base(tmp_path):
    foundations, codebook = tiny_foundations(tmp_path)
    with pytest.raises(ValueError, match=r"code_words: '\xb1\xb1' are not single tokens"):
        assemble(
            foundations=foundations,
            codebook=codebook,
            order=PAPER_ORDER,
            loss_weights=LOSS_WEIGHTS,
            max_tiles=1,
            seed=0,
            code_words=("a", "\xb1\xb1"),
        )


def test_sam2_is_built_with_data_while_a_checkpoint_is_loaded(tmp_path, monkeypatch):
    """`transformers` builds on the meta device, from which `sam2` could not copy its tables to a GPU."""
    tiny_perceptio(tmp_path)[0].save_pretrained(tmp_path / "checkpoint")
    devices = []

    def build(config):
        sam = build_sam2(config)
        devices.extend(table.device.type for table in [torch.empty(1), *sam.buffers()])
        return sam

    monkeypatch.setattr("perceptio_core.model.modeling.build_sam2", build)
    again = PerceptioForConditionalGeneration.from_pretrained(tmp_path / "checkpoint")
    assert set(devices) == {"cpu"}
    assert not any(parameter.is_meta for parameter in again.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_comes_back_to_the_bit(tmp_path, tied):
    model, processor = tiny_perceptio(tmp_path, tied=tied)
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    again = AutoModel.from_pretrained(folder)
    assert isinstance(again, PerceptioForConditionalGeneration)
    assert again.config.to_dict() | {"transformers_version": ""} == AutoConfig.from_pretrained(folder).to_dict() | {
        "transformers_version": ""
    }
    saved, loaded = model.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    batch = PerceptioProcessor.from_pretrained(folder).collate([tiny_sample(0, masks=1, depth=True)])
    assert torch.equal(batch.input_ids_T, processor.collate([tiny_sample(0, masks=1, depth=True)]).input_ids_T)
    model.eval()
    again.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        first = model(batch)
        torch.manual_seed(0)
        second = again(batch)
    # The weights are equal to the bit; a kernel's order of summation may follow where its memory lies.
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_is_read_in_the_dtype_that_is_asked_for(tmp_path, dtype):
    """All of InternVL in that dtype, the other parts in float32; and what is saved so comes back so."""
    model, processor = tiny_perceptio(tmp_path)
    model.save_pretrained(tmp_path / "whole")
    half = PerceptioForConditionalGeneration.from_pretrained(tmp_path / "whole", dtype=dtype).eval()
    half.save_pretrained(tmp_path / "half")
    again = PerceptioForConditionalGeneration.from_pretrained(tmp_path / "half")
    prompts = processor.prompts([tiny_sample(0, masks=0, depth=False).image], ["yes"])
    for one in (half, again):
        assert {parameter.dtype for parameter in one.vlm.parameters()} == {dtype}
        assert {p.dtype for part in (one.bridge, one.codebook) for p in part.parameters()} == {torch.float32}
        (answer,) = one.answer(prompts, segment=True, depth=True, max_masks=2, max_new_tokens=1)
        assert answer.parsed.masks >= 1
        assert len(answer.parsed.depth_codes) == 4
    back = PerceptioForConditionalGeneration.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert {parameter.dtype for parameter in back.parameters()} == {torch.float32}


def test_a_model_with_adapters_is_not_saved(parts, tmp_path):
    model, _ = parts
    add_adapters(model, **LORA, train_vision_tower=False)
    with pytest.raises(ValueError, match="merge them first"):
        model.save_pretrained(tmp_path / "saved")
    merge_adapters(model)
    model.save_pretrained(tmp_path / "saved")


def test_only_a_fresh_prompt_is_centred(parts, mixed, tmp_path):
    model, _ = parts
    model.save_pretrained(tmp_path / "saved")
    again = PerceptioForConditionalGeneration.from_pretrained(tmp_path / "saved")
    for one in (model, again):
        one.centre_prompt([mixed])
    assert not torch.equal(model.bridge.prompt[0].bias, again.bridge.prompt[0].bias)
    saved = PerceptioForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.bridge.prompt[0].bias, saved.bridge.prompt[0].bias)


def test_untouched_internvl_answers_as_before(tmp_path):
    """Assembling changes nothing that the base model says about its own vocabulary."""
    foundations, codebook = tiny_foundations(tmp_path)
    base = InternVLForConditionalGeneration.from_pretrained(foundations / "internvl").eval()
    model, processor = assemble(
        foundations=foundations,
        codebook=codebook,
        order=("segmentation", "depth"),
        loss_weights=dict.fromkeys(("llm", "seg_ce", "seg_dice", "marker", "token", "count", "reconstruction"), 1.0),
        max_tiles=1,
        seed=0,
    )
    batch = processor.collate([tiny_sample(0, masks=0, depth=False)])
    inputs = {"input_ids": batch.input_ids_T[None], "pixel_values": batch.pixels_PCHW}
    with torch.no_grad():
        before, after = base(**inputs).logits, model.vlm.eval()(**inputs).logits
    assert torch.equal(after[..., : before.shape[-1]], before)


def test_tokens_after_a_cached_prefix_see_it_with_and_without_a_mask(parts):
    """Six tokens behind the others of a cache: their logits are those of the whole sequence in one pass."""
    model, processor = parts
    lively(model).eval()
    batch = processor.collate([tiny_sample(0, masks=0, depth=False)])
    ids, pixels = batch.input_ids_T[None], batch.pixels_PCHW
    with torch.no_grad():
        whole = model.vlm(input_ids=ids, pixel_values=pixels).logits[:, -6:]
        for masked in (True, False):
            cache = DynamicCache()
            for part, more in ((ids[:, :-6], {"pixel_values": pixels}), (ids[:, -6:], {})):
                seen = cache.get_seq_length() + part.shape[1]
                mask = {"attention_mask": torch.ones(1, seen, dtype=torch.int64)} if masked else {}
                logits = model.vlm(input_ids=part, past_key_values=cache, use_cache=True, **more, **mask).logits
            torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)


def test_refuses_incomplete_loss_weights(tmp_path):
    with pytest.raises(ValueError, match="loss_weights must hold a weight >= 0 for each of llm"):
        tiny_perceptio(tmp_path, depth=1.0)
    with pytest.raises(ValueError, match="loss_weights"):
        tiny_perceptio(tmp_path, llm=-1.0)


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
def test_a_base_in_bf16_comes_back_with_the_other_parts_in_float32(tmp_path, trained):
    foundations, codebook = tiny_foundations(tmp_path)
    InternVLForConditionalGeneration.from_pretrained(foundations / "internvl", dtype=torch.bfloat16).save_pretrained(
        foundations / "internvl"
    )
    model, processor = assemble(
        foundations=foundations, codebook=codebook, order=PAPER_ORDER, loss_weights=LOSS_WEIGHTS, max_tiles=1, seed=0
    )
    sample = tiny_sample(0, masks=1, depth=True)
    if trained:
        with torch.autocast("cpu", torch.bfloat16):
            train(model, processor.collate([sample]), steps=1, train_vision_tower=True)
        merge_adapters(model)
    model.save_pretrained(tmp_path / "saved")
    again = PerceptioForConditionalGeneration.from_pretrained(tmp_path / "saved")
    float32 = {torch.float32}
    for whole in (model, again):
        assert {parameter.dtype for parameter in whole.vlm.parameters()} == {torch.bfloat16}
        assert {parameter.dtype for part in (whole.bridge, whole.codebook) for parameter in part.parameters()} == float32
        assert {table.dtype for name, table in whole.vlm.named_buffers() if name.endswith("inv_freq")} == float32
    after = again.state_dict()
    assert all(torch.equal(after[name], value) for name, value in model.state_dict().items())
    prompts = processor.prompts([sample.image], ["yes"])
    answers = [whole.eval().answer(prompts, segment=True, depth=True, max_new_tokens=2)[0].ids for whole in (model, again)]
    assert answers[0] == answers[1]


def test_attention_takes_values_in_bf16_beside_queries_in_float32():
    """As autocast makes them: what the rotary angles touch is float32."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 7, 16, generator=draw) for _ in range(3))
    exact, _ = packed_attention(torch.nn.Module(), query, key, value, None, **packed_places((3, 4), device=query.device))
    mixed, _ = packed_attention(
        torch.nn.Module(), query, key, value.bfloat16(), None, **packed_places((3, 4), device=query.device)
    )
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=0, atol=2**-7)
