"""AURORA's depth VQ-VAE: the same codes and maps after the conversion, and what is refused."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from collecting import write_manifest
from parameters import values_of
from perceptio_core.convert.codebook import convert_codebook
from perceptio_core.data.manifest.manifest import ImageRow
from perceptio_core.depth import store
from perceptio_core.depth.codebook import DepthCodebook
from pipeline.cli import main
from stages import depth_codebook

WIDTHS, DIM, CODES, SIDE = (4, 8, 16), 12, 10, 24  # 3 x 3 codes


def original(*, seed=0):
    """Random weights by the names of AiT's `VQVAE` class."""
    draw = torch.Generator().manual_seed(seed)
    weights = {}

    def layer(name, *shape):
        weights[f"{name}.weight"] = torch.randn(shape, generator=draw) / (torch.tensor(shape[1:]).prod() ** 0.5)
        weights[f"{name}.bias"] = torch.randn(shape[0], generator=draw) * 0.1

    n, top = len(WIDTHS), WIDTHS[-1]
    for i, (before, after) in enumerate(zip((1, *WIDTHS), WIDTHS, strict=False)):
        layer(f"encoder.{2 * i}", after, before, 4, 4)
    layer(f"encoder.{2 * n + 2}", DIM, top, 1, 1)
    layer("decoder.0", top, DIM, 1, 1)
    for name in (f"encoder.{2 * n}", f"encoder.{2 * n + 1}", "decoder.2", "decoder.3"):
        for number, side in ((0, 3), (2, 3), (4, 1)):
            layer(f"{name}.net.{number}", top, top, side, side)
    for i, (before, after) in enumerate(((16, 16), (16, 8), (8, 4))):
        layer(f"decoder.{4 + 2 * i}", before, after, 4, 4)  # a transposed convolution is (in, out, ...)
        weights[f"decoder.{4 + 2 * i}.bias"] = torch.randn(after, generator=draw) * 0.1
    layer(f"decoder.{4 + 2 * n}", 1, WIDTHS[0], 1, 1)
    seen = latents(weights, torch.randn(2, 1, SIDE, SIDE, generator=draw))
    weights["_vq_vae._embedding"] = seen.flatten(0, 2)[:CODES].clone()
    weights["_vq_vae._ema_cluster_size"] = torch.rand(CODES, generator=draw)
    weights["_vq_vae._ema_w"] = torch.randn(CODES, DIM, generator=draw)
    return weights


def convolve(weights, x, name, **how):
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **how)


def residual(weights, x, name):
    y = F.relu(convolve(weights, x, f"{name}.net.0", padding=1))
    return x + convolve(weights, F.relu(convolve(weights, y, f"{name}.net.2", padding=1)), f"{name}.net.4")


def latents(weights, maps):
    """(B, g, g, D), layer by layer as the class has them."""
    x = maps
    for i in range(3):
        x = F.relu(convolve(weights, x, f"encoder.{2 * i}", stride=2, padding=1))
    x = residual(weights, residual(weights, x, "encoder.6"), "encoder.7")
    return convolve(weights, x, "encoder.8").permute(0, 2, 3, 1)


