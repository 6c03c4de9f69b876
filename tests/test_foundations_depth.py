"""Mini's depth teacher starts from the vision tower of mini's InternVL."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DepthAnythingForDepthEstimation, InternVLVisionModel

from perceptio_core.depth.teacher import Teacher
from perceptio_core.foundations.depth_anything import image_processor, mini_config, pixel_tensor, with_encoder
from perceptio_core.foundations.vision_tower import tower_config


def test_the_encoder_computes_what_the_tower_does():
    torch.manual_seed(0)
    tower = InternVLVisionModel(tower_config()).eval()
    model = with_encoder(tower.state_dict()).eval()
    pixels = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        expected = tower(pixel_values=pixels).last_hidden_state
        found = model.backbone(pixels, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(found, expected)


def test_the_stage_shows_it_scenes_as_its_training_did():
    scenes = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    teacher = Teacher(model=DepthAnythingForDepthEstimation(mini_config()).eval(), processor=image_processor())
    found = torch.stack([teacher.pixels(Image.fromarray(scene)) for scene in scenes])
    torch.testing.assert_close(found, pixel_tensor(torch.from_numpy(scenes)), rtol=0, atol=1e-6, check_stride=False)
    embeddings = teacher.model.backbone.embeddings
    assert embeddings.interpolate_pos_encoding(torch.empty(1, 65, 1), 128, 128) is embeddings.position_embeddings


def test_what_is_no_such_tower_is_refused():
    weights = InternVLVisionModel(tower_config()).state_dict()
    weights["encoder.layer.9.lambda_1"] = weights.pop("encoder.layer.0.lambda_1")
    with pytest.raises(ValueError, match=r"unknown \['backbone.encoder.layer.9.*missing .*layer.0.layer_scale1"):
        with_encoder(weights)
