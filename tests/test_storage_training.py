"""Co-training from a store is co-training from the disk: the same bytes, also when the store is lost on the way."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from perceptio_core.data.dataset import JointDataset
from perceptio_core.data.mixture import MixtureSampler
from perceptio_core.data.shards import INDEX, SAMPLES
from perceptio_core.data.store import RemoteShards, StoreError
from perceptio_core.params.shard_source import VARIABLE, ShardSource
from s3_store import BUCKET, STORES, Proxy, s3_store, write_joint_shards
from test_training_cotrain import params, run_stage
from tiny import tiny_foundations

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

    def lost_after_a_while(self: Proxy, path: str) -> str | None:
        self.always = "503" if list(checkpoints.glob("remote-*/checkpoints/*")) else None
        return asked(self, path)

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
    for path in files:
        assert (remote / path).read_bytes() == (local / path).read_bytes(), path
    assert sum(path.stat().st_size for path in cache.glob("*.shard")) <= 2 * largest


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_window_needs_few_shards_at_a_time_and_every_sample_once_an_epoch(window: int, tmp_path: Path) -> None:
    write_joint_shards(tmp_path / "shards", shards=24, samples=20)
    dataset = JointDataset(tmp_path / "shards", "train")
    sampler = MixtureSampler(tasks=dataset.tasks, weights={"conversation": 1.0}, seed=3, shard_S=dataset.shard_S, window=window)
    epochs = [sampler.indices(epoch, 240) for epoch in range(2)]
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
    assert again.indices(17, 12) == sampler.indices(17, 12)