def decoded(weights, codes):
    """Maps of codes (B, g, g)."""
    y = weights["_vq_vae._embedding"][codes].permute(0, 3, 1, 2)
    y = residual(weights, residual(weights, F.relu(convolve(weights, y, "decoder.0")), "decoder.2"), "decoder.3")
    for i in range(3):
        name = f"decoder.{4 + 2 * i}"
        y = F.relu(F.conv_transpose2d(y, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2, padding=1))
    return convolve(weights, y, "decoder.10")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_codes_and_maps_are_those_of_the_original(tmp_path, prefix):
    weights = original()
    torch.save({"weights": {f"{prefix}{key}": value for key, value in weights.items()}}, tmp_path / "vae-final.pt")
    convert_codebook(tmp_path / "vae-final.pt", tmp_path / "codebook", resolution=SIDE)
    codebook = DepthCodebook.from_pretrained(tmp_path / "codebook")
    maps = torch.randn(5, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    codes = torch.arange(5 * 9).view(5, 3, 3) % CODES
    double = {key: value.double() for key, value in weights.items()}
    expected_codes = torch.cdist(latents(double, maps.double()).flatten(1, 2), double["_vq_vae._embedding"][None]).argmin(-1)
    with torch.no_grad():
        assert torch.equal(codebook.double().encode(maps.double()), expected_codes)
        assert len(expected_codes.unique()) > 2, "a test of one code would prove little"
        torch.testing.assert_close(codebook.decode(codes.flatten(1)), decoded(double, codes), rtol=0, atol=1e-12)
    assert torch.equal(codebook.embedding.float(), weights["_vq_vae._embedding"])


def test_the_sizes_are_those_of_aurora():
    # 320 px -> 10 x 10 codes of 128; decoder 512 -> 256 -> 256 -> 128 -> 64 -> 32 -> 16 -> 1
    codebook = DepthCodebook(decoder="aurora")
    assert (codebook.grid, codebook.num_codes) == (10, 128)
    shapes = {key: tuple(value.shape) for key, value in codebook.decoder.state_dict().items() if key.endswith("weight")}
    assert {key: shape for key, shape in shapes.items() if ".layers." not in key} == {
        "0.weight": (256, 512, 1, 1),
        "4.weight": (256, 256, 4, 4),
        "6.weight": (256, 128, 4, 4),
        "8.weight": (128, 64, 4, 4),
        "10.weight": (64, 32, 4, 4),
        "12.weight": (32, 16, 4, 4),
        "14.weight": (1, 16, 1, 1),
    }
    with pytest.raises(ValueError, match="decoder 'vqgan': allowed are 'mirrored' and 'aurora'"):
        DepthCodebook(decoder="vqgan")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"decoder.2.net.1.running_mean": torch.ones(16)}, r"1 unknown: decoder\.2\.net\.1\.running_mean"),
        ({"_vq_vae._ema_w": None}, r"1 missing: _vq_vae\._ema_w"),
        ({"_vq_vae._embedding": None}, r"1 missing: _vq_vae\._embedding"),
        ({"_vq_vae._embedding": torch.ones(3)}, r"_vq_vae\._embedding \(3,\) instead of \(codes, width\)"),
        ({"decoder.10.bias": None}, r"1 missing: decoder\.10\.bias"),
        ({"decoder.4.weight": torch.ones(16, 8, 4, 4)}, r"decoder\.4\.weight \(16, 8, 4, 4\) instead of \(16, 16, 4, 4\)"),
    ],
)
def test_other_weights_are_refused(tmp_path, change, told):
    weights = {key: value for key, value in (original() | change).items() if value is not None}
    torch.save({"weights": weights}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=told):
        convert_codebook(tmp_path / "x.pt", tmp_path / "codebook", resolution=SIDE)
    assert not (tmp_path / "codebook").exists()


def test_the_command_converts_and_tells_its_mistakes(tmp_path, monkeypatch, capsys):
    torch.save(original(), tmp_path / "x.pt")
    arguments = ["perceptio", "convert", "codebook", str(tmp_path / "x.pt"), str(tmp_path / "codebook")]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    assert DepthCodebook.from_pretrained(tmp_path / "codebook").resolution == 320
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "exists already" in capsys.readouterr().err
    for help_of, told in (([], "sa2va"), (["sam2"], "SOURCE")):
        monkeypatch.setattr(sys, "argv", ["perceptio", "convert", *help_of, "--help"])
        main()
        assert told in capsys.readouterr().out


