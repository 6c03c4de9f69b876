"""Co-training with the real model (tiny, random) on real shards: the stage as a command, its variants, its checkpoint."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

import published
from perceptio_core.data.loading.balance import deal
from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.data.loading.labels import ordered_turns
from perceptio_core.grammar import Role
from perceptio_core.model.assembly import assemble
from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.processing import PerceptioProcessor
from perceptio_core.params.base import read_yaml
from perceptio_core.params.cotrain import CotrainParams, MarkerQuestions
from perceptio_core.tied import tied
from perceptio_core.training.joint_batches import joint_batches
from perceptio_core.training.loop import Batches
from perceptio_core.training.randomness import seed_generators
from stages import cotrain
from tiny import LOSS_WEIGHTS
from tiny_checkout import MIXTURE, TASKS, params, run_stage, tiny_checkout, write_shards

SEGMENTED = {"weight": 0.1, "spans": ["segmentation"]}
CONTROL: dict[str, Any] = {"spans": {"segmentation": False, "depth": False}, "mixture": MIXTURE | {"depth_map": 0.0}}


@pytest.mark.parametrize(
    ("wanted", "gpus", "rank", "started"),
    [(1, None, None, None), (2, None, None, 2), (2, None, "0", None), (8, 1, None, None), (8, 4, None, 4)],
)
def test_the_stage_becomes_its_own_launcher(
    wanted: int, gpus: int | None, rank: str | None, started: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _path, command: commands.append(command))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(sys, "argv", ["cotrain", "--variant", "full"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    cotrain._start_processes(wanted)
    if started is None:
        assert commands == []
    else:
        ((python, *command),) = commands
        assert python == sys.executable
        _, *rank = tied("stages.cotrain", "--variant", "full")
        assert command[-len(rank) - 1 :] == [f"--nproc-per-node={started}", *rank]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout-like folder with everything that the stage reads."""
    return tiny_checkout(tmp_path_factory.mktemp("checkout"))


def measured_of(out: Path) -> dict[str, Any]:
    """What was measured of the run that made `out`; it lies apart."""
    measured: dict[str, Any] = json.loads((out.parents[1] / "measured" / f"cotrain@{out.name}.json").read_text())
    return measured


