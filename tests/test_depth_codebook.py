"""The depth codebook: nearest codes, moving averages, starts and restarts, training that resumes, and its scores."""

import io
import json
import math
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

from codebook_parts import quantizer, scenes
from collecting import write_manifest
from parameters import given
from perceptio_core.data.manifest.manifest import ImageRow
from perceptio_core.depth import codebook_training
from perceptio_core.depth.codebook import EPSILON, KMEANS_ROUNDS, DepthCodebook, Quantizer
from perceptio_core.depth.codebook_training import train_codebook, validate_codebook
from perceptio_core.depth.lookup import nearest_is_right, read_off
from perceptio_core.depth.store import encode_depth, write_index, write_shard
from perceptio_core.metrics import wilson
from perceptio_core.params.depth_codebook import DepthCodebookParams
from stages import depth_codebook as stage

REPOSITORY = Path(__file__).resolve().parent.parent
PARAMS = DepthCodebookParams(
    num_codes=6,
    resolution=8,
    widths=(4, 8),
    dim=5,
    decay=0.8,
    continuous_share=0.3,  # 4 of 12 steps
    restart_every=4,
    restart_below=0.9,
    steps=12,
    batch_size=4,
    learning_rate=1e-2,
    checkpoint_every=3,
    validation_maps=2,
    seed=3,
)


def tiny_codebook(**more) -> DepthCodebook:
    """Random weights, and codes that lie where the encoder writes."""
    torch.manual_seed(0)
    made = DepthCodebook(**{"num_codes": 6, "resolution": 8, "widths": (4, 8), "dim": 5, **more}).eval()
    made.quantizer.start(made.latents(torch.rand(8, 1, 8, 8) * 2 - 1).flatten(0, 1))
    return made


def brute_force(embedding, vectors) -> np.ndarray:
    codes, points = np.asarray(embedding, np.float64), np.asarray(vectors, np.float64)
    return np.square(points[:, None] - codes[None]).sum(-1).argmin(1)


def test_the_nearest_code_is_that_of_all_distances_in_double_precision() -> None:
    made = quantizer(num_codes=50, dim=8)
    vectors = torch.randn(2000, 8)
    found = made.nearest(vectors)
    assert found.dtype == torch.int64
    assert np.array_equal(found, brute_force(made.embedding, vectors))
    assert len(found.unique()) == 50
    made.embedding[7] = made.embedding[3]
    assert 7 not in made.nearest(vectors), "the first of two equal codes"


def test_one_step_of_the_moving_averages_by_hand() -> None:
    made = Quantizer(num_codes=3, dim=2, decay=0.75)
    made.embedding.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]]))
    made.counts.copy_(torch.tensor([4.0, 2.0, 2.0]))
    made.sums.copy_(torch.tensor([[4.0, 0.0], [0.0, 4.0], [10.0, 10.0]]))
    vectors = torch.tensor([[3.0, 0.0], [1.0, 4.0], [0.0, 6.0]])
    made.update(vectors, torch.tensor([0, 1, 1]))
    # 0.75 * before + 0.25 * (1, 2, 0) and the sums of the vectors
    assert made.counts.tolist() == [3.25, 2.0, 1.5]
    assert made.sums.tolist() == [[3.75, 0.0], [0.25, 5.5], [7.5, 7.5]]
    smoothed = [(count + EPSILON) * 6.75 / (6.75 + 3 * EPSILON) for count in (3.25, 2.0, 1.5)]
    expected = [[3.75 / smoothed[0], 0.0], [0.25 / smoothed[1], 5.5 / smoothed[1]], [7.5 / smoothed[2]] * 2]
    torch.testing.assert_close(made.embedding, torch.tensor(expected), rtol=1e-6, atol=0)


