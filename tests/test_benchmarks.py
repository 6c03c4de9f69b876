"""The benchmarks at a tiny size on the CPU: their counts against oracles, and that one fault does not end them."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode
from transformers import InternVLConfig, InternVLProcessor

from benchmarks import gpu, packing
from benchmarks.architectures import processor_of
from benchmarks.attention import Shape, compare
from benchmarks.balance import first_fit
from benchmarks.flops import step_flops
from benchmarks.full_size import Record, Subject, measure_attention, measure_subject
from benchmarks.padding import padded_flops
from benchmarks.real_mix import TILE_TOKENS, TILES, Length, draw_lengths
from benchmarks.res_errors import nearest_object
from benchmarks.results import END, START, fill, tables
from benchmarks.unconstrained import Kept, kept
from perceptio_core.data import rle
from perceptio_core.grammar import Grammar, Role
from perceptio_core.model.adapters import add_adapters
from perceptio_core.model.packed_attention import PACKED
from perceptio_core.params.profile import load_profile
from perceptio_core.params.values import PROFILES
from perceptio_core.segmentation.sam2 import mini_config
from perceptio_core.vocabulary import Vocabulary
from tiny import tiny_internvl, tiny_perceptio, tiny_sample

REPOSITORY = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def subject(folder: Path) -> Subject:
    profile = load_profile("mini", folder=REPOSITORY / PROFILES)
    tiny_internvl(folder, tied=False)
    book = {"num_codes": 6, "resolution": 16, "widths": (4, 8, 8), "dim": 8}
    return Subject(
        vlm=InternVLConfig.from_pretrained(folder),
        processor=InternVLProcessor.from_pretrained(folder),
        sam2=mini_config(),
        codebook=profile.depth_codebook.model_copy(update=book),
        cotrain=profile.variant("full").model_copy(update={"accumulation": 2, "gradient_checkpointing": True, "max_tiles": 4}),
    )


def record(folder: Path, *, seconds: float = 600.0) -> Record:
    return Record(path=folder / "out.json", deadline=time.monotonic() + seconds, content={"device": "cpu"})


def test_full_size_at_a_tiny_size(tmp_path: Path) -> None:
    kept = record(tmp_path)
    measure_subject(kept, "tiny", lambda: subject(tmp_path / "internvl"), device=CPU, steps=2)
    found = json.loads((tmp_path / "out.json").read_text())["measurements"]
    assert [name.removeprefix("tiny, ") for name in found] == [
        "building",
        "training",
        "without checkpointing",
        "merging",
        "generation of 1",
        "generation of 16",
    ]
    assert not [name for name, result in found.items() if "failed" in result or "skipped" in result]
    training = found["tiny, training"]
    assert (training["steps"], training["micro_batches"], training["samples_per_step"]) == (2, 2, 4)
    assert training["shape"]["masks"] == 10
    assert training["shape"]["code_tokens"] == 2 * (4 + 1)
    assert training["tflop_per_step"] == pytest.approx(sum(training["tflop_by_part"].values()))
    assert training["loss_after"] < training["loss_before"]
    for rows in (1, 16):
        generation = found[f"tiny, generation of {rows}"]
        assert generation["depth_codes"] == 4 * rows
        assert generation["masks"] >= rows
        assert generation["tokens"] >= (1 + 2 + 4 + 1) * rows


def test_a_fault_and_a_late_hour_end_one_measurement_each(tmp_path: Path) -> None:
    def fault() -> dict[str, int]:
        raise RuntimeError("no such kernel")

    kept = record(tmp_path)
    kept.measure("first", fault)
    kept.measure("second", lambda: {"value": 1})
    kept.deadline = time.monotonic() - 1
    kept.measure("third", lambda: {"value": 2})
    found = json.loads((tmp_path / "out.json").read_text())["measurements"]
    assert "no such kernel" in found["first"]["failed"]
    assert found["second"]["value"] == 1
    assert found["third"]["skipped"] == "no time left"


def test_attention_compares_the_ways_of_the_machine(tmp_path: Path) -> None:
    shape = Shape(heads=4, key_heads=2, dim=8, lengths=(5, 1, 9))
    kept = record(tmp_path)
    measure_attention(kept, device=CPU, shapes={"tiny": shape})
    ways = kept.content["measurements"]["attention, tiny"]
    assert ways.pop("took_seconds") >= 0
    assert list(ways) == ["padded", "one kernel a sample"]
    for result in ways.values():
        assert result["error"] < 1e-6
        assert result["gradient_error"] < 1e-6
        assert result["milliseconds"] > 0
        assert result["first_milliseconds"] > 0
    assert ways["padded"]["speed"] == 1
    halved = compare(shape, device=CPU, dtype=torch.bfloat16, repeats=1)
    assert 1e-4 < halved["padded"]["error"] < 2e-2


def test_operations_are_those_that_torch_counts(tmp_path: Path) -> None:
    """But for what torch counts otherwise: attention without regard to the causal mask, and the head as a trained matrix."""
    model, processor = tiny_perceptio(tmp_path, tied=False, order=("depth",), reconstruction=0.0)
    add_adapters(model, rank=4, alpha=8, dropout=0.0, train_vision_tower=False)
    batch = processor.collate([tiny_sample(number, masks=0, depth=True, turns=1 + number) for number in range(2)])
    expected = step_flops(model.train(), batch)
    assert set(expected) == {"language model", "attention", "output head", "vision tower", "projector"}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(batch)["total"].backward()
    counted = counter.get_total_flops()
    # The patch embedding sees no class token, for which the formula counts it as well.
    kernel = model.vlm.model.vision_tower.embeddings.patch_embeddings.projection.weight.numel()
    whole = sum(expected.values()) + expected["attention"] + expected["output head"] / 2 - 2 * len(batch.pixels_PCHW) * kernel
    assert counted == pytest.approx(whole, rel=1e-3)


def test_operations_of_a_padded_batch_are_those_that_torch_counts(tmp_path: Path) -> None:
    """`transformers`' own loss over a padded batch; torch counts the head as a trained matrix, as above."""
    model, processor = tiny_perceptio(tmp_path, tied=False, order=("depth",), reconstruction=0.0)
    add_adapters(model, rank=4, alpha=8, dropout=0.0, train_vision_tower=False)
    batch = processor.collate([tiny_sample(number, masks=0, depth=True, turns=1 + number) for number in range(2)])
    assert batch.lengths[0] != batch.lengths[1]
    ids = pad_sequence(list(batch.input_ids_T.split(batch.lengths)), batch_first=True)
    there = pad_sequence([torch.ones(length, dtype=torch.int64) for length in batch.lengths], batch_first=True)
    model.train().vlm.set_attn_implementation("sdpa")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.vlm(input_ids=ids, attention_mask=there, pixel_values=batch.pixels_PCHW, labels=ids).loss.backward()
    expected = padded_flops(model, batch, everywhere=True)
    kernel = model.vlm.model.vision_tower.embeddings.patch_embeddings.projection.weight.numel()
    whole = sum(expected.values()) + expected["output head"] / 2 - 2 * len(batch.pixels_PCHW) * kernel
    assert counter.get_total_flops() == pytest.approx(whole, rel=1e-3)
    sparing = padded_flops(model, batch, everywhere=False)
    assert sparing | {"output head": 0.0} == expected | {"output head": 0.0}
    assert sparing["output head"] == step_flops(model, batch)["output head"]


