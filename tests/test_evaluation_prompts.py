"""The prompt of every benchmark, word for word: a changed prompt is another benchmark, so it must not change unseen."""

from pathlib import Path

import pytest

from test_evaluation_export import make

ENDING = "Answer with the option's letter from the given choices directly."
PROMPTS = {
    "refer": "Please segment left in this image.",
    "grefcoco": "Please segment s0 in this image.",
    "reasonseg": "Please segment the tap in this image.",
    "hardblink": "Which?",  # the files bring the whole prompt, as those of MME and BLINK do
    "mme": "Is it x?",
    "blink": "Which point is closer to the camera?\nSelect from the following choices.\n(A) A is closer\n(B) B is closer",
    "mmbench_tsv": f'Say "it"\nin two lines\nA. cat\nB. NA\n{ENDING}',
    "seed": f"How many?\nA. one\nB. two\nC. three\nD. four\n{ENDING}",
    "seed_table": f"Which?\nA. leaf\nB. root\n{ENDING}",
    "ai2d": f"Which?\nA. leaf\nB. root\n{ENDING}",
    "scienceqa": f"Which?\nA. leaf\nB. root\nC. stem\n{ENDING}",
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompt(tmp_path: Path, kind: str) -> None:
    benchmark, _ = make(kind, tmp_path)
    by_id = sorted(benchmark.items, key=lambda item: item.item_id) if kind == "mme" else list(benchmark.items)
    question = next(item.question for item in by_id)
    assert question == PROMPTS[kind]
