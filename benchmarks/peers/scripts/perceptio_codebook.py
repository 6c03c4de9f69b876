"""The depth codebook as this project trains it."""

from pathlib import Path

from maps import Through, main
from torch import Tensor

from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.codebook_training import train_codebook
from perceptio_core.depth.store import DepthStore
from perceptio_core.params.depth_codebook import DepthCodebookParams


def _train(params: DepthCodebookParams, store: DepthStore, keys: list[str], work: Path) -> tuple[DepthCodebook, Through]:
    codebook = train_codebook(params=params, store=store, keys=keys, work=work).codebook

    def through(maps_B1RR: Tensor) -> tuple[Tensor, Tensor]:
        codes_BN = codebook.encode(maps_B1RR)
        return codes_BN, codebook.decode(codes_BN)

    return codebook, through


main(_train)
