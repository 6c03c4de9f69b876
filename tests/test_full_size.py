"""Perceptio at 1B, 4B and 8B on the meta device: every count against formulas that know the architecture, not the code."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.architectures import BASES, INTERNVL2_5_4B, INTERNVL3_1B, Architecture
from benchmarks.check_profile import inconsistencies, main, memory
from benchmarks.on_meta import SAM2_1_LARGE, Group, assemble_on_meta
from parameters import values_of
from perceptio_core.params.depth_codebook import DepthCodebookParams
from perceptio_core.params.profile import Profile, load_profile
from perceptio_core.params.values import PROFILES

REPOSITORY = Path(__file__).resolve().parent.parent
K, RANK = 128, 128
"""Codes (AURORA) and rank of LoRA (Sa2VA) of all three profiles."""

VISION = 24 * (4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 2 * 2 * 1024 + 2 * 1024)  # layers, with layer scales
VISION += 3 * 14 * 14 * 1024 + 1024 + 1025 * 1024 + 1024  # patches, positions, the class token


def profile(name: str) -> Profile:
    return load_profile(name, folder=REPOSITORY / PROFILES)


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def projector(a: Architecture) -> int:
    return 2 * 4096 + linear(4096, a.width) + linear(a.width, a.width)


def internvl(a: Architecture, *, rows: int) -> int:
    """Parameters of InternVL with so many rows in its embedding and in its head."""
    queries, keys = a.heads * a.head_dim, a.key_heads * a.head_dim
    attention = 2 * a.width * queries + 2 * a.width * keys
    attention += 2 * a.head_dim if a.qwen3 else queries + 2 * keys
    layer = attention + 3 * a.width * a.inner + 2 * a.width
    return VISION + projector(a) + a.layers * layer + a.width + 2 * rows * a.width


def trained(a: Architecture, *, codes: int = K) -> dict[str, int]:
    """Trained parameters by group."""
    queries, keys = a.heads * a.head_dim, a.key_heads * a.head_dim
    lora = 2 * (a.width + queries) + 2 * (a.width + keys) + 3 * (a.width + a.inner)
    c = 256  # channels of SAM2's embedding
    attention = 3 * linear(c, c // 2) + linear(c // 2, c)
    block = 4 * linear(c, c) + 2 * attention + linear(c, 2048) + linear(2048, c) + 4 * 2 * c
    upscaling = 4 * c * c // 4 + c // 4 + 2 * c // 4 + 4 * (c // 4) * (c // 8) + c // 8
    maps = linear(c, c // 8) + linear(c, c // 4)  # of strides 4 and 8
    tokens = (1 + 1 + 4) * c  # object, score, masks
    single_mask = 2 * linear(c, c) + linear(c, c // 8)
    return {
        "adapters": a.layers * RANK * lora,
        "added_rows": 2 * (codes + 3) * a.width,
        "projector": projector(a),
        "prompt": linear(a.width, a.width) + linear(a.width, c),
        "mask_decoder": 2 * block + attention + 2 * c + upscaling + maps + tokens + single_mask,
    }


def counted(groups: dict[str, Group]) -> dict[str, int]:
    return {name: sum(parameter.numel() for parameter in group.values()) for name, group in groups.items()}


def codebook() -> int:
    """Parameters of AURORA's VQ-VAE with a decoder that mirrors the encoder; its codes are buffers."""
    widths = (1, 16, 32, 64, 128, 256)
    down = sum(16 * before * after + after for before, after in pairwise(widths))
    up = sum(16 * before * after + before for before, after in pairwise(widths))
    blocks = 2 * (2 * (9 * 256 * 256 + 256) + linear(256, 256))
    return down + up + 2 * blocks + linear(256, 512) + linear(512, 256)


