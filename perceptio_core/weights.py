"""Weights into files and models: what a checkpoint holds and what a model has are the same, or each difference is named.

A library that only warns leaves a model with random parts, or with parts replaced, which nobody sees until its scores are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perceptio_core.files import follow_umask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")


def refuse(faults: Mapping[str, Sequence[str]], *, source: str | Path) -> None:
    """Raise for keys that do not fit.

    Args:
        faults: keys by what is wrong with them; empty lists are fine.
        source: where the keys come from.

    Raises:
        ValueError: there are any; every key is listed.
    """
    told = "; ".join(f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in faults.items() if keys)
    if told:
        raise ValueError(f"{source}: not the weights that were expected; keys {told}")


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every entry of a module's state."""
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def require_shapes(weights: Mapping[str, Tensor], *, expected: Mapping[str, tuple[int, ...]], source: str | Path) -> None:
    """Raise unless the weights have the expected names and shapes, no less and no more.

    Raises:
        ValueError: they have not; every key is listed.
    """
    found = {key: tuple(value.shape) for key, value in weights.items()}
    both = sorted(expected.keys() & found.keys())
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [f"{key} {found[key]} instead of {expected[key]}" for key in both if found[key] != expected[key]],
    }
    refuse(faults, source=source)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Raises:
        ValueError: it is missing, or not a safetensors file.
    """
    with _safetensors(path):
        return dict(load_file(path))


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file holds beside its tensors.

    Raises:
        ValueError: it is missing, or not a safetensors file.
    """
    with _safetensors(path), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


@contextmanager
def _safetensors(path: Path) -> Iterator[None]:
    """Name the file in what goes wrong with reading it."""
    if not path.is_file():
        raise ValueError(f"{path}: not found")
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, with the mode of other files (see `follow_umask`)."""
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    follow_umask(path)


def load_exactly(model: nn.Module, weights: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Load weights into a module, in place.

    Raises:
        ValueError: their names or shapes are not exactly the module's; every key is listed.
    """
    require_shapes(weights, expected=shapes(model), source=source)
    model.load_state_dict(dict(weights))


def load_pretrained(kind: type[Model], source: str | Path, **options: Any) -> Model:
    """``kind.from_pretrained(source)``.

    Args:
        kind: a class of `transformers`.
        source: the folder.
        options: of `from_pretrained`.

    Raises:
        ValueError: see `require_used`.
    """
    model, report = kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    require_used(report, source=source)
    loaded: Model = model
    return loaded


def require_used(report: Mapping[str, Any], *, source: str | Path) -> None:
    """Raise unless `from_pretrained` found for every weight of the model one in the checkpoint, and the other way round.

    What models compute from their configuration, and old checkpoints may still hold (``rotary_emb.inv_freq``,
    ``position_ids``), transformers has taken out of the report.

    Args:
        report: what `from_pretrained` returns for ``output_loading_info=True``; where it was called with
            ``ignore_mismatched_sizes=True``, weights of another shape are named too.
        source: where the weights come from, for the message.

    Raises:
        ValueError: every key that is missing, not used, or of another shape is listed.
    """
    other = [f"{key} {tuple(found)} instead of {tuple(expected)}" for key, found, expected in report["mismatched_keys"]]
    faults = {"missing": sorted(report["missing_keys"]), "unexpected": sorted(report["unexpected_keys"])}
    refuse({**faults, "of another shape": sorted(other)}, source=source)


def settle_tying(model: PreTrainedModel) -> None:
    """Let a language model's configuration say whether its output head is its input embedding, as it is, in place.

    A configuration that does not say gets its class's default, which for InternVL is that they are one, and the published
    ``-hf`` checkpoints do not say. `from_pretrained` keeps two matrices that differ all the same, but whatever asks the
    configuration later (adding rows, adapters, loading a saved checkpoint) would put the embedding in the head's place.
    """
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
