"""Every loss on the token sequence against a hand-worked case or a float64 re-computation from its definition."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.grammar import Role
from perceptio_core.model.losses import (
    Predictions,
    count_loss,
    language_loss,
    marker_loss,
    predict,
    reconstruction_loss,
    token_loss,
)
from perceptio_core.vocabulary import Vocabulary

VOCABULARY = Vocabulary(seg=4, depth_start=5, first_code=6, num_codes=3, depth_end=9)
SIZE, N = 10, 2
# Two samples in one row, of 8 and 4 tokens; the second has no depth span. Text ids 0-2, end 3.
IDS = torch.tensor([0, 4, 5, 8, 6, 9, 1, 3, 1, 1, 2, 3])
POSITIONS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3])
P, S, DS, DC, DE, A, E = Role
ROLES = torch.tensor([P, S, DS, DC, DC, DE, A, E, P, P, A, E])
T = len(IDS)


class Codebook(nn.Module):
    """Three codes of two numbers, open to gradients; the decoder paints each place with a nonlinear mix of its vector."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 2.0]], dtype=torch.float64))
        self.mix = nn.Parameter(torch.tensor([0.5, -1.5], dtype=torch.float64), requires_grad=False)

    def decode_embeddings(self, vectors_BND):
        return (vectors_BND @ self.mix).tanh()[:, None]

    def decode(self, codes_BN):
        return self.decode_embeddings(self.embedding[codes_BN])