def test_two_runs_of_the_same_inputs_write_the_same_bytes(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for _ in range(2):
        out = run_stage(artifacts, monkeypatch, variant="twice", chosen=params(steps=2, checkpoint_every=1))
        written.append({file.relative_to(out): file.read_bytes() for file in out.rglob("*") if file.is_file()})
    assert len(written[0]) > 15
    assert [name for name, content in written[0].items() if written[1][name] != content] == []
    assert written[0].keys() == written[1].keys()


def test_the_stage_writes_a_checkpoint_that_loads_and_gives_the_same_losses(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run_stage(artifacts, monkeypatch, variant="full", chosen=params())
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint", "curves", "metrics.json", "summary.json"]
    assert not list((artifacts / ".work/tiny/cotrain").iterdir())
    kept = read_yaml(out / "checkpoint" / "params.yaml")
    assert (kept["profile"], kept["variant"]) == ("tiny", "full")
    assert CotrainParams.from_mapping(kept["cotrain"], where="kept") == params()
    metrics = json.loads((out / "summary.json").read_text())
    for name in (*LOSS_WEIGHTS, "total"):
        assert metrics[f"train_{name}"] > 0
        assert metrics[f"val_{name}"] > 0
    assert metrics["steps"] == 6
    measured = measured_of(out)
    assert measured["estimated_memory_gib"] > 0
    assert measured["seconds"] > 0
    assert measured["precision"] in ("no", "bf16")
    assert not measured.keys() & metrics.keys()
    assert sum(count for name, count in metrics.items() if name.startswith("drawn_")) == 6 * 8
    for start in ("share_", "wanted_share_"):
        assert sum(share for name, share in metrics.items() if name.startswith(start)) == pytest.approx(1, abs=1e-3)
    assert metrics["val_total"] == pytest.approx(sum(w * metrics[f"val_{name}"] for name, w in LOSS_WEIGHTS.items()), rel=1e-3)

    model = PerceptioForConditionalGeneration.from_pretrained(out / "checkpoint").eval()
    processor = PerceptioProcessor.from_pretrained(out / "checkpoint")
    batches = joint_batches(
        shards=artifacts / "artifacts/tiny/joint_shards",
        processor=processor,
        mixture=MIXTURE,
        batch_size=8,
        validate=True,
        seed=0,
    )
    totals = []
    for index in range(2):
        seed_generators(0, "validation", index)
        with torch.no_grad():
            totals.append(float(model(batches.validation(index))["total"]))
    assert np.mean(totals) == pytest.approx(metrics["val_total"], rel=1e-4)  # merged adapters, saved and read again

    card = (out / "checkpoint/README.md").read_text(encoding="utf-8")
    counts = json.loads((artifacts / "artifacts/tiny/joint_shards/index.json").read_text())["data"]["train"]
    for task, sets in counts.items():
        for name, numbers in sets.items():
            assert (f"| {task} | {name} | {numbers['samples']} | {numbers['records']} |" in card) == (MIXTURE.get(task, 0) > 0)
    assert "# Perceptio, profile tiny, variant full" in card
    assert "## Scores\n\nNot known" in card
    print(card)


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_a_base_published_in_bf16_trains_with_and_without_autocast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    """Without: on a CPU or GPU that has no bf16 arithmetic."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # else the precision of the tests before
    checkout = tiny_checkout(tmp_path)
    published.write_internvl(checkout / "artifacts/tiny/foundations/internvl", head="own", dtype=torch.bfloat16)
    monkeypatch.setattr("perceptio_core.training.loop.detect_precision", lambda: precision)
    out = run_stage(checkout, monkeypatch, variant="full", chosen=params(steps=2, train_vision_tower=False))
    model = PerceptioForConditionalGeneration.from_pretrained(out / "checkpoint", dtype="auto").eval()
    assert {parameter.dtype for parameter in model.vlm.parameters()} == {dtype}
    assert model.config.dtype == model.vlm.config.text_config.dtype == dtype
    assert {parameter.dtype for parameter in model.bridge.parameters()} == {torch.float32}
    prompts = PerceptioProcessor.from_pretrained(out / "checkpoint").prompts([Image.new("RGB", (32, 32))], ["Which point?"])
    (answer,) = model.answer(prompts, segment=True, depth=True, max_new_tokens=4)
    assert answer.masks
    assert answer.depth_map is not None


def test_gradient_checkpointing_changes_memory_and_nothing_else(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = []
    for checkpointing in (False, True):
        chosen = params(steps=2, gradient_checkpointing=checkpointing)
        with caplog.at_level("INFO", logger="cotrain"):
            out = run_stage(artifacts, monkeypatch, variant=f"checkpointing-{checkpointing}", chosen=chosen)
        metrics.append(json.loads((out / "summary.json").read_text()) | measured_of(out))
    plain, checkpointed = metrics
    assert checkpointed["train_total"] == pytest.approx(plain["train_total"], rel=1e-3)
    assert checkpointed["estimated_memory_gib"] < plain["estimated_memory_gib"]
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("memory of a step")]
    assert len(said) == 2
    assert "frozen weights" in said[0]
    (mixture,) = {text for record in caplog.records if (text := record.getMessage()).startswith("mixture: depth_map")}
    drawn, epochs = plain["drawn_depth_map"], plain["epochs_depth_map"]
    share, wanted = 100 * plain["share_depth_map"], 100 * plain["wanted_share_depth_map"]
    assert mixture == (
        f"mixture: depth_map: {share:.1f} % of the draws (wanted: {wanted:.1f} %), {drawn} times, "
        f"{epochs:.2f} epochs of its 6 samples; spans: segmentation, depth"
    )


def test_the_control_has_no_perception_token_and_no_other_loss(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run_stage(artifacts, monkeypatch, variant="control", chosen=params(**CONTROL, steps=2))
    metrics = json.loads((out / "summary.json").read_text())
    assert metrics["train_llm"] > 0
    assert all(metrics.get(f"train_{name}", 0) == 0 for name in LOSS_WEIGHTS if name != "llm")
    processor = PerceptioProcessor.from_pretrained(out / "checkpoint")
    batches = joint_batches(
        shards=artifacts / "artifacts/tiny/joint_shards",
        processor=processor,
        mixture=CONTROL["mixture"],
        batch_size=16,
        validate=False,
        seed=0,
    )
    batch = batches.train(0, 0, 1)
    assert not set(batch.input_ids_T.unique().tolist()) & set(processor.config.vocabulary.ids)
    assert set(batch.roles_T.unique().tolist()) == {Role.PROMPT, Role.ANSWER, Role.END}
    assert len(batch.masks_M) == 0
    with pytest.raises(ValueError, match="validation batch 0 was asked for"):
        batches.validation(0)


def tiny_processor(artifacts: Path, *, max_tiles: int = 1) -> PerceptioProcessor:
    made = artifacts / "artifacts/tiny"
    _, processor = assemble(
        foundations=made / "foundations",
        codebook=made / "depth_codebook",
        order=("segmentation", "depth"),
        loss_weights=LOSS_WEIGHTS,
        max_tiles=max_tiles,
        seed=0,
    )
    return processor


def eight_at_a_time(artifacts: Path) -> Batches:
    made, processor = artifacts / "artifacts/tiny", tiny_processor(artifacts)
    return joint_batches(
        shards=made / "joint_shards", processor=processor, mixture=MIXTURE, batch_size=8, validate=False, seed=3
    )


def test_parts_of_a_step_are_its_samples_once_each(artifacts: Path) -> None:
    batches = eight_at_a_time(artifacts)
    whole = batches.train(5, 0, 1).keys
    parts = [key for part in range(4) for key in batches.train(5, part, 4).keys]
    assert len(whole) == 8
    assert sorted(parts) == sorted(whole)
    assert batches.train(6, 0, 1).keys != whole


def test_parts_of_a_step_are_dealt_by_how_long_their_samples_are(artifacts: Path, tmp_path: Path) -> None:
    """By the image tokens of each and a token every four characters, marked pictures whose codes are read included.

    Pictures are 1 to 13 tiles, so dealing by number, by tiles or by text alone gives other parts.
    """
    write_shards(tmp_path / "shards", sizes=((32, 32), (96, 128), (32, 64), (80, 80)))
    processor = tiny_processor(artifacts, max_tiles=12)
    batches = joint_batches(
        shards=tmp_path / "shards",
        processor=processor,
        mixture=MIXTURE | {"reading": 0.2},
        batch_size=24,
        validate=False,
        seed=0,
    )
    dataset = JointDataset(tmp_path / "shards", "train")
    characters = {
        sample.key: sum(len(text) for turn in sample.turns for text in turn)
        for sample in (dataset[number] for number in range(len(dataset)))
    }
    whole = batches.train(0, 0, 1)
    pictures = [int((ids_T == processor.image_token_id).sum()) for ids_T in whole.input_ids_T.split(whole.lengths)]
    texts = [characters[key] // 4 for key in whole.keys]
    assert set(pictures) == {4, 12, 40, 52}
    assert processor.config.vocabulary.is_code(whole.input_ids_T[whole.roles_T == Role.ANSWER]).any(), "codes that are read"

    def dealt(lengths: list[int]) -> list[tuple[str, ...]]:
        rows = deal(range(24), lengths, parts=3)
        return [tuple(whole.keys[row] for row in part) for part in rows]

    found = [batches.train(0, part, 3).keys for part in range(3)]
    assert found == dealt([sum(both) for both in zip(pictures, texts, strict=True)])
    assert all(found != dealt(others) for others in ([1] * 24, pictures, texts))


def test_the_prompt_is_centred_on_samples_with_masks_wherever_they_come_in_a_step(artifacts: Path) -> None:
    batches = eight_at_a_time(artifacts)
    found = list(cotrain._segmented(batches, params(steps=2, batch_size=8)))
    wanted = sum(len(batches.train(step, 0, 1).masks_M) for step in range(2))
    assert all(len(batch.keys) == len(batch.masks_M) == 1 for batch in found)
    assert len(found) == wanted > 0


def test_every_batch_gives_a_gradient_to_the_same_parameters(artifacts: Path) -> None:
    """Whatever its tasks: ranks that exchange the gradients of a group would else wait for each other (`sharding.shard`)."""
    made = artifacts / "artifacts/tiny"
    without = []
    for task, spans in [*((task, {}) for task in TASKS), ("referring", {"referring": ()})]:
        model, processor = cotrain._assemble(
            params(), foundations=made / "foundations", codebook=made / "depth_codebook", autocast=False
        )
        cotrain._groups(model, params())
        batches = joint_batches(
            shards=made / "joint_shards",
            processor=processor,
            mixture={task: 1.0},
            spans=spans,
            own_codes=1.0,
            batch_size=1,
            validate=False,
            seed=0,
        )
        losses = model(batches.train(0, 0, 1))
        losses["total"].backward()
        named = model.named_parameters()
        without.append({name for name, parameter in named if parameter.requires_grad and parameter.grad is None})
    assert without == [set()] * (len(TASKS) + 1)
    assert {name for name, loss in losses.items() if loss > 0} == {"llm", "total"}, "of the sample without spans"


def test_what_is_supervised_of_each_task_can_be_read(artifacts: Path) -> None:
    """The whole supervised text of samples of each task: the spans that its row names, in their order, then the answer."""
    made = artifacts / "artifacts/tiny"
    processor = tiny_processor(artifacts)
    dataset = JointDataset(made / "joint_shards", "train")
    samples = {sample.key: sample for sample in (dataset[number] for number in range(len(dataset)))}
    end = processor.decode([processor.config.end_token_id])
    chosen = params(
        mixture={
            "referring": {"weight": 0.25, "spans": ["depth", "segmentation"]},
            "conversation": {"weight": 0.25, "spans": []},
            "marker": {"weight": 0.25, "spans": ["segmentation"]},
            "depth_map": 0.25,
            "reading": {"weight": 0.25, "spans": ["depth"]},
        }
    ).mixture
    other = {"referring": (), "conversation": ("depth",), "depth_map": ("depth",)}

    def supervised(mixture: dict[str, float], spans: Any) -> tuple[set[tuple[str, str]], PerceptioBatch]:
        """(task, supervised text with ... for the codes of the picture) of some samples."""
        batch = joint_batches(
            shards=made / "joint_shards",
            processor=processor,
            mixture=mixture,
            spans=spans,
            batch_size=60,
            validate=False,
            seed=0,
        ).train(0, 0, 1)
        perception = set(processor.config.vocabulary.ids)
        found = set()
        rows = zip(batch.keys, batch.input_ids_T.split(batch.lengths), batch.roles_T.split(batch.lengths), strict=True)
        for key, ids_T, roles_T in rows:
            assert not perception & set(ids_T[roles_T == Role.PROMPT].tolist())
            codes = "".join(f"<depth_{code}>" for code in samples[key].depth_codes or ())
            found.add((samples[key].task, processor.decode(ids_T[roles_T != Role.PROMPT].tolist()).replace(codes, "...")))
        return found, batch

    span = "<depth_start>...<depth_end>"
    found, batch = supervised(chosen.weights, chosen.spans)
    readings = {said for task, said in found if task == "marker" and "depth" in said}
    assert all(re.fullmatch(re.escape(span) + 2 * (r"<depth_\d>" + re.escape(end)), said) for said in readings)
    assert len(readings) >= 3
    assert {(task, said) for task, said in found if said not in readings} == {
        ("referring", f"[SEG]{span}Sure, here it is.{end}"),
        ("conversation", f"(A){end}"),
        ("marker", f"(A){end}"),
        ("depth_map", f"{span}{end}"),
    }
    assert len(batch.masks_M) == sum(samples[key].task == "referring" for key in batch.keys) > 0

    found, batch = supervised(dict.fromkeys(TASKS, 1.0), other)
    assert found == {
        ("referring", f"Sure, here it is.{end}"),
        ("conversation", f"{span}(A){end}"),
        ("marker", f"{span}(A){end}"),
        ("depth_map", f"{span}{end}"),
    }
    assert len(batch.masks_M) == 0


def test_steps_of_own_codes_grow_evenly_to_their_share_on_every_rank(artifacts: Path) -> None:
    """Of 8 steps with half at the end: 0.5 / 8 * s ** 2 / 2 passes a whole number in the steps 5 (1.125) and 7 (2)."""
    made, processor = artifacts / "artifacts/tiny", tiny_processor(artifacts)
    batches = joint_batches(
        shards=made / "joint_shards",
        processor=processor,
        mixture=MIXTURE,
        batch_size=8,
        validate=True,
        seed=0,
        own_codes=0.5,
        steps=8,
    )
    for part in range(2):
        assert [step for step in range(8) if batches.train(step, part, 2).own_codes] == [5, 7]
    assert not batches.validation(0).own_codes


def test_labels_that_are_left_out_leave_the_depth_codes(artifacts: Path) -> None:
    """Of the marker samples one picture is left, with its codes; the other tasks are drawn as before."""
    made, processor = artifacts / "artifacts/tiny", tiny_processor(artifacts)

    def keys(markers: MarkerQuestions) -> tuple[list[str], int]:
        batches = joint_batches(
            shards=made / "joint_shards",
            processor=processor,
            mixture=MIXTURE,
            batch_size=40,
            validate=False,
            seed=3,
            markers=markers,
        )
        batch = batches.train(0, 0, 1)
        return list(batch.keys), int((batch.roles_T == Role.DEPTH_START).sum())

    dataset = JointDataset(made / "joint_shards", "train")
    marked = {dataset[int(number)].key for number in dataset.tasks["marker"]}
    everything, spans = keys(MarkerQuestions())
    one, spans_of_one = keys(MarkerQuestions(limit=1))
    assert spans == spans_of_one == 40
    assert [key for key in one if key not in marked] == [key for key in everything if key not in marked]
    assert len({key for key in everything if key in marked}) > len({key for key in one if key in marked}) == 1

    # Marked pictures without their labels have codes to read.
    batch = joint_batches(
        shards=made / "joint_shards",
        processor=processor,
        mixture={"marker": 1.0, "reading": 1.0},
        batch_size=40,
        validate=False,
        seed=3,
        markers=MarkerQuestions(limit=1),
    ).train(0, 0, 1)
    (labelled,) = {key for key in one if key in marked}
    vocabulary, readings = processor.config.vocabulary, []
    for key, ids, roles in zip(
        batch.keys, batch.input_ids_T.split(batch.lengths), batch.roles_T.split(batch.lengths), strict=True
    ):
        said = ids[roles == Role.ANSWER]
        codes = (said >= vocabulary.first_code) & (said < vocabulary.first_code + vocabulary.num_codes)
        if codes.any():
            readings.append(key)
            assert codes.tolist() == [True, True]  # one for each point, and nothing else
        else:
            assert key == labelled
    assert 10 < len(readings) < 30
    assert set(readings) == marked


def test_a_comparison_can_be_asked_first(artifacts: Path, tmp_path: Path) -> None:
    """The answers in the order in which the model is to give them: those of the shards, or as `ordered_turns` has them."""
    write_shards(tmp_path / "shards", per_task=12, marker_turns=(("Nearest?", "(A)"), ("A or B?", "(B)"), ("A or C?", "(C)")))
    processor, dataset = tiny_processor(artifacts), JointDataset(tmp_path / "shards", "train")
    samples = {sample.key: sample for sample in (dataset[int(number)] for number in dataset.tasks["marker"])}

    def answers(markers: MarkerQuestions) -> dict[str, str]:
        batch = joint_batches(
            shards=tmp_path / "shards",
            processor=processor,
            mixture={"marker": 1.0},
            batch_size=len(samples),
            validate=False,
            seed=0,
            markers=markers,
        ).train(0, 0, 1)
        rows = zip(batch.keys, batch.input_ids_T.split(batch.lengths), batch.roles_T.split(batch.lengths), strict=True)
        return {key: "".join(re.findall("[ABC]", processor.decode(ids[roles == Role.ANSWER]))) for key, ids, roles in rows}

    assert answers(MarkerQuestions()) == dict.fromkeys(samples, "ABC")
    either = MarkerQuestions(first="either")
    expected = {
        key: "".join(answer[1] for _, answer in ordered_turns(sample, wanted=either)) for key, sample in samples.items()
    }
    assert answers(either) == expected
    assert set(expected.values()) == {"ABC", "BAC", "BCA"}


@pytest.mark.parametrize(
    ("batch_size", "processes", "accumulation", "ranks", "expected"),
    [
        (64, 8, 4, 8, 4),
        (64, 8, 4, 1, 32),  # one GPU in place of eight: two samples at a time, as there
        (64, 8, 4, 4, 8),
        (64, 8, 4, 16, 2),
        (64, 8, 4, 64, 1),
        (24, 4, 2, 3, 4),  # eight parts do not divide among three: two samples at a time, not three
        (64, 1, 1, 2, 1),
    ],
)
def test_fewer_ranks_take_more_micro_batches_of_the_same_size(
    batch_size: int, processes: int, accumulation: int, ranks: int, expected: int
) -> None:
    meant = params(batch_size=batch_size, processes=processes, accumulation=accumulation)
    on_ranks = meant.on_ranks(ranks)
    assert (on_ranks.processes, on_ranks.accumulation) == (ranks, expected)
    assert batch_size // (ranks * expected) <= batch_size // (processes * accumulation)


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"cotrain\.batch_size 64 does not divide among 3 processes"):
        params(batch_size=64, processes=8, accumulation=4).on_ranks(3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"spans": {"segmentation": True, "depth": False}}, "mixture.depth_map must be 0 when spans.depth is false"),
        (
            {**CONTROL, "mixture": MIXTURE | {"depth_map": 0.0, "reading": 0.1}},
            "mixture.reading must be 0 when spans.depth is false: its answers consist of the codes",
        ),
        ({"batch_size": 8, "accumulation": 3}, "batch_size 8 must be a multiple of processes 1 x accumulation 3"),
        ({"order": ["depth", "depth"]}, "order must name segmentation and depth once each"),
        ({"mixture": dict.fromkeys(TASKS, 0.0)}, "mixture: at least one task needs a weight above 0"),
        (
            {"spans": {"segmentation": False, "depth": True}, "mixture": MIXTURE | {"referring": SEGMENTED}},
            "mixture.referring.spans names segmentation, but spans.segmentation is false: nothing writes it",
        ),
        (
            {**CONTROL, "mixture": CONTROL["mixture"] | {"marker": {"weight": 0.1, "spans": ["depth"]}}},
            "mixture.marker.spans names depth, but spans.depth is false",
        ),
        ({"mixture": MIXTURE | {"depth_map": SEGMENTED}}, "mixture.depth_map.spans must name depth: its answers consist of"),
        ({"mixture": MIXTURE | {"reading": SEGMENTED}}, "mixture.reading.spans must name depth: its answers consist of"),
        ({"mixture": MIXTURE | {"marker": SEGMENTED | {"spans": ["seg"]}}}, r"mixture.marker.spans.0: Input should be 'segm"),
        (
            {"mixture": MIXTURE | {"marker": SEGMENTED | {"spans": 2 * ["depth"]}}},
            "mixture.marker: spans must name .* at most once",
        ),
        ({"mixture": MIXTURE | {"marker": SEGMENTED | {"wieght": 1}}}, "mixture.marker.wieght: unknown key"),
        ({"mixture": MIXTURE | {"marker": -1}}, "mixture.marker.weight: Input should be greater than or equal to 0"),
        ({"mixture": MIXTURE | {"marker": True}}, "mixture.marker"),
        ({"lora": {"r": 4, "alpha": 8, "dropout": 0.1, "rank": 2}}, "lora.rank: unknown key"),
        ({"steps": 0}, "steps: Input should be greater than 0"),
    ],
)
def test_impossible_parameters_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        params(**overrides)


def test_training_fits_a_handful_of_samples(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 samples of two answers, many steps: what can be learnt by heart is."""
    rates = dict.fromkeys(("adapters", "added_rows", "projector", "prompt", "mask_decoder"), 1e-2) | {"vision_tower": 3e-3}
    lora = {"r": 8, "alpha": 16, "dropout": 0.0}
    chosen = params(steps=60, learning_rates=rates, lora=lora, validation_batches=0, checkpoint_every=60)
    out = run_stage(artifacts, monkeypatch, variant="fit", chosen=chosen)
    first = _first_values(out / "curves/plots/metrics/train")
    metrics = json.loads((out / "summary.json").read_text())
    for name in ("llm", "marker", "total"):
        assert metrics[f"train_{name}"] < 0.4 * first[name], name


def _first_values(folder: Path) -> dict[str, float]:
    return {path.stem: float(path.read_text().splitlines()[1].split("\t")[1]) for path in folder.glob("*.tsv")}
