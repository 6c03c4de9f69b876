"""`teacher_depth` and `joint_shards` by one worker and by several, here and on a Ray: the same files, byte for byte.

``pytest -m on_request tests/test_same_bytes.py``: minutes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import DepthAnythingForDepthEstimation

from joint_inputs import PARAMS, joint_inputs
from perceptio_core.foundations.depth_anything import image_processor, mini_config
from stages.engines import VARIABLE

pytestmark = pytest.mark.on_request
REPOSITORY = Path(__file__).resolve().parent.parent
STAGES = """
import sys
from parameters import given
from perceptio_core.params.joint_shards import JointShardsParams
from perceptio_core.params.render import RenderParams
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.teacher_depth import TeacherDepthParams
from stages import joint_shards, teacher_depth

if __name__ == "__main__":
    data = [dict(name="set", kind="coco", path="set", split="train")]
    profile = given(
        sources=SourcesParams(render=RenderParams(train=1, val=1, test=1), root=None, datasets=data),
        teacher_depth=TeacherDepthParams(batch_size=2, long_side=48, images_per_shard=3, workers=1),
        joint_shards=JointShardsParams.model_validate_json(sys.argv.pop()),
    )
    for stage in (teacher_depth, joint_shards):
        stage.read_values = lambda _: profile
        stage.main()
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two stages read, with a picture for the quarantine."""
    top = tmp_path_factory.mktemp("inputs")
    joint_inputs(top)
    made = top / "artifacts/t"
    (made / "sources/root/pictures/7.png").write_bytes(b"cut off")
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(mini_config()).save_pretrained(made / "foundations/depth_anything")
    image_processor().save_pretrained(made / "foundations/depth_anything")
    return made


def made_by(workers: int, top: Path, inputs: Path, **more: str) -> dict[str, bytes]:
    """The output of both stages. GPUs that are not there are a process each: their models compute on the CPU."""
    (top / "artifacts/t").mkdir(parents=True)
    for stage in ("sources", "foundations", "depth_codebook"):
        (top / "artifacts/t" / stage).symlink_to(inputs / stage)
    (top / "run.py").write_text(STAGES)
    params = PARAMS.model_copy(update={"images_per_shard": 3, "markers_per_image": 1, "workers": workers})
    environment = {
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(workers))) if workers > 1 else "",
    }
    command = [sys.executable, "run.py", params.model_dump_json()]
    run = subprocess.run(
        command, cwd=top, env=os.environ | environment | more, capture_output=True, text=True, timeout=900, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    outs = [top / "artifacts/t" / stage for stage in ("teacher_depth", "joint_shards")]
    assert not any(path for stage in ("teacher_depth", "joint_shards") for path in (top / ".work/t" / stage).iterdir())
    return {f"{out.name}/{path.name}": path.read_bytes() for out in outs for path in sorted(out.iterdir())}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> dict[str, bytes]:
    made = made_by(1, tmp_path_factory.mktemp("alone"), inputs)
    assert len(made) == 8 + 3 + 9 + 4
    assert b"7.png" in made["teacher_depth/quarantine.jsonl"]
    assert b"7.png" in made["joint_shards/quarantine.jsonl"]
    return made


def test_two_processes(tmp_path: Path, inputs: Path, alone: dict[str, bytes]) -> None:
    assert made_by(2, tmp_path, inputs) == alone


def test_seven_processes(tmp_path: Path, inputs: Path, alone: dict[str, bytes]) -> None:
    assert made_by(7, tmp_path, inputs) == alone


@pytest.mark.parametrize("cores", [1, 2, 7])
def test_a_ray(tmp_path: Path, inputs: Path, alone: dict[str, bytes], cores: int) -> None:
    settings = {VARIABLE: "local", "RAY_OVERRIDE_RESOURCES": f'{{"CPU": {cores}}}', "CUDA_VISIBLE_DEVICES": ""}
    assert made_by(1, tmp_path, inputs, **settings) == alone