@pytest.fixture
def converted(tmp_path, monkeypatch):
    """A converted codebook, in a checkout with the depth maps of eight images and the profile `p` that names it."""
    torch.save(original(), tmp_path / "vae-final.pt")
    convert_codebook(tmp_path / "vae-final.pt", tmp_path / "models" / "codebook", resolution=SIDE)
    profile = values_of("smoke")
    sizes = {"num_codes": CODES, "resolution": SIDE, "widths": list(WIDTHS), "dim": DIM}
    profile["depth_codebook"] |= {**sizes, "pretrained": "$MODELS_HERE/codebook", "learning_rate": 3e-3}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELS_HERE", str(tmp_path / "models"))
    monkeypatch.setattr(sys, "argv", ["depth_codebook", "--params", "profiles/p.yaml"])
    Path("profiles").mkdir()
    Path("profiles/p.yaml").write_text(yaml.safe_dump(profile))
    sources, depth = Path("artifacts/p/sources"), Path("artifacts/p/teacher_depth")
    sources.mkdir(parents=True)
    depth.mkdir()
    splits = ["train"] * 3 + ["val"] * 5
    rows = [
        ImageRow(image_key=f"a/{n}", path=f"{n}.png", width=48, height=40, sha256="0" * 64, split=split)
        for n, split in enumerate(splits)
    ]
    write_manifest(sources, images=rows)
    draw = np.random.default_rng(0)
    maps = [store.encode_depth(row.image_key, draw.random((40, 48)).astype(np.float32)) for row in rows]
    store.write_index(depth, store.write_shard(depth, name="depth-00000.tar", maps=maps))
    return profile


@pytest.mark.usefixtures("converted")
def test_the_stage_takes_a_finished_codebook_as_it_is(monkeypatch):
    def never(**_):
        raise AssertionError("it was trained")

    monkeypatch.setattr(depth_codebook, "train_codebook", never)
    depth_codebook.main()
    out, given = Path("artifacts/p/depth_codebook"), Path("models/codebook")
    for name in ("config.json", "model.safetensors"):
        assert (out / name).read_bytes() == (given / name).read_bytes()
    metrics = {row["name"]: row for row in json.loads((out / "metrics.json").read_text())}
    assert metrics["codebook_mse"]["n"] == 5
    # the error once more, by the layers as the class of the original has them
    codebook, maps = DepthCodebook.from_pretrained(given), store.DepthStore(Path("artifacts/p/teacher_depth"))
    true = torch.stack([codebook.normalise(maps[f"a/{n}"]) for n in range(3, 8)])
    weights = original()
    codes = torch.cdist(latents(weights, true).flatten(1, 2), weights["_vq_vae._embedding"][None]).argmin(-1)
    error = (decoded(weights, codes.view(5, 3, 3)) - true).square().mean()
    assert metrics["codebook_mse"]["value"] == pytest.approx(float(error), rel=1e-4)
    with (out / "plots/curve.csv").open() as stream:
        assert list(csv.reader(stream)) == [["step", "mse", "commitment", "restarted"]]
    with (out / "plots/codes.csv").open() as stream:
        assert sum(int(row["uses"]) for row in csv.DictReader(stream)) == 5 * 9


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_codes": 12, "dim": 16}, r"codebook has num_codes: 10, dim: 12; the profile must say so too"),
        ({"pretrained": "${NONESUCH_HERE}/codebook"}, r"depth_codebook\.pretrained is .*variable NONESUCH_HERE is not set"),
        ({"pretrained": "absent"}, r"depth_codebook\.pretrained: absent is not a folder"),
        ({"pretrained": "profiles"}, r"depth_codebook\.pretrained: profiles is no codebook: FileNotFoundError"),
    ],
)
def test_another_codebook_than_the_profile_says_is_refused(converted, changes, told):
    converted["depth_codebook"] |= changes
    Path("profiles/p.yaml").write_text(yaml.safe_dump(converted))
    with pytest.raises(ValueError, match=told):
        depth_codebook.main()