def test_steps_of_the_moving_averages_are_those_of_vector_quantize_pytorch() -> None:
    peer = pytest.importorskip("vector_quantize_pytorch").VectorQuantize(dim=5, codebook_size=7, decay=0.9, eps=EPSILON).train()
    made = quantizer(num_codes=7, dim=5, decay=0.9)
    buffers = {"embedding": "embed", "counts": "cluster_size", "sums": "embed_avg"}
    for mine, theirs in buffers.items():
        getattr(peer._codebook, theirs).copy_(getattr(made, mine))
    for step in range(3):
        vectors_BND = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(step))
        read, codes, _ = peer(vectors_BND)
        found = made.nearest(vectors_BND.flatten(0, 1))
        assert torch.equal(found, codes.flatten())
        torch.testing.assert_close(made.embedding[found].view_as(read), read.detach(), rtol=1e-6, atol=1e-6)
        made.update(vectors_BND.flatten(0, 1), found)
        for mine, theirs in buffers.items():
            torch.testing.assert_close(getattr(made, mine), getattr(peer._codebook, theirs)[0], rtol=1e-6, atol=1e-6, msg=mine)
    assert len(found.unique()) > 2


def test_the_averages_go_to_the_mean_of_what_a_code_is_given() -> None:
    made = quantizer(decay=0.5)
    vectors, codes = torch.randn(40, 3), torch.arange(40) % 4
    for _ in range(40):
        made.update(vectors, codes)
    means = torch.stack([vectors[codes == code].mean(0) for code in range(4)])
    torch.testing.assert_close(made.embedding, means, rtol=1e-4, atol=1e-5)


def test_dead_codes_restart_at_vectors_of_the_batch() -> None:
    made, vectors = quantizer(), torch.randn(20, 3)
    made.counts.copy_(torch.tensor([10.0, 0.9, 1.0, 0.1]))  # 3 is fair, so 0.3 is the limit at a tenth and 0.9 at 30 %
    before = {name: buffer.clone() for name, buffer in made.named_buffers()}

    def restarted(share: float, seed: int = 1) -> tuple[int, dict[str, torch.Tensor]]:
        made.load_state_dict(before)
        torch.manual_seed(seed)
        number = made.restart_dead(vectors, share=share)
        return number, {name: buffer.clone() for name, buffer in made.named_buffers()}

    for share, dead in ((0.0, []), (0.1, [3]), (0.31, [1, 3]), (0.34, [1, 2, 3])):
        number, after = restarted(share)
        assert number == len(dead)
        changed = (after["embedding"] != before["embedding"]).any(1)
        assert changed.nonzero().flatten().tolist() == dead
        for code in range(4):
            if code not in dead:
                assert all(torch.equal(after[name][code], before[name][code]) for name in before)
                continue
            assert (after["embedding"][code] == vectors).all(1).any(), "a vector of the batch"
            assert after["counts"][code] == 3.0, "its fair part"
            assert torch.equal(after["sums"][code], after["embedding"][code] * 3)
        again, other = restarted(share)[1], restarted(share, seed=2)[1]
        assert all(torch.equal(after[name], again[name]) for name in before)
        assert not dead or not torch.equal(after["embedding"], other["embedding"])


def test_the_codebook_starts_where_lloyds_rounds_in_double_precision_end() -> None:
    made, draw = quantizer(num_codes=5), np.random.default_rng(0)
    vectors = torch.from_numpy(draw.normal(size=(60, 3)).astype(np.float32))
    torch.manual_seed(4)
    made.start(vectors)
    torch.manual_seed(4)
    points = vectors.double().numpy()
    centres = points[torch.randperm(60)[:5].numpy()]
    first = np.square(points - centres[brute_force(centres, points)]).sum()
    for _ in range(KMEANS_ROUNDS):
        codes = brute_force(centres, points)
        centres = np.stack([points[codes == code].mean(0) for code in range(5)])
    np.testing.assert_allclose(made.embedding, centres, rtol=0, atol=1e-5)
    assert np.square(points - centres[brute_force(centres, points)]).sum() < 0.8 * first
    assert torch.equal(made.counts, torch.ones(5))
    assert torch.equal(made.sums, made.embedding)


