"""Shards on an S3 store: pushed, streamed through a bounded cache, over a network that does what networks do."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
import webdataset

from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.data.shards import remote as store
from perceptio_core.data.shards.entry import Sample
from perceptio_core.data.shards.remote import RemoteShards, StoreError, teach_webdataset
from perceptio_core.data.shards.tars import INDEX, SAMPLES
from perceptio_core.params.shard_source import VARIABLE, ShardSource
from s3_store import BUCKET, STORES, Proxy, s3_store, write_joint_shards, write_large_shard

STORE = f"s3://{BUCKET}/shards"
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "joint_shards"
    write_joint_shards(folder)
    return folder


@pytest.fixture(scope="module", params=STORES)
def remote(request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A store that holds the shards."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as monkeypatch, s3_store(request.param, folder, monkeypatch) as proxy:
        RemoteShards(store=STORE, folder=shards).push()
        yield proxy


@pytest.fixture
def proxy(remote: Proxy) -> Iterator[Proxy]:
    """The store, well again, and nothing counted yet."""
    remote.reads.clear()
    yield remote
    remote.faults, remote.always = [], None


@pytest.fixture
def bare(shards: Path, tmp_path: Path) -> Path:
    """What a machine has that reads from the store: the index and no shards."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in (INDEX, SAMPLES):
        shutil.copy(shards / name, folder)
    return folder


def sizes(shards: Path) -> list[int]:
    return [shard["bytes"] for shard in json.loads((shards / INDEX).read_text())["shards"]]


def source(tmp_path: Path, *, holds: int) -> ShardSource:
    return ShardSource(store=STORE, cache=tmp_path / "cache", cache_gib=holds / 2**30)


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.shard"))


def unfinished(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.unfinished"))


def same(one: Sample, other: Sample) -> bool:
    def plain(sample: Sample) -> dict[str, object]:
        return {**vars(sample), "image": sample.image.tobytes()}

    return plain(one) == plain(other)


@pytest.mark.usefixtures("proxy")
def test_samples_are_the_same_and_the_cache_keeps_within_its_bound(shards: Path, bare: Path, tmp_path: Path) -> None:
    local, limit = JointDataset(shards, "train"), 3 * max(sizes(shards))
    streamed = JointDataset(bare, "train", source(tmp_path, holds=limit))
    for number in [*range(len(local)), *reversed(range(0, len(local), 5))]:
        assert same(local[number], streamed[number])
        assert sum(path.stat().st_size for path in kept(tmp_path)) <= limit
    assert len(kept(tmp_path)) == 3
    assert not unfinished(tmp_path)


def test_the_least_recently_used_shard_makes_room(proxy: Proxy, shards: Path, bare: Path, tmp_path: Path) -> None:
    streamed = JointDataset(bare, "train", source(tmp_path, holds=2 * max(sizes(shards))))
    first = {shard: int((streamed.shard_S == shard).argmax()) for shard in range(3)}
    for shard in (0, 1, 0, 2, 0):  # 1 goes for 2; 0, used between, stays
        _ = streamed[first[shard]]
    assert [proxy.reads[f"train-0000{shard}.tar"] for shard in range(3)] == [2, 2, 2]  # of two blocks each
    _ = streamed[first[1]]
    assert proxy.reads["train-00001.tar"] == 4


def test_threads_and_processes_bring_a_shard_once(proxy: Proxy, shards: Path, bare: Path, tmp_path: Path) -> None:
    chosen = source(tmp_path, holds=2**30)
    command = [sys.executable, "-c", READ_ALL, str(bare)]
    with subprocess.Popen(command, env=environment(chosen), stdout=subprocess.PIPE, text=True) as other:
        streamed, local = JointDataset(bare, "train", chosen), JointDataset(shards, "train")
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(streamed.__getitem__, range(len(streamed))))
        told = other.communicate()[0]
    assert all(same(sample, local[number]) for number, sample in enumerate(read))
    assert told.splitlines()[-1] == str(len(local))
    assert set(proxy.reads.values()) == {2}  # blocks of each of the six
    assert len(proxy.reads) == len(kept(tmp_path)) == 6


