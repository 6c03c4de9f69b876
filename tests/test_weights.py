"""Loads that name what does not fit, and files whose mode is that of other files."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText

import foreign
from perceptio_core.convert.internvl import convert_internvl
from perceptio_core.convert.sam2 import convert_sam2
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.files import follow_umask
from perceptio_core.model.inference import Perceptor
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.segmentation.sam2 import build_sam2, load_official, load_sam2, mini_config, official_config
from perceptio_core.training.checkpoint import Progress, save_checkpoint
from perceptio_core.weights import load_exactly, read_metadata, read_safetensors, save_tensors
from tiny import tiny_perceptio


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in ``checkpoint/``, and what it was made of."""
    root = tmp_path_factory.mktemp("made")
    model, processor = tiny_perceptio(root, tied=False)
    model.save_pretrained(root / "checkpoint")
    processor.save_pretrained(root / "checkpoint")
    return root


@contextmanager
def changed(file: Path, change: dict[str, torch.Tensor | None]) -> Iterator[None]:
    """A safetensors file with entries set or, with None, taken out, for as long as the block lasts."""
    before = file.read_bytes()
    weights = load_file(file) | change
    save_file({key: value for key, value in weights.items() if value is not None}, file, metadata={"format": "pt"})
    yield
    file.write_bytes(before)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bridge.prompt.0.weight": None}, r"1 missing: bridge\.prompt\.0\.weight"),
        ({"codebook.quantizer.embedding": None}, r"1 missing: codebook\.quantizer\.embedding"),
        ({"bridge.sam.stranger": torch.ones(1)}, r"1 unexpected: bridge\.sam\.stranger"),
        ({"bridge.prompt.2.bias": torch.ones(3)}, r"1 of another shape: bridge\.prompt\.2\.bias \(3,\) instead of \(96,\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name_by_whoever_reads_it(folder, change, told):
    checkpoint = folder / "checkpoint"
    with changed(checkpoint / "model.safetensors", change):
        for kind in (PerceptioForConditionalGeneration, AutoModel, AutoModelForImageTextToText, Perceptor):
            with pytest.raises(ValueError, match=rf"checkpoint: .*{told}"):
                kind.from_pretrained(checkpoint)


def test_a_checkpoint_with_an_adapter_left_in_it_is_refused_by_name(folder):
    """Weights of LoRA beside those of the layer: what a library that only warns drops."""
    checkpoint = folder / "checkpoint"
    weights = load_file(checkpoint / "model.safetensors")
    key = next(key for key in weights if key.endswith("layers.0.self_attn.q_proj.weight"))
    down = key.replace("q_proj.weight", "q_proj.lora_A.perceptio.weight")
    with (
        changed(checkpoint / "model.safetensors", {down: torch.ones(4, 32)}),
        pytest.raises(ValueError, match=r"1 unexpected: .*q_proj\.lora_A\.perceptio\.weight"),
    ):
        PerceptioForConditionalGeneration.from_pretrained(checkpoint)


def test_who_asks_what_was_loaded_is_told(folder):
    model, report = PerceptioForConditionalGeneration.from_pretrained(folder / "checkpoint", output_loading_info=True)
    assert isinstance(model, PerceptioForConditionalGeneration)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_a_codebook_that_does_not_fit_is_refused_by_name(folder):
    with (
        changed(folder / "codebook/model.safetensors", {"quantizer.embedding": None, "stranger": torch.ones(1)}),
        pytest.raises(ValueError, match=r"model\.safetensors: .*1 missing: quantizer\.embedding; 1 unexpected: stranger"),
    ):
        DepthCodebook.from_pretrained(folder / "codebook")


def test_a_sam2_of_another_version_is_refused_by_name(tmp_path):
    """A checkpoint of 2.1 with the name of 2.0, as reported in facebookresearch/sam2#337 and #704."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        newer = build_sam2(official_config("sam2.1_hiera_t")).state_dict()
    torch.save({"model": newer}, tmp_path / "sam2.1_hiera_tiny.pt")
    with pytest.raises(
        ValueError, match=r"3 unexpected: no_obj_embed_spatial, obj_ptr_tpos_proj\.bias, obj_ptr_tpos_proj\.weight"
    ):
        load_official(tmp_path / "sam2.1_hiera_tiny.pt", name="sam2_hiera_t")
    # a parameter that a library has renamed on its way, as reported in kijai/ComfyUI-segment-anything-2#41
    renamed = {key.replace("fuser.layers.0.gamma", "fuser.layers.0.weight"): value for key, value in newer.items()}
    torch.save({"model": renamed}, tmp_path / "renamed.pt")
    with pytest.raises(ValueError, match=r"1 missing: .*layers\.0\.gamma; 1 unexpected: .*layers\.0\.weight$"):
        load_official(tmp_path / "renamed.pt", name="sam2.1_hiera_t")


def test_all_that_differs_is_named_at_once(tmp_path):
    layer = torch.nn.Linear(2, 3)
    weights = {"weight": torch.ones(3, 3), "bias_": torch.ones(3)}
    with pytest.raises(ValueError, match=r"^x: .*1 missing: bias; 1 unexpected: bias_; 1 of another shape: weight \(3, 3\)"):
        load_exactly(layer, weights, source="x")
    with pytest.raises(ValueError, match=r"none\.safetensors: not found"):
        read_safetensors(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    for read in (read_safetensors, read_metadata):
        with pytest.raises(ValueError, match=r"broken\.safetensors: not a safetensors file"):
            read(tmp_path / "broken.safetensors")


# Modes


def modes(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): stat.S_IMODE(file.stat().st_mode) for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def umask():
    """Sets the umask of this process, and sets it back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027, 0o077])
