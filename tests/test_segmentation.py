"""SAM2 as plain data, the bridge from `[SEG]` to masks, the mask losses, and the prompts of mini's pretraining."""

import json
import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.utils.transforms import SAM2Transforms

from perceptio_core.foundations import sam2 as pretraining
from perceptio_core.foundations.cache import SceneCache
from perceptio_core.scenes.render import render
from perceptio_core.scenes.world import sample_scene, split_seed
from perceptio_core.segmentation.bridge import SegmentationBridge, sam2_pixels, to_original
from perceptio_core.segmentation.losses import dice, mask_losses, sample_points, uncertain_points
from perceptio_core.segmentation.sam2 import (
    OFFICIAL,
    build_sam2,
    decode_masks,
    encode_images,
    load_official,
    load_sam2,
    mini_config,
    official_config,
    save_sam2,
)


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_sam2(mini_config())


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (50, 77, 3), dtype=np.uint8)


# The models


def test_mini_is_small_and_its_masks_are_a_quarter_of_the_image(sam):
    assert sum(p.numel() for p in sam.parameters()) < 4_000_000
    assert 1_000_000 < sum(p.numel() for p in sam.image_encoder.trunk.parameters()) < 1_500_000
    features = encode_images(sam, torch.zeros(2, 3, 128, 128))
    assert [tuple(f.shape) for f in (features.embedding, features.stride8, features.stride4)] == [
        (2, 96, 8, 8),
        (2, 96, 16, 16),
        (2, 96, 32, 32),
    ]


def test_a_published_config_builds_the_published_model():
    # "38.9 M parameters" in the table of the SAM2 repository
    model = build_sam2(official_config("sam2.1_hiera_t"))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(38.9, abs=0.1)
    assert model.image_size == 1024


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_published_config_can_be_read(name):
    config = official_config(name)
    assert config["image_encoder"]["neck"]["d_model"] == 256
    assert isinstance(config["memory_encoder"]["fuser"]["layer"]["layer_scale_init_value"], float)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"sam2.1_hiera_l"):
        official_config("../../etc/passwd")


def test_saved_and_loaded_is_the_same_model(sam, tmp_path):
    save_sam2(sam, config=mini_config(), folder=tmp_path)
    again = load_sam2(tmp_path)
    assert not again.training
    assert again.state_dict().keys() == sam.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), sam.state_dict().values(), strict=True))


