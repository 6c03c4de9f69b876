"""Stage `foundations`: the pretrained models that everything starts from, as local folders with known content."""

import hashlib
import logging
import os
import shutil
import sys
from pathlib import Path

from perceptio_core.hub import HubUnreachableError, download, verify
from perceptio_core.metrics import counted, write_metrics
from perceptio_core.params.base import expanded
from perceptio_core.params.foundations import FoundationsParams, HubModel, HubSam2
from perceptio_core.params.values import read_values
from perceptio_core.progress import amount
from stages.common import StagePaths, fingerprint, publish, stage_arguments

DESCRIPTION = """Lay out the pretrained models.

Reads   with `bundled`: that folder of the repository (foundations/mini). Others: the Hugging Face hub, once, or
        the folder that `offline` names.
Does    bundled: checks every file against SHA256SUMS. Hub: fetches the pinned revisions, safetensors and texts only, and
        checks every file against the hub's hash of it, also in the folder `offline` where `hf download` made that. Of SAM2
        the published checkpoint, read as tensors only, or the form of transformers' Sam2Model.
Writes  artifacts/<profile>/foundations/
          internvl/        Hugging Face folder with tokenizer and processor
          sam2/            config.json, model.safetensors
          depth_anything/  Hugging Face folder
          metrics.json, summary.json   bytes per model
"""
CHECKSUMS = "SHA256SUMS"
MODELS = ("internvl", "sam2", "depth_anything")
# No pickles, no code: what the libraries need to build the models, and nothing else of what a repository may hold.
PATTERNS = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors")
log = logging.getLogger("foundations")


def main() -> None:
    """Run the stage; ends with the exit code EX_TEMPFAIL (75) where the hub could not be reached for now."""
    arguments = stage_arguments(DESCRIPTION)
    values = read_values(arguments.params)
    params, paths = values.section("foundations", FoundationsParams), StagePaths(values.profile)
    paths.claim("foundations")
    if params.bundled is not None:
        bundled = Path(params.bundled)
        work = paths.work("foundations", fingerprint(params, bundled / CHECKSUMS))
        copy_verified(bundled, work)
    else:
        work = paths.work("foundations", fingerprint(params))
        try:
            fetch_all(params, work)
        except HubUnreachableError as error:
            log.error("%s", error)
            sys.exit(os.EX_TEMPFAIL)  # whoever runs the stage may try again
    sizes = {name: _bytes_below(work / name) for name in MODELS}
    write_metrics(work, counted({f"{name}_bytes": size for name, size in sizes.items()}))
    publish(work, paths.out("foundations"))
    log.info(", ".join(f"{name} {amount(size)}" for name, size in sizes.items()))


def copy_verified(source: Path, target: Path) -> None:
    """Copy the files that ``source/SHA256SUMS`` lists, each compared with its checksum.

    Raises:
        ValueError: the list is missing or malformed, lacks a model, names a path outside of the models' folders, or a file
            is missing or differs; names the file.
    """
    listing = source / CHECKSUMS
    if not listing.is_file():
        raise ValueError(f"{listing}: not found; it lists the sha256 of every file of {', '.join(MODELS)}")
    seen = set()
    for line in listing.read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        parts = Path(name).parts
        if len(parts) < 2 or parts[0] not in MODELS or ".." in parts:
            raise ValueError(f"{listing}: {line!r}: expected '<sha256>  <model>/<file>', model one of {', '.join(MODELS)}")
        file = source / name
        if not file.is_file():
            raise ValueError(f"{file}: not found, though {listing} lists it")
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise ValueError(f"{file}: its sha256 is not the one in {listing}; restore it with: git checkout -- {file}")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
        seen.add(parts[0])
    if missing := set(MODELS) - seen:
        raise ValueError(f"{listing}: lists no file of {', '.join(sorted(missing))}")


def fetch_all(params: FoundationsParams, work: Path) -> None:
    """Bring the three models of the hub into `work`; a model that an earlier, killed run finished is kept.

    Raises:
        HubUnreachableError: the hub cannot be reached for now; says what to do.
        ValueError: the hub has no such revision, the offline folder lacks a model, or a file differs from what the hub has;
            says what to do.
    """
    offline = None if params.offline is None else expanded(params.offline, key="foundations.offline", holds=", ".join(MODELS))
    for name in MODELS:
        model: HubModel | None = getattr(params, name)
        if model is None or (work / name).is_dir():
            continue
        source = offline / name if offline else _download(model)
        if not source.is_dir():
            raise ValueError(f"foundations.offline: {source} is not a folder; it must hold {model.repo} as the hub serves it")
        verify(source, (file for pattern in patterns(model) for file in source.glob(pattern)), revision=model.revision)
        unfinished = work / f"{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(model, HubSam2):
            _convert_sam2(source, model=model, folder=unfinished)
        else:
            # Contents alone: the mode of a file is that of one made here, not that of a folder from elsewhere.
            shutil.copytree(source, unfinished, ignore=_others_than_patterns, copy_function=shutil.copyfile)
        unfinished.rename(work / name)
        log.info("%s: %s at %s", name, model.repo, model.revision)


def _download(model: HubModel) -> Path:
    try:
        return download(model.repo, revision=model.revision, patterns=patterns(model))
    except ValueError as error:
        raise type(error)(
            f"{model.repo} at {model.revision} could not be fetched: {error}\n"
            "Either make the hub reachable (HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy, HF_TOKEN an account), or fetch\n"
            "the model on another machine with\n"
            f"    hf download {model.repo} --revision {model.revision} --local-dir FOLDER/<name>\n"
            f"with <name> one of {', '.join(MODELS)}, and set foundations.offline to FOLDER."
        ) from error


def patterns(model: HubModel) -> tuple[str, ...]:
    """Of SAM2 as published one file, of everything else what `transformers` reads."""
    return (model.checkpoint,) if isinstance(model, HubSam2) and model.checkpoint is not None else PATTERNS


def _convert_sam2(source: Path, *, model: HubSam2, folder: Path) -> None:
    from perceptio_core.convert.sam2 import convert_sam2
    from perceptio_core.segmentation.sam2 import load_official, official_config, save_sam2

    if model.checkpoint is None or model.config is None:
        convert_sam2(source, folder)
        return
    checkpoint = source / model.checkpoint
    if not checkpoint.is_file():
        raise ValueError(
            f"{checkpoint}: not found; where the folder holds transformers' form, with model.safetensors, leave "
            "foundations.sam2.checkpoint and foundations.sam2.config out"
        )
    save_sam2(load_official(checkpoint, name=model.config), config=official_config(model.config), folder=folder)


def _others_than_patterns(_: str, names: list[str]) -> set[str]:
    """For copytree: everything but top-level files that `PATTERNS` admits."""
    return {name for name in names if not any(Path(name).match(pattern) for pattern in PATTERNS)}


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