def test_every_artifact_has_the_mode_that_the_umask_gives(tmp_path, folder, umask, mask):
    """Safetensors writes 0600, as reported in safetensors/safetensors#782."""
    model = PerceptioForConditionalGeneration.from_pretrained(folder / "checkpoint")
    foreign.write_internvl(tmp_path / "old", llm="qwen2")
    torch.save({"model": build_sam2(mini_config()).state_dict()}, tmp_path / "sam2.pt")
    umask(mask)
    out = tmp_path / "out"
    out.mkdir()
    save_tensors({"a": torch.ones(1)}, out / "one.safetensors")
    model.save_pretrained(out / "checkpoint", max_shard_size="2MB")
    convert_internvl(tmp_path / "old", out / "internvl")
    model.codebook.save_pretrained(out / "codebook")
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    save_checkpoint(
        folder=out / "run", parameters={"a": parameter}, optimizer=optimizer, progress=Progress(step=1, seconds=1.0)
    )
    found = modes(out)
    assert sum(name.startswith("checkpoint/model-") for name in found) > 1, "shards"
    assert {name for name in found if name.endswith(".safetensors")} >= {"one.safetensors", "internvl/model.safetensors"}
    assert set(found.values()) == {0o666 & ~mask}, found
    (out / "odd").touch(mode=0o600)
    follow_umask(out / "odd")
    assert modes(out)["odd"] == 0o666 & ~mask
    assert not list(out.glob(".*")), "nothing is left over"


def test_a_converted_sam2_has_the_mode_too(tmp_path, monkeypatch, umask):
    monkeypatch.setattr("perceptio_core.convert.sam2.OFFICIAL", ("mini",))
    monkeypatch.setattr("perceptio_core.convert.sam2.official_config", lambda _: mini_config())
    torch.save({"model": build_sam2(mini_config()).state_dict()}, tmp_path / "sam2.pt")
    umask(0o027)
    convert_sam2(tmp_path / "sam2.pt", tmp_path / "sam2")
    assert set(modes(tmp_path / "sam2").values()) == {0o640}
    load_sam2(tmp_path / "sam2")
