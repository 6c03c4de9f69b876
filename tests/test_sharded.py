"""Stages that several workers make together: the same bytes by any number, whoever is killed, and late ones have no work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import DepthAnythingForDepthEstimation

from joint_inputs import PARAMS, joint_inputs
from perceptio_core.foundations.depth_anything import image_processor, mini_config
from stages.common import StagePaths
from stages.sharded import PUBLISHED, SharedWork

REPOSITORY = Path(__file__).resolve().parent.parent
SHARDS = {f"shard-{number}": 1 for number in range(12)}

TOY = """
import os, sys, time
from pathlib import Path
from perceptio_core.files import whole
from stages.common import StagePaths
from stages.sharded import SharedWork

def hold(name):
    while Path(f"hold-{name}").exists():
        time.sleep(0.01)

def make(names):
    for name in names:
        print("makes", name, flush=True)
        hold(name)
        for file, text in ((work.out / name, 100 * name), (work.parts / f"{name}.json", "{}")):
            with whole(file) as unfinished:
                unfinished.write_text(text)
        yield

def assemble():
    print("assembles", flush=True)
    hold("publish")
    (work.out / "index").write_text("".join(sorted(file.name for file in work.parts.iterdir())))

work = SharedWork.open(StagePaths("t"), "toy", "key")
if work is None:
    sys.exit()
with work:
    work.make({name: 1 for name in sys.argv[1:]}, make, label="toy")
    work.publish(assemble)
"""


def toy(top: Path, **more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | more
    command = [sys.executable, "-c", TOY, *SHARDS]
    return subprocess.Popen(command, cwd=top, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(*workers: subprocess.Popen[str]) -> list[str]:
    """What the workers said, once all have ended well."""
    said = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(workers), said
    return [line for text, _ in said for line in text.splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, bytes]:
    """What one worker makes."""
    (tmp_path / "alone").mkdir()
    said = ended(toy(tmp_path / "alone"))
    assert sorted(said) == sorted([*(f"makes {name}" for name in SHARDS), "assembles"])
    return contents(tmp_path / "alone/artifacts/t/toy")


def test_seven_workers_make_each_shard_once_and_publish_once(tmp_path: Path, alone: dict[str, bytes]) -> None:
    said = ended(*[toy(tmp_path, **{PUBLISHED: "published"}) for _ in range(7)])
    assert sorted(said) == sorted([*(f"makes {name}" for name in SHARDS), "assembles"])
    assert contents(tmp_path / "artifacts/t/toy") == alone
    assert not list((tmp_path / ".work/t/toy").iterdir())
    assert ended(toy(tmp_path, **{PUBLISHED: "published"})) == [], "too late to have work"
    assert not list((tmp_path / ".work/t/toy").iterdir())
    assert len(ended(toy(tmp_path))) == len(said), "a command of its own makes it anew"


@pytest.mark.parametrize("at", ["shard-5", "publish"])
def test_what_a_killed_worker_was_at_is_taken_over(tmp_path: Path, alone: dict[str, bytes], at: str) -> None:
    (tmp_path / f"hold-{at}").touch()
    with toy(tmp_path) as killed, toy(tmp_path) as other:
        end = time.monotonic() + 60
        waits_for = (tmp_path / ".work/t/toy/key/claims") / f"{at}.0"
        while not waits_for.exists() or not waits_for.read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
        first = next(worker for worker in (killed, other) if f'"pid": {worker.pid},' in waits_for.read_text())
        second = other if first is killed else killed
        first.send_signal(signal.SIGKILL)
        (tmp_path / f"hold-{at}").unlink()
        said = ended(second)
    assert ("assembles" if at == "publish" else f"makes {at}") in said
    assert contents(tmp_path / "artifacts/t/toy") == alone
    assert not list((tmp_path / ".work/t/toy").iterdir())


def test_a_publisher_killed_after_the_move_leaves_nothing_to_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    work = SharedWork.open(StagePaths("t"), "toy", "key")
    assert work is not None
    work.out.rename(tmp_path / "out")
    (tmp_path / "artifacts/t").mkdir(parents=True)
    (tmp_path / "out").rename(tmp_path / "artifacts/t/toy")
    assert SharedWork.open(StagePaths("t"), "toy", "key") is None
    assert not list((tmp_path / ".work/t/toy").iterdir())
    # The same folder, but its output is gone (DVC removes it before a run): all is to be made again.
    work = SharedWork.open(StagePaths("t"), "toy", "key")
    assert work is not None
    (work.parts / "shard-0.json").touch()
    work.out.rmdir()
    (tmp_path / "artifacts/t/toy").rmdir()
    again = SharedWork.open(StagePaths("t"), "toy", "key")
    assert again is not None
    assert not list(again.parts.iterdir())


def test_workers_that_come_between_the_move_and_the_marker_make_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PUBLISHED, "published")
    publisher = SharedWork.open(StagePaths("t"), "toy", "key")
    assert publisher is not None
    Path("artifacts/t").mkdir(parents=True)
    publisher.out.rename("artifacts/t/toy")
    assert SharedWork.open(StagePaths("t"), "toy", "key") is None
    assert SharedWork.open(StagePaths("t"), "toy", "key") is None, "nor does one that comes after the folder is gone"
    assert not list((tmp_path / ".work/t/toy").iterdir())


@pytest.mark.parametrize("gone", ["key", "claims"])
def test_a_folder_that_is_removed_while_it_is_asked_for_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    monkeypatch.chdir(tmp_path)
    made = SharedWork.open(StagePaths("t"), "toy", "key")
    assert made is not None
    (made.folder / "claims").mkdir()
    mkdir = os.mkdir

    def by_another_worker(path: Path, mode: int = 0o777) -> None:
        try:
            mkdir(path, mode)
        except FileExistsError:
            if path.name == gone:
                made.folder.rename(tmp_path / "removed")
                (tmp_path / "artifacts/t/toy").mkdir(parents=True, exist_ok=True)
            raise

    monkeypatch.setattr("os.mkdir", by_another_worker)
    if gone == "key":
        work = SharedWork.open(StagePaths("t"), "toy", "key")
        assert work is not None
        assert work.out.is_dir()
    else:
        with made:
            made.publish(lambda: pytest.fail("it is published already"))


def test_a_late_workers_new_folder_does_not_hide_that_all_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    waiting, publisher = (SharedWork.open(StagePaths("t"), "toy", "key") for _ in range(2))
    assert waiting is not None
    assert publisher is not None
    with publisher:
        publisher.publish(lambda: None)
    assert Path("artifacts/t/toy").is_dir()
    assert SharedWork.open(StagePaths("t"), "toy", "key") is not None
    with waiting:
        (waiting.parts / "absent").read_text()
    waiting.publish(lambda: pytest.fail("the new work is not the old"))


def test_a_missing_input_is_no_sign_of_being_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    work = SharedWork.open(StagePaths("t"), "toy", "key")
    assert work is not None
    with pytest.raises(FileNotFoundError), work:
        (tmp_path / "absent").read_text()


# Both stages, by 1, 2 and 7 processes that are forked before torch has computed anything: one import for all.
STAGES = """
import os, sys, types
from pathlib import Path
import torch
from perceptio_core.params.joint_shards import JointShardsParams
from perceptio_core.params.render import RenderParams
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.teacher_depth import TeacherDepthParams
from parameters import given
from stages import joint_shards, teacher_depth