@pytest.fixture
def logits():
    return torch.randn(T, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def predictions(logits, ids=IDS, positions=POSITIONS, roles=ROLES):
    return predict(hidden_TD=logits, head=nn.Identity(), input_ids_T=ids, positions_T=positions, roles_T=roles)


def test_the_sequence_reads_one_place_back():
    got = predictions(torch.arange(float(T))[:, None])
    names = ["text", "text", "text", "end", "[SEG]", "<depth_start>", "<depth_0>", "<depth_1>", "<depth_2>", "<depth_end>"]
    table = [
        (int(from_), names[int(t)], Role(int(r)).name)
        for from_, t, r in zip(got.logits_PV[:, 0], got.targets_P, got.roles_P, strict=True)
    ]
    assert table == [
        # predicted from place, token, role
        (0, "[SEG]", "SEG"),
        (1, "<depth_start>", "DEPTH_START"),
        (2, "<depth_2>", "DEPTH_CODE"),
        (3, "<depth_0>", "DEPTH_CODE"),
        (4, "<depth_end>", "DEPTH_END"),
        (5, "text", "ANSWER"),
        (6, "end", "END"),
        (9, "text", "ANSWER"),
        (10, "end", "END"),
    ]


def test_a_samples_first_token_is_not_predicted_from_the_sample_before():
    roles = ROLES.clone()
    roles[8] = A
    assert (predictions(torch.arange(float(T))[:, None], roles=roles).logits_PV[:, 0] == 7).sum() == 0


def nll(logits, places, columns=slice(None)):
    """Mean of -log softmax over the places of the *targets*, in numpy float64."""
    scores = logits.detach().numpy()
    values = []
    for place in places:
        row = scores[place - 1, columns]
        target = int(IDS[place]) - (columns.start or 0)
        values.append(np.log(np.exp(row).sum()) - row[target])
    return float(np.mean(values))


def test_language_loss_is_the_mean_over_answer_end_and_seg_tokens(logits):
    expected = nll(logits, [1, 6, 7, 10, 11])
    assert float(language_loss(predictions(logits))) == pytest.approx(expected, rel=1e-12)


def test_marker_loss_is_the_mean_over_start_and_end(logits):
    assert float(marker_loss(predictions(logits))) == pytest.approx(nll(logits, [2, 5]), rel=1e-12)


def test_token_loss_is_the_mean_over_the_code_places(logits):
    loss = token_loss(predictions(logits))
    assert float(loss) == pytest.approx(nll(logits, [3, 4]), rel=1e-12)
    loss.backward()
    touched = logits.grad.nonzero()
    assert {tuple(row) for row in touched.tolist()} == {(place, token) for place in (2, 3) for token in range(SIZE)}


def test_token_loss_by_hand():
    scores = torch.zeros(T, SIZE)
    scores[2, 8] = math.log(2)  # 2 : 1 : ... over SIZE tokens; the other place is uniform
    loss = token_loss(predictions(scores))
    assert float(loss) == pytest.approx((math.log((SIZE + 1) / 2) + math.log(SIZE)) / 2)


def test_count_loss_by_hand():
    # Uniform logits: mass 3/10 on the codes at each of the N + 1 = 3 places, E = 0.9, ln(0.9 / 2)^2.
    assert float(count_loss(predictions(torch.zeros(T, SIZE)), vocabulary=VOCABULARY, depth_tokens=N)) == pytest.approx(
        math.log(0.45) ** 2
    )
    sure = torch.full((T, SIZE), -1e4)
    sure[2, 7] = sure[3, 6] = sure[4, 9] = 0.0  # any code, any code, the end
    assert float(count_loss(predictions(sure), vocabulary=VOCABULARY, depth_tokens=N)) == 0.0
    sure[4, 9], sure[4, 6] = -1e4, 0.0  # a third code instead of the end: ln(3 / 2)^2
    assert float(count_loss(predictions(sure), vocabulary=VOCABULARY, depth_tokens=N)) == pytest.approx(math.log(1.5) ** 2)


def test_count_loss_is_the_mean_over_spans():
    ids, positions, roles = (row[:8].repeat(2) for row in (IDS, POSITIONS, ROLES))
    scores = torch.zeros(16, SIZE)
    scores[8:] = -1e4
    scores[10, 7] = scores[11, 6] = scores[12, 9] = 0.0
    loss = count_loss(predictions(scores, ids, positions, roles), vocabulary=VOCABULARY, depth_tokens=N)
    assert float(loss) == pytest.approx((math.log(0.45) ** 2 + 0) / 2)


def test_reconstruction_of_certain_codes_equals_hard_decoding():
    scores = torch.full((T, SIZE), -1e4, dtype=torch.float64)
    scores[2, 8] = scores[3, 6] = 0.0
    options = {"vocabulary": VOCABULARY, "codebook": Codebook(), "depth_tokens": N}
    assert float(reconstruction_loss(predictions(scores), **options)) == 0.0
    scores[3, 6], scores[3, 7] = -1e4, 0.0  # code 1 in place of code 0
    wrong = (math.tanh(-1.5) - math.tanh(0.5)) ** 2 / 2
    assert float(reconstruction_loss(predictions(scores), **options)) == pytest.approx(wrong, rel=1e-12)


@pytest.mark.parametrize("decoder", ["mirrored", "aurora"])
def test_certain_codes_are_decoded_by_the_vqvae_as_codes_are(decoder: Literal["mirrored", "aurora"]) -> None:
    """Soft merge of distributions with all their weight on one code each, place by place of two spans.

    Of the true codes the loss is 0; of others it is the distance between the two hard-decoded maps.
    """
    torch.manual_seed(0)
    codebook = DepthCodebook(num_codes=6, resolution=16, widths=(4, 8, 8), dim=8, decoder=decoder).eval().double()
    codebook.requires_grad_(False)
    vocabulary = Vocabulary(seg=4, depth_start=5, first_code=6, num_codes=6, depth_end=12)
    true_SN = torch.tensor([[0, 3, 5, 1], [4, 2, 2, 0]])

    def loss(codes_SN: torch.Tensor) -> float:
        scores = torch.full((8, 13), -1e4, dtype=torch.float64)
        scores[torch.arange(8), 6 + codes_SN.flatten()] = 0.0
        certain = Predictions(logits_PV=scores, targets_P=6 + true_SN.flatten(), roles_P=torch.full((8,), int(DC)))
        return float(reconstruction_loss(certain, vocabulary=vocabulary, codebook=codebook, depth_tokens=4))

    assert loss(true_SN) == pytest.approx(0, abs=1e-20)
    for span in range(2):
        for place in range(4):
            wrong_SN = true_SN.clone()
            wrong_SN[span, place] = (true_SN[span, place] + 1) % 6
            distance = float((codebook.decode(wrong_SN) - codebook.decode(true_SN)).square().mean())
            assert distance > 1e-9
            assert loss(wrong_SN) == pytest.approx(distance, rel=1e-9)


def test_reconstruction_against_its_definition(logits):
    codebook = Codebook()
    loss = reconstruction_loss(predictions(logits), vocabulary=VOCABULARY, codebook=codebook, depth_tokens=N)
    scores, vectors = logits.detach().numpy()[2:4, 6:9], codebook.embedding.detach().numpy()
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    merged, true = np.tanh(weights @ vectors @ [0.5, -1.5]), np.tanh(vectors[[2, 0]] @ [0.5, -1.5])
    assert float(loss) == pytest.approx(float(np.mean((merged - true) ** 2)), rel=1e-12)
    loss.backward()
    assert logits.grad[2:4, 6:9].abs().min() > 0, "reaches the language model"
    assert codebook.embedding.grad is None
    assert codebook.mix.grad is None


SPAN_LOSSES = [
    marker_loss,
    token_loss,
    lambda p: count_loss(p, vocabulary=VOCABULARY, depth_tokens=N),
    lambda p: reconstruction_loss(p, vocabulary=VOCABULARY, codebook=Codebook(), depth_tokens=N),
]


@pytest.mark.parametrize("loss", SPAN_LOSSES)
def test_samples_without_a_span_weigh_nothing(loss, logits):
    alone = predictions(logits[:8], IDS[:8], POSITIONS[:8], ROLES[:8])
    assert float(loss(alone)) == pytest.approx(float(loss(predictions(logits))), rel=1e-12)


@pytest.mark.parametrize("loss", [language_loss, *SPAN_LOSSES])
class TestEveryLoss:
    def test_gradient_is_the_numerical_one(self, loss, logits):
        assert torch.autograd.gradcheck(lambda scores: loss(predictions(scores)), (logits,))

    def test_prompts_and_last_places_do_not_count(self, loss, logits):
        changed = logits.detach().clone()
        changed[8], changed[7], changed[11] = -50.0, 9.0, 50.0
        assert float(loss(predictions(changed))) == float(loss(predictions(logits)))

    def test_without_its_tokens_it_is_a_zero_that_reaches_the_graph(self, loss, logits):
        roles = torch.zeros_like(ROLES)
        zero = loss(predictions(logits, roles=roles))
        assert float(zero) == 0
        zero.backward()
        assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_logits_are_widened():
    assert predictions(torch.zeros(T, SIZE, dtype=torch.bfloat16)).logits_PV.dtype == torch.float32
    assert isinstance(predictions(torch.zeros(T, SIZE)), Predictions)