def test_wrong_weights_are_refused_with_every_key(sam, tmp_path):
    save_sam2(sam, config=mini_config(), folder=tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["no_mem_embed"]
    weights["stranger"] = torch.zeros(1)
    weights["image_encoder.trunk.pos_embed"] = torch.zeros(1, 32, 2, 2)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: no_mem_embed; 1 unexpected: stranger; 1 of another shape: .*pos_embed"):
        load_sam2(tmp_path)


def test_missing_and_broken_files_are_named(sam, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: not found"):
        load_sam2(tmp_path)
    save_sam2(sam, config=mini_config(), folder=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        load_sam2(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        load_sam2(tmp_path)


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ([], "_target_", "os.system"),
        (["image_encoder", "trunk"], "_target_", "torch.load"),
        (["image_encoder", "trunk"], "weights_path", "x.pt"),
        (["image_encoder", "trunk"], "stranger", 1),
        (["image_encoder", "trunk"], "_args_", []),
    ],
)
def test_a_config_cannot_name_foreign_code_or_files(place, key, value):
    config = mini_config()
    node = config
    for step in place:
        node = node[step]
    node[key] = value
    with pytest.raises(ValueError, match=r"\.".join(["config", *place])):
        build_sam2(config)


def test_published_checkpoints_load_as_tensors_only(tmp_path, monkeypatch):
    monkeypatch.setattr("perceptio_core.segmentation.sam2.official_config", lambda _: mini_config())
    torch.manual_seed(1)
    model = build_sam2(mini_config())
    torch.save({"model": model.state_dict()}, tmp_path / "good.pt")
    assert torch.equal(load_official(tmp_path / "good.pt", name="any").no_mem_embed, model.no_mem_embed)
    torch.save({"model": model}, tmp_path / "pickled.pt")
    with pytest.raises(ValueError, match=r"pickled\.pt: not a SAM2 checkpoint"):
        load_official(tmp_path / "pickled.pt", name="any")
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match=r"bare\.pt: not a SAM2 checkpoint"):
        load_official(tmp_path / "bare.pt", name="any")


# The image path, against the package's own predictor


def test_pixels_are_those_of_the_package(image):
    expected = SAM2Transforms(resolution=128, mask_threshold=0.0)(image)
    assert torch.allclose(sam2_pixels([image], size=128)[0], expected, atol=1e-5)


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_pixels_refuse_what_is_not_an_rgb_image(image, bad):
    with pytest.raises(ValueError, match="image 1"):
        sam2_pixels([image, bad], size=128)


@pytest.mark.parametrize("kind", ["click", "box"])
def test_masks_are_those_of_the_package_for_a_click_and_a_box(sam, image, kind):
    predictor = SAM2ImagePredictor(sam)
    predictor._bb_feat_sizes = [(32, 32), (16, 16), (8, 8)]
    predictor.set_image(image)
    # in pixels of the 128 x 128 square, as the model sees them
    click, box = (30.0, 80.0), (20.0, 30.0, 90.0, 100.0)
    scale = np.array([77 / 128, 50 / 128])
    prompt = (
        {"point_coords": np.array([click]) * scale, "point_labels": np.array([1])}
        if kind == "click"
        else {"box": np.array(box) * np.tile(scale, 2)}
    )
    masks, _, low = predictor.predict(**prompt, multimask_output=False)
    # a second image in front, so that the image index is seen to matter
    pixels = sam2_pixels([image[::-1], image], size=128)
    thing = pretraining.Thing(image=1, mask=np.zeros((50, 77), bool), click=click, box=box)
    with torch.no_grad():
        logits = pretraining.predict(sam, encode_images(sam, pixels), pretraining.prompts([thing], kind))
    assert torch.allclose(logits, torch.from_numpy(low), atol=1e-4)
    assert np.array_equal(to_original(logits, [(50, 77)])[0], masks[0].astype(bool))


def test_to_original_keeps_the_size_of_each_image():
    logits = torch.full((2, 8, 8), -1.0)
    logits[1, :, 4:] = 1.0
    first, second = to_original(logits, [(5, 9), (16, 32)])
    assert first.shape == (5, 9)
    assert first.dtype == bool
    assert not first.any()
    assert second[:, 16:].all()
    assert not second[:, :16].any()


# The bridge


@pytest.fixture
def bridge():
    torch.manual_seed(0)
    return SegmentationBridge(sam=build_sam2(mini_config()), hidden_dim=24)


def test_the_prompt_is_the_mlp_of_the_hidden_state(bridge, image):
    features = bridge.image_features(sam2_pixels([image, image[:, ::-1]], size=bridge.image_size))
    hidden = torch.randn(3, 24)
    index = torch.tensor([1, 0, 1])
    first, _, second = bridge.prompt
    prompts = torch.relu(hidden @ first.weight.T + first.bias) @ second.weight.T + second.bias
    masks = bridge.masks(features, image_index_M=index, hidden_MD=hidden)
    assert masks.shape == (3, 32, 32)
    for i in range(3):  # one at a time gives the same as in a batch
        alone = decode_masks(bridge.sam, features, image_index_M=index[i : i + 1], sparse_MNC=prompts[None, i : i + 1])
        assert torch.allclose(masks[i], alone[0], atol=1e-5)


@pytest.mark.parametrize("count", [2, 0])
def test_every_trainable_parameter_gets_a_gradient_and_nothing_else(bridge, image, count):
    bridge.train()
    assert not bridge.sam.image_encoder.training
    assert bridge.sam.sam_mask_decoder.training
    features = bridge.image_features(sam2_pixels([image], size=bridge.image_size))
    hidden = torch.randn(count, 24, requires_grad=True)
    logits = bridge.masks(features, image_index_M=torch.zeros(count, dtype=torch.long), hidden_MD=hidden)
    losses = mask_losses(logits, [torch.ones(50, 77)] * count, num_points=64)
    (losses.ce + losses.dice).backward()
    trained = {id(p) for p in bridge.parameters() if p.requires_grad}
    assert {id(p) for p in bridge.prompt.parameters()} < trained
    for name, parameter in bridge.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
        if count == 0 and parameter.grad is not None:
            assert not parameter.grad.any(), name
    assert hidden.grad is not None
    if count:
        # the gradient is a real one everywhere but where mathematics forbids it: a key's bias cancels in the softmax
        silent = [n for n, p in bridge.named_parameters() if p.grad is not None and p.grad.abs().max() == 0]
        assert all(n.endswith("k_proj.bias") for n in silent), silent
        assert hidden.grad.abs().max() > 0


# Sa2VA's wiring, against the package's own head


def sa2va_masks(sam, bridge, image, hidden):
    """What Sa2VA does (its SAM2TrainRunner and predict_forward), with the package's own methods: the prompt put behind what
    the prompt encoder makes of no points, three masks asked for, the best kept, at the square's size, then at the image's.
    """
    square = np.array(Image.fromarray(image).resize((sam.image_size, sam.image_size)))  # Pillow's default: bicubic
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    pixels = (torch.from_numpy(square).permute(2, 0, 1) / 255 - mean) / std
    features = sam.forward_image(pixels[None])
    _, levels, _, sizes = sam._prepare_backbone_features(features)
    maps = [level.permute(1, 2, 0).view(1, -1, *size) for level, size in zip(levels, sizes, strict=True)]
    embedding = maps[-1] + sam.no_mem_embed.view(1, -1, 1, 1)
    encode, masks, low, sparse_seen = sam.sam_prompt_encoder.forward, [], [], []
    for state in hidden:

        def injected(state=state, **given):
            sparse, dense = encode(**given)
            sparse_seen.append(sparse.shape[1])
            return torch.cat([sparse, bridge.prompt(state[None])[None]], dim=1), dense

        with patch.object(sam.sam_prompt_encoder, "forward", injected):
            outputs = sam._forward_sam_heads(backbone_features=embedding, high_res_features=maps[:-1], multimask_output=True)
        low.append(outputs[3][0, 0])
        at_square = outputs[4]
        at_image = torch.nn.functional.interpolate(at_square, size=image.shape[:2], mode="bilinear", align_corners=False)
        masks.append((at_image[0, 0].sigmoid() > 0.5).numpy())
    assert sparse_seen == [2] * len(hidden), "two padding points come before the prompt"
    return low, masks


@torch.no_grad()
def test_sa2vas_wiring_draws_the_masks_of_sa2va(image):
    torch.manual_seed(0)
    sam = build_sam2(mini_config())
    for parameter in sam.sam_mask_decoder.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))  # so that the three masks, and their scores, differ
    ours = SegmentationBridge(sam=sam, hidden_dim=24, wiring="sa2va").eval()
    hidden = 3 * torch.randn(6, 24)
    low, expected = sa2va_masks(sam, ours, image, hidden)
    pixels = sam2_pixels([image], size=128, wiring="sa2va")
    features, index = ours.image_features(pixels), torch.zeros(6, dtype=torch.long)
    logits = ours.masks(features, image_index_M=index, hidden_MD=hidden)
    torch.testing.assert_close(logits, torch.stack(low), rtol=1e-4, atol=1e-4)
    found = ours.at_original_size(logits, [image.shape[:2]] * 6)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(0.02 < mask.mean() < 0.98 for mask in expected), "masks that are all or nothing would prove little"
    # each difference of the wirings shows: the resize, the padding with the choice, the way to the image's size
    assert (pixels - sam2_pixels([image], size=128)).abs().max() > 0.1
    plain = SegmentationBridge(sam=sam, hidden_dim=24).eval()
    plain.prompt = ours.prompt
    assert not torch.allclose(plain.masks(features, image_index_M=index, hidden_MD=hidden), logits, atol=0.1)
    assert any(
        not np.array_equal(a, b) for a, b in zip(plain.at_original_size(logits, [image.shape[:2]] * 6), found, strict=True)
    )