def measured() -> dict[str, object]:
    """What `benchmarks.full_size` might have written of one size, with invented numbers."""
    memory = {"peak_gib": 8.0, "estimated_gib": 7.2, "estimated_over_measured": 0.9}
    shape = {"tokens": 7400, "tiles": 26, "masks": 10, "code_tokens": 202}
    training = {"seconds_per_step": 0.5, "samples_per_step": 8, "micro_batches": 4, "tokens_per_second": 59200.0, "mfu": 0.31}
    return {
        "device": "a GPU",
        "torch": "2.11",
        "transformers": "5.17",
        "measurements": {
            "attention, 1B, two samples": {
                "padded": {"error": 0.002, "milliseconds": 4.0},
                "flash_attention_2": {"failed": "no kernel"},
            },
            "perceptio-1b, training": training | memory | {"shape": shape},
            "perceptio-8b, training": {"failed": "Traceback\n  line\nOutOfMemoryError: too much\n"},
        },
    }


def test_the_page_shows_what_was_measured_and_names_what_was_not() -> None:
    text = tables(measured())
    assert "2 samples with 7400 tokens, 26 tiles, 10 masks and 200 depth codes" in text
    assert "| perceptio-1b | 0.50 | 8 | 59,200 | – | 31.0% | 8.0 | 7.2 | 0.90 |" in text
    assert "| perceptio-8b | – | – | – | – | – | – | – | – |" in text
    assert "| 1B, two samples | padded | 2.0e-03 | – | – | 4.00 | – |" in text
    assert "- attention, 1B, two samples, flash_attention_2: failed, no kernel" in text
    assert "- perceptio-8b, training: failed, OutOfMemoryError: too much" in text