def test_fewer_vectors_than_codes_are_a_start_as_well() -> None:
    made, vectors = quantizer(num_codes=5), torch.tensor([[1.0, 2.0, 3.0], [-4.0, 0.0, 1.0]])
    made.start(vectors)
    assert all((row == vectors).all(1).any() for row in made.embedding)
    assert torch.equal(made.embedding[made.nearest(vectors)], vectors)


def test_maps_are_levels_of_the_whole_map_at_pixel_centres() -> None:
    depth = np.random.default_rng(0).uniform(3, 9, (12, 20)).astype(np.float32)
    levels = np.floor((depth.astype(np.float64) - depth.min()) / (depth.max() - depth.min()) * 255)
    sampled = levels[np.ix_([0, 2, 3, 5, 6, 8, 9, 11], [1, 3, 6, 8, 11, 13, 16, 18])]  # floor((i + 0.5) * side / 8)
    normalised = tiny_codebook().normalise(depth)
    assert normalised.shape == (1, 8, 8)
    np.testing.assert_allclose(normalised[0], sampled / 127.5 - 1, rtol=0, atol=1e-6)
    assert (normalised.min(), normalised.max()) != (-1, 1), "the lowest and the highest are not among these pixels"


@pytest.mark.parametrize(
    "shape", [(480, 640), (427, 640), (640, 426), (320, 320), (128, 128), (512, 683), (1, 50), (160, 2000)]
)
def test_a_codebook_sees_what_auroras_data_set_shows_it(shape: tuple[int, int]) -> None:
    """AURORA's steps: 8-bit gray PNG of the whole map, Pillow's nearest, a tensor in 0..1, mean and deviation 0.5."""
    codebook = DepthCodebook(num_codes=2, resolution=320, widths=(1, 1, 1, 1, 1), dim=1)
    for depth in (
        np.random.default_rng(1).gamma(2.0, size=shape).astype(np.float32),
        np.linspace(0.3, 0.31, math.prod(shape), dtype=np.float32).reshape(shape),
    ):
        gray = ((depth - depth.min()) / (depth.max() - depth.min()) * 255.0).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(np.repeat(gray[..., None], 3, axis=-1)).save(file, "PNG")
        channel = Image.fromarray(np.asarray(Image.open(file))[:, :, 0])
        steps = Compose([Resize((320, 320), InterpolationMode.NEAREST), ToTensor(), Normalize((0.5,), (0.5,))])
        assert torch.equal(codebook.normalise(depth), steps(channel))


