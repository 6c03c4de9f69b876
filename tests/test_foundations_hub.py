"""Stage `foundations` on a local server that answers as the hub does, on its cache, and on folders fetched beforehand."""

import hashlib
import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from transformers import (
    AutoProcessor,
    DepthAnythingForDepthEstimation,
    InternVLForConditionalGeneration,
    Sam2Config,
    Sam2Model,
)

from hub_server import REVISION, Hub, etag
from perceptio_core import hub
from perceptio_core.params.foundations import FoundationsParams
from perceptio_core.segmentation import sam2
from perceptio_core.segmentation.sam2 import load_sam2
from published import SMALL_HIERA
from stages import foundations

SMALL = Path(__file__).parents[1] / "foundations/mini"
"""Small models of the classes, and in the folders, of OpenGVLab's InternVL3-hf and of Depth Anything V2."""


def small_sam2(folder: Path) -> Path:
    """A folder of transformers' `Sam2Model` with random weights: config.json and model.safetensors."""
    vision = {
        "backbone_config": SMALL_HIERA,
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 64,
    }
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 64, "image_size": 128},
        mask_decoder_config={"hidden_size": 64},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sam2Model(config)
        model.shared_image_embedding.positional_embedding.data.copy_(model.prompt_encoder.shared_embedding.positional_embedding)
        model.save_pretrained(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def params(**others: object) -> FoundationsParams:
    models = {name: {"repo": f"maker/{name}", "revision": REVISION} for name in ("internvl", "sam2", "depth_anything")}
    return FoundationsParams.from_mapping({**models, **others}, where="p")


@pytest.fixture
def stocked(hub: Hub, tmp_path: Path) -> Hub:
    code = b"raise SystemExit('code of the hub ran')"
    unwanted = {"modeling.py": code, "pytorch_model.bin": code}
    hub.files = {f"maker/{name}": {**contents(SMALL / name), **unwanted} for name in ("internvl", "depth_anything")}
    hub.files["maker/sam2"] = contents(small_sam2(tmp_path / "published"))
    return hub


def test_three_models_are_fetched_once_and_checked(stocked: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = 1024
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", chunk)  # what a broken transfer loses at most
    stocked.cut = {"model.safetensors"}
    foundations.fetch_all(params(), tmp_path / "work")
    for name in ("internvl", "depth_anything"):
        assert contents(tmp_path / "work" / name) == contents(SMALL / name)
    assert not any(path.endswith((".py", ".bin")) for _, path, _ in stocked.asked), "code and pickles are not even fetched"
    (resumed,) = [given for method, path, given in stocked.asked if method == "GET" and given and path.endswith(".safetensors")]
    half = len(stocked.files["maker/internvl"]["model.safetensors"]) // 2
    assert half - chunk < int(resumed.removeprefix("bytes=")[:-1]) <= half, "the broken transfer went on in the middle"
    load_sam2(tmp_path / "work/sam2")
    InternVLForConditionalGeneration.from_pretrained(tmp_path / "work/internvl")
    AutoProcessor.from_pretrained(tmp_path / "work/internvl")
    DepthAnythingForDepthEstimation.from_pretrained(tmp_path / "work/depth_anything")

    asked = len(stocked.asked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    foundations.fetch_all(params(), tmp_path / "again")
    assert len(stocked.asked) == asked, "the cache alone serves a second checkout"
    assert contents(tmp_path / "again/sam2") == contents(tmp_path / "work/sam2")


def test_a_cache_that_rotted_is_refused(stocked: Hub, tmp_path: Path) -> None:
    foundations.fetch_all(params(), tmp_path / "work")
    blob = tmp_path / "cache/models--maker--internvl/blobs"
    blob /= hashlib.sha256(stocked.files["maker/internvl"]["model.safetensors"]).hexdigest()
    content = bytearray(blob.read_bytes())
    content[1000] ^= 1
    blob.write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors: its hash is not {blob.name}.*delete it(.|\n)*{blob}"):
        foundations.fetch_all(params(), tmp_path / "again")
    assert not (tmp_path / "again/internvl").exists()


def fetched_beforehand(hub: Hub, folder: Path, *, commit: str = REVISION) -> Path:
    """As `hf download --local-dir` leaves the files: beside them what the hub said of each."""
    for name in foundations.MODELS:
        notes = folder / name / ".cache/huggingface/download"
        notes.mkdir(parents=True)
        for file, content in hub.files[f"maker/{name}"].items():
            (folder / name / file).write_bytes(content)
            (notes / f"{file}.metadata").write_text(f"{commit}\n{etag(file, content)}\n1700000000.0\n")
    return folder


def test_folders_fetched_beforehand_are_checked_too(stocked: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fetched_beforehand(stocked, tmp_path / "models")
    (folder / "internvl/model.safetensors").chmod(0o600)  # as someone may keep them; what is made of them is like other files
    with caplog.at_level(logging.WARNING):
        foundations.fetch_all(params(offline=str(folder)), tmp_path / "work")
    (tmp_path / "new").touch()
    files = [file for file in (tmp_path / "work").rglob("*") if file.is_file()]
    assert {file.stat().st_mode for file in files} == {(tmp_path / "new").stat().st_mode}
    assert stocked.asked == []
    assert not caplog.records
    load_sam2(tmp_path / "work/sam2")

    (folder / "internvl/config.json").write_text('{"changed": true}')
    with pytest.raises(ValueError, match=r"config\.json: its hash is not"):
        foundations.fetch_all(params(offline=str(folder)), tmp_path / "changed")
    other = fetched_beforehand(stocked, tmp_path / "other", commit="f" * 40)
    with pytest.raises(ValueError, match=r"is of the commit ffff.*; the profile has 0123"):
        foundations.fetch_all(params(offline=str(other)), tmp_path / "newer")


def test_files_of_unknown_hash_are_taken_with_a_word(stocked: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fetched_beforehand(stocked, tmp_path / "models")
    (folder / "depth_anything/.cache/huggingface/download/config.json.metadata").unlink()
    with caplog.at_level(logging.WARNING):
        foundations.fetch_all(params(offline=str(folder)), tmp_path / "work")
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / 'depth_anything'}: no hash is known of config.json: taken as they are"
    ]


def test_a_published_checkpoint_of_sam2_is_read_by_its_name(
    stocked: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foundations, "MODELS", ("sam2",))
    monkeypatch.setattr(sam2, "official_config", lambda _: sam2.mini_config())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sam2.build_sam2(sam2.mini_config())
    torch.save({"model": model.state_dict()}, tmp_path / "published.pt")
    stocked.files["maker/sam2"] = {"sam2.1_hiera_tiny.pt": (tmp_path / "published.pt").read_bytes(), "model.safetensors": b"x"}
    named = {"repo": "maker/sam2", "revision": REVISION, "checkpoint": "sam2.1_hiera_tiny.pt", "config": "sam2.1_hiera_t"}
    foundations.fetch_all(params(sam2=named), tmp_path / "work")
    torch.testing.assert_close(load_sam2(tmp_path / "work/sam2").state_dict(), model.state_dict(), rtol=0, atol=0)

    (tmp_path / "models/sam2").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"sam2\.1_hiera_tiny\.pt: not found; where the folder holds transformers' form"):
        foundations.fetch_all(params(sam2=named, offline=str(tmp_path / "models")), tmp_path / "absent")
    with pytest.raises(ValueError, match=r"p\.sam2: checkpoint and config belong together"):
        params(sam2={key: value for key, value in named.items() if key != "config"})


def test_a_look_at_the_hub_fetches_nothing_and_says_what_is_not_there(stocked: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    look = partial(hub.find, "maker/sam2", revision=REVISION)
    look(patterns=["config.json", "*.safetensors"])
    assert not any(path.startswith("/maker/sam2/resolve") for _, path, _ in stocked.asked)
    with pytest.raises(ValueError, match=r"the hub has no \*\.pt there; it has config\.json, model\.safetensors$"):
        look(patterns=["config.json", "*.pt"])
    with pytest.raises(ValueError, match="RepositoryNotFoundError: 404"):
        hub.find("maker/nothing", revision=REVISION, patterns=["config.json"])

    hub.download("maker/sam2", revision=REVISION, patterns=["config.json"])
    monkeypatch.setattr(HfApi, "model_info", None)
    look(patterns=["config.json"])  # the cache has it
    monkeypatch.undo()
    stocked.files.clear()
    with pytest.raises(ValueError, match="RepositoryNotFoundError: 404"):  # the cache has a part alone, and the hub nothing
        look(patterns=["config.json", "*.safetensors"])