@pytest.mark.parametrize("count", [8, 0])
def test_in_sa2vas_wiring_what_trains_has_a_gradient_and_nothing_else(image, count):
    torch.manual_seed(0)
    bridge = SegmentationBridge(sam=build_sam2(mini_config()), hidden_dim=24, wiring="sa2va").train()
    features = bridge.image_features(sam2_pixels([image], size=bridge.image_size, wiring="sa2va"))
    index, hidden = torch.zeros(count, dtype=torch.long), torch.randn(count, 24, requires_grad=True)
    losses = mask_losses(
        bridge.masks(features, image_index_M=index, hidden_MD=hidden), [torch.ones(50, 77)] * count, num_points=64
    )
    (losses.ce + losses.dice).backward()
    for name, parameter in bridge.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    trained = {name for name, parameter in bridge.sam.sam_mask_decoder.named_parameters() if parameter.requires_grad}
    frozen = {name.split(".")[0] for name, _ in bridge.sam.sam_mask_decoder.named_parameters() if name not in trained}
    assert frozen == {"output_hypernetworks_mlps", "iou_prediction_head"}
    assert not any(name.startswith("output_hypernetworks_mlps.0.") for name in trained)
    assert all(f"output_hypernetworks_mlps.{token}.layers.0.weight" in trained for token in (1, 2, 3))


# The losses