@pytest.mark.parametrize("value", [0.0, 1e-30, 7.0])
def test_a_flat_map_is_zeros(value: float) -> None:
    codebook = tiny_codebook()
    normalised = codebook.normalise(np.full((5, 9), value, np.float32))
    assert torch.equal(normalised, torch.zeros(1, 8, 8))
    assert codebook.decode(codebook.encode(normalised[None])).isfinite().all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_that_is_not_finite_is_refused(value: float) -> None:
    depth = np.ones((5, 9))
    depth[2, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        tiny_codebook().normalise(depth)


def test_codes_lie_row_by_row_and_each_decodes_to_its_vector() -> None:
    codebook = tiny_codebook()
    maps = torch.rand(3, 1, 8, 8) * 2 - 1
    latents = codebook.encoder(maps)  # (3, 5, 2, 2)
    codes = codebook.encode(maps)
    assert codes.shape == (3, 4)
    assert len(codes.unique()) > 2
    for row in range(2):
        for column in range(2):
            expected = brute_force(codebook.embedding, latents[:, :, row, column].detach())
            assert np.array_equal(codes[:, 2 * row + column], expected)
    grid = codebook.embedding[codes].view(3, 2, 2, 5).permute(0, 3, 1, 2)
    assert torch.equal(codebook.decode(codes), codebook.decoder(grid))
    mixed = torch.randn(3, 4, 5, requires_grad=True)
    codebook.decode_embeddings(mixed).sum().backward()
    assert mixed.grad is not None
    assert mixed.grad.abs().sum() > 0


def test_codes_are_numbered_from_far_to_near_and_mean_the_same() -> None:
    codebook = tiny_codebook()
    maps = torch.rand(5, 1, 8, 8) * 2 - 1
    before = codebook.decode(codebook.encode(maps))
    codebook.quantizer.counts.copy_(torch.arange(6.0))
    vectors = {tuple(vector): count for vector, count in zip(codebook.embedding.tolist(), range(6), strict=True)}
    codebook.order_codes()
    means = [codebook.decode(torch.full((1, 4), code)).mean().item() for code in range(6)]
    assert means == sorted(means)
    assert torch.equal(codebook.decode(codebook.encode(maps)), before)
    order = [vectors[tuple(vector)] for vector in codebook.embedding.tolist()]
    assert codebook.quantizer.counts.tolist() == order, "the averages move with their codes"
    assert order != sorted(order)


def test_a_saved_codebook_is_read_back_and_other_tensors_are_refused(tmp_path: Path) -> None:
    codebook = tiny_codebook(decoder="aurora").train()
    codebook.save_pretrained(tmp_path / "one")
    read = DepthCodebook.from_pretrained(tmp_path / "one")
    assert not read.training
    assert read.config == codebook.config
    assert read.state_dict().keys() == codebook.state_dict().keys()
    assert all(torch.equal(value, codebook.state_dict()[name]) for name, value in read.state_dict().items())
    read.save_pretrained(tmp_path / "two")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    (tmp_path / "one" / "config.json").write_text(json.dumps(codebook.config | {"widths": [4]}))
    with pytest.raises(
        ValueError, match=r"model\.safetensors: .* missing: .*encoder\.4\.weight.* unexpected: .*decoder\.8\.weight"
    ):
        DepthCodebook.from_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match="resolution 10 must be a multiple of the stride 4 of 2 layers"):
        DepthCodebook(resolution=10, widths=(4, 8))


def test_the_encoders_gradient_is_the_decoders_at_the_codes_and_the_commitments() -> None:
    """Straight through: d loss / d latents = d mse / d codes + commitment * 2 (latents - codes) / size."""
    codebook = tiny_codebook(decay=0.8).train()
    maps = torch.rand(4, 1, 8, 8) * 2 - 1
    latents = codebook.latents(maps)
    nearest = codebook.quantizer.nearest(latents.detach().flatten(0, 1))
    assert len(nearest.unique()) > 1
    codes = codebook.embedding[nearest].view_as(latents).clone().requires_grad_()
    (from_decoder,) = torch.autograd.grad((codebook.decode_embeddings(codes) - maps).square().mean(), codes)
    from_commitment = 0.25 * 2 * (latents - codes).detach() / latents.numel()
    expected = torch.autograd.grad(latents, list(codebook.encoder.parameters()), from_decoder + from_commitment)
    embedding = codebook.embedding.clone()
    optimizer = torch.optim.SGD(codebook.parameters(), lr=0.0)
    row = codebook_training._train_step(codebook, optimizer, maps, params=PARAMS, step=1, begin_codes=0)
    for parameter, gradient in zip(codebook.encoder.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-8)
    assert row["commitment"] == pytest.approx((latents - codes).square().mean().item(), rel=1e-5)
    assert not torch.equal(codebook.embedding, embedding), "the codes follow their averages"