@pytest.mark.parametrize(
    ("name", "a"), [*BASES.items(), ("perceptio-4b", INTERNVL2_5_4B)], ids=lambda value: getattr(value, "repo", value)
)
def test_counts_at_full_size(name: str, a: Architecture) -> None:
    assert internvl(a, rows=a.rows) == a.published
    model, processor, groups = assemble_on_meta(a, profile(name))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}

    rows = max(a.rows, a.tokens + K + 3)  # rows that the base model has to spare are used first
    assert len(processor.tokenizer) == a.tokens + K + 3
    for layer in (model.vlm.get_input_embeddings(), model.vlm.get_output_embeddings()):
        assert tuple(layer.weight.shape) == (rows, a.width)
    assert model.config.vocabulary.ids == list(range(a.tokens, a.tokens + K + 3))
    assert model.config.depth_tokens == 100

    assert counted(groups) == trained(a)
    added = trained(a)["adapters"] + trained(a)["added_rows"] + trained(a)["prompt"]  # the others are parts of what was there
    total = internvl(a, rows=rows) + SAM2_1_LARGE + codebook() + added
    assert sum(parameter.numel() for parameter in model.parameters()) == total

    assert {parameter.dtype for group in groups.values() for parameter in group.values()} == {torch.float32}
    frozen = {parameter.dtype for parameter in model.vlm.parameters() if not parameter.requires_grad}
    assert frozen == {torch.bfloat16}


@pytest.mark.parametrize("codes", [K - 1, K + 1])
def test_one_row_more_or_fewer_shows(codes: int) -> None:
    chosen = profile("perceptio-1b")
    book = DepthCodebookParams(**{**chosen.depth_codebook.model_dump(), "num_codes": codes})
    other = replace(chosen, depth_codebook=book)
    model, _, groups = assemble_on_meta(INTERNVL3_1B, other)
    assert counted(groups) == trained(INTERNVL3_1B, codes=codes)
    assert counted(groups)["added_rows"] - trained(INTERNVL3_1B)["added_rows"] == 2 * (codes - K) * INTERNVL3_1B.width
    assert len(model.vlm.get_input_embeddings().weight) == INTERNVL3_1B.tokens + codes + 3


def test_the_control_trains_the_same_without_masks() -> None:
    chosen = profile("perceptio-1b")
    control = replace(chosen, cotrain=chosen.variant("control"))
    _, _, groups = assemble_on_meta(INTERNVL3_1B, control)
    assert counted(groups) == {name: trained(INTERNVL3_1B)[name] for name in ("adapters", "added_rows", "projector")}


@pytest.mark.parametrize(("name", "a"), BASES.items(), ids=lambda value: getattr(value, "repo", value))
def test_the_memory_that_the_profile_states(name: str, a: Architecture) -> None:
    """Of the samples that its first lines describe; it fits a GPU of 80 GB."""
    model, _, _ = assemble_on_meta(a, profile(name))
    params = profile(name).cotrain
    assert params.batch_size // (params.processes * params.accumulation) == 2
    estimate = memory(model, profile(name))
    assert f"memory  {estimate.peak_gib:.0f} GiB" in (REPOSITORY / PROFILES / f"{name}.yaml").read_text()
    assert estimate.peak_gib < 70


def test_sharded_weights_leave_memory() -> None:
    whole = profile("perceptio-1b")
    sharded = replace(whole, cotrain=whole.cotrain.model_copy(update={"sharding": "full"}))
    model, _, _ = assemble_on_meta(INTERNVL3_1B, whole)
    assert memory(model, sharded).peak_gib < memory(model, whole).peak_gib - 1


def test_the_profiles_differ_in_their_base_alone() -> None:
    profiles = {name: profile(name) for name in BASES}
    for name, chosen in profiles.items():
        assert chosen.foundations.internvl is not None
        assert chosen.foundations.internvl.repo == BASES[name].repo
    first = profiles["perceptio-1b"]
    for other in profiles.values():
        for section in ("sources", "teacher_depth", "depth_codebook", "joint_shards", "cotrain", "evaluate", "variants"):
            assert getattr(other, section) == getattr(first, section), section
        assert other.foundations.sam2 == first.foundations.sam2
        assert other.foundations.depth_anything == first.foundations.depth_anything