@pytest.mark.usefixtures("proxy")
def test_threads_that_fight_for_a_small_cache_get_what_they_asked_for(shards: Path, bare: Path, tmp_path: Path) -> None:
    local = JointDataset(shards, "train")
    streamed = JointDataset(bare, "train", source(tmp_path, holds=max(sizes(shards))))
    numbers = [shard * 8 + sample for sample in range(3) for shard in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert all(same(sample, local[n]) for n, sample in zip(numbers, pool.map(streamed.__getitem__, numbers), strict=True))
    _ = streamed[0]
    assert not unfinished(tmp_path)


@pytest.mark.parametrize("fault", ["500", "503", "reset", "cut", "short", "corrupt", "stall", "slow"])
def test_faults_are_survived(fault: str, proxy: Proxy, shards: Path, bare: Path, tmp_path: Path) -> None:
    streamed = JointDataset(bare, "train", source(tmp_path, holds=2**30))
    proxy.faults = [fault] if fault == "stall" else [fault] * 2
    assert same(streamed[0], JointDataset(shards, "train")[0])
    (shard,) = kept(tmp_path)
    assert shard.read_bytes() == (shards / "train-00000.tar").read_bytes()
    assert not unfinished(tmp_path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("503", r"train-00000.tar: reading failed 8 times, the last time with OSError: .*Please try again"),
        ("cut", r"train-00000.tar: reading failed 8 times, the last time with ClientPayloadError"),
        ("short", r"train-00000.tar: reading failed 8 times, the last time with OSError: 32768 of the 65536 bytes"),
        ("corrupt", r"train-00000.tar: came 3 times with another sha256 than [0-9a-f]{64}"),
    ],
)
def test_beyond_the_bounds_the_error_says_what_failed_and_no_half_shard_is_used(
    fault: str, message: str, proxy: Proxy, shards: Path, bare: Path, tmp_path: Path
) -> None:
    streamed = JointDataset(bare, "train", source(tmp_path, holds=2**30))
    proxy.always = fault
    with pytest.raises(StoreError, match=f"^s3://{BUCKET}/shards/[0-9a-f]{{16}}/{message}"):
        _ = streamed[0]
    assert not kept(tmp_path)
    proxy.always = None
    assert same(streamed[0], JointDataset(shards, "train")[0])
    assert len(kept(tmp_path)) == 1
    assert not unfinished(tmp_path)


def test_a_shard_that_is_gone_from_the_store_is_not_waited_for(proxy: Proxy, shards: Path, bare: Path, tmp_path: Path) -> None:
    streamed = JointDataset(bare, "train", source(tmp_path, holds=2**30))
    name = f"{RemoteShards(store=STORE, folder=bare).url}/train-00002.tar"
    fsspec.filesystem("s3").rm_file(name)
    with pytest.raises(StoreError, match=r"train-00002\.tar: reading failed: FileNotFoundError"):
        _ = streamed[2 * 8]
    assert proxy.reads["train-00002.tar"] == 1
    RemoteShards(store=STORE, folder=shards).push()
    assert same(streamed[2 * 8], JointDataset(shards, "train")[2 * 8])


@pytest.mark.usefixtures("proxy")
def test_a_shard_that_was_cut_in_the_cache_is_brought_again(shards: Path, bare: Path, tmp_path: Path) -> None:
    streamed, local = JointDataset(bare, "train", source(tmp_path, holds=2**30)), JointDataset(shards, "train")
    _ = streamed[0]
    os.truncate(kept(tmp_path)[0], 1000)
    assert same(streamed[7], local[7])
    assert kept(tmp_path)[0].stat().st_size == sizes(shards)[0]