def test_maps_of_a_few_kinds_are_learnt() -> None:
    ramp = np.linspace(1, 2, 8, dtype=np.float32)
    kinds = {"right": np.tile(ramp, (8, 1)), "left": np.tile(ramp[::-1], (8, 1)), "down": np.tile(ramp[:, None], (1, 8))}
    params = PARAMS.model_copy(update={"steps": 200, "num_codes": 16, "widths": (8, 16), "checkpoint_every": 1000})
    trained = train_codebook(params=params, store=kinds, keys=sorted(kinds), work=Path("unused"))
    codebook = trained.codebook
    maps = torch.stack([codebook.normalise(one) for one in kinds.values()])
    codes = codebook.encode(maps)
    assert len(codes.unique(dim=0)) == 3
    spread = maps.square().mean().item()  # the error of zeros everywhere
    assert F.mse_loss(codebook.decode(codes), maps).item() < 0.05 * spread
    assert [row["step"] for row in trained.curve] == list(range(10, 201, 10))
    assert trained.curve[-1]["mse"] < 0.1 * trained.curve[0]["mse"]


def state_and_curve(trained: codebook_training.TrainedCodebook):
    return {name: value.clone() for name, value in trained.codebook.state_dict().items()}, trained.curve


@pytest.mark.parametrize(("stopped_at", "goes_on_at"), [(2, 0), (3, 3), (8, 6), (12, 12)])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int, goes_on_at: int
) -> None:
    """Before and after the codes begin (step 4), between restarts, and after the last step."""
    store, steps = scenes(), []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = state_and_curve(train_codebook(params=PARAMS, store=store, keys=list(store), work=tmp_path / "whole"))
    assert whole[1][0]["step"] == 10
    step_of_training = codebook_training._train_step

    def failing(*arguments, step, **more):
        if step == stopped_at:
            raise KeyboardInterrupt
        return step_of_training(*arguments, step=step, **more)

    def noting(*arguments, step, **more):
        steps.append(step)
        return step_of_training(*arguments, step=step, **more)

    with monkeypatch.context() as patched:
        patched.setattr(codebook_training, "_train_step", failing)
        if stopped_at < PARAMS.steps:
            with pytest.raises(KeyboardInterrupt):
                train_codebook(params=PARAMS, store=store, keys=list(store), work=tmp_path / "stopped")
        else:
            train_codebook(params=PARAMS, store=store, keys=list(store), work=tmp_path / "stopped")
    torch.manual_seed(99)
    monkeypatch.setattr(codebook_training, "_train_step", noting)
    resumed = state_and_curve(train_codebook(params=PARAMS, store=store, keys=list(store), work=tmp_path / "stopped"))
    assert steps == list(range(goes_on_at, PARAMS.steps))
    assert resumed[1] == whole[1]
    assert all(torch.equal(resumed[0][name], value) for name, value in whole[0].items())


def test_a_training_without_maps_is_refused() -> None:
    with pytest.raises(ValueError, match="0 training maps"):
        train_codebook(params=PARAMS, store={}, keys=[], work=Path("unused"))
    with pytest.raises(ValueError, match="the split val is empty"):
        validate_codebook(tiny_codebook(), store={}, keys=[], seed=0, choose_points=lambda *_: None)


@dataclass
class Dot:
    x: int
    y: int
    inverse_depth: float


class Told(DepthCodebook):
    """A codebook of 2 x 2 pixels and 4 codes that is told what it encodes and decodes, map by map."""

    def __init__(self, codes: list[list[int]], decoded: list[ArrayLike]) -> None:
        super().__init__(num_codes=4, resolution=2, widths=(4,), dim=2)
        self.codes, self.maps = iter(codes), iter(decoded)

    def encode(self, _):
        return torch.tensor([next(self.codes)])

    def decode(self, _):
        return torch.tensor(np.asarray(next(self.maps), np.float32))[None, None]


