"""The helper that draws image tokens to the sums of their words, on two patches worked by hand."""

from types import SimpleNamespace

import pytest
import torch
from transformers import InternVLForConditionalGeneration

from perceptio_core.foundations.alignment import WORDS, WordAlignment
from perceptio_core.foundations.internvl_model import initialise_language, model_config, train_tokenizer
from perceptio_core.foundations.language import LARGEST, growth
from perceptio_core.foundations.pointing import CHOOSING, LOOKING, Attention, pointing_loss
from perceptio_core.foundations.vision_tower import IGNORE, DenseTargets


def test_an_image_token_is_the_sum_of_its_words_and_of_what_makes_it_one():
    names = ["<IMG_CONTEXT>", *(word for words in WORDS.values() for word in words)]
    alignment = WordAlignment(SimpleNamespace(encode=lambda word: [names.index(word)]))
    embedding = torch.eye(len(names), requires_grad=True)
    cells = {kind: torch.full((1, 32, 32), IGNORE) for kind in ("color", "what", "material")}
    cells["color"][0, :4, :4] = 1  # the first patch is orange
    circle = torch.zeros(1, 8, 8, dtype=torch.int64)
    circle[0, 0, 1] = 3  # marker C in the second patch of the first row
    targets = DenseTargets(cells=cells, patches={"circle": circle})
    tokens = torch.zeros(1, 64, len(names))
    tokens[..., 0] = 1  # what all image tokens have in common
    for patch in range(64):
        tokens[0, patch, names.index(WORDS["column"][patch % 8])] = 1
        tokens[0, patch, names.index(WORDS["row"][patch // 8])] = 1
    tokens[0, 0, names.index(" orange")] = tokens[0, 1, names.index(" C")] = 1
    distance, right = alignment(tokens.requires_grad_(), embedding, targets)
    assert (distance.item(), right.item()) == (0.0, 1.0)

    wrong = tokens.detach().clone()
    wrong[0, 1, names.index(" C")] = 0
    wrong[0, 1, names.index(" D")] = 1
    distance, right = alignment(wrong.requires_grad_(), embedding, targets)
    assert float(distance) == pytest.approx(2 / 64, rel=1e-5), "two of 64 x V numbers are off by 1; the mean square is 1 / V"
    assert float(right) == pytest.approx(3 / 4), "colour, column and row are right, the letter is not"
    distance.backward()
    assert embedding.grad is None


def test_the_language_model_starts_by_looking_at_image_tokens_that_are_like_a_word():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["Where is the ball? (1, 2) red box"] * 10)
    model = InternVLForConditionalGeneration(model_config(tokenizer))
    initialise_language(model)
    words_VD = model.get_input_embeddings().weight
    image, ball, box = (tokenizer.encode(text)[0] for text in ("<IMG_CONTEXT>", " ball", " box"))
    other_words = torch.randn(4, words_VD.shape[1])
    patches = torch.stack([words_VD[image] + words_VD[noun] + other_words[i] for i, noun in enumerate((ball, box, box, box))])
    sequence_BTD = torch.cat([patches, words_VD[[box, ball]]])[None]  # the last word asks
    wanted = Attention(row_M=torch.tensor([0]), token_M=torch.tensor([5]), wanted_MT=torch.eye(6, dtype=torch.bool)[:1])
    for layer in (LOOKING, CHOOSING):
        _, share = pointing_loss(model, sequence_BTD, wanted, layer=layer)
        assert share > 1.5 / 6, "the patch of the ball, of six tokens of which one is the word itself"


def test_growth_is_what_hidden_states_exceed_the_bound_by():
    small, large = torch.full((1, 2, 4), 2.0), torch.full((1, 2, 4), 2.0)
    large[0, 1] = -(LARGEST + 2)
    hidden = (large, small, large, large)  # embeddings and the last, normalised states do not count
    assert growth(hidden).item() == pytest.approx((0 + 0 + 0 + 2**2) / 4)
    assert growth((large, small, small, large)).item() == 0