def test_cross_entropy_and_dice_by_hand():
    # A constant map has the same value at every point: logit log(3) is p = 3/4, against a target of ones.
    logits = torch.full((1, 4, 4), math.log(3.0), dtype=torch.float32)
    losses = mask_losses(logits, [torch.ones(9, 7)], num_points=100)
    assert losses.ce.item() == pytest.approx(math.log(4 / 3), rel=1e-5)
    assert losses.dice.item() == pytest.approx(1 - (2 * 75 + 1) / (75 + 100 + 1), rel=1e-5)


def test_dice_by_hand():
    logits = torch.tensor([[0.0, 0.0, math.log(3.0), -math.log(3.0)], [-50.0] * 4], dtype=torch.float64)
    targets = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0] * 4], dtype=torch.float64)
    # p = 1/2, 1/2, 3/4, 1/4: overlap 5/4, sums 2 and 2; an empty mask predicted empty costs nothing
    expected = [1 - (2 * 1.25 + 1) / (2 + 2 + 1), 0.0]
    assert dice(logits, targets, eps=1.0).tolist() == pytest.approx(expected, abs=1e-12)


def test_losses_are_those_of_a_float64_reference():
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(size=(2, 6, 5)).astype(np.float32))
    targets = [torch.from_numpy(rng.random((11, 13)) < 0.4), torch.from_numpy(rng.random((20, 7)) < 0.4)]
    losses = mask_losses(logits, targets, num_points=50, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    points = uncertain_points(logits, num_points=50, oversample=3.0, importance=0.75, generator=generator).double().numpy()
    ce, overlap = [], []
    for m, target in enumerate(targets):
        x = np.array([_bilinear(logits[m].double().numpy(), p) for p in points[m]])
        t = np.array([_bilinear(target.numpy().astype(float), p) for p in points[m]])
        p = 1 / (1 + np.exp(-x))
        ce.append(-np.mean(t * np.log(p) + (1 - t) * np.log(1 - p)))
        overlap.append(1 - (2 * np.sum(p * t) + 1) / (np.sum(p) + np.sum(t) + 1))
    assert losses.ce.item() == pytest.approx(np.mean(ce), rel=1e-4)
    assert losses.dice.item() == pytest.approx(np.mean(overlap), rel=1e-4)


def _bilinear(values, point):
    """Bilinear interpolation written out: pixel centres at (i + 0.5) / n, clamped at the border."""
    (x, y), (h, w) = point, values.shape
    column, row = np.clip(x * w - 0.5, 0, w - 1), np.clip(y * h - 0.5, 0, h - 1)
    left, top = min(int(column), w - 2), min(int(row), h - 2)
    a, b = column - left, row - top
    block = values[top : top + 2, left : left + 2]
    return np.array([1 - b, b]) @ block @ np.array([1 - a, a])


def test_points_are_read_at_known_places():
    maps = torch.arange(12.0).view(1, 3, 4)  # value 4 * row + column
    points = torch.tensor([[[0.125, 0.5 / 3], [0.875, 2.5 / 3], [0.5, 0.5], [0.375, 1 / 3], [0.0, 0.0], [1.0, 1.0]]])
    assert sample_points(maps, points)[0].tolist() == pytest.approx([0, 11, 5.5, 3, 0, 11], abs=1e-5)


def test_sampling_the_resized_map_and_the_map_agree():
    maps = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    resized = torch.nn.functional.interpolate(maps[None], size=(32, 32), mode="bilinear", align_corners=False)[0]
    centres = (torch.arange(32) + 0.5) / 32
    points = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).view(1, -1, 2)
    assert torch.allclose(sample_points(maps, points).view(32, 32), resized[0], atol=1e-5)


