"""Stage `foundations`: the pretrained models that everything starts from, as local folders with known content."""

import hashlib
import logging
import os
import shutil
import sys
from pathlib import Path

from perceptio_core.params import load_profile
from perceptio_core.params.foundations import FoundationsParams, HubModel, HubSam2
from stages.common import StagePaths, fingerprint, publish, stage_arguments, write_metrics

DESCRIPTION = """Lay out the pretrained models.

Reads   profiles with `bundled`: that folder of the repository (foundations/mini). Others: the Hugging Face hub, once, or
        the folder that `offline` names.
Does    bundled: checks every file against SHA256SUMS. Hub: fetches the pinned revisions, safetensors and texts only; of
        SAM2 the published checkpoint, read as tensors only and kept as safetensors.
Writes  artifacts/<profile>/foundations/
          internvl/        Hugging Face folder with tokenizer and processor
          sam2/            config.json, model.safetensors
          depth_anything/  Hugging Face folder
          metrics.json     bytes per model
"""
CHECKSUMS = "SHA256SUMS"
MODELS = ("internvl", "sam2", "depth_anything")
# No pickles, no code: what the libraries need to build the models, and nothing else of what a repository may hold.
PATTERNS = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors")
log = logging.getLogger("foundations")


class HubUnreachableError(ValueError):
    """The hub did not answer, or answered that it is in trouble or too busy: a later try may fetch the same."""


def main() -> None:
    """Run the stage; ends with the exit code EX_TEMPFAIL (75) where the hub could not be reached for now."""
    arguments = stage_arguments(DESCRIPTION)
    params = load_profile(arguments.profile).foundations
    paths = StagePaths(arguments.profile)
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
    write_metrics(work / "metrics.json", {f"{name}_bytes": _bytes_below(work / name) for name in MODELS})
    publish(work, paths.out("foundations"))


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
        ValueError: the hub has no such revision, or the offline folder lacks a model; says what to do.
    """
    offline = _offline_folder(params.offline)
    for name in MODELS:
        model: HubModel | None = getattr(params, name)
        if model is None or (work / name).is_dir():
            continue
        source = offline / name if offline else _download(model)
        if not source.is_dir():
            raise ValueError(f"foundations.offline: {source} is not a folder; it must hold {model.repo} as the hub serves it")
        unfinished = work / f"{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(model, HubSam2):
            _convert_sam2(source / model.checkpoint, config=model.config, folder=unfinished)
        else:
            shutil.copytree(source, unfinished, ignore=_others_than_patterns)
        unfinished.rename(work / name)
        log.info("%s: %s at %s", name, model.repo, model.revision)


def _download(model: HubModel) -> Path:
    """Fetch a pinned revision into the hub's cache (a broken transfer goes on where it stopped)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [model.checkpoint] if isinstance(model, HubSam2) else list(PATTERNS)
    try:
        return Path(snapshot_download(repo_id=model.repo, revision=model.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise (HubUnreachableError if _may_pass(error) else ValueError)(
            f"{model.repo} at {model.revision} could not be fetched: {type(error).__name__}: {error}\n"
            "Either make the hub reachable (HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy, HF_TOKEN an account), or fetch\n"
            "the model on another machine with\n"
            f"    hf download {model.repo} --revision {model.revision} --local-dir FOLDER/<name>\n"
            f"with <name> one of {', '.join(MODELS)}, and set foundations.offline in the profile to FOLDER."
        ) from error


def _may_pass(error: Exception) -> bool:
    """Whether a later try may fare better: no answer, too many requests, or trouble on the hub's side."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    no_snapshot = isinstance(error, LocalEntryNotFoundError)  # what huggingface_hub makes of most failures to list a repository
    reason = error.__cause__ if no_snapshot else error
    if isinstance(reason, HfHubHTTPError):
        return reason.response.status_code == 429 or reason.response.status_code >= 500
    return no_snapshot and not isinstance(reason, OfflineModeIsEnabled)


def _convert_sam2(checkpoint: Path, *, config: str, folder: Path) -> None:
    from perceptio_core.segmentation.sam2 import load_official, official_config, save_sam2

    save_sam2(load_official(checkpoint, name=config), config=official_config(config), folder=folder)


def _offline_folder(setting: str | None) -> Path | None:
    if setting is None:
        return None
    expanded = os.path.expandvars(setting)
    if "$" in expanded:
        raise ValueError(f"foundations.offline: {setting} names an environment variable that is not set")
    return Path(expanded)


def _others_than_patterns(_: str, names: list[str]) -> set[str]:
    """For copytree: everything but top-level files that `PATTERNS` admits."""
    return {name for name in names if not any(Path(name).match(pattern) for pattern in PATTERNS)}


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
