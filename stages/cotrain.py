"""Stage `cotrain`: multi-task co-training of one variant of Perceptio."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator

from perceptio_core.data.loading.mixture import require_samples
from perceptio_core.metrics import write_metrics
from perceptio_core.model.adapters import add_adapters, merge_adapters
from perceptio_core.model.assembly import assemble
from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.card import model_card
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.processing import PerceptioProcessor
from perceptio_core.params.cotrain import CotrainParams
from perceptio_core.params.foundations import FoundationsParams
from perceptio_core.params.shard_source import ShardSource
from perceptio_core.params.values import read_values
from perceptio_core.tied import tie, tied
from perceptio_core.training.checkpoint import has_checkpoint, last_checkpoint, load_parameters
from perceptio_core.training.final_metrics import training_metrics
from perceptio_core.training.joint_batches import JointBatches, joint_batches
from perceptio_core.training.loop import Batches, LoopSettings, start_accelerator, train
from perceptio_core.training.memory import device_memory_gib
from perceptio_core.training.memory_estimate import Computation, MemoryEstimate, StepShape, estimate_memory
from perceptio_core.training.optimizer import ParameterGroup
from stages.common import StagePaths, fingerprint, publish, stage_arguments, write_measured

DESCRIPTION = """Co-train one variant of Perceptio.

Reads   artifacts/<profile>/joint_shards, artifacts/<profile>/foundations/{internvl,sam2}, artifacts/<profile>/depth_codebook,
        and the parameters' sections cotrain and variants: a variant overrides single keys of cotrain; for the model card,
        foundations.
Does    trains LoRA adapters, the projector, the rows of the added tokens, the prompt MLP and SAM2's mask decoder on the
        full sequence (segmentation tokens, depth tokens, answer), after the prompt MLP was centred on the mean state at
        [SEG]; a killed run goes on from its last checkpoint. Says first how many epochs the mixture comes to for each
        task, and what memory a step will take. The
        variant `control` is the same training without any perception token. Starts as many processes on this machine as
        cotrain.processes says (at most one per GPU, where there are GPUs), or runs as one of those that a launcher started:
          accelerate launch -m stages.cotrain --variant V
          torchrun --nproc-per-node=N -m stages.cotrain --variant V
Writes  artifacts/<profile>/cotrain/<variant>/
          checkpoint/   the model with merged adapters, its processor, its model card and its parameters
                        (params.yaml), in Hugging Face's layout
          curves/       each loss by step (DVCLive)
          metrics.json, summary.json
                        losses at the end; per task how many samples were drawn, how often each, and their share beside the
                        one that the mixture asks for
        artifacts/<profile>/measured/cotrain@<variant>.json
                        time, throughput, precision, ranks, peak memory and its estimate: of this run, and no part of the output
