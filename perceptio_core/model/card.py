"""The model card of a checkpoint: README.md with the metadata that the Hugging Face hub reads (ours).

Co-training writes it without scores, which nobody has by then; `with_scores` adds them where a checkpoint is published. The
same inputs give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from perceptio_core import __version__
from perceptio_core.params.cotrain import CotrainParams
from perceptio_core.params.foundations import FoundationsParams

_SCORES = "## Scores"
_NO_SCORES = "Not known: this checkpoint has not been evaluated, or its scores were not added."
_WHAT = {"segmentation": "segmentation tokens that drive a SAM2 mask decoder", "depth": "depth tokens of a VQ-VAE codebook"}
_PARTS = {
    "internvl": "vision-language model (InternVL)",
    "sam2": "image encoder and mask decoder (SAM2)",
    "depth_anything": "teacher of the depth codebook (Depth Anything V2; its weights are not in the checkpoint)",
}


def model_card(
    *,
    profile: str,
    variant: str,
    params: CotrainParams,
    foundations: FoundationsParams,
    data: Mapping[str, Mapping[str, Mapping[str, Any]]],
    parameters: int,
) -> str:
    """The card of a checkpoint, without scores.

    Args:
        profile: whose checkpoint it is.
        variant: of co-training.
        params: what it was trained by.
        foundations: what it was made from.
        data: of the shards' index: per split, task and data set how many samples and records there are.
        parameters: numbers in the checkpoint.
    """
    train = data.get("train", {})
    used = {task: sets for task, sets in sorted(train.items()) if params.mixture.weights.get(task, 0) > 0}
    spans = [_WHAT[span] for span in params.order if getattr(params.spans, span)]
    lines = [
        f"# Perceptio, profile {profile}, variant {variant}",
        "",
        "A vision-language model that answers questions about one picture"
        + (f", and writes {', then '.join(spans)}, before its answer." if spans else ". It writes no perception tokens."),
        "An open implementation of the method of *Perceptio: Perception Enhanced Vision Language Models via Spatial Token",
        f"Generation* (arXiv 2603.18795), by perceptio {__version__}. {parameters:,} parameters.",
        "",
        "## Base",
        "",
        *_base(foundations),
        "",
        "## Data",
        "",
        f"{params.steps} steps of {params.batch_size} samples, drawn by the weights "
        + ", ".join(f"{task} {weight:g}" for task, weight in sorted(params.mixture.weights.items()) if weight > 0)
        + ". What there was to draw from:",
        "",
        "| task | data set | samples | records in them |",
        "|---|---|---:|---:|",
        *(
            f"| {task} | {name} | {counts['samples']} | {counts['records']} |"
            for task, sets in used.items()
            for name, counts in sorted(sets.items())
        ),
        "",
        _SCORES,
        "",
        _NO_SCORES,
        "",
        "## How to load",
        "",
        "With the package `perceptio` installed, and `PATH` this folder or its name on the hub:",
        "",
        "```python",
        "import perceptio_core.model.modeling  # makes the classes known",
        "from transformers import pipeline",
        "",
        'pipe = pipeline("image-text-to-text", model=PATH)',
        'print(pipe(images="picture.png", text="What is in the picture?", return_full_text=False))',
        "```",
        "",
        "Masks and depth maps: `perceptio_core.model.inference.Perceptor.from_pretrained(PATH).predict(images, questions)`, or",
        '`perceptio predict picture.png "What is in the picture?" --checkpoint PATH`.',
        "",
        "## Licences",
        "",
        *_licences(foundations),
        "",
        "## Not known",
        "",
        "- What data the base models were trained on, beyond what their makers say.",
        "- How the model fares on pictures unlike those above, or in other languages, and its bias: nobody has measured them.",
    ]
    return f"---\n{_metadata(foundations, used)}\n---\n\n" + "\n".join(lines) + "\n"


def with_scores(card: str, scores: Sequence[Mapping[str, Any]]) -> str:
    """The card with a table of scores in its section for them; none: as it is.

    Args:
        card: of `model_card`.
        scores: of the stage `evaluate`: name, value, low and high (95 % interval or None), n, protocol.

    Raises:
        ValueError: the card has no section for scores.
    """
    section = re.compile(rf"(?<=^{_SCORES}\n\n).*?(?=\n\n## )", re.DOTALL | re.MULTILINE)
    if not section.search(card):
        raise ValueError(f"the card has no section {_SCORES!r}")
    if not scores:
        return card
    rows = [
        f"| {row['name']} | {row['value']:.2f} | {_interval(row)} | {row['n']} | {str(row['protocol']).replace('|', '/')} |"
        for row in scores
    ]
    table = "\n".join(["| score | | 95 % interval | n | protocol |", "|---|---:|---|---:|---|", *rows])
    return section.sub(lambda _: table, card)


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"


def _metadata(foundations: FoundationsParams, used: Mapping[str, Mapping[str, Any]]) -> str:
    """YAML; what is not known is left out, since the hub refuses a card with an empty value."""
    bases = [model.repo for model in (foundations.internvl, foundations.sam2) if model is not None]
    licence: dict[str, Any] = (
        {"license": "other", "license_name": "licences-of-the-parts"} if bases else {"license": "apache-2.0"}
    )
    names = {name for sets in used.values() for name in sets}
    datasets = sorted(name.lower() for name in names if re.fullmatch(r"[\w.-]+", name))
    data = ModelCardData(
        base_model=bases or None,
        datasets=datasets or None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["perceptio", "image-segmentation", "depth-estimation"],
        **licence,
    )
    return str(data.to_yaml())


def _base(foundations: FoundationsParams) -> list[str]:
    if foundations.bundled is not None:
        return [f"The folder `{foundations.bundled}` of the project: " + "; ".join(_PARTS.values()) + "."]
    return [
        f"- {what}: [{model.repo}](https://huggingface.co/{model.repo}) at `{model.revision}`"
        for name, what in _PARTS.items()
        if (model := getattr(foundations, name)) is not None
    ]


def _licences(foundations: FoundationsParams) -> list[str]:
    own = "- What co-training added (token rows, prompt MLP, adapters, mask decoder, codebook): Apache-2.0, as the project."
    data = "- The data sets have licences of their own, which their makers state; this card does not know them."
    if foundations.bundled is not None:
        return [own, f"- The base in `{foundations.bundled}`: as that folder says; the project's own are Apache-2.0.", data]
    models = [model for name in _PARTS if (model := getattr(foundations, name)) is not None]
    return [
        own,
        *(
            f"- {model.repo}: as its makers state at https://huggingface.co/{model.repo}/tree/{model.revision}"
            for model in models
        ),
        data,
    ]
