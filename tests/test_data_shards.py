"""Joint shards: what is in them, the same bytes twice, readable by plain webdataset, and a run that was killed."""

import glob
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from joint_inputs import PARAMS, SCENES, SIZE, VAL, joint_inputs
from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.data.loading.streaming import webdataset_samples
from perceptio_core.data.manifest.manifest import RECORDS, ImageRow, read_records
from perceptio_core.data.records import DEPTH_MAP_QUESTION
from perceptio_core.data.shards.joint import ShardMaker
from perceptio_core.data.shards.marker_drawing import draw_markers
from perceptio_core.data.shards.markers import QUESTION
from perceptio_core.data.shards.plan import Plan, ShardJob, write_plan
from perceptio_core.data.shards.tars import write_index
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.store import DepthStore, places

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return joint_inputs(tmp_path_factory.mktemp("run"))


def maker(inputs):
    stages = inputs / "artifacts" / "t"
    return ShardMaker(
        root=stages / "sources" / "root",
        depth=stages / "teacher_depth",
        codebook=stages / "depth_codebook",
        params=PARAMS,
        reasons={f"pictures/{SCENES - 1}.webp": "not decodable"},
    )


STAGE = """
import sys
import stages.joint_shards as stage
from parameters import given
from perceptio_core.params.joint_shards import JointShardsParams
from perceptio_core.params.render import RenderParams
from perceptio_core.params.sources import SourcesParams

if __name__ == "__main__":
    data = [dict(name="set", kind="coco", path="set", split="train")]
    profile = given(
        sources=SourcesParams(render=RenderParams(train=1, val=1, test=1), root=None, datasets=data),
        joint_shards=JointShardsParams.model_validate_json(sys.argv.pop()),
    )
    stage.read_values = lambda _: profile
    stage.main()
"""


def start_stage(top, params=PARAMS):
    (top / "run_stage.py").write_text(STAGE)
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "run_stage.py", params.model_dump_json()]
    return subprocess.Popen(command, cwd=top, env=environment, stderr=subprocess.PIPE, text=True)


def run_stage(top, params=PARAMS):
    process = start_stage(top, params)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return {path.name: path.read_bytes() for path in sorted((top / "artifacts/t/joint_shards").iterdir())}


@pytest.fixture(scope="module")
def finished(inputs):
    return run_stage(inputs)


def all_samples(folder):
    return {
        split: [dataset[i] for i in range(len(dataset))]
        for split in ("train", "val")
        for dataset in [JointDataset(folder, split)]
    }


