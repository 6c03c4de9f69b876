"""The losses on the token sequence; those on the masks are in `perceptio_core.segmentation.losses`.

The paper names the parts (LLM cross-entropy; marker, token and count losses; depth reconstruction by soft merge) but
not their exact forms: what is marked "ours" below fills the gaps. All of them

- look at the *supervised* tokens only (`Role` other than PROMPT) and predict each from the position before it;
- are means over the tokens or spans of the batch that they speak of, so that samples without them weigh nothing;
- are a zero connected to the graph where the batch has none, so that every rank of a distributed run has gradients.

Shape suffixes: T tokens of all samples in one row, D hidden size, V vocabulary, P supervised tokens of the batch, S depth
spans, N codes per span, K codes.
"""

# ruff: noqa: N815 (shape suffixes of fields are upper case)

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.grammar import Role
from perceptio_core.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Logits at the places that predict a supervised token, in the order of reading the batch.

    Attributes:
        logits_PV: scores of the next token.
        targets_P: the token that does come next.
        roles_P: its role.
    """

    logits_PV: Tensor
    targets_P: Tensor
    roles_P: Tensor

    def rows(self, *roles: Role) -> Tensor:
        """Where the target has one of `roles`: bool, P."""
        return torch.isin(self.roles_P, torch.tensor(roles, device=self.roles_P.device))

    def zero(self) -> Tensor:
        """A zero connected to the graph."""
        return self.logits_PV.sum() * 0.0


def predict(*, hidden_TD: Tensor, head: nn.Module, input_ids_T: Tensor, positions_T: Tensor, roles_T: Tensor) -> Predictions:
    """Apply the output head where it is supervised, and only there: the full T x V tensor never exists.

    The token at place t is predicted from the hidden state at t - 1. The first token of a sample (position 0) has none of
    its own and is left out: what stands before it in the row is another sample.
    """
    places_P = torch.nonzero((roles_T != Role.PROMPT) & (positions_T > 0))[:, 0]
    logits_PV = head(hidden_TD[places_P - 1])
    return Predictions(
        logits_PV=logits_PV.float() if logits_PV.dtype in (torch.bfloat16, torch.float16) else logits_PV,
        targets_P=input_ids_T[places_P],
        roles_P=roles_T[places_P],
    )


def _cross_entropy(predictions: Predictions, rows_P: Tensor) -> Tensor:
    if not rows_P.any():
        return predictions.zero()
    return F.cross_entropy(predictions.logits_PV[rows_P], predictions.targets_P[rows_P])


def language_loss(predictions: Predictions) -> Tensor:
    """Cross-entropy in nats over the whole vocabulary: mean over the batch's answer, end and [SEG] tokens.

    Per token, not per sample: a long answer weighs more, as in Sa2VA. [SEG] counts as text here, as in Sa2VA.
    """
    return _cross_entropy(predictions, predictions.rows(Role.ANSWER, Role.END, Role.SEG))


def marker_loss(predictions: Predictions) -> Tensor:
    """Cross-entropy in nats over the whole vocabulary: mean over the ``<depth_start>`` and ``<depth_end>`` tokens (ours)."""
    return _cross_entropy(predictions, predictions.rows(Role.DEPTH_START, Role.DEPTH_END))


def _code_logits(predictions: Predictions, rows_P: Tensor, vocabulary: Vocabulary) -> Tensor:
    return predictions.logits_PV[rows_P, vocabulary.first_code : vocabulary.first_code + vocabulary.num_codes]


def token_loss(predictions: Predictions) -> Tensor:
    """Cross-entropy in nats over the whole vocabulary: mean over all code tokens of the batch.

    Over the vocabulary, not the codes alone: what decoding masks away still has to lose its probability, or the codes'
    rows drift until the model writes none by itself.
    """
    return _cross_entropy(predictions, predictions.rows(Role.DEPTH_CODE))


def count_loss(predictions: Predictions, *, vocabulary: Vocabulary, depth_tokens: int) -> Tensor:
    """Mean over the spans of ln(E / N)^2, where E is the expected number of codes in the span (ours).

    E sums the probability of "some code" over the span's N + 1 places: those of the N codes and that of ``<depth_end>``.
    A model that writes exactly N codes has mass 1 at the first N and 0 at the last. The logarithm keeps the gradient alive
    when the codes have lost all probability, where a plain (E / N - 1)^2 is flat.
    """
    rows_P = predictions.rows(Role.DEPTH_CODE, Role.DEPTH_END)
    if not rows_P.any():
        return predictions.zero()
    logits_QV = predictions.logits_PV[rows_P]
    log_mass_Q = _code_logits(predictions, rows_P, vocabulary).logsumexp(-1) - logits_QV.logsumexp(-1)
    # A span fills its N + 1 places one after the other, so the rows are whole spans in order.
    log_expected_S = log_mass_Q.unflatten(0, (-1, depth_tokens + 1)).logsumexp(-1)
    return (log_expected_S - math.log(depth_tokens)).square().mean()


def reconstruction_loss(
    predictions: Predictions, *, vocabulary: Vocabulary, codebook: DepthCodebook, depth_tokens: int
) -> Tensor:
    """Mean squared error between two depth maps in [-1, 1]: decoded from what the model implies, and from the true codes.

    Soft merge (AURORA, Perceptio): softmax over the K code logits at each of the N places -> convex sum of the codebook's
    vectors -> the frozen VQ-VAE decoder. Temperature 1 (ours; the paper's is not known to us). Gradients reach the language
    model through the softmax; codebook and decoder get none (they hold no trainable parameters, see
    `perceptio_core.model.adapters`).
    """
    rows_P = predictions.rows(Role.DEPTH_CODE)
    if not rows_P.any():
        return predictions.zero()
    weights_SNK = _code_logits(predictions, rows_P, vocabulary).softmax(-1).view(-1, depth_tokens, vocabulary.num_codes)
    codes_SN = vocabulary.codes(predictions.targets_P[rows_P]).view(-1, depth_tokens)
    vectors = codebook.embedding.detach().to(weights_SNK.dtype)
    merged = codebook.decode_embeddings(weights_SNK @ vectors)
    with torch.no_grad():
        target = codebook.decode(codes_SN)
    return F.mse_loss(merged, target)
