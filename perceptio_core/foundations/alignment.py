"""A helper for the language phase (ours): image tokens learn to lie near the words for what they show.

A small language model that starts from nothing answers from the text alone for a long time before it finds out that image
tokens hold the answer. When the projector's output for a patch already resembles the embeddings of the words for its content
and place (colour, noun, surface, marker letter, column, row), attention from a question's words finds it. Thrown away
afterwards.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from perceptio_core.data.markers import LETTERS
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


NOTHING = 0.1  # weight of a patch that no word of a kind fits; most patches are such


class WordAlignment(nn.Module):
    """Classifies image tokens among the words of each kind, and none of them, by cosine similarity with the words' input
    embeddings. The class "none" keeps a word from resembling patches that have nothing to do with it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.5))  # logarithm of the inverse temperature
        self.none = nn.ParameterDict({kind: nn.Parameter(torch.ones(1)) for kind in WORDS})
        self.ids = {kind: torch.tensor([tokenizer.encode(word)[0] for word in words]) for kind, words in WORDS.items()}

    def forward(self, tokens_BND: Tensor, embedding_VD: Tensor, targets: DenseTargets) -> tuple[Tensor, float]:
        """Sum over the kinds of the mean cross-entropy, and the mean accuracy where a word fits; N = P * P, row-major."""
        tokens_PD = F.normalize(tokens_BND.flatten(0, 1), dim=-1)
        loss, right = tokens_BND.new_zeros(()), []
        for kind, ids in self.ids.items():
            truth_P = self._truth(kind, targets, side=int(tokens_BND.shape[1] ** 0.5)).reshape(-1)
            logits_PC = self.scale.exp() * tokens_PD @ F.normalize(embedding_VD[ids], dim=-1).T
            logits_PC = torch.cat([logits_PC, self.none[kind].expand(len(logits_PC), 1)], dim=1)
            weight_C = torch.tensor([1.0] * len(ids) + [NOTHING])
            loss = loss + F.cross_entropy(logits_PC, truth_P, weight=weight_C)
            named_P = truth_P < len(ids)
            if named_P.any():
                right.append((logits_PC.argmax(-1) == truth_P)[named_P].float().mean().item())
        return loss, sum(right) / max(len(right), 1)

    def _truth(self, kind: str, targets: DenseTargets, *, side: int) -> Tensor:
        """Which word of a kind fits each patch (B, P, P); their number where none does."""
        none = len(self.ids[kind])
        if kind in ("column", "row"):
            numbers_PP = (torch.arange(side) * GRID // side).expand(side, side)
            return (numbers_PP if kind == "column" else numbers_PP.T).expand(len(targets.patches["circle"]), side, side)
        if kind == "circle":
            circles_BPP = targets.patches["circle"]
            return torch.where(circles_BPP > 0, circles_BPP - 1, none)
        step = targets.cells[kind].shape[1] // side
        cells_BPP = targets.cells[kind][:, step // 2 :: step, step // 2 :: step]
        return torch.where((cells_BPP == IGNORE) | (cells_BPP >= none), none, cells_BPP)  # platforms have no word here