def test_scores_by_hand() -> None:
    store = {"a": np.array([[1.0, 2.0], [3.0, 4.0]]), "flat": np.full((2, 2), 4.0), "c": np.array([[0.0, 3.0], [1.0, 3.0]])}
    # a is -1, -1/3, 1/3, 1 when normalised, and reads 1, 2.5, 2.5, 3.25; c is -1, 1, -1/3, 1, and reads 0.75, 3, 2.25, 1.5; all
    # plus half a level, as values were rounded down
    told = Told(
        [[0, 0], [0, 1], [3, 3]],
        [[[-1.0, 0.0], [0.0, 0.5]], [[0.5, 0.5], [0.0, 0.0]], [[-0.5, 1.0], [0.5, 0.0]]],
    )
    dots = {
        3: [Dot(0, 0, 1.0), Dot(1, 0, 2.0), Dot(1, 1, 5.0)],
        4: [Dot(0, 0, 1.0), Dot(1, 0, 2.0), Dot(0, 1, 3.0), Dot(1, 1, 5.0)],
    }
    asked = []

    def choose(inverse, count, rng):
        asked.append((count, rng.integers(1 << 30)))
        return None if count == 5 or (count == 4 and inverse[0, 0] != 1) else dots[count]

    scores = validate_codebook(told, store=store, keys=list(store), seed=0, choose_points=choose)
    found = {metric.name: metric for metric in scores.metrics}
    mse = [(0 + 1 / 9 + 1 / 9 + 1 / 4) / 4, 0.5 / 4, (1 / 4 + 0 + 25 / 36 + 1) / 4]
    assert found["codebook_mse"].value == pytest.approx(np.mean(mse))
    assert found["codebook_mse"].n == 3
    # |found - true| / true of inverse depth; the flat map has none, and the pixel at 0 is left out
    half = 3 / 510
    ratios = [
        (half + (0.5 + half) / 2 + (0.5 - half) / 3 + (0.75 - half) / 4) / 4,
        (half / 3 + 1.25 + half + (1.5 - half) / 3) / 3,
    ]
    assert found["codebook_absrel"].value == pytest.approx(np.mean(ratios))
    assert found["codebook_absrel"].n == 2
    assert scores.code_counts == [3, 1, 0, 2]
    assert found["codebook_usage"].value == 75
    # exp(1/2 ln 2 + 1/6 ln 6 + 1/3 ln 3)
    assert found["codebook_perplexity"].value == pytest.approx(2 ** (1 / 2) * 6 ** (1 / 6) * 3 ** (1 / 3))
    # three points: right on a (0.5 is highest), a tie on flat (0.5 is not at the last), wrong on c (1.0 at the second)
    assert (found["codebook_lookup_3"].value, found["codebook_lookup_3"].n) == (pytest.approx(100 / 3), 3)
    assert (found["codebook_lookup_4"].value, found["codebook_lookup_4"].n) == (100, 1)
    assert (found["codebook_lookup_3"].low, found["codebook_lookup_3"].high) == wilson(1, 3)
    assert found["codebook_lookup_3"].chance == pytest.approx(100 / 3)
    assert "codebook_lookup_5" not in found, "no map admitted five points"
    assert [count for count, _ in asked] == [3, 4, 5] * 3
    assert len({drawn for _, drawn in asked}) == 9, "each question has a generator of its own"
    np.testing.assert_allclose(scores.maps[0], [[-1, -1 / 3], [1 / 3, 1]], rtol=1e-6)
    np.testing.assert_array_equal(scores.decoded[2], [[-0.5, 1], [0.5, 0]])


def test_the_truth_of_absrel_is_the_map_that_was_encoded() -> None:
    """A larger map is encoded in levels of its whole span, which what is sampled may not fill: here 2, 5, 7 and 12 of 255."""
    depth = np.full((4, 4), 100.0)
    depth[1::2, 1::2] = [[1.0, 2.0], [3.0, 5.0]]
    depth[0, 0] = 0.0
    levels = np.array([[2.0, 5.0], [7.0, 12.0]])
    told = Told([[0, 0]] * 2, [levels / 127.5 - 1, levels / 127.5 - 0.8])
    scores = validate_codebook(told, store={"a": depth, "b": depth}, keys=["a", "b"], seed=0, choose_points=lambda *_: None)
    found = {metric.name: metric.value for metric in scores.metrics}
    assert found["codebook_mse"] == pytest.approx(0.04 / 2)
    read = (levels + 0.5) / 2.55
    truth = np.array([[1.0, 2.0], [3.0, 5.0]])
    assert found["codebook_absrel"] == pytest.approx(np.mean([np.abs(more - truth) / truth for more in (read, read + 10)]))


