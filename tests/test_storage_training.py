"""Co-training from a store is co-training from the disk: the same bytes, also when the store is lost on the way."""

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.data.loading.mixture import MixtureSampler
from perceptio_core.data.loading.read_ahead import ReadAhead
from perceptio_core.data.shards.remote import RemoteShards, StoreError
from perceptio_core.data.shards.tars import INDEX, SAMPLES
from perceptio_core.params.shard_source import VARIABLE, ShardSource
from s3_store import BUCKET, STORES, Proxy, s3_store, write_joint_shards
from tiny import tiny_foundations
from tiny_checkout import params, run_stage

STORE = f"s3://{BUCKET}/shards"


@pytest.fixture(params=STORES)
def proxy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    with s3_store(request.param, tmp_path_factory.mktemp("store"), monkeypatch) as proxy:
        yield proxy


def test_a_run_whose_store_was_lost_goes_on_to_the_same_bytes(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "artifacts" / "tiny"
    made.mkdir(parents=True)
    _, codebook = tiny_foundations(made)
    codebook.rename(made / "depth_codebook")
    shards = made / "joint_shards"
    write_joint_shards(shards)
    chosen = params(
        steps=8,
        mixture={"referring": 0.0, "conversation": 0.5, "marker": 0.0, "depth_map": 0.5},
        shard_window=1,
        num_workers=1,
        validation_batches=1,
        validate_every=8,
    )
    local = run_stage(tmp_path, monkeypatch, variant="local", chosen=chosen)

    RemoteShards(store=STORE, folder=shards).push()
    for path in shards.iterdir():
        if path.name not in (INDEX, SAMPLES):
            path.unlink()
    largest = max(shard["bytes"] for shard in json.loads((shards / INDEX).read_text())["shards"])
    cache = tmp_path / "cache"
    source = ShardSource(store=STORE, cache=cache, cache_gib=2 * largest / 2**30)
    monkeypatch.setenv(VARIABLE, source.model_dump_json())
    (tmp_path / ".work").rename(tmp_path / "before")
    asked, checkpoints = Proxy.fault, tmp_path / ".work" / "tiny" / "cotrain"

    def lost_after_a_while(self: Proxy, method: str, path: str) -> str | None:
        self.always = "503" if list(checkpoints.glob("remote-*/checkpoints/*")) else None
        return asked(self, method, path)

    monkeypatch.setattr(Proxy, "fault", lost_after_a_while)
    with pytest.raises(StoreError, match="failed 8 times"):
        run_stage(tmp_path, monkeypatch, variant="remote", chosen=chosen)
    assert list(checkpoints.glob("remote-*/checkpoints/*"))  # some steps were done
    monkeypatch.setattr(Proxy, "fault", asked)
    proxy.always = None
    shutil.rmtree(cache)
    remote = run_stage(tmp_path, monkeypatch, variant="remote", chosen=chosen)

    files = sorted(path.relative_to(local) for path in (local / "checkpoint").rglob("*") if path.is_file())
    assert any(path.suffix == ".safetensors" for path in files)
    for name in ("README.md", "params.yaml"):  # which name their variant
        files.remove(Path("checkpoint", name))
    for path in files:
        assert (remote / path).read_bytes() == (local / path).read_bytes(), path
    assert sum(path.stat().st_size for path in cache.glob("*.shard")) <= 2 * largest


def test_the_shards_of_coming_steps_come_while_one_is_read_and_each_comes_once(proxy: Proxy, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_joint_shards(shards)
    RemoteShards(store=STORE, folder=shards).push()
    size = max(shard["bytes"] for shard in json.loads((shards / INDEX).read_text())["shards"])
    dataset = JointDataset(shards, "train", ShardSource(store=STORE, cache=tmp_path / "cache", cache_gib=3 * size / 2**30))
    sampler = MixtureSampler(tasks=dataset.tasks, weights={"conversation": 1.0}, seed=3, shard_S=dataset.shard_S, window=1)

    def needs(step: int) -> list[str]:
        return dataset.shards_of(draw.sample for draw in sampler.draws(step, 2))

    walk = [needs(2 * place)[0] for place in range(6)]  # two steps a shard
    assert all(needs(step) == [walk[step // 2]] for step in range(12))
    sha256 = {shard["name"]: shard["sha256"] for shard in dataset.index["shards"]}

    def kept() -> set[str]:
        return {path.stem for path in (tmp_path / "cache").glob("*.shard")}

    assert dataset.cache is not None
    ahead = ReadAhead(dataset.cache, needs=needs, steps=12)
    proxy.always = "503"
    ahead.reached(0)
    with pytest.raises(StoreError, match="failed 8 times"):
        _ = dataset[sampler.draws(0, 2)[0].sample]
    proxy.always = None
    proxy.reads.clear()
    for step in range(12):
        ahead.reached(step)  # which is all that is asked for: the next steps' shards come by themselves
        coming = {sha256[name] for name in walk[step // 2 : step // 2 + 3]}
        end = time.monotonic() + 60
        while not kept() >= coming:
            assert time.monotonic() < end
            time.sleep(0.01)
        for draw in sampler.draws(step, 2):
            _ = dataset[draw.sample]
        assert len(kept()) <= 3
    assert proxy.reads == dict.fromkeys(walk, 2), "blocks: no shard was dropped before it was read, or came too early"


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_window_needs_few_shards_at_a_time_and_every_sample_once_an_epoch(window: int, tmp_path: Path) -> None:
    write_joint_shards(tmp_path / "shards", shards=24, samples=20)
    dataset = JointDataset(tmp_path / "shards", "train")
    sampler = MixtureSampler(tasks=dataset.tasks, weights={"conversation": 1.0}, seed=3, shard_S=dataset.shard_S, window=window)
    epochs = [[draw.sample for draw in sampler.draws(epoch, 240)] for epoch in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == dataset.tasks["conversation"].tolist()
        walked = [int(dataset.shard_S[index]) for index in epoch]
        spans = {shard: (walked.index(shard), 239 - walked[::-1].index(shard)) for shard in walked}
        for place in range(240):
            assert sum(first <= place <= last for first, last in spans.values()) <= window
        mixed = sum(one != other for one, other in itertools.pairwise(walked)) / 239
        assert mixed == pytest.approx(1 - 1 / window, abs=0.12) if window > 1 else mixed == 23 / 239
    assert epochs[0] != epochs[1]
    again = MixtureSampler(tasks=dataset.tasks, weights={"conversation": 1.0}, seed=3, shard_S=dataset.shard_S, window=window)
    assert again.draws(17, 12) == sampler.draws(17, 12)