def test_the_command_tells_what_it_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", ["check_profile", "perceptio-1b"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    told = capsys.readouterr().out
    for text in ("every key and value is allowed; variants: full, no_depth, control", "its parts fit together", "1.2", "peak"):
        assert text in told
    monkeypatch.setattr("sys.argv", ["check_profile", "nonesuch"])
    with pytest.raises(SystemExit, match="there is no profile"):
        main()


def test_what_cannot_be_meant_is_found() -> None:
    chosen = profile("perceptio-1b")
    assert list(inconsistencies(chosen)) == []
    sources = chosen.sources.model_copy(
        update={"held_out": chosen.sources.held_out[1:], "datasets": chosen.sources.datasets[:1]}
    )
    assert chosen.foundations.sam2 is not None
    sam2 = chosen.foundations.sam2.model_copy(update={"config": "sam3"})
    broken = replace(chosen, sources=sources, foundations=chosen.foundations.model_copy(update={"sam2": sam2}))
    told = list(inconsistencies(broken))
    assert [line.partition(":")[0] for line in told] == [
        "foundations.sam2.config",
        *["sources.held_out"] * 3,
        "sources.datasets",
        "cotrain.mixture.conversation",
    ]
    assert "none has split val" in told[4]
    assert "refcoco_val (refcoco)" in told[1]


@pytest.mark.parametrize(
    ("section", "change", "told"),
    [
        (
            "benchmarks",
            {"kind": "refer", "path": "refcoco", "split": "test", "split_by": "unc"},
            "have the splits train, val, testA",
        ),
        (
            "benchmarks",
            {"kind": "refer", "path": "refcocog", "split": "val", "split_by": "unc"},
            "split_by unc; allowed are umd, google",
        ),
        (
            "benchmarks",
            {"kind": "refer", "path": "refcoco", "split": "val", "split_by": "unc"},
            "asks the variant control for masks",
        ),
        ("benchmarks", {"kind": "mme", "path": "mme", "except_variants": ["contro"]}, "except_variants names contro"),
        ("benchmarks", {"kind": "mme", "path": "mme", "except_variants": ["*"]}, "is asked of no variant"),
        ("benchmarks", {"kind": "mmbench", "path": "mmbench"}, "kind mmbench is a file .tsv, not mmbench"),
        ("benchmarks", {"kind": "scienceqa", "path": "scienceqa/ScienceQA_TEST.tsv", "split": "test"}, "a table has one split"),
        ("benchmarks", {"kind": "hardblink", "path": "hardblink", "name": "x", "codes": "random"}, "for depth codes"),
        ("held_out", "refcoco/instances.json", "allowed are folders"),
        (
            "datasets",
            {"name": "mine", "kind": "llava", "path": "mine", "split": "train"},
            "kind llava is a file .json, not mine",
        ),
        ("shards", {"markers_per_image": 0}, "mixture.marker is drawn, but joint_shards.markers_per_image is 0"),
    ],
)
def test_what_the_run_would_stop_at_is_known_without_data(tmp_path: Path, section: str, change: Any, told: str) -> None:
    values = values_of("perceptio-1b")
    values["sources"]["datasets"] = [row for row in values["sources"]["datasets"] if row["kind"] != "aurora"]
    if section == "benchmarks":
        values["evaluate"]["benchmarks"] = [change]
    elif section == "held_out":
        values["sources"]["held_out"].append(change)
    elif section == "datasets":
        values["sources"]["datasets"].append(change)
    else:
        values["joint_shards"] |= change
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(values))
    assert any(told in line for line in inconsistencies(load_profile("p", folder=tmp_path)))