"""

_CENTRING_SAMPLES, _CENTRING_STEPS = 64, 8
_ESTIMATE_STEPS = 8
"""Steps whose first micro-batches stand for all in the estimate of memory; a step is dealt into alike ones."""

logger = logging.getLogger("cotrain")


def main() -> None:
    """Run the stage."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        tie(os.getppid())  # a rank, which may be one of a `torchrun` that others have started
    arguments = stage_arguments(DESCRIPTION, variant=True)
    values = read_values(arguments.params)
    given = params = values.variant(arguments.variant, CotrainParams)
    paths = StagePaths(values.profile)
    shards, foundations, codebook = paths.made("joint_shards"), paths.made("foundations"), paths.made("depth_codebook")
    require_samples(params.mixture.weights, json.loads((shards / "index.json").read_text("utf-8"))["counts"].get("train", {}))
    _start_processes(params.processes)
    accelerator = start_accelerator()
    paths.claim("cotrain", arguments.variant)
    accelerator.wait_for_everyone()  # of what an earlier run leaves, all ranks see the same
    # The index names every shard with its checksum, so it stands for them.
    inputs = [shards / "index.json", foundations / "internvl", foundations / "sam2"]
    # On how many ranks, and what each of them holds, may change between two attempts.
    key = fingerprint(
        params.model_dump(mode="json", exclude={"processes", "sharding"}),
        *inputs,
        codebook / "config.json",
        codebook / "model.safetensors",
    )
    work = paths.work("cotrain", f"{arguments.variant}-{key}")
    params = params.on_ranks(accelerator.num_processes)

    autocast = accelerator.mixed_precision == "bf16"
    model, processor = _assemble(params, foundations=foundations, codebook=codebook, autocast=autocast)
    batches = joint_batches(
        shards=shards,
        processor=processor,
        mixture=params.mixture.weights,
        spans=params.mixture.spans,
        markers=params.markers,
        own_codes=params.own_codes,
        steps=params.steps,
        batch_size=params.batch_size,
        validate=params.validation_batches > 0,
        seed=params.seed,
        source=ShardSource.from_environment(),
        shard_window=params.shard_window,
    )
    if model.segments and not has_checkpoint(work / "checkpoints"):
        model.to(accelerator.device)
        model.centre_prompt(islice(_segmented(batches, params), _CENTRING_SAMPLES))
    if accelerator.is_main_process:
        _say_mixture(batches, params)
    groups = _groups(model, params)
    model.checkpoint_layers(params.gradient_checkpointing)
    estimate = _estimate(accelerator, model, batches, params)
    result = train(
        accelerator=accelerator,
        model=model,
        groups=groups,
        batches=batches,
        settings=LoopSettings(**{name: getattr(params, name) for name in LoopSettings.__dataclass_fields__}),
        work=work,
    )
    accelerator.end_training()  # a group that is left to the interpreter's exit aborts it now and then
    if not accelerator.is_main_process:
        return
    if params.sharding == "full" and accelerator.num_processes > 1:  # this process has a part of each weight
        model, _ = _assemble(params, foundations=foundations, codebook=codebook, autocast=autocast)
        trained = {name: one for group in _groups(model, params) for name, one in group.parameters.items()}
        load_parameters(last_checkpoint(work / "checkpoints"), trained)
    logger.info("all steps are done; writing the model")
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    bare = _bare(accelerator, model)
    bare.save_pretrained(out / "checkpoint")
    processor.save_pretrained(out / "checkpoint")
    models = values.section("foundations", FoundationsParams)
    card = model_card(
        profile=values.profile,
        variant=arguments.variant,
        params=params,
        foundations=models,
        data=json.loads((shards / "index.json").read_text(encoding="utf-8"))["data"],
        parameters=bare.num_parameters(),
    )
    (out / "checkpoint" / "README.md").write_text(card, encoding="utf-8")
    made_with = {"profile": values.profile, "variant": arguments.variant}
    made_with |= {"cotrain": given.model_dump(mode="json"), "foundations": models.model_dump(mode="json")}
    (out / "checkpoint" / "params.yaml").write_text(yaml.safe_dump(made_with, sort_keys=False), encoding="utf-8")
    shutil.copytree(work / "curves", out / "curves")
    drawn = batches.drawn(params.steps)
    write_metrics(out, training_metrics(curves=work / "curves", steps=params.steps, batch_size=params.batch_size, drawn=drawn))
    write_measured(paths.measured("cotrain", arguments.variant), asdict(result) | {"estimated_memory_gib": estimate.peak_gib})
    publish(out, paths.out("cotrain", arguments.variant))
    shutil.rmtree(work)  # a finished run's checkpoints would outlive a change of the model's code
    logger.info(
        "%s: %d steps in %.0f s, %.1f samples/s", arguments.variant, params.steps, result.seconds, result.samples_per_second
    )


def _start_processes(wanted: int) -> None:
    """Become the launcher of several processes of this very command, unless this is one of them or one is enough."""
    count = min(wanted, torch.cuda.device_count()) if torch.cuda.is_available() else wanted
    if count == 1 or "LOCAL_RANK" in os.environ:
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    # In this process: what ends it, ends the others. They are sessions of their own, so no signal to a group reaches them.
    _, *rank = tied("stages.cotrain", *sys.argv[1:])
    os.execv(sys.executable, [sys.executable, *processes_here(count), *rank])


