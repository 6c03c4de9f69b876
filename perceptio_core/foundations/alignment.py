"""A helper for the language phase (ours): an image token says that it is one, and what its patch shows.

A small language model that starts from nothing answers from the text alone for a long time before it finds out that image
tokens hold the answer. Here the projector's output for a patch is drawn to the sum of the embedding of the image placeholder
and of those of the words for the patch's content and place (colour, noun, surface, marker letter, column, row). So image
tokens have the scale of words, attention from a word finds the patches that show it, and what it reads there is a word
again. Nothing is kept but the trained projector.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from perceptio_core.data.shards.markers import LETTERS
from perceptio_core.foundations.vision_tower import COLOR_NAMES, IGNORE, DenseTargets
from perceptio_core.scenes.expressions import NOUNS
from perceptio_core.scenes.view import GRID
from perceptio_core.scenes.world import MATERIALS, SHAPES

# as a cell is written, "(3, 5)", its column follows a bracket and its row a blank: the two are different tokens
WORDS: dict[str, tuple[str, ...]] = {
    "color": tuple(f" {name}" for name in COLOR_NAMES),
    "what": tuple(f" {NOUNS[shape][0]}" for shape in SHAPES),
    "material": tuple(f" {name}" for name in MATERIALS),
    "circle": tuple(f" {letter}" for letter in LETTERS),
    "column": tuple(f"{number}" for number in range(GRID)),
    "row": tuple(f" {number}" for number in range(GRID)),
}


class WordAlignment:
    """Distance of image tokens from the sums of the input embeddings of their words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.image = tokenizer.encode("<IMG_CONTEXT>")[0]
        self.ids = {kind: torch.tensor([tokenizer.encode(word)[0] for word in words]) for kind, words in WORDS.items()}

    def __call__(self, tokens_BND: Tensor, embedding_VD: Tensor, targets: DenseTargets) -> tuple[Tensor, Tensor]:
        """Mean squared distance, in units of the embeddings' mean square, and the share of words that are the nearest of
        their kind by cosine; N = P * P, row-major. No gradient flows to the embeddings, or they would shrink.
        """
        embedding_VD = embedding_VD.detach()
        tokens_PD = tokens_BND.flatten(0, 1)
        units_PD = F.normalize(tokens_PD.detach(), dim=-1)
        sums_PD = embedding_VD[self.image].expand(len(tokens_PD), -1)
        right = []
        for kind, ids in self.ids.items():
            words_WD = embedding_VD[ids.to(embedding_VD.device)]
            truth_P = self._truth(kind, targets, side=int(tokens_BND.shape[1] ** 0.5)).reshape(-1)
            named_P = truth_P < len(ids)
            sums_PD = sums_PD + F.pad(words_WD, (0, 0, 0, 1))[truth_P]  # nothing is added where no word fits
            nearest_P = (units_PD @ F.normalize(words_WD, dim=-1).T).argmax(-1)
            right.append((nearest_P == truth_P).sum() / named_P.sum())  # NaN where no patch has a word of this kind
        distance = F.mse_loss(tokens_PD, sums_PD) / embedding_VD.square().mean()
        return distance, torch.stack(right).nanmean()

    def _truth(self, kind: str, targets: DenseTargets, *, side: int) -> Tensor:
        """Which word of a kind fits each patch (B, P, P); their number where none does."""
        none = len(self.ids[kind])
        if kind in ("column", "row"):
            numbers_PP = (torch.arange(side, device=targets.patches["circle"].device) * GRID // side).expand(side, side)
            return (numbers_PP if kind == "column" else numbers_PP.T).expand(len(targets.patches["circle"]), side, side)
        if kind == "circle":
            circles_BPP = targets.patches["circle"]
            return torch.where(circles_BPP > 0, circles_BPP - 1, none)
        step = targets.cells[kind].shape[1] // side
        cells_BPP = targets.cells[kind][:, step // 2 :: step, step // 2 :: step]
        return torch.where((cells_BPP == IGNORE) | (cells_BPP >= none), none, cells_BPP)  # platforms have no word here
