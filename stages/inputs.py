"""Look at every input before the first stage starts: ``python -m stages.inputs``; no stage itself."""

import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from perceptio_core.hub import HubUnreachableError, find
from perceptio_core.inputs import look_at_inputs
from perceptio_core.params.base import expanded
from perceptio_core.params.foundations import FoundationsParams, HubModel, HubSam2
from perceptio_core.params.profile import Profile
from perceptio_core.params.values import SECTIONS, read_values
from perceptio_core.progress import amount
from stages.common import stage_arguments
from stages.foundations import CHECKSUMS, MODELS, patterns

DESCRIPTION = """Look at every input: what any stage will read is opened, and what is wrong is said, all at once.

Reads   all parameters, the data root, the folder of bundled or offline foundations.
Does    opens each data set, held-out place and benchmark with its reader, as far as seconds allow; writes nothing.
"""
_SIZES = 100  # files of a folder whose size is looked at
log = logging.getLogger("inputs")


def main() -> None:
    """Print a line per fault; exits with 1 where there is one."""
    found = list(faults(Profile.of(read_values(stage_arguments(DESCRIPTION).params))))
    for fault in found:
        print(fault, file=sys.stderr)
    sys.exit(1 if found else 0)


def faults(profile: Profile, *, stages: Sequence[str] = SECTIONS) -> Iterator[str]:
    """A sentence for each input that would stop one of these stages, or leave it without anything to read."""
    if "foundations" in stages:
        yield from _foundations(profile.foundations)
    if "depth_codebook" in stages and profile.depth_codebook.pretrained is not None:
        try:
            folder = expanded(profile.depth_codebook.pretrained, key="depth_codebook.pretrained", holds="the codebook")
            yield from (
                f"depth_codebook.pretrained: {folder / name}: absent"
                for name in ("config.json", "model.safetensors")
                if not (folder / name).is_file()
            )
        except ValueError as error:
            yield str(error)
    if profile.sources.render is not None or not {"sources", "evaluate"} & set(stages):
        return
    try:
        root = profile.sources.expanded_root()
    except ValueError as error:
        yield str(error)
        return
    folders: set[Path] = set()
    said: dict[str, list[str]] = {}  # one picture folder may serve many
    for finding in look_at_inputs(profile, root=root, stages=stages):
        folders.update(finding.pictures)
        if finding.fault is not None:
            said.setdefault(finding.fault, []).append(finding.what)
    yield from (f"{', '.join(users)}: {fault}" for fault, users in said.items())
    yield from _disk(profile, folders, stages)


def disk_needed(profile: Profile, *, images: int, size: int) -> dict[str, int]:
    """Bytes that each stage keeps of training pictures, by their number and size; beside foundations and checkpoints.

    A depth map has 16 bits a pixel at most, and the sides 4:3. The joint shards hold each picture once; what is said about it
    comes on top, and is little beside a photograph.
    """
    return {"teacher_depth": images * 2 * profile.teacher_depth.long_side**2 * 3 // 4, "joint_shards": size}


def _disk(profile: Profile, folders: Iterable[Path], stages: Sequence[str]) -> Iterator[str]:
    images = size = 0
    for folder in folders:
        with os.scandir(folder) as entries:
            names = [entry for entry in entries if not entry.is_dir()]
        some = names[:: max(1, len(names) // _SIZES)]
        images += len(names)
        size += len(names) * sum(entry.stat().st_size for entry in some) // max(1, len(some))
    needed = disk_needed(profile, images=images, size=size)
    # Of a smooth map's two bytes a pixel the lower one is close to noise: more than a third is left by any compression.
    least = sum(needed[stage] // (3 if stage == "teacher_depth" else 1) for stage in needed if stage in stages)
    free = shutil.disk_usage(Path()).free
    if free < least:
        yield (
            f"disk: {', '.join(stage for stage in needed if stage in stages)} keep at least {amount(least)} of the {images:,} "
            f"training pictures; free are {amount(free)} in {Path().absolute()}"
        )


def _foundations(params: FoundationsParams) -> Iterator[str]:
    if params.bundled is not None:
        return _bundled(Path(params.bundled))
    models: dict[str, HubModel] = {name: getattr(params, name) for name in MODELS}
    return _of_the_hub(models) if params.offline is None else _offline(params.offline, models)


def _bundled(folder: Path) -> Iterator[str]:
    listing = folder / CHECKSUMS
    if not listing.is_file():
        yield f"foundations.bundled: {listing}: absent; it lists the sha256 of every file of {', '.join(MODELS)}"
        return
    names = [line.partition("  ")[2] for line in listing.read_text(encoding="utf-8").splitlines() if line]
    for model in MODELS:
        if not any(name.startswith(f"{model}/") for name in names):
            yield f"foundations.bundled: {listing}: lists no file of {model}"
    for name in names:
        if not (folder / name).is_file():
            yield f"foundations.bundled: {folder / name}: absent, though {CHECKSUMS} lists it"


def _needed(model: HubModel) -> tuple[str, ...]:
    """Files without which the model cannot be loaded."""
    one = isinstance(model, HubSam2) and model.checkpoint is not None
    return patterns(model) if one else ("config.json", "*.safetensors")


def _offline(setting: str, models: Mapping[str, HubModel]) -> Iterator[str]:
    try:
        folder = expanded(setting, key="foundations.offline", holds="the models")
    except ValueError as error:
        yield str(error)
        return
    for name, model in models.items():
        for wanted in _needed(model):
            if not any((folder / name).glob(wanted)):
                yield f"foundations.offline: {folder / name}: holds no {wanted} of {model.repo}"


def _of_the_hub(models: Mapping[str, HubModel]) -> Iterator[str]:
    for name, model in models.items():
        try:
            find(model.repo, revision=model.revision, patterns=_needed(model))
        except HubUnreachableError as error:
            log.warning("%s could not be asked for: %s", model.repo, error)  # the stage itself tries more than once
        except ValueError as error:
            yield f"foundations.{name}: {model.repo} at {model.revision}: {error}"


if __name__ == "__main__":
    main()
