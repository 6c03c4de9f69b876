"""Our checkpoints as models of lmms-eval and VLMEvalKit: with the real base classes where they are installed."""

import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from perceptio_core.grammar import strip_perception
from perceptio_core.model.inference import Perceptor
from tiny import tiny_perceptio


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    model, processor = tiny_perceptio(folder / "parts")
    model.save_pretrained(folder / "checkpoint")
    processor.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


MME_PROMPT = "\nAnswer the question using a single word or phrase."
"""What lmms-eval's MME puts behind a question, in the place of the official request."""

HAS_LMMS_EVAL = importlib.util.find_spec("lmms_eval") is not None


class Lmms:
    """What lmms-eval's base class brings: the documents of its tasks (lmms_eval/api/model.py)."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@pytest.fixture
def lmms_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapter's module, on lmms-eval's own base class, or, where that is not installed, on a stand-in."""
    if not HAS_LMMS_EVAL:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["lmms_eval.api.model"].lmms = Lmms  # type: ignore[attr-defined]
        sys.modules["lmms_eval.models.registry_v2"].ModelManifest = dict  # type: ignore[attr-defined]
    return importlib.import_module("perceptio_core.evaluation.interchange.lmms_eval_model")


@dataclass
class Request:
    args: tuple[Any, ...]


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (24, 24), (shade, 90, 40))


def requests(options: list[dict[str, Any]]) -> list[Request]:
    def visual(document: dict[str, Any]) -> list[Image.Image]:
        return [picture(shade) for shade in document["shades"]]

    return [Request((f"Which? {i}", option, visual, i, "task", "test")) for i, option in enumerate(options)]