@pytest.mark.usefixtures("proxy")
def test_a_full_disk_below_the_cache_is_named(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = JointDataset(bare, "train", source(tmp_path, holds=2**30))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/cache/[0-9a-f]{{64}}\.\d+\.unfinished'"):
        _ = streamed[0]
    assert not kept(tmp_path)


READ_ALL = """
import sys
from pathlib import Path
from perceptio_core.data.shards import remote as store
from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.params.shard_source import ShardSource
store.BLOCK_BYTES = 2**16
dataset = JointDataset(Path(sys.argv[1]), "train", ShardSource.from_environment())
print(sum(dataset[number].image.width == 64 for number in range(len(dataset))))
"""


def environment(chosen: ShardSource) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", VARIABLE: chosen.model_dump_json()}


def test_what_a_killed_process_leaves_is_not_used(proxy: Proxy, shards: Path, bare: Path, tmp_path: Path) -> None:
    chosen = source(tmp_path, holds=3 * max(sizes(shards)))
    proxy.always = "slow"
    with subprocess.Popen([sys.executable, "-c", READ_ALL, str(bare)], env=environment(chosen)) as reader:
        end = time.monotonic() + 30
        while not any(path.stat().st_size for path in unfinished(tmp_path)):
            assert time.monotonic() < end
            time.sleep(0.02)
        reader.send_signal(signal.SIGKILL)
        assert reader.wait() == -signal.SIGKILL
    assert not kept(tmp_path)
    (left,) = unfinished(tmp_path)
    assert 0 < left.stat().st_size < sizes(shards)[0]
    proxy.always = None
    streamed, local = JointDataset(bare, "train", chosen), JointDataset(shards, "train")
    assert same(streamed[8], local[8])  # of another shard; what was left makes room
    assert not unfinished(tmp_path)
    assert same(streamed[0], local[0])


@pytest.mark.usefixtures("proxy")
def test_a_push_goes_on_where_it_stood_and_half_a_set_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, written = tmp_path / "joint_shards", []
    write_joint_shards(made, shards=3, samples=2)
    put = RemoteShards._put

    def put_two(self: RemoteShards, name: str, expected: str | None) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        put(self, name, expected)
        written.append(name)

    monkeypatch.setattr(RemoteShards, "_put", put_two)
    pushed = RemoteShards(store=STORE, folder=made)
    with pytest.raises(KeyboardInterrupt):
        pushed.push()
    monkeypatch.setattr(RemoteShards, "_put", put)
    with pytest.raises(ValueError, match=r"shards are not there; perceptio shards push s3://perceptio-tests/shards"):
        JointDataset(made, "train", source(tmp_path, holds=2**30))

    filesystem = fsspec.filesystem("s3")
    before = filesystem.call_s3("head_object", Bucket=BUCKET, Key=f"{pushed.url}/train-00000.tar".split("/", 3)[3])
    pushed.push()
    after = filesystem.call_s3("head_object", Bucket=BUCKET, Key=f"{pushed.url}/train-00000.tar".split("/", 3)[3])
    assert before["LastModified"] == after["LastModified"]
    assert {Path(name).name for name in filesystem.ls(pushed.url)} == {
        *(path.name for path in made.glob("*.tar")),
        INDEX,
        SAMPLES,
    }
    _ = JointDataset(made, "train", source(tmp_path, holds=2**30))[0]


@pytest.mark.usefixtures("proxy")
def test_a_shard_too_large_for_one_request_comes_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK_BYTES", 3 * 2**20)  # parts are two of these; S3 wants at least 5 MiB
    write_large_shard(tmp_path / "large", size=2**24)
    pushed = RemoteShards(store=STORE, folder=tmp_path / "large")
    pushed.push()
    key = f"{pushed.url}/train-00000.tar".split("/", 3)[3]
    assert fsspec.filesystem("s3").call_s3("head_object", Bucket=BUCKET, Key=key)["ETag"].endswith('-3"')  # of three parts
    assert b"".join(pushed.blocks("train-00000.tar")) == (tmp_path / "large" / "train-00000.tar").read_bytes()


@pytest.mark.usefixtures("proxy")
def test_a_damaged_shard_is_not_pushed(tmp_path: Path) -> None:
    made = tmp_path / "joint_shards"
    write_joint_shards(made, shards=1, samples=2)
    content = bytearray((made / "train-00000.tar").read_bytes())
    content[700] ^= 1
    (made / "train-00000.tar").write_bytes(content)
    pushed = RemoteShards(store=f"{STORE}/damaged", folder=made)
    with pytest.raises(ValueError, match=r"train-00000\.tar: its sha256 is not the one in index\.json; run joint_shards again"):
        pushed.push()
    assert not pushed.is_whole()


@pytest.mark.usefixtures("proxy")
def test_plain_webdataset_reads_the_shards(shards: Path) -> None:
    teach_webdataset()
    url = RemoteShards(store=STORE, folder=shards).url
    read = [
        [(sample["__key__"], sample["png"], sample["json"]) for sample in webdataset.WebDataset(urls, shardshuffle=False)]
        for urls in (f"{url}/train-{{00000..00005}}.tar", str(shards / "train-{00000..00005}.tar"))
    ]
    assert read[0] == read[1]
    assert len(read[0]) == 48


@pytest.mark.usefixtures("proxy")
def test_mistakes_are_explained(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"cache_gib: .*the largest shard: train-0000\d\.tar alone takes 0\.00011"):
        JointDataset(bare, "train", source(tmp_path, holds=1000))
    with pytest.raises(ValueError, match="bucket: not a store; allowed is s3://BUCKET"):
        RemoteShards(store="bucket", folder=bare)
    monkeypatch.setenv(VARIABLE, '{"store": "s3://b", "cache": "c", "cache_gib": 1, "keys": 2}')
    with pytest.raises(ValueError, match=r"PERCEPTIO_SHARDS\.keys: unknown key; allowed are store, cache, cache_gib"):
        ShardSource.from_environment()
    monkeypatch.setenv(VARIABLE, "s3://b")
    with pytest.raises(ValueError, match="PERCEPTIO_SHARDS: expected JSON with the keys store, cache, cache_gib"):
        ShardSource.from_environment()
    monkeypatch.delenv(VARIABLE)
    assert ShardSource.from_environment() is None


def test_a_wrong_secret_is_not_tried_again(
    proxy: Proxy, request: pytest.FixtureRequest, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "ceph" not in request.node.callspec.id:
        pytest.skip("moto takes any secret")
    asked = len(proxy.requests)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StoreError, match="asking for it failed: PermissionError"):
        RemoteShards(store=STORE, folder=bare).is_whole()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert len(proxy.requests) == asked + 1


def test_waits_grow_to_a_bound_and_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0.5)
    monkeypatch.setattr(store, "LONGEST_WAIT_S", 30.0)
    monkeypatch.setattr(time, "sleep", slept.append)

    def fail() -> None:
        raise TimeoutError("too slow")

    for _ in range(40):
        with pytest.raises(StoreError, match="it failed 8 times, the last time with TimeoutError: too slow"):
            store._patiently(fail, what="it")
    waits = [slept[attempt::7] for attempt in range(7)]
    bounds = [0.5, 1, 2, 4, 8, 16, 30]
    assert len(slept) == 40 * 7
    for bound, drawn in zip(bounds, waits, strict=True):
        assert 0 <= min(drawn) < 0.4 * bound
        assert 0.6 * bound < max(drawn) <= bound
