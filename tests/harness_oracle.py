"""Runs VLMEvalKit's or lmms-eval's own code on made-up answers; started by an interpreter that has that package, not by ours.

    python harness_oracle.py vlmevalkit|lmms_eval < answers.json > readings.json

The packages' ``__init__`` files load every model and data set that they know. They are passed by, so that the few modules that
read answers need little beside pandas.
"""

import importlib.metadata
import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any


def bare_packages(*names: str) -> None:
    """Put packages in place whose modules can be imported, without running what stands in their own files."""
    spec = importlib.util.find_spec(names[0])
    assert spec is not None
    assert spec.submodule_search_locations
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = [str(Path(spec.submodule_search_locations[0], *name.split(".")[1:]))]
        sys.modules[name] = module


def vlmevalkit(asked: dict[str, Any]) -> dict[str, Any]:
    bare_packages("vlmeval", "vlmeval.dataset", "vlmeval.dataset.utils")
    utils: Any = sys.modules["vlmeval.dataset.utils"]
    utils.DEBUG_MESSAGE, utils.build_judge = "", None
    import pandas as pd
    from vlmeval.dataset.image_mcq import ImageMCQDataset
    from vlmeval.dataset.image_yorn import ImageYORNDataset
    from vlmeval.dataset.utils.yorn import YOrN_Extraction
    from vlmeval.smp import load
    from vlmeval.utils.matching_util import can_infer

    def score(dataset: Any, name: str, records: list[dict[str, str]]) -> dict[str, float]:
        """The kit's whole evaluation of one table of answers without a judge, through its files."""
        with tempfile.TemporaryDirectory() as folder:
            questions, answers = Path(folder, f"{name}.tsv"), Path(folder, f"model_{name}.xlsx")
            pd.DataFrame(records).drop(columns="prediction").to_csv(questions, sep="\t", index=False)
            pd.DataFrame(records).to_excel(answers, index=False)
            made = dataset.__new__(dataset)
            made.dataset_name, made.data = name, load(str(questions))
            table = made.evaluate(str(answers), model="exact_matching")
            return {column: float(table[column].iloc[0]) for column in table if column != "split"}

    choice, yes_no = ImageMCQDataset, ImageYORNDataset
    return {
        "version": f"ms-vlmeval {importlib.metadata.version('ms-vlmeval')}",
        "options": [can_infer(row["answer"], dict(row["choices"])) or None for row in asked["options"]],
        "yes_no": [YOrN_Extraction(text) for text in asked["yes_no"]],
        "tables": {name: score(choice, name, records) for name, records in asked.get("tables", {}).items()},
        "mme": score(yes_no, "MME", asked["mme"]) if "mme" in asked else None,
    }


def lmms_eval(asked: dict[str, Any]) -> dict[str, Any]:
    bare_packages("lmms_eval", "lmms_eval.tasks", "lmms_eval.filters")
    from lmms_eval.tasks.ai2d.utils import ai2d_doc_to_text
    from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_process_results, parse_pred_ans
    from lmms_eval.tasks.scienceqa.utils import sqa_doc_to_text
    from lmms_eval.tasks.seedbench.utils import seed_doc_to_text

    ending = {"pre_prompt": "", "post_prompt": "\nAnswer with the option's letter from the given choices directly."}
    by_part: dict[str, list[Any]] = {}
    for record in asked.get("mme", []):
        document = {"question_id": record["image_path"], "category": record["category"], "answer": record["answer"]}
        for part, result in mme_process_results(document, [record["prediction"]]).items():
            by_part.setdefault(part, []).append(result)
    return {
        "version": f"lmms-eval {importlib.metadata.version('lmms-eval')}",
        "yes_no": [parse_pred_ans(text) for text in asked["yes_no"]],
        "mme": {part: mme_aggregate_results(results) for part, results in by_part.items()},
        "prompts": {
            "seed": [seed_doc_to_text(document) for document in asked.get("seed", [])],
            "ai2d": [ai2d_doc_to_text(document, {**ending, "prompt_format": "mcq"}) for document in asked.get("ai2d", [])],
            "scienceqa": [sqa_doc_to_text(document, {**ending, "format": "default"}) for document in asked.get("sqa", [])],
        },
    }


if __name__ == "__main__":
    answered = {"vlmevalkit": vlmevalkit, "lmms_eval": lmms_eval}[sys.argv[1]](json.load(sys.stdin))
    json.dump(answered, sys.stdout)
