"""SAM2 models as plain data: building, saving, loading, encoding an image and decoding masks from prompt embeddings.

Source: SAM 2 (arXiv 2408.00714) and its `sam2` package, whose modules are used as they are. A model here is a directory
`config.json` + `model.safetensors`; the config is the package's own tree of `_target_` nodes, restricted to its classes.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from perceptio_core.weights import load_exactly, read_safetensors, save_tensors

# What a config may name: these classes and nothing else, so that reading a config never runs foreign code.
CLASSES = {
    f"{kind.__module__}.{kind.__qualname__}": kind
    for kind in (
        SAM2Base,
        ImageEncoder,
        Hiera,
        FpnNeck,
        PositionEmbeddingSine,
        MemoryAttention,
        MemoryAttentionLayer,
        RoPEAttention,
        MemoryEncoder,
        MaskDownSampler,
        Fuser,
        CXBlock,
    )
}
_PATH_OF = {kind: path for path, kind in CLASSES.items()}
OFFICIAL = tuple(f"{version}_hiera_{scale}" for version in ("sam2", "sam2.1") for scale in ("t", "s", "b+", "l"))


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """What the encoder sees: the embedding (B, C, h, w) at stride 16 and the pyramid levels below it, (B, C, 2h, 2w) at
    stride 8 and (B, C, 4h, 4w) at stride 4.
    """

    embedding: Tensor
    stride8: Tensor
    stride4: Tensor


def still_image_config(
    *, image_size: int, width: int, trunk: Mapping[str, Any], channels: Sequence[int], **base: Any
) -> dict[str, Any]:
    """Config of a SAM2 for still images.

    The class insists on memory modules, which track objects through video. Still images never run them, so they have no
    layers here.

    Args:
        image_size: side in pixels of the square that the model sees, a multiple of 32.
        width: C, channels of the embedding.
        trunk: arguments of `Hiera`.
        channels: what the trunk gives out, the coarsest level first.
        **base: further arguments of `SAM2Base`.
    """
    position = {"num_pos_feats": width, "normalize": True, "scale": None, "temperature": 10000}
    attention = {"embedding_dim": width, "num_heads": 1, "feat_sizes": [image_size // 16] * 2}
    return _node(
        SAM2Base,
        image_size=image_size,
        image_encoder=_node(
            ImageEncoder,
            scalp=1,
            trunk=_node(Hiera, **trunk),
            neck=_node(
                FpnNeck,
                position_encoding=_node(PositionEmbeddingSine, **position),
                d_model=width,
                backbone_channel_list=list(channels),
                fpn_top_down_levels=[2, 3],
                fpn_interp_model="nearest",
            ),
        ),
        memory_attention=_node(
            MemoryAttention,
            d_model=width,
            pos_enc_at_input=True,
            num_layers=0,
            layer=_node(
                MemoryAttentionLayer,
                activation="relu",
                d_model=width,
                dim_feedforward=width,
                dropout=0.0,
                pos_enc_at_attn=False,
                pos_enc_at_cross_attn_keys=True,
                pos_enc_at_cross_attn_queries=False,
                self_attention=_node(RoPEAttention, **attention),
                cross_attention=_node(RoPEAttention, **attention, rope_k_repeat=True, kv_in_dim=width),
            ),
        ),
        memory_encoder=_node(
            MemoryEncoder,
            in_dim=width,
            out_dim=width,
            position_encoding=_node(PositionEmbeddingSine, **position),
            mask_downsampler=_node(MaskDownSampler, embed_dim=width, kernel_size=4, stride=4, padding=0),
            fuser=_node(Fuser, num_layers=0, layer=_node(CXBlock, dim=4)),
        ),
        num_maskmem=1,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        iou_prediction_use_sigmoid=True,
        **base,
    )


def mini_config() -> dict[str, Any]:
    """Config of mini's SAM2 (ours): 128 px, Hiera of 1.4 M parameters, masks of 32 x 32 logits, 2.7 M parameters in all.

    Windows fit the 32 x 32 tokens of stage 1: 8 x 8 there and in stage 2; from stage 3 on one window is the whole image.
    """
    trunk = {
        "embed_dim": 32,
        "num_heads": 1,
        "stages": [1, 2, 3, 1],
        "global_att_blocks": [],
        "window_pos_embed_bkg_spatial_size": [4, 4],
        "window_spec": [8, 8, 8, 4],
    }
    return still_image_config(image_size=128, width=96, trunk=trunk, channels=[256, 128, 64, 32])


def official_config(name: str) -> dict[str, Any]:
    """Config of a published model, as shipped in the `sam2` package.

    Args:
        name: one of `OFFICIAL`, e.g. ``"sam2.1_hiera_l"``.
    """
    if name not in OFFICIAL:
        raise ValueError(f"SAM2 model {name!r}: allowed are {', '.join(OFFICIAL)}")
    with resources.as_file(resources.files("sam2") / "configs" / name.split("_")[0] / f"{name}.yaml") as path:
        # the configs' own reader: plain YAML takes their 1e-6 for a string
        config: Any = OmegaConf.to_container(OmegaConf.load(path).model)
    return config


def build_sam2(config: Mapping[str, Any]) -> SAM2Base:
    """Build a SAM2 with fresh weights from a config, in evaluation mode.

    Raises:
        ValueError: the config names a class or key that is not allowed, or values that do not fit together.
    """
    model = _build(config, "config")
    if not isinstance(model, SAM2Base):
        raise ValueError(f"config: _target_ must be {_PATH_OF[SAM2Base]}, not {config.get('_target_')!r}")
    return model.eval()


def save_sam2(model: SAM2Base, *, config: Mapping[str, Any], folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, which is made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_tensors(weights, folder / "model.safetensors")


def load_sam2(folder: Path) -> SAM2Base:
    """Read what `save_sam2` wrote, in evaluation mode on the CPU.

    Raises:
        ValueError: a file is missing or unreadable, or the weights are not exactly those of the config; every missing,
            unexpected and misshapen key is listed.
    """
    config_path, weights_path = folder / "config.json", folder / "model.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise ValueError(f"{path}: not found; a SAM2 directory holds config.json and model.safetensors")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        model = build_sam2(config)
    except ValueError as error:
        raise ValueError(f"{config_path}: {error}") from error
    load_exactly(model, read_safetensors(weights_path), source=weights_path)
    return model


def load_official(checkpoint: Path, *, name: str) -> SAM2Base:
    """Read a published `.pt` checkpoint (tensors only: `weights_only=True`) into the model `name` of `OFFICIAL`.

    Raises:
        ValueError: not such a file, or not the weights of that model.
    """
    model = build_sam2(official_config(name))
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights = content["model"]
    except Exception as error:  # torch raises half a dozen types for a file that it cannot or will not read
        raise ValueError(f"{checkpoint}: not a SAM2 checkpoint, a file of tensors under the key 'model' ({error})") from error
    load_exactly(model, weights, source=checkpoint)
    return model


def encode_images(sam: SAM2Base, pixels_B3SS: Tensor) -> ImageFeatures:
    """Image encoder and neck, on pixels as `bridge.sam2_pixels` makes them (S = `sam.image_size`).

    A still image has no past: its embedding gets the learned no-memory vector where the model was trained so.
    """
    stride4, stride8, embedding = sam.image_encoder(pixels_B3SS)["backbone_fpn"]
    if sam.directly_add_no_mem_embed:
        embedding = embedding + sam.no_mem_embed.view(1, -1, 1, 1)
    return ImageFeatures(embedding=embedding, stride8=stride8, stride4=stride4)


def decode_masks(
    sam: SAM2Base, features: ImageFeatures, *, image_index_M: Tensor, sparse_MNC: Tensor, best_of_three: bool = False
) -> Tensor:
    """Mask logits (M, 4h, 4w) float32 of M prompts, each N sparse embeddings about one image of the batch.

    High-resolution features in, no dense prompt.

    Args:
        sam: the model.
        features: of the images.
        image_index_M: int64, the row of `features` that each prompt is about.
        sparse_MNC: the prompts.
        best_of_three: of the masks that the decoder draws for an ambiguous prompt (tokens 1 to 3) the one that it scores
            highest; else the mask of the single-mask token.
    """
    decoder = sam.sam_mask_decoder
    _, dense = sam.sam_prompt_encoder(points=None, boxes=None, masks=None)
    # The decoder's own 1 x 1 convolutions come before the copying, so that they run once an image, not once a mask.
    high_resolution = [decoder.conv_s0(features.stride4), decoder.conv_s1(features.stride8)]
    masks_MKHW, iou_MK, _, _ = decoder(
        image_embeddings=features.embedding[image_index_M],
        image_pe=sam.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse_MNC,
        dense_prompt_embeddings=dense.expand(len(sparse_MNC), -1, -1, -1),
        multimask_output=best_of_three,
        repeat_image=False,
        high_res_features=[level[image_index_M] for level in high_resolution],
    )
    chosen: Tensor = masks_MKHW[torch.arange(len(iou_MK)), iou_MK.argmax(-1)] if best_of_three else masks_MKHW[:, 0]
    return chosen.float()


def _node(kind: type, **arguments: Any) -> dict[str, Any]:
    return {"_target_": _PATH_OF[kind], **arguments}


def _build(node: Any, where: str) -> Any:
    """Build a node and, before it, the nodes below it; anything without `_target_` is a plain value."""
    if not isinstance(node, Mapping):
        return copy.deepcopy(node)
    arguments = {key: _build(value, f"{where}.{key}") for key, value in node.items()}
    target = arguments.pop("_target_", None)
    if target not in CLASSES:
        raise ValueError(f"{where}: _target_ {target!r} is not allowed; allowed are {', '.join(sorted(CLASSES))}")
    if "weights_path" in arguments:
        raise ValueError(f"{where}.weights_path: not allowed; weights come from model.safetensors alone")
    try:
        return CLASSES[target](**arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{where}: {target} refuses its arguments: {error}") from error
