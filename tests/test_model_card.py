"""The model card, and a checkpoint on a hub: pushed, and loaded back by its name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants
from PIL import Image
from transformers import AutoProcessor, pipeline

from hub_server import REVISION, TOKEN, Hub, invalid_metadata
from perceptio_core.model.card import model_card, with_scores
from perceptio_core.model.inference import Perceptor
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.params.profile import load_profile
from pipeline import cli
from pipeline.publish import publish

COUNTS = {
    "train": {
        "referring": {
            "refcoco": {"samples": 3, "records": 7, "dropped": {}},
            "My Set": {"samples": 1, "records": 1, "dropped": {}},
        },
        "marker": {"teacher": {"samples": 5, "records": 5, "dropped": {}}},
        "reading": {"unused": {"samples": 9, "records": 9, "dropped": {}}},
    },
    "val": {"referring": {"refcoco": {"samples": 999, "records": 999, "dropped": {}}}},
}
SCORES = [
    {"name": "hardblink_3", "value": 72.04, "low": 65.5, "high": 78.0, "n": 200, "protocol": "strict | one letter"},
    {"name": "mme", "value": 301.0, "low": None, "high": None, "n": 40, "protocol": "official"},
]


def card_of(name: str, variant: str = "full", data: Any = COUNTS) -> str:
    profile = load_profile(name)
    return model_card(
        profile=name,
        variant=variant,
        params=profile.variant(variant),
        foundations=profile.foundations,
        data=data,
        parameters=1234567,
    )


def test_the_card_says_what_is_known_and_what_is_not() -> None:
    text = card_of("perceptio-1b")
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "base_model": ["OpenGVLab/InternVL3-1B-hf", "facebook/sam2.1-hiera-large"],
        "datasets": ["refcoco", "teacher"],
        "library_name": "transformers",
        "license": "other",
        "license_name": "licences-of-the-parts",
        "pipeline_tag": "image-text-to-text",
        "tags": ["perceptio", "image-segmentation", "depth-estimation"],
    }
    base = load_profile("perceptio-1b").foundations.internvl
    assert base is not None
    assert f"[{base.repo}](https://huggingface.co/{base.repo}) at `{base.revision}`" in text
    assert "| referring | refcoco | 3 | 7 |" in text
    assert "| referring | My Set | 1 | 1 |" in text
    assert "999" not in text, "what the model is validated on is not what it was trained on"
    assert "## Scores\n\nNot known" in text
    assert "1,234,567 parameters" in text
    assert card_of("perceptio-1b") == text


def test_metadata_that_hubs_refuse_are_left_out() -> None:
    """As reported in huggingface/transformers#13528 (`datasets: - null`) and #33922 (a local folder as `base_model`)."""
    text = card_of("mini", "control", data={})
    assert invalid_metadata(text) == []
    metadata = ModelCard(text).data.to_dict()
    assert not metadata.keys() & {"datasets", "base_model"}
    assert metadata["license"] == "apache-2.0"
    assert "It writes no perception tokens." in text
    assert len(invalid_metadata("---\ndatasets:\n- null\nbase_model: /models/internvl3\nlicense: other\n---\n")) == 3


def test_scores_take_the_place_of_none() -> None:
    text = card_of("mini")
    scored = with_scores(text, SCORES)
    assert "| hardblink_3 | 72.04 | 65.50 to 78.00 | 200 | strict / one letter |\n| mme | 301.00 |  | 40 | official |" in scored
    assert "Not known: this checkpoint" not in scored
    before, after = text.split("Not known: this checkpoint has not been evaluated, or its scores were not added.")
    assert scored.startswith(before)
    assert scored.endswith(after)
    assert with_scores(scored, SCORES) == scored
    assert with_scores(text, []) == text
    with pytest.raises(ValueError, match="no section '## Scores'"):
        with_scores("# Mine\n", SCORES)


@pytest.fixture(scope="module")
def checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared one, with a card."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    (folder / "README.md").write_text(card_of("mini"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))


Answer = Callable[[str | Path], str]


@pytest.fixture(scope="module")
def answer(picture: Image.Image) -> Answer:
    def asked(name: str | Path) -> str:
        return Perceptor.from_pretrained(name, device="cpu").predict([picture], ["yes"], segment=True, depth=True)[0].raw

    return asked


