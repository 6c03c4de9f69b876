"""A disk that fills up under a writer (a real one, a small tmpfs): the error names the file, and later the work goes on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from perceptio_core.files import naming, whole

REPOSITORY = Path(__file__).resolve().parent.parent

# Each writes to `disk`, of 1 MiB: `small` fits beside what is there already, and `large` does not.
WRITERS = {
    "a shard of depth maps": """
import numpy as np
from perceptio_core.depth.store import encode_depth, write_shard

def write(folder, name, size):
    noise = np.random.default_rng(0).random((size // 16, 2))
    write_shard(folder, name=f"{name}.tar", maps=[encode_depth(f"{name}-{number}", noise) for number in range(4)])
""",
    "a shard of samples": """
from perceptio_core.data.shards.entry import Annotation, Entry
from perceptio_core.data.shards.tars import write_shard

def write(folder, name, size):
    said = Annotation(record_id="r", task="marker", source="teacher", turns=[])
    entry = Entry(image=bytes(size), extension="png", image_key="k", width=1, height=1, depth_codes=[], annotations=[said])
    write_shard(folder, name=name, split="train", entries=[entry], quarantine=[], records={})
""",
    "a checkpoint": """
import torch
from perceptio_core.training.checkpoint import Progress, save_checkpoint

def write(folder, name, size):
    parameter = torch.nn.Parameter(torch.zeros(size // 4))
    progress = Progress(step={"first": 1, "second": 2}[name], seconds=0.0)
    optimizer = torch.optim.AdamW([parameter])
    save_checkpoint(folder=folder, parameters={"weight": parameter}, optimizer=optimizer, progress=progress)
""",
}
SCRIPT = """
import hashlib, pathlib, subprocess

def content(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

disk, roomy = pathlib.Path("disk"), pathlib.Path("roomy")
roomy.mkdir()
write(disk, "first", 300_000)
before = content(disk)
try:
    write(disk, "second", 900_000)
except OSError as error:
    print(error)
else:
    print("it fits")
assert content(disk) == before, content(disk)
subprocess.run(["mount", "-o", "remount,size=4m", "disk"], check=True)
write(disk, "second", 900_000)
for name, size in (("first", 300_000), ("second", 900_000)):
    write(roomy, name, size)
assert content(disk) == content(roomy)
"""
MOUNTING = 'mkdir disk && mount -t tmpfs -o size=1m tmpfs disk && exec "$@"'


def may_mount() -> bool:
    command = ["unshare", "--mount", "--map-root-user", "true"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_mount(), reason="a mount namespace of one's own needs unshare, and permission for it")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path, kind: str) -> None:
    python = [sys.executable, "-c", WRITERS[kind] + SCRIPT]
    ended = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", MOUNTING, "sh", *python],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("[Errno 28] No space left on device: 'disk/"), ended.stdout
    assert "second" in ended.stdout or "step-00000002" in ended.stdout


STAGES = """
import hashlib, os, subprocess, sys, traceback, types
from pathlib import Path
import torch
from transformers import DepthAnythingForDepthEstimation
from joint_inputs import PARAMS, joint_inputs
from perceptio_core.foundations.depth_anything import image_processor, mini_config
from perceptio_core.params.render import RenderParams
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.teacher_depth import TeacherDepthParams
from parameters import given
from stages import joint_shards, teacher_depth

top = Path.cwd()
made = joint_inputs(top) / "artifacts/t"
torch.manual_seed(0)
DepthAnythingForDepthEstimation(mini_config()).save_pretrained(made / "foundations/depth_anything")
image_processor().save_pretrained(made / "foundations/depth_anything")
data = [dict(name="set", kind="coco", path="set", split="train")]
profile = given(
    sources=SourcesParams(render=RenderParams(train=1, val=1, test=1), root=None, datasets=data),
    teacher_depth=TeacherDepthParams(batch_size=2, long_side=48, images_per_shard=8, workers=1),
    joint_shards=PARAMS.model_copy(update={"images_per_shard": 8, "markers_per_image": 1, "workers": 1}),
)
sys.argv[1:] = []

def run(stage, *, where):
    \"\"\"Its last line if it fails.\"\"\"
    os.chdir(where)
    pid = os.fork()
    if pid == 0:
        try:
            stage.read_values = lambda _: profile
            stage.main()
        except OSError:
            (top / "last").write_text(traceback.format_exc().splitlines()[-1])
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1), code
    return (top / "last").read_text() if code else None

def content(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

reads = {teacher_depth: ("sources", "foundations"), joint_shards: ("sources", "teacher_depth", "depth_codebook")}
for stage, inputs in reads.items():
    name = stage.__name__.removeprefix("stages.")
    roomy, disk = top / "roomy" / name, top / "disk" / name
    for where in (roomy, disk):
        (where / "artifacts/t").mkdir(parents=True)
        for one in inputs:
            (where / "artifacts/t" / one).symlink_to(made / one)
    assert run(stage, where=roomy) is None
    size, said = 12, []
    subprocess.run(["mount", "-o", f"remount,size={size}k", top / "disk"], check=True)
    while line := run(stage, where=disk):
        said.append(line)
        assert not (disk / "artifacts/t" / name).exists(), "half an output"
        assert not list(disk.rglob("*.unfinished")), "what could not be finished fills the disk"
        size += max(16, size // 2)
        subprocess.run(["mount", "-o", f"remount,size={size}k", top / "disk"], check=True)
    print(name, *said, sep="\\n")
    assert content(disk / "artifacts/t" / name) == content(roomy / "artifacts/t" / name)
    assert not list((disk / ".work/t" / name).iterdir())
    subprocess.run(["rm", "-r", disk], check=True)
"""


@pytest.mark.skipif(not may_mount(), reason="a mount namespace of one's own needs unshare, and permission for it")
def test_a_stage_on_a_full_disk_names_it_publishes_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    ended = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", MOUNTING, "sh", sys.executable, "-c", STAGES],
        cwd=tmp_path,
        env={
            "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    teacher, joint = ended.stdout.partition("joint_shards\n")[::2]
    for stage, lines in (("teacher_depth", teacher.splitlines()[1:]), ("joint_shards", joint.splitlines())):
        assert len(lines) > 3
        for line in lines:
            assert re.fullmatch(rf"OSError: \[Errno 28\] .*[Nn]o space left on device.*: '\.work/t/{stage}/.+'", line), line
    assert len(set(teacher.splitlines()[1:])) > 2, "it filled up at several files"


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole(path) as unfinished:
        unfinished.write_text("old")

    def fail() -> None:
        with whole(path) as unfinished:
            unfinished.write_text("new")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_an_error_that_names_its_file_keeps_that_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), naming(tmp_path / "other"):
        (tmp_path / "absent").read_bytes()
