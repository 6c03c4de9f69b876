"""SAM2 from the files of its authors and of `transformers`: the same masks after the conversion, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sam2.sam2_image_predictor import SAM2ImagePredictor
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from foreign import edit, reconfigure
from perceptio_core.convert import sam2 as conversion
from perceptio_core.convert.sam2 import convert_sam2
from perceptio_core.segmentation.bridge import sam2_pixels
from perceptio_core.segmentation.sam2 import OFFICIAL, build_sam2, decode_masks, encode_images, load_sam2, mini_config


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (50, 77, 3), dtype=np.uint8)


@pytest.fixture
def published(monkeypatch):
    """As if mini's model were the one published model."""
    monkeypatch.setattr(conversion, "OFFICIAL", ("mini",))
    monkeypatch.setattr(conversion, "official_config", lambda _: mini_config())


def clicked(sam, image):
    predictor = SAM2ImagePredictor(sam)
    predictor._bb_feat_sizes = [(32, 32), (16, 16), (8, 8)]
    predictor.set_image(image)
    return predictor.predict(np.array([[20.0, 30.0]]), np.array([1]), multimask_output=False)[2]


@pytest.mark.usefixtures("published")
def test_a_published_file_gives_identical_masks_in_the_package(tmp_path, image):
    torch.manual_seed(3)
    sam = build_sam2(mini_config())
    torch.save({"model": sam.state_dict()}, tmp_path / "sam2.pt")
    convert_sam2(tmp_path / "sam2.pt", tmp_path / "sam2")
    assert np.array_equal(clicked(load_sam2(tmp_path / "sam2"), image), clicked(sam, image))


@pytest.mark.parametrize(
    ("scale", "width", "blocks"),
    [("t", 96, 12), ("s", 96, 16), ("b+", 112, 24), ("l", 144, 48)],  # as in the table of the SAM2 repository
)
@pytest.mark.parametrize("version", ["sam2", "sam2.1"])
def test_a_published_model_is_recognised_by_its_weights(tmp_path, version, scale, width, blocks):
    weights = {f"image_encoder.trunk.blocks.{n}.norm1.weight": torch.ones(1) for n in range(blocks)}
    weights["image_encoder.trunk.pos_embed"] = torch.ones(1, width, 7, 7)
    if version == "sam2.1":
        weights["no_obj_embed_spatial"] = torch.ones(1, 64)
    assert conversion._name(weights, "", tmp_path) == f"{version}_hiera_{scale}"


def test_the_smallest_published_model_is_converted_whole(tmp_path):
    torch.manual_seed(0)
    name = "sam2.1_hiera_t"
    assert name in OFFICIAL
    sam = build_sam2(conversion.official_config(name))
    torch.save({"model": sam.state_dict()}, tmp_path / "sam2.1_hiera_tiny.pt")
    convert_sam2(tmp_path / "sam2.1_hiera_tiny.pt", tmp_path / "sam2")
    loaded = load_sam2(tmp_path / "sam2").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in sam.state_dict().items())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"no_mem_embed": None}, "1 missing: no_mem_embed"),
        ({"stranger": torch.ones(1)}, "1 unknown: stranger"),
        ({"sam_mask_decoder.iou_token.weight": torch.ones(2, 96)}, r"iou_token\.weight \(2, 96\) instead of \(1, 96\)"),
        ({"image_encoder.trunk.pos_embed": None}, r"1 missing: image_encoder\.trunk\.pos_embed"),
        ({"image_encoder.trunk.pos_embed": torch.ones(3)}, r"1 of another shape: image_encoder\.trunk\.pos_embed \(3,\)"),
        (
            {"image_encoder.trunk.pos_embed": torch.ones(1, 64, 4, 4)},
            "7 blocks, 64 channels at first, is none of the published",
        ),
    ],
)
@pytest.mark.usefixtures("published")
def test_files_of_other_weights_are_refused(tmp_path, change, told):
    weights = {k: v for k, v in (build_sam2(mini_config()).state_dict() | change).items() if v is not None}
    torch.save({"model": weights}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=told):
        convert_sam2(tmp_path / "x.pt", tmp_path / "sam2")
    assert not (tmp_path / "sam2").exists()


# transformers


@pytest.fixture
def native(tmp_path):
    """A small `Sam2Model` of random weights and its folder; global attention and pooling in it, as in the published ones."""
    config = Sam2Config(
        vision_config=Sam2VisionConfig(
            backbone_config=Sam2HieraDetConfig(
                hidden_size=16,
                num_attention_heads=1,
                image_size=[128, 128],
                blocks_per_stage=[1, 2, 3, 1],
                embed_dim_per_stage=[16, 32, 64, 128],
                num_attention_heads_per_stage=[1, 2, 4, 8],
                window_size_per_stage=[8, 4, 6, 3],
                window_positional_embedding_background_size=[7, 7],
                global_attention_blocks=[4],
            ),
            backbone_channel_list=[128, 64, 32, 16],
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
            fpn_hidden_size=64,
        ),
        prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=64, image_size=128),
        mask_decoder_config=Sam2MaskDecoderConfig(hidden_size=64, dynamic_multimask_via_stability=False),
    )
    model = Sam2Model(config).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.15 + (parameter.mean() == 1))
        model.shared_image_embedding.positional_embedding.copy_(model.prompt_encoder.shared_embedding.positional_embedding)
    model.save_pretrained(tmp_path / "hf")
    return model, tmp_path / "hf"


