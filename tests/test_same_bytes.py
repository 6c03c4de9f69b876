"""The wide stages by one worker and by several, here and on a Ray: the same files, byte for byte.

``pytest -m on_request tests/test_same_bytes.py`` took half an hour on two busy cores.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DepthAnythingForDepthEstimation

from joint_inputs import PARAMS, joint_inputs
from official_files import write_refer
from perceptio_core.data.manifest.collect import CHECKED_AT_ONCE
from perceptio_core.foundations.depth_anything import image_processor, mini_config
from stages.engines import VARIABLE
from tiny import lively, tiny_perceptio

pytestmark = pytest.mark.on_request
REPOSITORY = Path(__file__).resolve().parent.parent
STAGES = """
import sys
from types import SimpleNamespace
from parameters import given
from perceptio_core.params.evaluate import EvaluateParams
from perceptio_core.params.joint_shards import JointShardsParams
from perceptio_core.params.render import RenderParams
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.teacher_depth import TeacherDepthParams
from stages import evaluate, joint_shards, sources, teacher_depth

if __name__ == "__main__":
    stage = dict(sources=sources, teacher_depth=teacher_depth, joint_shards=joint_shards, evaluate=evaluate)[sys.argv[1]]
    params = JointShardsParams.model_validate_json(sys.argv[2])
    same = dict(batch_size=2, max_new_tokens=4, bootstrap_samples=50)
    refer = dict(kind="refer", path="refcoco", split="test", segment=True, depth=True, panels=1)
    seed = dict(kind="seedbench", path="seed/SEED-Bench.json", panels=1)
    render = RenderParams(train=1, val=1, test=1)
    data = [dict(name="set", kind="coco", path="set", split="train")]
    pictures = [dict(name=split, kind="llava", path=f"{split}.json", split=split) for split in ("train", "val")]
    profiles = {
        "many": given("many", sources=SourcesParams(render=None, root="many", datasets=pictures, workers=params.workers)),
        "t": given(
            sources=SourcesParams(render=render, root=None, datasets=data),
            teacher_depth=TeacherDepthParams(batch_size=2, long_side=48, images_per_shard=3, workers=1),
            joint_shards=params,
            evaluate=EvaluateParams.from_mapping(dict(same, benchmarks=[refer, seed]), where="test"),
        ),
    }
    # The look at what every stage reads is another process, and its parameters are a file's.
    sources.subprocess = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=0))
    stage.read_values = lambda _: profiles["many" if stage is sources else "t"]
    sys.argv[1:] = ["--variant", "full"] if stage is evaluate else []
    stage.main()
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages after `sources` read, with a picture for the quarantine."""
    top = tmp_path_factory.mktemp("inputs")
    joint_inputs(top)
    made = top / "artifacts/t"
    (made / "sources/root/pictures/7.png").write_bytes(b"cut off")
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(mini_config()).save_pretrained(made / "foundations/depth_anything")
    image_processor().save_pretrained(made / "foundations/depth_anything")
    write_refer(made / "sources/root/refcoco")
    write_questions(made / "sources/root/seed")
    model, processor = tiny_perceptio(tmp_path_factory.mktemp("tiny"))
    lively(model).save_pretrained(made / "cotrain/full/checkpoint")
    processor.save_pretrained(made / "cotrain/full/checkpoint")
    return made


def write_questions(folder: Path) -> None:
    """Fourteen of SEED-Bench, each about a picture of its own."""
    (folder / "SEED-Bench-image").mkdir(parents=True)
    noise = np.random.default_rng(1)
    same = {"answer": "A", "data_type": "image", "question_type_id": 1}
    rows = []
    for number in range(14):
        Image.fromarray(noise.integers(256, size=(8, 12, 3), dtype=np.uint8)).save(folder / f"SEED-Bench-image/{number}.png")
        choices = {f"choice_{letter}": f"{letter}{number}" for letter in "abcd"}
        rows.append(
            {**same, **choices, "data_id": str(number), "question_id": str(number), "question": "What? " * (number + 1)}
        )
    (folder / "SEED-Bench.json").write_text(json.dumps({"questions": rows, "question_type": {"Scene": 1}}))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with pictures for seven units of `sources`; some cannot be read, some are copies, of val pictures as well."""
    root = tmp_path_factory.mktemp("many")
    noise = np.random.default_rng(0)
    for split, count in (("train", 6 * CHECKED_AT_ONCE), ("val", 40)):
        (root / split).mkdir()
        rows = []
        for number in range(count):
            path = root / split / f"{number:04d}.png"
            Image.fromarray(noise.integers(256, size=(8, 12, 3), dtype=np.uint8)).save(path)
            said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": f"The thing {number}."}]
            rows.append({"image": f"{split}/{path.name}", "conversations": said})
        (root / f"{split}.json").write_text(json.dumps(rows))
    pictures = sorted((root / "train").iterdir())
    for number in range(0, len(pictures), 100):
        pictures[number].write_bytes(pictures[number].read_bytes()[:-100])  # cut off
        pictures[number + 1].unlink()
        shutil.copy(pictures[number + 2], pictures[number + 7])
        shutil.copy(root / "val" / f"{number // 100:04d}.png", pictures[number + 5])
    return root


