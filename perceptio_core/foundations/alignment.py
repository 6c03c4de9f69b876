"""A helper for the language phase (ours): image tokens learn to lie near the words for what they show.

A small language model that starts from nothing answers from the text alone for a long time before it finds out that image
tokens hold the answer. When the projector's output for a patch already resembles the embeddings of the words for its
content (colour, noun, surface, marker letter), attention from a question's words finds it. Thrown away afterwards.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from perceptio_core.data.markers import LETTERS
from perceptio_core.foundations.vision_tower import COLOR_NAMES, IGNORE, DenseTargets
from perceptio_core.scenes.expressions import NOUNS
from perceptio_core.scenes.world import MATERIALS, SHAPES

WORDS: dict[str, tuple[str, ...]] = {
    "color": COLOR_NAMES,
    "what": tuple(NOUNS[shape][0] for shape in SHAPES),
    "material": MATERIALS,
    "circle": tuple(LETTERS),
}


class WordAlignment(nn.Module):
    """Classifies image tokens among the words of each kind by cosine similarity with the words' input embeddings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))  # logarithm of the inverse temperature
        self.ids = {kind: torch.tensor([tokenizer.encode(f" {word}")[0] for word in words]) for kind, words in WORDS.items()}

    def forward(self, tokens_BND: Tensor, embedding_VD: Tensor, targets: DenseTargets) -> tuple[Tensor, float]:
        """Sum over the kinds of the mean cross-entropy, and the mean accuracy. N = P * P patches, row-major."""
        side = int(tokens_BND.shape[1] ** 0.5)
        step = targets.cells["color"].shape[1] // side
        loss, right = tokens_BND.new_zeros(()), []
        for kind, ids in self.ids.items():
            if kind == "circle":
                truth = targets.patches["circle"] - 1
                truth = truth.masked_fill(truth < 0, IGNORE)
            else:
                truth = targets.cells[kind][:, step // 2 :: step, step // 2 :: step]
                truth = truth.masked_fill(truth >= len(ids), IGNORE)  # platforms and background have no word here
            truth = truth.reshape(-1)
            known = truth != IGNORE
            if not known.any():
                continue
            tokens = F.normalize(tokens_BND.flatten(0, 1)[known], dim=-1)
            logits = self.scale.exp() * tokens @ F.normalize(embedding_VD[ids], dim=-1).T
            loss = loss + F.cross_entropy(logits, truth[known])
            right.append((logits.argmax(-1) == truth[known]).float().mean().item())
        return loss, sum(right) / max(len(right), 1)
