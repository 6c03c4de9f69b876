"""AURORA's depth VQ-VAE -> a depth codebook folder.

Source: AURORA (arXiv 2412.03548) trains the `VQVAE` class of AiT (SwinTransformer/AiT, `vae/models/VQVAE.py`) and saves
``{"weights": state}``, keys with ``module.`` before them; MolmoAct uses the same file (`vae-final.pt`). Known from this
code: the keys, and every size but the resolution, which no weight tells. Known from how MolmoAct loads the file: 320 px,
and no scaling of values inside the model, so that it takes the maps as `DepthCodebook.normalise` makes them. The layout is
that of the class; no published file was at hand to try it on.
"""

from __future__ import annotations

import re
from pathlib import Path

from perceptio_core.convert.checkpoint_files import new_folder, read_weights
from perceptio_core.convert.rules import renames, translate
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.weights import refuse, shapes

_RULES = renames(
    {
        **{f"{part}.{{n}}.{{p}}": f"{part}.{{n}}.{{p}}" for part in ("encoder", "decoder")},
        **{f"{part}.{{n}}.net.{{m}}.{{p}}": f"{part}.{{n}}.layers.{{m}}.{{p}}" for part in ("encoder", "decoder")},
        "_vq_vae._embedding": "quantizer.embedding",
        "_vq_vae._ema_cluster_size": "quantizer.counts",
        "_vq_vae._ema_w": "quantizer.sums",
    }
)


def convert_codebook(source: Path, out: Path, *, resolution: int = 320) -> None:
    """Write a codebook folder. Codes keep their numbers: depth tokens of the original mean the same.

    Args:
        source: the checkpoint file, or a safetensors file with the same keys.
        out: folder to make.
        resolution: R, side of its maps in pixels.

    Raises:
        ValueError: it is not such a file, its weights are not exactly those of the class, or `resolution` does not fit its
            stride; lists the keys.
    """
    read = read_weights(source, under=("weights",))
    weights = {key.removeprefix("module."): value for key, value in read.items()}
    sized = ("_vq_vae._embedding", "encoder.0.weight", "encoder.2.weight")
    refuse({"missing": [key for key in sized if key not in weights]}, source=source)
    layers = sorted((int(m[1]), key) for key in weights if (m := re.fullmatch(r"encoder\.(\d+)\.weight", key)))
    embedding_KD = weights["_vq_vae._embedding"]
    if embedding_KD.ndim != 2:
        refuse(
            {"of another shape": [f"_vq_vae._embedding {tuple(embedding_KD.shape)} instead of (codes, width)"]}, source=source
        )
    codes, dim = embedding_KD.shape
    codebook = DepthCodebook(
        num_codes=codes,
        resolution=resolution,
        widths=[len(weights[key]) for _, key in layers[:-1]],  # the last one leads to the code dimension
        dim=dim,
        decoder="aurora",
    )
    codebook.load_state_dict(translate(weights, _RULES, expected=shapes(codebook), dropped={}, source=source))
    with new_folder(out) as folder:
        codebook.save_pretrained(folder)