def made_by(workers: int, top: Path, inputs: Path, many: Path, **more: str) -> dict[str, bytes]:
    """The output of the four stages. GPUs that are not there are a process each: their models compute on the CPU."""
    (top / "artifacts/t").mkdir(parents=True)
    for stage in ("sources", "foundations", "depth_codebook", "cotrain"):
        (top / "artifacts/t" / stage).symlink_to(inputs / stage)
    (top / "many").symlink_to(many)
    (top / "run.py").write_text(STAGES)
    params = PARAMS.model_copy(update={"images_per_shard": 3, "markers_per_image": 1, "workers": workers})
    environment = {
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(workers))) if workers > 1 else "",
    }
    outs = {"sources": "many", "teacher_depth": "t", "joint_shards": "t", "evaluate": "t"}
    for stage, profile in outs.items():
        command = [sys.executable, "run.py", stage, params.model_dump_json()]
        run = subprocess.run(
            command, cwd=top, env=os.environ | environment | more, capture_output=True, text=True, timeout=900, check=False
        )
        assert run.returncode == 0, run.stderr[-4000:]
        assert (stage == "sources") or not any((top / ".work" / profile / stage).iterdir())
    made = [path for stage, profile in outs.items() for path in (top / "artifacts" / profile / stage).rglob("*")]
    return {str(path.relative_to(top / "artifacts")): path.read_bytes() for path in made if path.is_file()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, inputs: Path, many: Path) -> dict[str, bytes]:
    made = made_by(1, tmp_path_factory.mktemp("alone"), inputs, many)
    assert len(made) == 6 + (8 + 4) + (9 + 5) + 7
    assert len(made["t/evaluate/full/predictions/seedbench.jsonl"].splitlines()) == 14
    counts = json.loads(made["many/sources/data.json"])
    assert counts["train"]["conversation"]["train"]["dropped"] == {"among_val": 16, "quarantined": 32}
    assert json.loads(made["many/sources/summary.json"])["shared_files"] == 16
    assert made["many/sources/quarantine.jsonl"].count(b"cut") == 16
    assert b"7.png" in made["t/teacher_depth/quarantine.jsonl"]
    assert b"7.png" in made["t/joint_shards/quarantine.jsonl"]
    return made


def test_two_processes(tmp_path: Path, inputs: Path, many: Path, alone: dict[str, bytes]) -> None:
    assert made_by(2, tmp_path, inputs, many) == alone


def test_seven_processes(tmp_path: Path, inputs: Path, many: Path, alone: dict[str, bytes]) -> None:
    assert made_by(7, tmp_path, inputs, many) == alone


@pytest.mark.parametrize("cores", [1, 2, 7])
def test_a_ray(tmp_path: Path, inputs: Path, many: Path, alone: dict[str, bytes], cores: int) -> None:
    settings = {VARIABLE: "local", "RAY_OVERRIDE_RESOURCES": f'{{"CPU": {cores}}}', "CUDA_VISIBLE_DEVICES": ""}
    assert made_by(1, tmp_path, inputs, many, **settings) == alone