def test_only_what_stands_between_the_marks_changes(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    fill(page, "new\n")
    assert page.read_text() == f"before\n{START}\nnew\n{END}\nafter\n"


def test_a_page_without_the_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    with pytest.raises(ValueError, match=r"results\.md: not found"):
        fill(page, "new\n")
    page.write_text(f"{END}\n{START}\n")
    with pytest.raises(ValueError, match="expected <!-- full size --> and, after it, <!-- end of full size -->"):
        fill(page, "new\n")
    assert page.read_text() == f"{END}\n{START}\n"


def test_the_page_in_docs_holds_what_its_file_says(tmp_path: Path) -> None:
    """And the study's tables stay as they are."""
    page, copy = REPOSITORY / "docs" / "results.md", tmp_path / "results.md"
    copy.write_bytes(page.read_bytes())
    fill(copy, tables(json.loads((REPOSITORY / "docs" / "results" / "full_size.json").read_text())))
    assert copy.read_text() == page.read_text()


def test_the_real_mix_has_its_shares_and_lengths() -> None:
    mixture = load_profile("perceptio-1b", folder=REPOSITORY / PROFILES).variant("full").mixture.weights
    lengths = draw_lengths(mixture, count=4000, seed=0)
    assert lengths == draw_lengths(mixture, count=4000, seed=0)
    assert lengths != draw_lengths(mixture, count=4000, seed=1)
    pictures = sum(TILES.values())
    for tiles, count in TILES.items():
        share = sum(length.tiles == tiles for length in lengths) / len(lengths)
        assert share == pytest.approx(count / pictures, abs=0.03)
    for length in lengths:
        text = length.tokens - length.tiles * TILE_TOKENS
        assert 102 + 1 <= length.supervised <= 102 + 6 * 60 + 6
        assert 2 + 102 + 7 + 1 + 10 <= text <= 2 + 102 + 10 * (30 + 25 + 10)


def test_rows_are_filled_first_fit_by_length() -> None:
    assert first_fit([3, 7, 2, 5, 6, 4], 10) == [[7, 3], [6, 4], [5, 2]]


def test_the_tiles_are_those_of_the_pictures() -> None:
    folder = os.environ.get("PERCEPTIO_REALDATA")
    if not folder:
        pytest.skip("PERCEPTIO_REALDATA does not name a folder with coco/instances.json")
    images = json.loads((Path(folder) / "coco" / "instances.json").read_text())["images"]
    cut = processor_of(1000).image_processor.get_number_of_image_patches
    options = {"crop_to_patches": True, "min_patches": 1, "max_patches": 12}
    assert Counter(cut(image["height"], image["width"], options) for image in images) == TILES


def test_packing_compares_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "detect_precision", lambda: "no")
    model, processor = tiny_perceptio(tmp_path)
    add_adapters(model, rank=4, alpha=8, dropout=0.0, train_vision_tower=False)
    model.train()
    batches = [processor.collate([tiny_sample(0, masks=0, depth=True), tiny_sample(1, masks=0, depth=False, turns=2)])] * 3
    read, written = [], []
    model.vlm.model.register_forward_pre_hook(
        lambda _, __, given: read.append((tuple(given["input_ids"].shape), model.vlm.config._attn_implementation)),
        with_kwargs=True,
    )
    model.vlm.get_output_embeddings().register_forward_hook(lambda _, __, logits: written.append(tuple(logits.shape[:-1])))
    result = packing.compare(model, batches, device=CPU, deadline=time.monotonic() + 600)
    short, long = sorted(batches[0].lengths)
    supervised = int((batches[0].roles_T != Role.PROMPT).sum())
    padded, packed = ((2, long), "sdpa"), ((1, short + long), PACKED)
    orders = [[(padded, (2, long)), (padded, (supervised,)), (packed, (supervised,))]]
    orders += [orders[0][1:] + orders[0][:1], orders[0][2:] + orders[0][:2]]
    assert list(zip(read, written, strict=True)) == [call for order in orders for call in order], "each way is itself, in turn"
    assert short < long
    assert result["batches"] == 2
    assert result["padding"] == pytest.approx((long - short) / (2 * long))
    assert result["loss_difference"] < 2e-6, "all ways compute the same"
    assert packing.compare(model, batches, device=CPU, deadline=time.monotonic() - 1) == {}


