"""``perceptio publish``: a trained checkpoint, with its scores in its model card, on the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from perceptio_core.model.card import with_scores

CARD = "README.md"


def publish(checkpoint: Path, repo: str, *, scores: Path | None, private: bool) -> str:
    """Bring a checkpoint to the hub in one commit; gives the commit's address.

    The files on this disk stay as they are: the scores are in the card that is sent.

    Args:
        checkpoint: folder that `cotrain` wrote.
        repo: owner/name; made if absent.
        scores: metrics.json of the stage `evaluate`; None where there is none, and the card says so.
        private: whether a new repository is.

    Raises:
        ValueError: no checkpoint is there, or the hub refuses; says what it says.
    """
    card = checkpoint / CARD
    if not card.is_file() or not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint}: no checkpoint with a model card; `perceptio repro cotrain` makes one")
    rows = [] if scores is None else json.loads(scores.read_text(encoding="utf-8"))
    text = with_scores(card.read_text(encoding="utf-8"), rows)
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file != card)
    operations = [
        CommitOperationAdd(CARD, text.encode()),
        *(CommitOperationAdd(file.relative_to(checkpoint).as_posix(), str(file)) for file in files),
    ]
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.create_commit(repo, operations, commit_message="Checkpoint of perceptio").commit_url)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{repo}: the hub refuses it: {said}\nHF_TOKEN or `hf auth login` names an account.") from error