def test_what_the_samples_hold(inputs, finished):
    del finished
    stages = inputs / "artifacts" / "t"
    samples = all_samples(stages / "joint_shards")
    store = DepthStore(stages / "teacher_depth")
    codebook = DepthCodebook.from_pretrained(stages / "depth_codebook")
    seen = {}
    for split, ones in samples.items():
        for one in ones:
            assert one.image.size == (SIZE, SIZE)
            assert (int(one.image_key[-4:]) < VAL) == (split == "val")
            codes = codebook.encode(codebook.normalise(store[one.image_key])[None])[0].tolist()
            assert one.depth_codes == codes  # of the unmarked picture, whatever the task
            seen.setdefault(one.task, []).append(one)
            with Image.open(
                stages
                / "sources/root/pictures"
                / f"{int(one.image_key[-4:])}.{('jpg', 'png', 'webp')[int(one.image_key[-4:]) % 3]}"
            ) as original:
                rgb = original.convert("RGB")
            assert one.draw_points == (one.task == "marker")
            shown = draw_markers(rgb, one.points) if one.draw_points else rgb
            assert np.array_equal(np.asarray(shown), np.asarray(one.image)), "circles are drawn on the picture as it came"
    assert set(seen) == {"referring", "conversation", "marker", "depth_map"}
    assert len(seen["conversation"]) == SCENES - 1
    assert len(seen["referring"]) == 2 * (SCENES - 1), "three expressions an image, at most two to a conversation"
    assert 0 < len(seen["depth_map"]) < SCENES - 1
    records = {record.record_id: record for record in read_records(stages / "sources" / RECORDS)}
    for one in seen["referring"]:
        parts = [records[name] for name in one.record_id.split("+")]
        assert one.turns == [turn for record in parts for turn in record.turns]
        assert one.masks == [mask for record in parts for mask in record.masks]
        assert one.mask_turns == list(range(len(parts)))
        assert {record.image_key for record in parts} == {one.image_key}
    assert any(one.record_id.split("+") != sorted(one.record_id.split("+")) for one in seen["referring"]), "in random order"
    assert sorted(len(one.masks) for one in seen["referring"]) == [1] * (SCENES - 1) + [2] * (SCENES - 1)
    assert seen["conversation"][0].turns == [("What?", "A café."), ("Where?", "Left.")]
    assert seen["depth_map"][0].turns == [(DEPTH_MAP_QUESTION, "")]
    assert len(seen["marker"]) >= 10
    for one in seen["marker"]:
        inverse_depth = store[one.image_key]
        depth_at = {point.letter: inverse_depth[point.y, point.x] for point in one.points}
        assert one.turns[0] == (QUESTION, f"({max(depth_at, key=depth_at.__getitem__)})")
        assert len(one.turns) == 1 + min(2, len(depth_at) * (len(depth_at) - 1) // 2)
        asked = set()
        for question, answered in one.turns[1:]:
            first, second = re.fullmatch(r"Which point is closer to the camera, (\w) or (\w)\?", question).groups()
            assert answered == f"({first if depth_at[first] > depth_at[second] else second})"
            asked.add(frozenset((first, second)))
        assert len(asked) == len(one.turns) - 1
        assert one.masks == []


def test_the_index_counts_and_checks_everything(inputs, finished, tmp_path):
    index = json.loads(finished["index.json"])
    assert (index["schema_version"], index["num_codes"], index["depth_tokens"]) == (4, 8, 16)
    assert [shard["name"] for shard in index["shards"]] == [name for name in finished if name.endswith(".tar")]
    for shard in index["shards"]:
        content = finished[shard["name"]]
        assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    samples = all_samples(inputs / "artifacts/t/joint_shards")
    for split, ones in samples.items():
        for task, count in index["counts"][split].items():
            assert count == sum(one.task == task for one in ones)
    there = SCENES - VAL - 1  # without the image of the train split that the teacher refused
    assert index["data"]["train"]["referring"]["set"] == {
        "samples": 2 * there,
        "records": 3 * there,
        "dropped": {"held_out_by_id": 2, "over_image_limit": there + 1, "quarantined": 3},
    }
    assert index["data"]["train"]["conversation"]["talk"] == {
        "samples": there,
        "records": there,
        "dropped": {"quarantined": 1},
    }
    assert index["data"]["val"]["conversation"]["talk"] == {"samples": VAL, "records": VAL, "dropped": {}}
    assert index["data"]["train"]["marker"] == {
        "teacher_depth": {"samples": index["counts"]["train"]["marker"], "records": 0, "dropped": {}}
    }
    rows = [json.loads(line) for line in finished["quarantine.jsonl"].decode().splitlines()]
    last = f"pictures/{SCENES - 1}.webp"
    assert {row["file"]: row["reason"] for row in rows} == {
        "bad.jpg": "cut off",
        last: "no depth map: not decodable",
        **{f"{last}#{name}": "no depth map: not decodable" for name in (f"talk/{SCENES - 1}", *_chosen(inputs, tmp_path))},
    }
    assert json.loads(finished["summary.json"])["quarantined"] == len(rows)


def _chosen(inputs, folder):
    """The referring records of the refused image that the plan had drawn."""
    made = inputs / "artifacts/t"
    write_plan(folder / "plan", sources=made / "sources", depth=made / "teacher_depth", params=PARAMS)
    plan = Plan(folder / "plan", params=PARAMS)
    jobs = [plan.job(name) for name in plan.shards]
    assert plan.shards == {job.name: len(job.images) for job in jobs}
    assert len({image.image_key for job in jobs for image, _ in job.images}) == SCENES
    ((_, records),) = [pair for job in jobs for pair in job.images if pair[0].image_key == f"set/{SCENES - 1:04d}"]
    return [record.record_id for record in records if record.task == "referring"]


def test_a_picture_lies_in_the_shards_once_with_all_that_is_said_about_it(inputs, finished):
    folder = inputs / "artifacts/t/joint_shards"
    names = [str(folder / name) for name in finished if name.endswith(".tar")]
    entries = list(webdataset.WebDataset(names, shardshuffle=False).decode("pil"))
    assert len(entries) == SCENES - 1
    assert {entry["json"]["image_key"] for entry in entries} == {f"set/{number:04d}" for number in range(SCENES - 1)}
    size = dict.fromkeys(("jpg", "png", "json"), 0)
    for name in names:
        with tarfile.open(name) as tar:
            for member in tar:
                size[member.name.rpartition(".")[2]] += member.size
    for entry in entries:
        number = int(entry["json"]["image_key"][-4:])
        assert (entry["jpg"] if number % 3 == 0 else entry["png"]).size == (SIZE, SIZE)
        assert set(entry["json"]) == {"schema", "image_key", "width", "height", "depth_codes", "annotations"}
        for said in entry["json"]["annotations"]:
            names = {"record_id", "task", "source", "turns", "masks", "mask_turns", "points", "draw_points"}
            assert set(said) == names
    metrics = json.loads(finished["summary.json"])
    bytes_of = {name: metrics[name] for name in ("shard_bytes", "picture_bytes", "annotation_bytes")}
    assert bytes_of == {
        "shard_bytes": sum(len(content) for name, content in finished.items() if name.endswith(".tar")),
        "picture_bytes": size["jpg"] + size["png"],
        "annotation_bytes": size["json"],
    }
    assert metrics["shard_overhead"] == pytest.approx(bytes_of["shard_bytes"] / sum(size.values()))
    assert metrics["pictures"] == len(entries)


def values(sample):
    return {**vars(sample), "image": sample.image.tobytes()}


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_gives_the_samples_of_the_dataset(inputs, finished, split):
    del finished
    folder = inputs / "artifacts/t/joint_shards"
    ours = JointDataset(folder, split)
    assert [values(sample) for sample in webdataset_samples(folder, split)] == [values(ours[i]) for i in range(len(ours))]
    shuffled = [sample.key for sample in webdataset_samples(folder, split, shardshuffle=100).shuffle(50)]
    assert sorted(shuffled) == sorted(ours[i].key for i in range(len(ours)))
    with pytest.raises(ValueError, match="no shards of split 'test'"):
        webdataset_samples(folder, "test")


def test_the_five_lines_of_the_docs_run(inputs, finished, tmp_path, monkeypatch):
    del finished
    text = (REPOSITORY / "docs/data.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "webdataset_samples" in block]
    assert len(block.strip().splitlines()) == 5
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/mini").symlink_to(inputs / "artifacts/t")
    monkeypatch.chdir(tmp_path)
    seen = {}
    exec(block, seen)
    sample = seen["sample"]
    assert sample.key.startswith("train-")
    assert sample.image.size == (SIZE, SIZE)


def test_nothing_of_the_run_is_in_the_tars(inputs, finished):
    for name in finished:
        if name.endswith(".tar"):
            with tarfile.open(inputs / "artifacts/t/joint_shards" / name) as tar:
                for member in tar:
                    assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_one_process_or_two_killed_or_not_the_bytes_are_the_same(inputs, finished, tmp_path):
    (tmp_path / "artifacts/t").mkdir(parents=True)
    for stage in ("sources", "teacher_depth", "depth_codebook"):
        (tmp_path / "artifacts/t" / stage).symlink_to(inputs / "artifacts/t" / stage)
    single = PARAMS.model_copy(update={"workers": 1})
    process = start_stage(tmp_path, single)
    deadline = time.monotonic() + 240
    while not glob.glob(".work/t/joint_shards/*/parts/*.json", root_dir=tmp_path):  # noqa: PTH207 (bears a folder that vanishes)
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".work/t/joint_shards/*/out/*.tar")}
    if not (tmp_path / "artifacts/t/joint_shards").exists():  # else it was quicker than the kill
        assert 1 <= len(kept) <= 5
    assert run_stage(tmp_path, single) == finished
    for path, when in kept.items():
        there = tmp_path / "artifacts/t/joint_shards" / path.name
        assert there.stat().st_mtime_ns == when  # not made again
    assert not list((tmp_path / ".work/t/joint_shards").iterdir())