def test_lmms_eval_finds_and_makes_it(lmms_model: Any, checkpoint: Path) -> None:
    if not HAS_LMMS_EVAL:
        pytest.skip("lmms-eval is not installed (it belongs into an environment of its own)")
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.register_manifest(lmms_model.manifest())
    assert registry.get_model_class("perceptio") is lmms_model.Perceptio
    settings = {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    model = lmms_model.Perceptio.create_from_arg_string(f"pretrained={checkpoint},depth=True", settings)
    assert model.rank == 0


def test_lmms_eval_asks_it(lmms_model: Any, checkpoint: Path) -> None:
    model = lmms_model.Perceptio(str(checkpoint), batch_size="2", device="cpu", depth=True)
    shades = [0, 60, 120, 180]
    model.task_dict = {"task": {"test": [{"shades": [shade]} for shade in shades]}}
    options = [{"max_new_tokens": 3}, {"max_new_tokens": 5, "until": ["\n"]}, {"max_new_tokens": 3}, {}]
    said = model.generate_until(requests(options))
    perceptor = Perceptor.from_pretrained(checkpoint, device="cpu", batch_size=2)
    for row, (text, shade, length) in enumerate(zip(said, shades, (3, 5, 3, lmms_model.MAX_NEW_TOKENS), strict=True)):
        (expected,) = perceptor.predict([picture(shade)], [f"Which? {row}"], depth=True, max_new_tokens=length)
        assert "<depth_" in expected.raw
        assert text == strip_perception(expected.text).split("\n" if row == 1 else "\0")[0]


@pytest.mark.skipif(not HAS_LMMS_EVAL, reason="lmms-eval is not installed (it belongs into an environment of its own)")
def test_lmms_eval_runs_its_mme_whole(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval's own task, on rows in the columns of its data set and a model found by its entry point."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import lmms_eval
    from datasets import Dataset, Features, Value
    from datasets import Image as Picture
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    texts = Value("string")
    rows = [
        {
            "question_id": f"{task}/{shade}",
            "image": picture(shade),
            "question": f"Is there a {word}? Please answer yes or no.",
            "answer": "Yes" if word == "ball" else "No",
            "category": task,
        }
        for task, shade in (("count", 0), ("count", 80), ("code_reasoning", 160))
        for word in ("ball", "dog")
    ]
    columns = Features({"question_id": texts, "image": Picture(), "question": texts, "answer": texts, "category": texts})
    Dataset.from_list(rows, features=columns).to_parquet(tmp_path / "test.parquet")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "mme_here.yaml").write_text(
        f"include: {Path(lmms_eval.__file__).parent / 'tasks/mme/mme.yaml'}\n"
        "task: mme_here\n"
        "dataset_path: parquet\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'test.parquet'}}}}}\n"
    )
    done = simple_evaluate(
        model="perceptio",
        model_args=f"pretrained={checkpoint},depth=True",
        tasks=["mme_here"],
        batch_size=4,
        device="cpu",
        task_manager=TaskManager("ERROR", include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    scores = done["results"]["mme_here"]
    # Random weights say neither yes nor no.
    assert (scores["mme_perception_score,none"], scores["mme_cognition_score,none"]) == (0.0, 0.0)
    said = {sample["doc_id"]: sample["filtered_resps"] for sample in done["samples"]["mme_here"]}
    perceptor = Perceptor.from_pretrained(checkpoint, device="cpu")
    asked = [f"{row['question'].removesuffix(' Please answer yes or no.')}{MME_PROMPT}" for row in rows]
    expected = perceptor.predict([row["image"] for row in rows], asked, depth=True, max_new_tokens=16)
    assert [said[i] if isinstance(said[i], str) else said[i][0] for i in range(len(rows))] == [
        strip_perception(prediction.text) for prediction in expected
    ]


def test_lmms_eval_requests_that_it_cannot_answer(lmms_model: Any, checkpoint: Path) -> None:
    model = lmms_model.Perceptio(str(checkpoint), device="cpu")
    model.task_dict = {"task": {"test": [{"shades": []}, {"shades": [1, 2]}]}}
    with pytest.raises(ValueError, match="task, document 0: perceptio takes one image, got 0"):
        model.generate_until(requests([{}]))
    with pytest.raises(ValueError, match="got 2 visuals"):
        model.generate_until(requests([{}, {}])[1:])
    with pytest.raises(ValueError, match="ask for sampling"):
        model.generate_until(requests([{"temperature": 0.7}]))
    with pytest.raises(NotImplementedError):
        model.loglikelihood([])


def test_the_entry_point_names_the_manifest() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {
        "perceptio": "perceptio_core.evaluation.interchange.lmms_eval_model:manifest"
    }


class BaseModel:
    """What VLMEvalKit's base class does to a message before and for `generate_inner` (vlmeval/vlm/base.py)."""

    def message_to_promptimg(self, message: list[dict[str, str]], dataset: str | None = None) -> tuple[str, str | None]:
        del dataset
        prompt = "\n".join(part["value"] for part in message if part["type"] == "text")
        return prompt, next((part["value"] for part in message if part["type"] == "image"), None)


def test_vlmevalkit_asks_it(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("vlmeval") is None:  # its base class alone needs the whole kit: a stand-in with its one method
        for name in ("vlmeval", "vlmeval.vlm", "vlmeval.vlm.base"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["vlmeval.vlm.base"].BaseModel = BaseModel  # type: ignore[attr-defined]
    from perceptio_core.evaluation.interchange.vlmevalkit_model import Perceptio

    picture(70).save(tmp_path / "a.png")
    model = Perceptio(checkpoint=str(checkpoint), max_new_tokens=4, depth=True)
    message = [{"type": "image", "value": str(tmp_path / "a.png")}, {"type": "text", "value": "Which?"}]
    (expected,) = Perceptor.from_pretrained(checkpoint).predict([picture(70)], ["Which?"], depth=True, max_new_tokens=4)
    assert "<depth_" in expected.raw
    assert model.generate_inner(message, dataset="MMBench_DEV_EN") == strip_perception(expected.text)
    with pytest.raises(ValueError, match="needs an image"):
        model.generate_inner(message[1:], dataset="MMLU")
    with pytest.raises(ValueError, match=r"absent\.png"):
        model.generate_inner([{"type": "image", "value": str(tmp_path / "absent.png")}], dataset="x")