def check_masks(model, sam, image):
    pixels = sam2_pixels([image, image[::-1]], size=128)
    clicks, labels = torch.tensor([[[30.0, 80.0], [90.0, 20.0]], [[64.0, 64.0], [5.0, 100.0]]]), torch.tensor([[1, 0], [1, 1]])
    with torch.no_grad():
        expected = model(
            pixel_values=pixels, input_points=clicks[:, None], input_labels=labels[:, None], multimask_output=False
        ).pred_masks[:, 0, 0]
        sparse, _ = sam.sam_prompt_encoder(points=(clicks, labels), boxes=None, masks=None)
        found = decode_masks(sam, encode_images(sam, pixels), image_index_M=torch.arange(2), sparse_MNC=sparse)
    assert expected.std() > 1, "masks of one value would prove little"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_masks_are_those_of_transformers(native, tmp_path, image):
    model, folder = native
    convert_sam2(folder, tmp_path / "sam2")
    check_masks(model, load_sam2(tmp_path / "sam2"), image)


def test_of_a_video_model_the_parts_for_images_are_taken(native, tmp_path, image):
    model, folder = native
    reconfigure(folder, "model_type", "sam2_video")
    video = (
        "memory_attention.layers.0.self_attn.q_proj.weight",
        "memory_encoder.projection.bias",
        "memory_temporal_positional_encoding",
        "mask_downsample.weight",
        "object_pointer_proj.layers.0.bias",
        "temporal_positional_encoding_projection_layer.weight",
        "no_memory_positional_encoding",
        "no_object_pointer",
        "occlusion_spatial_embedding_parameter",
    )
    edit(folder, {key: torch.ones(1) for key in video})
    convert_sam2(folder, tmp_path / "sam2")
    check_masks(model, load_sam2(tmp_path / "sam2"), image)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"stranger": torch.ones(1)}, "1 unknown: stranger"),
        ({"mask_decoder.stranger.weight": torch.ones(1)}, r"1 unknown: mask_decoder\.stranger\.weight"),
        ({"no_memory_embedding": None}, "1 missing: no_memory_embedding"),
        (
            {"mask_decoder.iou_prediction_head.proj_out.bias": None},
            r"1 missing: mask_decoder\.iou_prediction_head\.proj_out\.bias",
        ),
        ({"prompt_encoder.point_embed.weight": None}, r"1 missing: prompt_encoder\.point_embed\.weight"),
        ({"vision_encoder.neck.convs.0.bias": torch.ones(3)}, r"neck\.convs\.0\.bias \(3,\) instead of \(64,\)"),
        (
            {"shared_image_embedding.positional_embedding": torch.ones(2, 32)},
            r"differ from prompt_encoder.*: shared_image_embedding\.positional_embedding",
        ),
    ],
)
def test_folders_of_other_weights_are_refused(native, tmp_path, change, told):
    _, folder = native
    edit(folder, change)
    with pytest.raises(ValueError, match=told):
        convert_sam2(folder, tmp_path / "sam2")


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("model_type", "sam", "model_type is 'sam'; allowed is 'sam2' or 'sam2_video'"),
        ("mask_decoder_config.mlp_dim", "wide", r"config\.json: .*mlp_dim"),
        ("mask_decoder_config.mlp_dim", 1024, r"mask_decoder_config\.mlp_dim is 1024; allowed is 2048"),
        ("vision_config.fpn_kernel_size", 3, r"vision_config\.fpn_kernel_size is 3; allowed is 1"),
        ("vision_config.backbone_config.embed_dim_per_stage", [16, 32, 48, 128], r"embed_dim_per_stage is \[16, 32, 48, 128\]"),
        ("prompt_encoder_config.image_size", 256, r"backbone_config\.image_size is \[128, 128\]; allowed is \[256, 256\]"),
    ],
)
def test_folders_of_another_model_are_refused(native, tmp_path, place, value, told):
    _, folder = native
    reconfigure(folder, place, value)
    with pytest.raises(ValueError, match=told):
        convert_sam2(folder, tmp_path / "sam2")


def test_shards_are_read(native, tmp_path, image):
    model, folder = native
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = [dict(list(weights.items())[i::2]) for i in range(2)]
    for i, half in enumerate(halves):
        save_file(half, folder / f"{i}.safetensors")
    where = {key: f"{i}.safetensors" for i, half in enumerate(halves) for key in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    convert_sam2(folder, tmp_path / "sam2")
    check_masks(model, load_sam2(tmp_path / "sam2"), image)