def test_packing_tells_useful_tokens_a_second_and_keeps_what_it_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that gives the padded way 6 s, the lean one 3 s and packing 2 s a batch."""
    model, processor = tiny_perceptio(tmp_path)
    batch = processor.collate([tiny_sample(0, masks=0, depth=True), tiny_sample(1, masks=0, depth=False, turns=2)])
    took = {"padded": 6.0, "lean": 3.0, "packed": 2.0}
    clock = [0.0]

    def way(name: str) -> Any:
        def run(*_: Any) -> torch.Tensor:
            clock[0] += took[name]
            return torch.zeros((), requires_grad=True)

        return run

    monkeypatch.setattr(packing, "now", lambda _: clock[0])
    monkeypatch.setattr(packing, "WAYS", {name: (label, kind, way(name)) for name, (label, kind, _) in packing.WAYS.items()})
    monkeypatch.setattr(packing, "_mini", lambda count, **_: (model, iter([batch] * count)))
    monkeypatch.setattr("sys.argv", ["packing", "--batches", "2", "--out", str(tmp_path / "out.json")])
    packing.main()
    (told,) = json.loads((tmp_path / "out.json").read_text())
    assert (told["batches"], told["ratio"], told["ratio_lean"]) == (2, 3.0, 1.5)
    for name, seconds in took.items():
        assert told[f"{name}_tokens_per_second"] == pytest.approx(sum(batch.lengths) / seconds), "padding is of no use"
        assert told[f"{name}_milliseconds"] == pytest.approx(1000 * seconds)


def test_a_row_of_the_real_mix_is_what_the_model_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_perceptio(tmp_path)
    monkeypatch.setattr(packing, "TILE_TOKENS", model.vlm.config.image_seq_length)
    lengths = [Length(tiles=2, tokens=30, supervised=9), Length(tiles=1, tokens=11, supervised=2)]
    batch = packing.real_batch(lengths, model=model, seed=0)
    assert batch.lengths == (30, 11)
    assert batch.positions_T.tolist() == [*range(30), *range(11)]
    assert batch.roles_T.tolist() == [Role.PROMPT] * 21 + [Role.ANSWER] * 9 + [Role.PROMPT] * 9 + [Role.ANSWER] * 2
    assert int((batch.input_ids_T == model.vlm.config.image_token_id).sum()) == 3 * model.vlm.config.image_seq_length
    packing.compare(model, [batch], device=CPU, deadline=time.monotonic() + 600)


def test_the_object_that_a_mask_lies_on() -> None:
    def columns(start: int, stop: int) -> dict[str, object]:
        mask = np.zeros((4, 12), np.bool_)
        mask[:, start:stop] = True
        return rle.encode(mask)

    objects = {7: columns(0, 4), 8: columns(4, 8), 9: columns(0, 4)}
    assert nearest_object(columns(1, 6), objects, target=8) == 7  # IoU 3/6 beside 2/7
    assert nearest_object(columns(1, 6), objects, target=9) == 9, "as near as the first, and asked for"
    assert nearest_object(columns(3, 8), objects, target=7) == 8
    assert nearest_object(columns(8, 12), objects, target=7) is None
    assert nearest_object(columns(0, 0), objects, target=7) is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("S ( 0 1 2 ) t .", Kept(parsable=True, opened=True, counted=True, closed=True)),
        ("( 0 1 2 ) .  t ( 0", Kept(parsable=True, opened=True, counted=True, closed=True)),
        ("t t .", Kept(parsable=True, opened=False, counted=False, closed=False)),
        ("( 0 1 ) t .", Kept(parsable=False, opened=True, counted=False, closed=True)),
        ("( 0 1 2 0 ) t .", Kept(parsable=False, opened=True, counted=False, closed=True)),
        ("( 0 1 2 t .", Kept(parsable=False, opened=True, counted=True, closed=False)),
        ("( 0 1 2 ) t t", Kept(parsable=False, opened=True, counted=True, closed=True)),
        ("( 0 1 2", Kept(parsable=False, opened=True, counted=True, closed=False)),
        ("t S .", Kept(parsable=False, opened=False, counted=False, closed=False)),
    ],
)
def test_what_an_answer_keeps_of_the_grammar_by_itself(written: str, expected: Kept) -> None:
    """Three codes a span; S is [SEG], brackets open and close the span, t is text, and the stop ends the answer."""
    vocabulary = Vocabulary(seg=10, depth_start=11, depth_end=12, first_code=20, num_codes=3)
    ids = {"S": 10, "(": 11, ")": 12, "0": 20, "1": 21, "2": 22, "t": 5, ".": 1}
    found = kept([ids[one] for one in written.split()], grammar=Grammar(depth_tokens=3), vocabulary=vocabulary, end_id=1)
    assert found == expected


def test_a_borrowed_gpu_is_given_back_in_time_with_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In turn; what fails, what is missing and what takes too long does not take the others' results away."""
    monkeypatch.setattr(gpu, "_END_S", 0.0)
    monkeypatch.setattr(gpu, "_LEAST_S", 1.0)
    begin = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(sys.argv[2]); "
    measurements = [
        gpu.Measurement("good", ("-c", begin, "{out}", "{seconds}")),
        gpu.Measurement("bad", ("-c", begin + "raise SystemExit(3)", "{out}", "{seconds}")),
        gpu.Measurement("absent", ("-c", begin, "{out}", "{seconds}"), needs=tmp_path / "nowhere"),
        gpu.Measurement("long", ("-c", begin + "time.sleep(600)", "{out}", "{seconds}")),
        gpu.Measurement("late", ("-c", begin, "{out}", "{seconds}")),
    ]
    started = time.monotonic()
    ended = gpu.measure(measurements, out=tmp_path / "out", seconds=8)
    assert time.monotonic() - started < 60
    assert ended["good"].startswith("done after")
    assert ended["bad"].startswith("failed with exit code 3")
    assert ended["absent"] == f"left out: {tmp_path / 'nowhere'} is not there"
    assert ended["long"].startswith("ended when the time was over")
    assert ended["late"] == "no time left"
    assert json.loads((tmp_path / "out" / "ended.json").read_text()) == ended
    assert {file.stem for file in (tmp_path / "out").glob("*.json")} == {"good", "bad", "long", "ended"}
    assert 0 < float((tmp_path / "out" / "long.json").read_text()) < 8


@pytest.mark.parametrize("one", gpu.MEASUREMENTS, ids=lambda one: one.name)
def test_what_a_borrowed_gpu_would_run_takes_its_arguments(one: gpu.Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    _, module, *rest = (argument.format(out="x.json", seconds="9") for argument in one.arguments)
    monkeypatch.setattr(sys, "argv", [module, *rest, "--nonsense"])
    with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as said:
        importlib.import_module(module).main()
    assert said.getvalue().endswith("error: unrecognized arguments: --nonsense\n")
