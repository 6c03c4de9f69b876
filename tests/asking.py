"""Questions asked of a model in this process, without a suite."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from perceptio_core.engine import Local
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item
from perceptio_core.evaluation.running.runner import answers_of, ask, ask_batch, unanswered


def ask_here(items: Sequence[Item], predict: Any, *, journal: Path, batch_size: int, **options: Any) -> list[Answer]:
    """The answers in the order of the items; `journal` is where they are kept, ``<folder>/<label>.jsonl``."""
    where = {"label": journal.stem, "journals": journal.parent}
    batches = unanswered(items=items, pictured=[None] * len(items), batch_size=batch_size, **where)
    list(ask(Local(), lambda: partial(ask_batch, predict=predict, **options), batches, journals=journal.parent))
    known = answers_of(**where)
    return [known[item.item_id] for item in items]
