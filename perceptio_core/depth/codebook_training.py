"""Training and validation of the depth codebook.

Loss: mean squared error of the decoded map + commitment (AURORA). Ours: the autoencoder first trains without the codebook,
which then starts at the k-means centres of what the encoder writes; every code is in use from its first step on.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from perceptio_core.depth.codebook import LEVELS, DepthCodebook
from perceptio_core.depth.lookup import Point, nearest_is_right
from perceptio_core.depth.store import DepthStore
from perceptio_core.files import whole
from perceptio_core.metrics import Metric, wilson
from perceptio_core.params.depth_codebook import DepthCodebookParams
from perceptio_core.progress import duration
from perceptio_core.schedule import rate_factor
from perceptio_core.seeds import derived_seed, stream
from perceptio_core.weights import load_exactly

log = logging.getLogger(__name__)
WARMUP = 20  # steps
FLOOR = 0.02  # of the peak learning rate
REPORT_EVERY = 10.0  # seconds
LEAST_SHARE = 0.01  # of a map's highest inverse depth; farther pixels are left out of AbsRel
COUNTS = (3, 4, 5)  # marked points of a look-up
COMMITMENT = 0.25
"""Weight of the commitment loss (AURORA)."""
CURVE = ("step", "mse", "commitment", "restarted")


@dataclass(frozen=True, kw_only=True)
class TrainedCodebook:
    """The codebook, in evaluation mode, and the loss curve: rows of `CURVE`."""

    codebook: DepthCodebook
    curve: list[dict[str, float]]


def train_codebook(*, params: DepthCodebookParams, store: DepthStore, keys: Sequence[str], work: Path) -> TrainedCodebook:
    """Train on the maps `keys` of `store`; goes on from the last checkpoint in `work`.

    Every rank of an initialised process group takes its part of each batch; step i is drawn from (seed, i) alone.

    Raises:
        ValueError: there are no maps, or the batch does not divide among the ranks.
    """
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    if not keys or params.batch_size % ranks:
        raise ValueError(f"{len(keys)} training maps, batch_size {params.batch_size} on {ranks} ranks: nothing to divide")
    torch.manual_seed(params.seed)
    codebook = DepthCodebook(
        num_codes=params.num_codes,
        resolution=params.resolution,
        widths=params.widths,
        dim=params.dim,
        decay=params.decay,
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = torch.optim.Adam(codebook.parameters(), lr=params.learning_rate)
    step, curve = _load(work, codebook, optimizer)
    first, begun, spoken = step, time.monotonic(), time.monotonic()
    begin_codes = round(params.continuous_share * params.steps)
    share = params.batch_size // ranks

    def batch(number: int) -> Tensor:
        draw = stream("codebook", params.seed, number).choice(len(keys), params.batch_size)
        mine = draw[rank * share : (rank + 1) * share]
        return torch.stack([codebook.normalise(store[keys[i]]) for i in mine])

    with ThreadPoolExecutor(1) as reader:  # decodes the next batch while this one trains
        coming = reader.submit(batch, step)
        while step < params.steps:
            x_B1RR = coming.result().to(codebook.embedding.device)
            coming = reader.submit(batch, min(step + 1, params.steps - 1))
            torch.manual_seed(derived_seed("codebook step", params.seed, step))
            factor = rate_factor(step=step, steps=params.steps, warmup=WARMUP / params.steps, floor=FLOOR)
            for group in optimizer.param_groups:
                group["lr"] = params.learning_rate * factor
            row = _train_step(codebook, optimizer, x_B1RR, params=params, step=step, begin_codes=begin_codes)
            step += 1
            if step % 10 == 0:
                curve.append({"step": step, **row})
            now = time.monotonic()
            if now - spoken > REPORT_EVERY or step == params.steps:
                rate, spoken = (step - first) / (now - begun), now
                left = duration((params.steps - step) / rate)
                log.info(
                    "step %d/%d, %.1f maps/s, %s left, mse %.5f", step, params.steps, rate * params.batch_size, left, row["mse"]
                )
            if rank == 0 and step % params.checkpoint_every == 0:
                _save(work, codebook, optimizer, step, curve)
    codebook.order_codes()
    return TrainedCodebook(codebook=codebook.eval().cpu(), curve=curve)


def _train_step(
    codebook: DepthCodebook,
    optimizer: torch.optim.Optimizer,
    x_B1RR: Tensor,
    *,
    params: DepthCodebookParams,
    step: int,
    begin_codes: int,
) -> dict[str, float]:
    latents_BND = codebook.latents(x_B1RR)
    vectors_PD = latents_BND.detach().flatten(0, 1)
    commitment, restarted, codes_P = latents_BND.new_zeros(()), 0, None
    if step == begin_codes:
        codebook.quantizer.start(vectors_PD)
    if step >= begin_codes:
        codes_P = codebook.quantizer.nearest(vectors_PD)
        quantized_BND = codebook.embedding[codes_P].view_as(latents_BND)
        commitment = F.mse_loss(latents_BND, quantized_BND)
        # straight through: the decoder sees the codes, the encoder gets the decoder's gradient
        latents_BND = latents_BND + (quantized_BND - latents_BND).detach()
    mse = F.mse_loss(codebook.decode_embeddings(latents_BND), x_B1RR)
    optimizer.zero_grad(set_to_none=True)
    (mse + COMMITMENT * commitment).backward()
    if dist.is_initialized():
        for parameter in codebook.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
    optimizer.step()
    if codes_P is not None:
        codebook.quantizer.update(vectors_PD, codes_P)
        # late restarts would leave codes that had no time to settle
        if step % params.restart_every == 0 and step < 0.8 * params.steps:
            restarted = codebook.quantizer.restart_dead(vectors_PD, share=params.restart_below)
    return {"mse": mse.item(), "commitment": commitment.item(), "restarted": restarted}


def _save(
    work: Path, codebook: DepthCodebook, optimizer: torch.optim.Optimizer, step: int, curve: list[dict[str, float]]
) -> None:
    state = {"model": codebook.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "curve": json.dumps(curve)}
    content = io.BytesIO()
    torch.save(state, content)  # to a file, it makes of a full disk an error that does not say so
    with whole(work / "checkpoint.pt") as unfinished:
        unfinished.write_bytes(content.getbuffer())


def _load(work: Path, codebook: DepthCodebook, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict[str, float]]]:
    path = work / "checkpoint.pt"
    if not path.exists():
        return 0, []
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    load_exactly(codebook, state["model"], source=path)
    optimizer.load_state_dict(state["optimizer"])
    log.info("going on at step %d", state["step"])
    return state["step"], json.loads(state["curve"])


@dataclass(frozen=True, kw_only=True)
class CodebookScores:
    """What validation found.

    Attributes:
        metrics: error, use of the codes, and look-ups, whose interval is Wilson's.
        code_counts: uses of each code.
        maps, decoded: up to eight pairs for a picture, in [-1, 1].
    """

    metrics: list[Metric]
    code_counts: list[int]
    maps: list[np.ndarray]
    decoded: list[np.ndarray]


@torch.inference_mode()
def validate_codebook(
    codebook: DepthCodebook,
    *,
    store: DepthStore,
    keys: Sequence[str],
    seed: int,
    choose_points: Callable[[np.ndarray, int, np.random.Generator], Sequence[Point] | None],
) -> CodebookScores:
    """Score a codebook on maps it was not trained on.

    `choose_points(inverse_depth_HW, count, rng)` gives the points of a look-up question, or None where the map admits none.

    Raises:
        ValueError: there are no maps.
    """
    if not keys:
        raise ValueError("no validation maps: the split val is empty")
    errors: list[float] = []
    ratios: list[float] = []
    maps: list[np.ndarray] = []
    decoded: list[np.ndarray] = []
    counts = torch.zeros(codebook.num_codes, dtype=torch.int64)
    hits: dict[int, list[bool]] = {count: [] for count in COUNTS}
    for number, key in enumerate(keys):
        inverse_HW = store[key]
        x_1RR = codebook.normalise(inverse_HW)
        codes_1N = codebook.encode(x_1RR[None])
        read_RR = codebook.decode(codes_1N)[0, 0].numpy()
        true_RR = x_1RR[0].numpy()
        counts += torch.bincount(codes_1N.flatten(), minlength=codebook.num_codes)
        errors.append(float(np.square(read_RR - true_RR).mean()))
        truth_RR = codebook.resized(inverse_HW)
        low, high = float(inverse_HW.min()), float(inverse_HW.max())
        found_RR = low + ((read_RR + 1) / 2 + 0.5 / LEVELS) * (high - low)  # the middle of what is rounded down to a level
        kept_RR = truth_RR >= LEAST_SHARE * high
        if high > low:
            ratios.append(float((np.abs(found_RR - truth_RR)[kept_RR] / truth_RR[kept_RR]).mean()))
        if len(maps) < 8:
            maps.append(true_RR)
            decoded.append(read_RR)
        for count in COUNTS:
            points = choose_points(inverse_HW, count, stream("codebook points", seed, number, count))
            if points is not None:
                height, width = inverse_HW.shape
                hits[count].append(nearest_is_right(read_RR, points, height=height, width=width))
    shares = counts[counts > 0] / counts.sum()
    used = 100 * float((counts > 0).float().mean())
    perplexity = float(torch.exp(-(shares * shares.log()).sum()))
    absrel_protocol = (
        "mean |decoded - true| / true of inverse depth (a ratio; to first order that of depth), pixels below "
        f"{LEAST_SHARE:.0%} of the map's highest left out"
    )
    perplexity_protocol = f"of the code distribution; {codebook.num_codes} at most"
    metrics = [
        Metric(name="codebook_mse", value=float(np.mean(errors)), n=len(keys), protocol="maps normalised to [-1, 1]"),
        Metric(
            name="codebook_absrel", value=float(np.mean(ratios)) if ratios else 0.0, n=len(ratios), protocol=absrel_protocol
        ),
        Metric(name="codebook_usage", value=used, n=len(keys), protocol="% of the codes used on validation maps"),
        Metric(name="codebook_perplexity", value=perplexity, n=len(keys), protocol=perplexity_protocol),
    ]
    for count, right in hits.items():
        if right:
            low, high = wilson(sum(right), len(right))
            protocol = f"nearest of {count} points read off the decoded map; truth: the encoded map; Wilson interval"
            metrics.append(
                Metric(
                    name=f"codebook_lookup_{count}",
                    value=100 * float(np.mean(right)),
                    low=low,
                    high=high,
                    n=len(right),
                    chance=100 / count,
                    protocol=protocol,
                )
            )
    return CodebookScores(metrics=metrics, code_counts=counts.tolist(), maps=maps, decoded=decoded)