def test_points_are_read_off_the_cell_that_covers_them() -> None:
    decoded = np.arange(16.0).reshape(4, 4)
    for y in range(6):
        for x in range(9):
            cell = decoded[int(y / 6 * 4 + 1e-9), int(x / 9 * 4 + 1e-9)]
            assert read_off(decoded, Dot(x, y, 0.0), height=6, width=9) == cell
    near, far, beside = Dot(8, 5, 9.0), Dot(0, 0, 1.0), Dot(7, 5, 2.0)
    assert nearest_is_right(decoded, [far, near], height=6, width=9)
    assert nearest_is_right(decoded, [near, far], height=6, width=9)
    assert not nearest_is_right(decoded, [near, far, beside], height=6, width=9), "the same cell: a tie is wrong"
    assert not nearest_is_right(-decoded, [near, far], height=6, width=9)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (1, 3), (8, 10), (40, 40), (250, 1000)])
def test_wilsons_interval_solves_its_equation(hits: int, n: int) -> None:
    """Its ends are the shares p with |hits / n - p| = z sqrt(p (1 - p) / n)."""
    z, share = NormalDist().inv_cdf(0.975), hits / n
    expected = sorted(100 * root for root in np.roots([1 + z * z / n, -2 * share - z * z / n, share * share]).real)
    assert wilson(hits, n) == pytest.approx(expected, abs=1e-4)


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 857), table I: 81 of 263 and 0 of 20
    assert wilson(81, 263) == pytest.approx((25.53, 36.62), abs=0.005)
    assert wilson(0, 20) == pytest.approx((0.0, 16.11), abs=0.005)


RANKS = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
import torch
import torch.distributed as dist
from perceptio_core.depth.codebook_training import train_codebook
from perceptio_core.params.depth_codebook import DepthCodebookParams
from stages import depth_codebook as stage
from perceptio_core.tied import tie
from parameters import given
from codebook_parts import quantizer, scenes

top, *ports, params = sys.argv[1:]
params = DepthCodebookParams.model_validate_json(params)
os.chdir(top)
torch.set_num_threads(1)

def work(rank):
    tie(os.getppid())
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=ports[0], WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo")
    made, vectors = quantizer(), torch.load("vectors.pt")
    half = vectors[rank * 20 : (rank + 1) * 20]
    made.update(half, made.nearest(half))
    torch.manual_seed(rank)
    restarted = made.restart_dead(half, share=0.9)
    others = quantizer()
    others.start(half)
    torch.save({"made": made.state_dict(), "restarted": restarted, "start": others.state_dict()}, f"quantizer-{rank}.pt")
    continuous = params.model_copy(update={"steps": 3, "continuous_share": 0.9, "checkpoint_every": 100})
    trained = train_codebook(params=continuous, store=scenes(), keys=list(scenes()), work=Path("unused"))
    torch.save(trained.codebook.state_dict(), f"continuous-{rank}.pt")
    dist.destroy_process_group()

    train = stage.train_codebook
    def noting(**arguments):
        result = train(**arguments)
        torch.save(result.codebook.state_dict(), f"stage-{rank}.pt")
        return result
    os.environ["MASTER_PORT"] = ports[1]  # a rank could still meet the store of the group before
    stage.train_codebook = noting
    stage.read_values = lambda _: given(depth_codebook=params)
    sys.argv[1:] = []
    stage.main()

children = []
for rank in range(2):
    pid = os.fork()
    if pid == 0:
        try:
            work(rank)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(pid)
sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in children))
"""
"""Two ranks, in processes that are forked before torch has computed anything: one import for both."""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two ranks have worked; `vectors.pt` holds what they shared."""
    top = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(5)
    torch.save(torch.randn(40, 3), top / "vectors.pt")
    write_inputs(top, val=2)
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANKS, str(top), *map(str, free_ports(2)), PARAMS.model_dump_json()]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return top