def test_a_published_checkpoint_is_loaded_by_its_name(
    hub: Hub, checkpoint: Path, answer: Answer, picture: Image.Image, tmp_path: Path
) -> None:
    """One commit; weights by way of the large storage; the card on the hub has the scores, that on the disk has not."""
    scores = tmp_path / "metrics.json"
    scores.write_text(json.dumps(SCORES))
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    where = publish(checkpoint, "tester/perceptio-tiny", scores=scores, private=True)
    assert where == f"{hub.url}/tester/perceptio-tiny/commit/{hub.heads['tester/perceptio-tiny']}"
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before
    pushed = hub.files["tester/perceptio-tiny"]
    assert pushed | {"README.md": before["README.md"]} == before
    assert pushed["README.md"].decode() == with_scores(before["README.md"].decode(), SCORES)
    assert list(hub.stored.values()) == [before["model.safetensors"]]
    assert sum(path.endswith("/commit/main") for _, path, _ in hub.asked) == 1

    assert answer("tester/perceptio-tiny") == answer(checkpoint)
    pipe = pipeline("image-text-to-text", model="tester/perceptio-tiny", device="cpu")
    (said,) = pipe(images=picture, text="yes", return_full_text=False, max_new_tokens=4)
    assert "generated_text" in said


def test_model_and_processor_are_pushed_one_by_one(hub: Hub, checkpoint: Path, answer: Answer) -> None:
    """In either order: neither writes over what the other has pushed, and a revision that is named is the one that is read."""
    model = PerceptioForConditionalGeneration.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    model.push_to_hub("tester/one")
    first = hub.heads["tester/one"]
    processor.push_to_hub("tester/one")
    processor.push_to_hub("tester/other")
    model.push_to_hub("tester/other")
    for name in ("config.json", "processor_config.json", "tokenizer.json", "generation_config.json", "model.safetensors"):
        assert hub.files["tester/one"][name] == hub.files["tester/other"][name] == (checkpoint / name).read_bytes(), name
    assert answer("tester/one") == answer(checkpoint)
    with pytest.raises(OSError, match="processor_config"):
        AutoProcessor.from_pretrained("tester/one", revision=first)
    assert AutoProcessor.from_pretrained("tester/one", revision=hub.heads["tester/one"]).config.max_tiles == 1


def test_a_refusal_of_the_hub_is_a_sentence(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As reported in huggingface/transformers#28137: a card is refused before weights travel, with the hub's own reason."""
    with pytest.raises(ValueError, match=r"no checkpoint with a model card"):
        publish(tmp_path, "tester/x", scores=None, private=False)
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    (spoilt / "config.json").write_text("{}")
    (spoilt / "README.md").write_text("---\ndatasets:\n- null\n---\n\n## Scores\n\nNone\n\n## End\n")
    with pytest.raises(ValueError, match=r'tester/x: the hub refuses it: .*"datasets" must be a list of strings'):
        publish(spoilt, "tester/x", scores=None, private=False)
    assert hub.files["tester/x"] == {}
    assert not hub.stored
    with pytest.raises(ValueError, match="tester/a/b: the hub refuses it: "):
        publish(checkpoint, "tester/a/b", scores=None, private=False)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert constants.HF_HUB_DISABLE_XET
    assert TOKEN != "hf_wrong"
    with pytest.raises(ValueError, match=r"tester/y: the hub refuses it: .*401"):
        publish(checkpoint, "tester/y", scores=None, private=False)
    with pytest.raises(ValueError, match="tester/absent: no checkpoint that can be read: "):
        Perceptor.from_pretrained("tester/absent")
    assert hub.tree("tester/absent", REVISION) is None


def test_the_command_publishes_what_the_active_profile_trained(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).resolve().parent.parent / "params.yaml", tmp_path)
    out = tmp_path / "artifacts/mini/cotrain/full"
    out.mkdir(parents=True)
    (out / "checkpoint").symlink_to(checkpoint)
    monkeypatch.setattr(sys, "argv", ["perceptio", "publish", "tester/mini"])
    cli.main()
    assert "Not known: this checkpoint" in hub.files["tester/mini"]["README.md"].decode()
    (tmp_path / "artifacts/mini/evaluate/full").mkdir(parents=True)
    (tmp_path / "artifacts/mini/evaluate/full/metrics.json").write_text(json.dumps(SCORES))
    cli.main()
    assert "| mme | 301.00 |" in hub.files["tester/mini"]["README.md"].decode()
    assert capsys.readouterr().out.count(f"{hub.url}/tester/mini/commit/") == 2
    monkeypatch.setattr(sys, "argv", ["perceptio", "publish", "tester/mini", "--variant", "control"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "`perceptio repro cotrain@control` makes it" in capsys.readouterr().err
