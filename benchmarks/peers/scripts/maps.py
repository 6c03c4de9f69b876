"""What both programs that train a codebook have in common: a demo's depth maps, the parameters, and the scores."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from sys import argv

import numpy as np
import torch
from torch import Tensor

from perceptio_core.data.manifest.manifest import read_images
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.store import DepthStore
from perceptio_core.params.depth_codebook import DepthCodebookParams
from perceptio_core.params.profile import load_profile

Through = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Normalised maps (B, 1, R, R) -> their codes (B, N), and what those decode to."""
Train = Callable[[DepthCodebookParams, DepthStore, list[str], Path], tuple[DepthCodebook, Through]]
"""(parameters, maps, keys to train on, an empty folder) -> the auto-encoder, and what it makes of maps."""


def main(train: Train) -> None:
    """``ARTIFACTS STEPS``: prints seconds, the error on maps of the validation split, and the share of codes in use there."""
    artifacts, steps = Path(argv[1]), int(argv[2])
    params = load_profile(artifacts.name).depth_codebook.model_copy(update={"steps": steps})
    store = DepthStore(artifacts / "teacher_depth")
    keys: dict[str, list[str]] = {"train": [], "val": []}
    for row in read_images(artifacts / "sources"):
        if row.image_key in store:
            keys[row.split].append(row.image_key)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        codebook, through = train(params, store, keys["train"], Path(folder))
        seconds = time.perf_counter() - start
    maps_B1RR = torch.stack([codebook.normalise(store[key]) for key in keys["val"][: params.validation_maps]])
    with torch.inference_mode():
        codes_BN, decoded_B1RR = through(maps_B1RR)
    mse = float((decoded_B1RR - maps_B1RR).square().mean())
    used = len(np.unique(codes_BN.numpy())) / params.num_codes
    print(json.dumps({"seconds": seconds, "mse": mse, "used": used, "read": [len(keys["train"]), len(maps_B1RR)]}))