def write_inputs(top: Path, *, val: int) -> None:
    """What the stage reads in profile t: the scenes, the first `val` of them of the split val."""
    sources, depth = top / "artifacts/t/sources", top / "artifacts/t/teacher_depth"
    for folder in (sources, depth):
        folder.mkdir(parents=True)
    images = [
        ImageRow(image_key=key, path=key, width=10, height=12, sha256="0" * 64, split="val" if number < val else "train")
        for number, key in enumerate(scenes())
    ]
    write_manifest(sources, images=images)
    maps = [encode_depth(key, one) for key, one in scenes().items()]
    write_index(depth, write_shard(depth, name="depth-00000.tar", maps=maps))


@pytest.mark.parametrize(("val", "missing"), [(0, "val"), (len(scenes()), "train")])
def test_the_stage_needs_maps_of_both_splits_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val: int, missing: str
) -> None:
    write_inputs(tmp_path, val=val)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "read_values", lambda _: given(depth_codebook=PARAMS))
    monkeypatch.setattr(stage, "train_codebook", Mock(side_effect=AssertionError("it trains")))
    monkeypatch.setattr(sys, "argv", ["depth_codebook"])
    with pytest.raises(ValueError, match=f"no image of the split {missing} has a depth map.* an entry with `split: {missing}`"):
        stage.main()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def test_two_ranks_with_half_a_batch_each_move_the_codes_as_one_with_all_of_it(two_ranks: Path) -> None:
    ranks = [torch.load(two_ranks / f"quantizer-{rank}.pt") for rank in range(2)]
    for name in ("made", "start"):
        assert all(torch.equal(ranks[0][name][buffer], ranks[1][name][buffer]) for buffer in ranks[0][name])
    alone, vectors = quantizer(), torch.load(two_ranks / "vectors.pt")
    alone.update(vectors, alone.nearest(vectors))
    torch.manual_seed(0)  # rank 0 draws, from its half
    assert alone.restart_dead(vectors[:20], share=0.9) == ranks[0]["restarted"] == ranks[1]["restarted"] > 0
    for name, buffer in alone.state_dict().items():
        torch.testing.assert_close(ranks[1]["made"][name], buffer, rtol=1e-5, atol=1e-6)


def test_two_ranks_train_as_one_until_the_codes_begin(two_ranks: Path) -> None:
    continuous = PARAMS.model_copy(update={"steps": 3, "continuous_share": 0.9, "checkpoint_every": 100})
    alone = train_codebook(params=continuous, store=scenes(), keys=list(scenes()), work=two_ranks).codebook.state_dict()
    for rank in range(2):
        for name, value in torch.load(two_ranks / f"continuous-{rank}.pt").items():
            torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-5)


def test_the_stage_on_two_ranks_has_one_codebook_and_one_output(two_ranks: Path) -> None:
    one, two = (torch.load(two_ranks / f"stage-{rank}.pt") for rank in range(2))
    published = load_file(two_ranks / "artifacts/t/depth_codebook/model.safetensors")
    assert one.keys() == two.keys() == published.keys()
    assert all(torch.equal(one[name], two[name]) and torch.equal(one[name], published[name]) for name in one)
    metrics = json.loads((two_ranks / "artifacts/t/depth_codebook/metrics.json").read_text())
    assert {row["name"]: row["n"] for row in metrics}["codebook_mse"] == 2
    assert all(math.isfinite(row["value"]) for row in metrics)
    assert not list((two_ranks / ".work/t/depth_codebook").glob("*/checkpoint.pt"))


@pytest.mark.parametrize("gpus", [0, 2])
def test_each_rank_computes_on_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    done: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda: done.append("joined"))
    stage.join_ranks()
    assert done == [], "a process of its own joins nothing"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    stage.join_ranks()
    assert done == ([1, "joined"] if gpus else ["joined"])
