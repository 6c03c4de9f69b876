"""A disk that fills up under a writer (a real one, a small tmpfs): the error names the file, and later the work goes on."""

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
from perceptio_core.data.shards import ShardSample, write_shard

def write(folder, name, size):
    sample = ShardSample(image=bytes(size), extension="png", content={"task": "marker", "turns": [], "width": 1, "height": 1})
    write_shard(folder, name=name, split="train", samples=[sample], quarantine=[])
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
