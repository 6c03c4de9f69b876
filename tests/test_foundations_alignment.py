"""The helper that draws image tokens to the sums of their words, on two patches worked by hand."""

from types import SimpleNamespace

import pytest
import torch

from perceptio_core.foundations.alignment import WORDS, WordAlignment
from perceptio_core.foundations.vision_tower import IGNORE, DenseTargets


def test_an_image_token_is_the_sum_of_its_words():
    names = [word for words in WORDS.values() for word in words]
    alignment = WordAlignment(SimpleNamespace(encode=lambda word: [names.index(word)]))
    embedding = torch.eye(len(names), requires_grad=True)
    cells = {kind: torch.full((1, 32, 32), IGNORE) for kind in ("color", "what", "material")}
    cells["color"][0, :4, :4] = 1  # the first patch is orange
    circle = torch.zeros(1, 8, 8, dtype=torch.int64)
    circle[0, 0, 1] = 3  # marker C in the second patch of the first row
    targets = DenseTargets(cells=cells, patches={"circle": circle})
    tokens = torch.zeros(1, 64, len(names))
    for patch in range(64):
        tokens[0, patch, names.index(WORDS["column"][patch % 8])] = 1
        tokens[0, patch, names.index(WORDS["row"][patch // 8])] = 1
    tokens[0, 0, names.index(" orange")] = tokens[0, 1, names.index(" C")] = 1
    distance, right = alignment(tokens.requires_grad_(), embedding, targets)
    assert (distance.item(), right) == (0.0, 1.0)

    wrong = tokens.detach().clone()
    wrong[0, 1, names.index(" C")] = 0
    wrong[0, 1, names.index(" D")] = 1
    distance, right = alignment(wrong.requires_grad_(), embedding, targets)
    assert float(distance) == pytest.approx(2 / 64, rel=1e-5), "two of 64 x V numbers are off by 1; the mean square is 1 / V"
    assert right == pytest.approx(3 / 4), "colour, column and row are right, the letter is not"
    distance.backward()
    assert embedding.grad is None