def test_uncertain_points_lie_near_the_boundary():
    # a vertical edge in the middle: the logit is the distance from x = 0.5
    edge = torch.linspace(-5, 5, 64).expand(1, 64, 64)
    generator = torch.Generator().manual_seed(0)
    points = uncertain_points(edge, num_points=1000, oversample=3.0, importance=0.75, generator=generator)
    assert points.shape == (1, 1000, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    distance = (points[0, :, 0] - 0.5).abs()
    # 750 of 3000 uniform candidates: those within an eighth of the width; the other 250 points are uniform
    assert distance[:750].max() < 0.15
    assert distance[:750].max() == pytest.approx(0.125, abs=0.02)
    assert distance[750:].mean() == pytest.approx(0.25, abs=0.03)


def test_sampling_is_the_generators_and_its_numbers_are_checked():
    logits = torch.randn(2, 8, 8)
    draw = {"num_points": 16, "oversample": 3.0, "importance": 0.75}
    first, again, other = (uncertain_points(logits, **draw, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for bad in ({"num_points": 0}, {"oversample": 0.5}, {"importance": 1.5}):
        with pytest.raises(ValueError, match="allowed"):
            uncertain_points(logits, **{**draw, **bad}, generator=None)
    with pytest.raises(ValueError, match="2 predicted masks but 1 targets"):
        mask_losses(logits, [torch.ones(8, 8)])


def test_gradients_are_right():
    targets = (torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    logits = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dice(x, targets, eps=1.0), (logits,))
    maps = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    points = 0.1 + 0.8 * torch.rand(2, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda x: sample_points(x, points), (maps,))


def test_gradients_of_the_whole_mask_losses_are_the_numerical_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points drawn, logits and targets of two sizes read there, cross-entropy and Dice: both in float64, then as they are.

    `mask_losses` computes in float32, too coarse for differences; the narrowing is left out while they are taken.
    """
    draw = np.random.default_rng(4)
    targets = [torch.from_numpy(draw.random(size) < 0.4) for size in ((11, 13), (20, 7))]
    logits = torch.from_numpy(draw.normal(size=(2, 4, 5))).requires_grad_()

    def losses(logits_Mhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = mask_losses(logits_Mhw, targets, num_points=40, generator=torch.Generator().manual_seed(5))
        return found.ce, found.dice

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda tensor: tensor)
        assert losses(logits)[0].dtype == torch.float64
        assert torch.autograd.gradcheck(losses, (logits,))
        exact = [torch.autograd.grad(losses(logits)[kind], logits)[0] for kind in range(2)]
    for kind in range(2):
        loss = losses(logits)[kind]
        assert loss.dtype == torch.float32
        torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], exact[kind], rtol=1e-4, atol=1e-6)


def test_no_masks_cost_nothing_and_stay_connected():
    logits = torch.randn(0, 8, 8, requires_grad=True)
    losses = mask_losses(logits, [])
    assert losses.ce.item() == 0
    assert losses.dice.item() == 0
    (losses.ce + losses.dice).backward()
    assert logits.grad is not None


# Pretraining of mini


@pytest.fixture(scope="module")
def cache():
    scenes = [render(sample_scene(split_seed("train", i), 128)) for i in range(6)]
    return SceneCache(
        split="train",
        size=128,
        images=np.stack([s.image for s in scenes]),
        depth=np.stack([s.depth for s in scenes]),
        instances=np.stack([s.instances for s in scenes]),
    )


def test_prompts_belong_to_their_things(cache):
    things = pretraining.draw_things(cache.instances, np.random.default_rng(0))
    areas = [np.bincount(i.ravel(), minlength=2)[1:] for i in cache.instances]
    assert len(things) == sum((a >= pretraining.VISIBLE).sum() for a in areas)
    for thing in things:
        x, y = (int(v) for v in thing.click)
        assert thing.mask[y, x]
        ys, xs = np.nonzero(thing.mask)
        tight = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        sides = np.tile(tight[2:] - tight[:2], 2)
        assert (np.abs(np.array(thing.box) - tight) <= 0.1 * sides + 1e-9).all()
    few = pretraining.draw_things(cache.instances, np.random.default_rng(0), at_most=2)
    assert np.bincount([thing.image for thing in few]).max() == 2


def test_iou_by_hand():
    logits = torch.full((2, 4, 4), -1.0)
    logits[0, :, :2] = 1.0
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2] = True
    assert pretraining.ious(logits, masks).tolist() == pytest.approx([4 / 12, 0.0])


def test_pretraining_writes_a_model_and_resumes_where_it_stood(cache, tmp_path, monkeypatch):
    numbers = {"seed": 0, "steps": 4, "batch": 2, "lr": 1e-3, "train": cache, "val": cache, "workers": 0, "command": "test"}
    monkeypatch.setattr("perceptio_core.foundations.run.CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(pretraining, "WORK", tmp_path / "straight")
    pretraining.pretrain(tmp_path / "a", **numbers)

    monkeypatch.setattr(pretraining, "WORK", tmp_path / "killed")
    calls = []

    def dying(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return mask_losses(*arguments, **keywords)

    monkeypatch.setattr(pretraining, "mask_losses", dying)
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain(tmp_path / "b", **numbers)
    pretraining.pretrain(tmp_path / "b", **numbers)
    assert len(calls) == 6  # three steps and the fatal one, then the two after the checkpoint

    straight, resumed = (load_sam2(tmp_path / folder / "sam2").state_dict() for folder in "ab")
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    card = json.loads((tmp_path / "a" / "sam2" / "metrics.json").read_text())
    assert card["steps"] == 4
    assert 0 <= card["scores"]["iou_box"] <= 1