def test_an_image_that_changed_is_refused(inputs, tmp_path):
    stages = inputs / "artifacts" / "t"
    row = ImageRow(image_key="set/0004", path="pictures/4.png", width=SIZE + 1, height=SIZE, sha256="", split="train")
    gone = ImageRow(image_key="set/0005", path="pictures/none.png", width=SIZE, height=SIZE, sha256="", split="train")
    assert stages.is_dir()
    maps = tuple(places(stages / "teacher_depth", [row.image_key, gone.image_key]))
    job = ShardJob(name="train-00000", split="train", images=((row, ()), (gone, ())), maps=maps)
    part = maker(inputs).make(job, folder=tmp_path)
    assert part.rows == []
    assert not list(tmp_path.iterdir())
    assert sorted((refused.file, refused.reason[:12]) for refused in part.quarantine) == [
        ("pictures/4.png", "the image is"),
        ("pictures/none.png", "No such file"),
    ]


def test_the_dataset_refuses_what_is_no_shard_folder(inputs, finished, tmp_path):
    del finished
    with pytest.raises(ValueError, match="not the output of joint_shards"):
        JointDataset(tmp_path, "train")
    with pytest.raises(ValueError, match=r"no samples in split 'test'; it has \['train', 'val'\]"):
        JointDataset(inputs / "artifacts/t/joint_shards", "test")
    write_index(tmp_path, [], quarantine=[], manifest={}, about={})
    (tmp_path / "index.json").write_text('{"schema_version": 99, "shards": []}')
    with pytest.raises(ValueError, match="schema_version is 99"):
        JointDataset(tmp_path, "train")
    content = json.loads((inputs / "artifacts/t/joint_shards/index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train-00000\.tar: absent"):
        JointDataset(tmp_path, "train")


def test_threads_share_a_dataset_and_pickles_open_their_own_files(inputs, finished):
    import pickle
    from concurrent.futures import ThreadPoolExecutor

    del finished
    dataset = JointDataset(inputs / "artifacts/t/joint_shards", "train")
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda i: dataset[i].key, list(range(len(dataset))) * 3))
    assert keys == [dataset[i].key for i in range(len(dataset))] * 3
    assert len(set(keys)) == len(dataset)
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 (our own)
    assert copy[0].key == dataset[0].key
    dataset.close()
    assert dataset[1].key == keys[1]
    with pytest.raises(IndexError):
        dataset[len(dataset)]