def processes_here(count: int) -> list[str]:
    """Python's options that start a module or script as `count` ranks on this machine."""
    # They meet at the loopback address: not every machine, and few containers, can look up their own name.
    return ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={count}"]


def _assemble(
    params: CotrainParams, *, foundations: Path, codebook: Path, autocast: bool
) -> tuple[PerceptioForConditionalGeneration, PerceptioProcessor]:
    """The model as it is before any step, and its processor; without autocast all of it is float32."""
    model, processor = assemble(
        foundations=foundations,
        codebook=codebook,
        order=[span for span in params.order if getattr(params.spans, span)],
        loss_weights=params.loss_weights.model_dump(),
        max_tiles=params.max_tiles,
        seed=params.seed,
        code_words=params.code_words,
    )
    if not autocast:  # what trains is float32, and nothing would cast between it and a base that was published in bf16
        model.float()
    return model, processor


def _say_mixture(batches: JointBatches, params: CotrainParams) -> None:
    """Write to the log what the mixture comes to over all steps: epochs of each task, and the spans that it may write."""
    there = [span for span in params.order if getattr(params.spans, span)]
    for task, drawn in batches.drawn(params.steps).items():
        written = [span for span in there if span in params.mixture.spans.get(task, there)]
        logger.info(
            "mixture: %s: %.1f %% of the draws (wanted: %.1f %%), %d times, %.2f epochs of its %d samples; spans: %s",
            task,
            100 * drawn.share,
            100 * drawn.wanted,
            drawn.draws,
            drawn.epochs,
            drawn.samples,
            ", ".join(written) or "none",
        )


def _groups(model: PerceptioForConditionalGeneration, params: CotrainParams) -> list[ParameterGroup]:
    """Adapters on the model, and what trains in groups of one learning rate each."""
    named = add_adapters(
        model,
        rank=params.lora.r,
        alpha=params.lora.alpha,
        dropout=params.lora.dropout,
        train_vision_tower=params.train_vision_tower,
    )
    rates = params.learning_rates.model_dump()
    starts = dict.fromkeys(("projector", "vision_tower"), params.vision_start)
    return [
        ParameterGroup(name=name, rate=rates[name], start=starts.get(name, 0.0), parameters=parameters)
        for name, parameters in named.items()
    ]


def _segmented(batches: Batches, params: CotrainParams) -> Iterator[PerceptioBatch]:
    """The samples with [SEG] of the first steps, one by one: the same on every rank, however many there are."""
    for step in range(min(_CENTRING_STEPS, params.steps)):
        for part in range(params.batch_size):
            batch = batches.train(step, part, params.batch_size)
            if batch.masks_M:
                yield batch


def _estimate(
    accelerator: Accelerator, model: PerceptioForConditionalGeneration, batches: Batches, params: CotrainParams
) -> MemoryEstimate:
    """What memory a step will take, written to the log beside what there is."""
    parts, steps = accelerator.num_processes * params.accumulation, min(_ESTIMATE_STEPS, params.steps)
    estimate = estimate_memory(
        model,
        shape=StepShape.largest(batches.train(step, 0, parts) for step in range(steps)),
        computation=Computation(
            bf16=accelerator.mixed_precision == "bf16",
            cpu=accelerator.device.type == "cpu",
            checkpointing=params.gradient_checkpointing,
            accumulation=params.accumulation,
            ranks=accelerator.num_processes,
            sharded=params.sharding == "full" and accelerator.num_processes > 1,
        ),
    )
    if accelerator.is_main_process:
        there = device_memory_gib(accelerator.device)
        logger.info(
            "memory of a step, an estimate in GiB, by one micro-batch of each of the first %d; %s has %.2f\n%s",
            steps,
            accelerator.device,
            there,
            estimate.table(),
        )
    return estimate


def _bare(accelerator: Accelerator, model: PerceptioForConditionalGeneration) -> PerceptioForConditionalGeneration:
    """The bare model with its adapters folded in, on the CPU."""
    bare: PerceptioForConditionalGeneration = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    merge_adapters(bare)
    return bare.cpu()


if __name__ == "__main__":
    main()
