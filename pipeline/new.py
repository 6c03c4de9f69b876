"""``perceptio new``: a profile for a person's own pictures, and what it assumes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from perceptio_core.data.readers.mask_pictures import is_numbered
from perceptio_core.data.readers.own_split import place
from perceptio_core.data.readers.questions import table_rows
from perceptio_core.data.records import Record, segment_question
from perceptio_core.evaluation.benchmarks.short_answers import folded
from perceptio_core.files import whole
from perceptio_core.params.profile import Profile, complete
from perceptio_core.params.values import PROFILES, read_values
from pipeline.own_data import OwnData, kind_of, read_own, said_left_out, validation_share

BUNDLED = "realdata"
"""The profile that gives what nobody says otherwise: real pictures, and the small models of this repository."""
EPOCHS = 10
"""How often each question and each mask is to be seen in training."""
_LEAST_STEPS, _MOST_STEPS = 100, 20_000
_BATCH, _AT_ONCE = 16, 2  # of the published models: samples a step, and of those at a time, as one GPU takes them
_WEIGHTS = {"referring": 0.4, "conversation": 0.4, "marker": 0.15, "depth_map": 0.05}
_LEAST_CODEBOOK_STEPS, _CODEBOOK_EPOCHS = 200, 100
_FEW = 1000  # pictures, of which no number of processes is worth their start
_LEAST_TOKENS, _MOST_TOKENS = 16, 256
_NO_ANSWERS = {"nan", "null", "none", "n/a", "na", "nil"}


def new(
    name: str, *, pictures: Path, questions: Path | None, coco: Path | None, base: str = BUNDLED, steps: int | None = None
) -> None:
    """Write ``profiles/<name>.yaml`` and print what it assumes.

    Args:
        name: of the profile.
        pictures: folder of the pictures.
        questions: the table.
        coco: the COCO file.
        base: the profile that gives the models and all that the data do not.
        steps: of the training; None: `EPOCHS` of the questions and masks.

    Raises:
        ValueError: the name or the number of steps is none, the profile exists, or the data cannot be used (`read_own`).
    """
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise ValueError(f"{name!r}: the name of a profile is made of letters, digits, - and _")
    if steps is not None and steps < 1:
        raise ValueError(f"--steps {steps}: at least 1")
    path = PROFILES / f"{name}.yaml"
    if path.exists():
        raise ValueError(f"{path} exists already; remove it, or choose another name")
    template = _template(base)
    data = read_own(name, pictures=pictures, questions=questions, coco=coco)
    share = validation_share(data)
    values = profile_values(data, template, share=share, title=name, steps=steps)
    said = describe(data, values, base=base, share=share, pictures=pictures)
    head = "\n".join(f"# {line}".rstrip() for line in [f"Profile {name}, as `perceptio new` made it.", "", *said])
    changes = {"extends": base, **_changes(template, values), "variants": values["variants"]}
    text = f"{head}\n\n{yaml.safe_dump(changes, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)}"
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
        Profile.of(read_values(unfinished))
    print("\n".join([f"{path} is written. What it assumes:", "", *said, "", f"Next: perceptio repro --profile {name}"]))


def _template(base: str) -> dict[str, Any]:
    if base not in (allowed := sorted(_real_profiles())):
        raise ValueError(f"--base {base}: allowed are the profiles for real pictures, {', '.join(allowed)}")
    return complete(read_values(PROFILES / f"{base}.yaml")).plain


def _real_profiles() -> list[str]:
    return [file.stem for file in PROFILES.glob("*.yaml") if read_values(file).plain["sources"]["render"] is None]


def _changes(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """What of the values is not as in the base."""
    return {
        key: _changes(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in values.items()
        if base.get(key) != value
    }


def profile_values(data: OwnData, template: dict[str, Any], *, share: float, title: str, steps: int | None) -> dict[str, Any]:
    """The complete set: as in the template but for what the data decide."""
    values = deepcopy(template)
    bundled = values["foundations"]["bundled"] is not None
    train = [record for record in data.records if _side(record, share) == "train"]
    train_pictures = len({record.image for record in train})
    values["sources"] = {
        "render": None,
        "root": str(data.root),
        "datasets": [
            {**entry, "split": split, "validation_share": share}
            for entry in data.datasets
            for split in ("train", "val")
            if any(record.source == entry["name"] and _side(record, share) == split for record in data.records)
        ],
        "held_out": [],
        "workers": values["sources"]["workers"],
    }
    codebook = values["depth_codebook"]
    wanted = max(_LEAST_CODEBOOK_STEPS, math.ceil(_CODEBOOK_EPOCHS * train_pictures / codebook["batch_size"]))
    codebook["steps"] = min(codebook["steps"], wanted)
    codebook["checkpoint_every"] = min(codebook["checkpoint_every"], max(1, codebook["steps"] // 2))
    joint = values["joint_shards"]
    joint["describe_objects"] = False
    if len(data.pictures) < _FEW:
        joint["depth_map_share"] = 1.0  # a share of few pictures may be none
        for section in ("sources", "teacher_depth", "joint_shards"):
            values[section]["workers"] = min(values[section].get("workers") or 2, 2)
    cotrain = values["cotrain"]
    if not bundled:
        cotrain |= {"batch_size": _BATCH, "processes": 1, "accumulation": _BATCH // _AT_ONCE}
    there = {"referring": any(record.masks for record in train), "conversation": any(not record.masks for record in train)}
    cotrain["mixture"] = {task: weight if there.get(task, True) else 0.0 for task, weight in _WEIGHTS.items()}
    cotrain["steps"] = steps or _steps(train, cotrain)
    for key in ("checkpoint_every", "validate_every"):
        cotrain[key] = max(1, cotrain["steps"] // 4)
    values["variants"] = {name: values["variants"][name] for name in ("full", "control")}
    values["active"] = ["full", "control"]
    longest = max((len(record.turns[0][1]) for record in data.of_kind("question")), default=0)
    values["evaluate"] = {
        **values["evaluate"],
        "max_new_tokens": min(max(_LEAST_TOKENS, longest + 8), _MOST_TOKENS),
        "benchmarks": _benchmarks(data, share),
    }
    low = (
        "The models are the small ones of this repository, which know a drawn world: scores on photographs are low with them. "
    )
    values["report"] = {
        "title": f"Perceptio on {title}",
        "caveat": f"{low if bundled else ''}A gain counts only against the control beside it. Few validation questions "
        "make wide intervals.",
        "max_panels": 16,
    }
    return values


def _steps(train: Sequence[Record], cotrain: dict[str, Any]) -> int:
    """So many that the questions and the masks are each seen `EPOCHS` times."""
    total = sum(cotrain["mixture"].values())
    samples = Counter("referring" if record.masks else "conversation" for record in train)
    needed = [EPOCHS * count * total / (cotrain["mixture"][task] * cotrain["batch_size"]) for task, count in samples.items()]
    return min(max(_LEAST_STEPS, math.ceil(max(needed))), _MOST_STEPS)


def _benchmarks(data: OwnData, share: float) -> list[dict[str, Any]]:
    """What of the validation pictures can be asked; the control has no masks and is not asked for them."""
    kinds = {kind_of(record, data) for record in data.records if _side(record, share) == "val"}
    found: list[dict[str, Any]] = []
    for entry in data.datasets:
        rest = {key: value for key, value in entry.items() if key not in ("name", "kind")} | {"validation_share": share}
        if entry["kind"] == "coco" and "object" in kinds:
            found.append({"kind": "masks", "name": "objects", **rest, "panels": 4, "except_variants": ["control"]})
        if entry["kind"] == "questions":
            if "question" in kinds:
                plain = {key: value for key, value in rest.items() if key != "masks"}
                found.append({"kind": "questions", **plain, "panels": 6})
            if "mask" in kinds:
                found.append({"kind": "masks", **rest, "panels": 6, "except_variants": ["control"]})
    return found


def describe(data: OwnData, values: dict[str, Any], *, base: str, share: float, pictures: Path) -> list[str]:
    """Lines that say what was found, and what the profile makes of it."""
    cotrain, codebook, evaluate = values["cotrain"], values["depth_codebook"], values["evaluate"]
    lines = [f"pictures    {len(data.pictures)} below {pictures.resolve()}"]
    lines += [f"            {data.unused} more there are in no row"] if data.unused else []
    lines += [f"            {data.copies} files are copies of others: one picture each"] if data.copies else []
    for entry in data.datasets:
        lines.append(f"{'table' if entry['kind'] == 'questions' else 'coco':<11} {data.root / entry['path']}")
        if entry["kind"] == "questions":
            lines.append("            columns: " + ", ".join(f"{ours} = {theirs!r}" for ours, theirs in data.columns.items()))
        folders = [f"{key} below {data.root / entry[key]}" for key in ("images", "masks") if key in entry]
        lines.append(f"            its paths: {', '.join(folders)}")
    if data.left_out:
        lines += [f"left out    {len(data.left_out)} files and rows:{said_left_out(data.left_out)}"]
    lines += [f"questions   {line}" for line in _questions(data.of_kind("question"))]
    lines += _masks(data)
    for side, what in (("train", "training"), ("val", "validation")):
        records = [record for record in data.records if _side(record, share) == side]
        counts = Counter(kind_of(record, data) for record in records)
        told = ", ".join(f"{counts[kind]} {kind}s" for kind in ("question", "mask", "object") if counts[kind])
        lines.append(f"{what:<11} {len({record.image for record in records})} pictures: {told}")
    lines.append(f"            by the hash of each picture's path, below {share}: pictures added later move none of these")
    if "masks" not in {entry["kind"] for entry in evaluate["benchmarks"]}:
        lines.append("            no mask to score: nothing is said about segmentation")
    drawn = ", ".join(f"{task} {weight}" for task, weight in cotrain["mixture"].items() if weight)
    lines.append(f"tasks       {drawn} (marked points and depth maps are made from the pictures)")
    published = "the small ones of this repository: scores on photographs will be low; --base perceptio-1b takes published ones"
    model = values["foundations"].get("internvl")
    lines.append(f"models      {model['repo'] + ', and the sizes of profile ' + base if model else published}")
    lines.append(
        f"training    {cotrain['steps']} steps of {cotrain['batch_size']} samples, each question and mask about "
        f"{_epochs(data, cotrain, share):.0f} times; codebook {codebook['steps']} steps"
    )
    lines.append("            full, and beside it the control: the same without perception tokens")
    told = "by the longest of yours" if evaluate["max_new_tokens"] < _MOST_TOKENS else "some of yours may be longer"
    lines.append(f"answers     at most {evaluate['max_new_tokens']} tokens: {told}")
    lines.append(f"the rest    as in {PROFILES / base}.yaml")
    return [part for line in lines for part in line.split("\n")]


def _questions(records: Sequence[Record]) -> list[str]:
    if not records:
        return ["none"]
    answers = Counter(folded(record.turns[0][1]) for record in records)
    common = ", ".join(f"{answer!r:.40} {count}" for answer, count in answers.most_common(3))
    lines = [f"{len(records)}, with {len(answers)} different answers, most often {common}"]
    asked = Counter((record.image, folded(record.turns[0][0])) for record in records)
    if again := sum(count - 1 for count in asked.values()):
        lines.append(f"{again} ask again what another row asks about the same picture")
    if empty := sum(count for answer, count in answers.items() if answer in _NO_ANSWERS):
        lines.append(f"{empty} have an answer such as 'nan' or 'none', which is trained and scored as it stands")
    return lines


def _masks(data: OwnData) -> list[str]:
    lines = []
    if masks := data.of_kind("mask"):
        named = sum(record.turns[0][0] == segment_question(record.expression or "") for record in masks)
        lines.append(
            f"masks       {len(masks)}: {named} name a thing, asked as {segment_question('...')!r}; "
            f"{len(masks) - named} ask as they stand"
        )
        (entry,) = (entry for entry in data.datasets if entry["kind"] == "questions")
        folder = data.root / entry.get("masks", ".")
        files = [
            folder / row["mask"]
            for row in table_rows(data.root / entry["path"])
            if isinstance(row, dict) and isinstance(row.get("mask"), str) and (folder / row["mask"]).is_file()
        ]
        if numbered := sum(map(is_numbered, files)):
            lines.append(f"            {numbered} PNGs hold several numbers: all that is not 0 is taken for the one object")
    if objects := data.of_kind("object"):
        lines.append(f"objects     {len(objects)}: all of a category in a picture, asked as {segment_question('...')!r}")
    return lines


def _epochs(data: OwnData, cotrain: dict[str, Any], share: float) -> float:
    """The least often that a question or a mask is seen."""
    samples = Counter(
        "referring" if record.masks else "conversation" for record in data.records if _side(record, share) == "train"
    )
    drawn, total = cotrain["steps"] * cotrain["batch_size"], sum(cotrain["mixture"].values())
    return min(drawn * cotrain["mixture"][task] / total / count for task, count in samples.items())


def _side(record: Record, share: float) -> str:
    return "val" if place(record.image) < share else "train"
