"""Sa2VA on InternVL2.5 or InternVL3 -> foundations that co-training starts from: ``internvl/`` and ``sam2/``.

Source: ByteDance/Sa2VA-* (arXiv 2501.04001), as its `convert_to_hf.py` writes them: an InternVL with merged LoRA, the prompt
MLP as `text_hidden_fcs`, SAM2 as `grounding_encoder.sam2_model`. Its rows of ``[SEG]`` and its prompt MLP go to a small file
in ``internvl/``, which `perceptio_core.model.assembly.assemble` starts from, and which says that its masks are to be asked
for and read as Sa2VA does (`perceptio_core.segmentation.bridge`). Sa2VA speaks in the turns of the chat template
that its configuration names; Perceptio goes on in those of InternVL2.5.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from perceptio_core.convert.checkpoint_files import Section, new_folder, read_weights
from perceptio_core.convert.internvl import write_internvl
from perceptio_core.convert.sam2 import write_official
from perceptio_core.model.assembly import SEGMENTATION_START, WIRING
from perceptio_core.vocabulary import SEG
from perceptio_core.weights import refuse, save_tensors

_SAM2, _PROMPT = "grounding_encoder.sam2_model.", "text_hidden_fcs."
_INTERNVL = ("vision_model.", "mlp1.", "language_model.")
_PROMPT_KEYS = tuple(f"{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias"))  # of Linear, ReLU, Linear, Dropout


def convert_sa2va(source: Path, out: Path) -> None:
    """Write a foundations folder; Depth Anything has to be added for the stages before co-training.

    Args:
        source: folder as on the hub: `config.json`, weights, tokenizer with ``[SEG]``.
        out: folder to make.

    Raises:
        ValueError: as `convert_internvl` and `convert_sam2`, and for a tokenizer without ``[SEG]`` or another prompt MLP.
    """
    config = Section.read(source / "config.json")
    config.one_of("model_type", "sa2va_chat")
    weights = read_weights(source)
    parts: dict[str, dict[str, Tensor]] = {"internvl": {}, "sam2": {}, "prompt": {}, "unknown": {}}
    for key, value in weights.items():
        if key.startswith(_INTERNVL):
            parts["internvl"][key] = value
        elif key.startswith(_SAM2):
            parts["sam2"][key] = value
        elif key.startswith(_PROMPT):
            parts["prompt"][key.removeprefix(_PROMPT)] = value
        else:
            parts["unknown"][key] = value
    faults = {
        "unknown": [*parts["unknown"], *(f"{_PROMPT}{key}" for key in parts["prompt"] if key not in _PROMPT_KEYS)],
        "missing": [f"{_PROMPT}{key}" for key in _PROMPT_KEYS if key not in parts["prompt"]],
    }
    refuse(faults, source=source)
    with new_folder(out) as folder:
        internvl = folder / "internvl"
        internvl.mkdir()
        model, tokenizer = write_internvl(config, parts["internvl"], source=source, folder=internvl)
        write_official(parts["sam2"], prefix=_SAM2, source=source, folder=folder / "sam2")
        if SEG not in tokenizer.get_vocab():
            raise ValueError(f"{source}: its tokenizer lacks {SEG}")
        seg = tokenizer.convert_tokens_to_ids(SEG)
        rows = {"input": model.get_input_embeddings().weight[seg], "output": model.get_output_embeddings().weight[seg]}
        start = {
            **{f"seg.{name}": row.detach().float().clone() for name, row in rows.items()},
            **{f"prompt.{name}": value.float().contiguous() for name, value in parts["prompt"].items()},
        }
        save_tensors(start, internvl / SEGMENTATION_START, metadata={WIRING: "sa2va"})
