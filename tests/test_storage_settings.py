"""From machine.yaml to the stage, and the command that brings shards to a store."""

import os
import sys
from pathlib import Path

import pytest

from perceptio_core.data.shards.remote import RemoteShards
from perceptio_core.params.shard_source import VARIABLE, ShardSource
from pipeline import cli
from pipeline.launch import __main__ as launch
from s3_store import BUCKET, s3_store, write_joint_shards


def test_a_stage_is_told_what_the_machine_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    Path("machine.yaml").write_text("shards: {store: s3://bucket/prefix, cache: /local/cache, cache_gib: 200}\n")
    told: list[str] = []

    def become(_: str, command: list[str]) -> None:
        told.extend(command[1:])
        sys.exit()

    monkeypatch.setattr(os, "execv", become)
    monkeypatch.setattr(sys, "argv", ["launch", "cotrain", "--variant", "full"])
    monkeypatch.setenv(VARIABLE, "what the shell says; the machine's file wins")
    with pytest.raises(SystemExit):
        launch.main()
    expected = ShardSource(store="s3://bucket/prefix", cache=Path("/local/cache"), cache_gib=200)
    assert told == ["-m", "stages.cotrain", "--variant", "full"]
    assert ShardSource.from_environment() == expected


def test_the_command_pushes_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "artifacts" / "p" / "joint_shards"
    write_joint_shards(made, shards=2, samples=2)
    monkeypatch.setattr(sys, "argv", ["perceptio", "shards", "push", f"s3://{BUCKET}", "--profile", "p"])
    with s3_store("moto", tmp_path, monkeypatch) as proxy:
        cli.main()
        said = capsys.readouterr()
        pushed = RemoteShards(store=f"s3://{BUCKET}", folder=made)
        assert said.out.strip() == pushed.url
        assert "3/3 shards" in said.err
        assert pushed.is_whole()
        proxy.requests.clear()
        cli.main()
        assert {request.split()[0] for request in proxy.requests} == {"HEAD"}
        tar = made / "train-00001.tar"
        tar.write_bytes(tar.read_bytes()[:-1])
        with pytest.raises(SystemExit, match="2"):
            cli.main()
        assert f"{tar.relative_to(tmp_path)}: its sha256 is not the one in index.json" in capsys.readouterr().err
