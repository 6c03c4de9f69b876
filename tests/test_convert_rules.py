"""The engine of the conversions: rules over keys, files of weights, configurations, output folders."""

import json

import pytest
import torch
from safetensors.torch import save_file

from perceptio_core.convert.checkpoint_files import Section, new_folder, read_weights
from perceptio_core.convert.rules import Rule, renames, translate

RULES = (
    *renames({"old.{n}.norm{m}.{p}": "new.{m}.{n}.{p}", "rest.{rest}": "all.{rest}"}),
    Rule("both", ("upper", "lower"), split=lambda x: x.tensor_split(2)),
)
EXPECTED = {"new.2.7.bias": (3,), "all.x.y": (1,), "upper": (1, 2), "lower": (1, 2)}
DROPPED = {"gone.{n}": "it can be computed"}


@pytest.fixture
def weights():
    return {
        "old.7.norm2.bias": torch.arange(3.0),
        "rest.x.y": torch.ones(1),
        "both": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "gone.3": torch.zeros(2),
    }


def translated(weights, tmp_path):
    return translate(weights, RULES, expected=EXPECTED, dropped=DROPPED, source=tmp_path)


def test_keys_are_renamed_split_and_dropped(weights, tmp_path):
    result = translated(weights, tmp_path)
    assert result.keys() == EXPECTED.keys()
    assert torch.equal(result["new.2.7.bias"], torch.arange(3.0))
    assert result["upper"].tolist() == [[1, 2]]
    assert result["lower"].tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"stranger": torch.ones(1)}, r"1 unknown: stranger"),
        ({"old.7.norm2.scale": torch.ones(1)}, r"1 unknown: old\.7\.norm2\.scale"),
        ({"rest.nobody.asked": torch.ones(1)}, r"1 unknown: rest\.nobody\.asked"),
        ({"old.7.norm2.bias": None}, r"1 missing: old\.7\.norm2\.bias"),
        ({"both": None}, r"1 missing: both"),
        ({"old.7.norm2.bias": torch.ones(4)}, r"1 of another shape: old\.7\.norm2\.bias \(4,\) instead of \(3,\)"),
        ({"both": torch.ones(5, 2)}, r"2 of another shape: both \(3, 2\) instead of \(1, 2\), both"),
        ({"a": torch.ones(1), "b": torch.ones(1)}, r"2 unknown: a, b"),
    ],
)
def test_every_key_that_does_not_fit_is_told(weights, tmp_path, change, told):
    changed = {key: value for key, value in (weights | change).items() if value is not None}
    with pytest.raises(ValueError, match=told):
        translated(changed, tmp_path)


def test_two_keys_for_one_place_are_refused(tmp_path):
    rules = renames({"a.{p}": "x.{p}", "b.{p}": "x.{p}"})
    weights = {"a.bias": torch.ones(1), "b.bias": torch.ones(1)}
    with pytest.raises(ValueError, match=r"1 double: b\.bias \(as x\.bias\)"):
        translate(weights, rules, expected={"x.bias": (1,)}, dropped={}, source=tmp_path)


# Files


def test_weights_are_read_whole_or_in_shards_from_either_kind_of_file(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    assert read_weights(tmp_path).keys() == weights.keys() == read_weights(tmp_path / "model.safetensors").keys()
    (tmp_path / "model.safetensors").unlink()
    torch.save({key: weights[key] for key in ("both", "rest.x.y")}, tmp_path / "one.bin")
    torch.save({key: weights[key] for key in ("old.7.norm2.bias", "gone.3")}, tmp_path / "two.bin")
    where = {key: "one.bin" if key in ("both", "rest.x.y") else "two.bin" for key in weights}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    read = read_weights(tmp_path)
    assert all(torch.equal(read[key], weights[key]) for key in weights)
    torch.save({"model": weights, "step": 3}, tmp_path / "x.pt")
    assert read_weights(tmp_path / "x.pt", under=("model",)).keys() == weights.keys()


def test_an_index_that_disagrees_with_its_shards_is_refused(weights, tmp_path):
    save_file(weights, tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**dict.fromkeys(list(weights)[1:], "a.safetensors"), "z": "a.safetensors"}}))
    with pytest.raises(ValueError, match=r"differ in 2 keys: old\.7\.norm2\.bias, z"):
        read_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"both": "../a.safetensors"}}))
    with pytest.raises(ValueError, match=r"names '\.\./a\.safetensors'; allowed are files of the same folder"):
        read_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"both": "b.safetensors"}}))
    with pytest.raises(ValueError, match=r"b\.safetensors: not found"):
        read_weights(tmp_path)
    index.write_text(json.dumps({"metadata": {}}))
    with pytest.raises(ValueError, match="weight_map is missing"):
        read_weights(tmp_path)


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def test_a_pickle_with_code_is_not_run(tmp_path):
    torch.save({"a": Trap()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: not a file of tensors \(Unsupported global: .*exec") as refused:
        read_weights(tmp_path / "x.pt")
    assert "safe_globals" not in str(refused.value)
    (tmp_path / "x.pt").write_text("no pickle")
    with pytest.raises(ValueError, match=r"x\.pt: not a file of tensors \(\w+"):
        read_weights(tmp_path / "x.pt")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no weights"):
        read_weights(tmp_path)
    torch.save({"a": torch.ones(1), "step": 3}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: these entries are not tensors: step"):
        read_weights(tmp_path / "x.pt")
    torch.save([torch.ones(1)], tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: holds a list"):
        read_weights(tmp_path / "x.pt")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"x\.safetensors: not a safetensors file"):
        read_weights(tmp_path / "x.safetensors")


# Configurations


def test_a_configuration_tells_file_key_and_what_is_allowed(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": 1, "t": true, "n": null, "part": {"b": "x"}}')
    config = Section.read(path)
    assert config.get("a", int) == 1
    assert config.get("n", int, 5) == config.get("absent", int, 5) == 5
    assert config.one_of("absent", 0, 3, default=3) == 3
    assert config.section("part").get("b", str) == "x"
    for read, told in (
        (lambda: config.get("t", int), "t is True; allowed is int"),
        (lambda: config.get("absent", (int, float)), "absent is missing; allowed is int or float"),
        (lambda: config.one_of("a", 2, None), "a is 1; allowed is 2 or None"),
        (lambda: config.one_of("absent", 2), "absent is missing; allowed is 2"),
        (lambda: config.section("part").one_of("b", "y"), r"part\.b is 'x'; allowed is 'y'"),
        (lambda: config.section("a"), "a is 1; allowed is an object"),
        (lambda: Section.read(tmp_path / "no.json"), r"no\.json: not found"),
    ):
        with pytest.raises(ValueError, match=told):
            read()


def test_an_output_folder_is_there_whole_or_not_at_all(tmp_path):
    out = tmp_path / "a" / "out"

    def fail():
        with new_folder(out) as folder:
            (folder / "x").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not any(out.parent.iterdir())
    with new_folder(out) as folder:
        (folder / "x").write_text("")
    assert [file.name for file in out.iterdir()] == ["x"]
    with pytest.raises(ValueError, match="exists already"), new_folder(out):
        pass