data = [dict(name="set", kind="coco", path="set", split="train")]
profile = given(
    sources=SourcesParams(render=RenderParams(train=1, val=1, test=1), root=None, datasets=data),
    teacher_depth=TeacherDepthParams(batch_size=2, long_side=48, images_per_shard=3, workers=1),
    joint_shards=JointShardsParams.model_validate_json(sys.argv.pop()),
)
sys.argv[1:] = []
torch.set_num_threads(1)

def fork(stage):
    pid = os.fork()
    if pid == 0:
        stage.read_values = lambda _: profile
        stage.main()
        os._exit(0)
    return pid

for count in (1, 2, 7):
    os.chdir(f"{os.environ['TOP']}/{count}")
    for stage in (teacher_depth, joint_shards):
        children = [fork(stage) for _ in range(count)]
        for child in children:
            _, status = os.waitpid(child, 0)
            assert status == 0, (stage, count, status)
"""


def test_one_two_or_seven_workers_make_the_same_depth_maps_and_joint_shards(tmp_path: Path) -> None:
    joint_inputs(tmp_path)
    made = tmp_path / "artifacts/t"
    (made / "sources/root/pictures/7.png").write_bytes(b"cut off")  # one for the quarantine
    torch.manual_seed(0)
    teacher = made / "foundations/depth_anything"
    DepthAnythingForDepthEstimation(mini_config()).save_pretrained(teacher)
    image_processor().save_pretrained(teacher)
    for count in (1, 2, 7):
        (tmp_path / f"{count}/artifacts/t").mkdir(parents=True)
        for stage in ("sources", "foundations", "depth_codebook"):
            (tmp_path / f"{count}/artifacts/t" / stage).symlink_to(made / stage)
    params = PARAMS.model_copy(update={"images_per_shard": 3, "markers_per_image": 1, "workers": 1})
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "TOP": str(tmp_path),
    }
    command = [sys.executable, "-c", STAGES, params.model_dump_json()]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    for stage, files in (("teacher_depth", 8 + 3), ("joint_shards", 9 + 4)):
        one, two, seven = (contents(tmp_path / f"{count}/artifacts/t/{stage}") for count in (1, 2, 7))
        assert len(one) == files
        assert b"7.png" in one["quarantine.jsonl"]
        assert one == two == seven
        assert not any(any((tmp_path / f"{count}/.work/t/{stage}").iterdir()) for count in (1, 2, 7))
