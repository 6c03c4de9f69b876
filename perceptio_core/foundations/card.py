"""The model card and the checksums of mini's foundation models, made from what the pretraining commands wrote (ours).

Run as ``python -m perceptio_core.foundations.card`` after them.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

FOLDER = Path("foundations/mini")
CHECKSUMS = "SHA256SUMS"  # what the stage `foundations` verifies
ABOUT = {
    "internvl": (
        "InternVL (`transformers.InternVLForConditionalGeneration`)",
        "First the vision tower on dense helper tasks (shape, colour, surface and border of each 4 x 4 cell; circle and letter "
        "of each marker; place of each patch), whose heads are thrown away; then projector and language model, with the tower "
        "frozen for the first half and trained with them in the second, on captions, on raster maps of colour and brightness, "
        "on questions about colour, shape, surface, count, existence, place in the picture and marker letters, on which point "
        "is the brightest, in the picture or in a map drawn at random, and on the cell and the bounding box of what an "
        "expression names, helped by losses that tie words to the patches that show them. In form these rehearse "
        "co-training: maps and cells stand where perception tokens will, and the question for the brightest point opens as "
        "the one for the nearest does. It never sees depth, depth order, "
        "physical size or masks. Scores: accuracy in % on unseen scenes; `answers_*` are whole answers right under teacher "
        "forcing by kind of question (`read`: on drawn maps), `map_squares` the squares of maps, the others the helper heads' "
        "of the tower before the language phase.",
    ),
    "depth_anything": (
        "Depth Anything V2 (`transformers.DepthAnythingForDepthEstimation`)",
        "Metric depth of single images. The encoder starts from the vision tower above, from its state before the "
        "language phase, as the published models start from DINOv2. Scores on unseen scenes: `absrel`; `delta1` in %; "
        "`pair_order`, % of random pixel pairs in the right order; `nearest_n`, % of n-point depth-order questions that its "
        "map answers rightly: the ceiling of what co-training on its labels can reach.",
    ),
    "sam2": (
        "SAM 2 (`sam2.modeling.sam2_base.SAM2Base`)",
        "Masks of any visible thing, prompted by one click or a box: no names, no expressions. Scores: mean IoU on unseen "
        "scenes by prompt.",
    ),
}


def write_card(folder: Path) -> None:
    """Write `README.md` and `SHA256SUMS` of the three model folders below `folder`."""
    lines = [
        "# Foundation models of profile `mini`",
        "",
        "Small instances of the classes that the real profiles use, pretrained by this project on its procedural world with "
        "the generic task of each real counterpart. Their scenes come from a range of seeds that no stage of the pipeline "
        "uses. They are for demonstration and tests; on photographs they know nothing. Licence: as the project's.",
        "",
        "`make foundations` makes them all again; `SHA256SUMS` lists every file.",
    ]
    for name, (title, text) in ABOUT.items():
        metrics = json.loads((folder / name / "metrics.json").read_text(encoding="utf-8"))
        lines += ["", f"## {name}: {title}", "", text, ""]
        lines += [f"- Parameters: {_parameters(folder / name / 'model.safetensors'):,}"]
        lines += [f"- {key.capitalize()}: {_inline(metrics[key])}" for key in ("command", "seed", "data", "steps")]
        lines += [f"- Time: {metrics['seconds'] / 60:.0f} minutes on {metrics['hardware']}"]
        lines += ["", "| score | |", "|---|---:|", *(f"| {key} | {value} |" for key, value in metrics["scores"].items())]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = sorted(file for name in ABOUT for file in (folder / name).iterdir() if file.is_file())
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder).as_posix()}" for file in files]
    (folder / CHECKSUMS).write_text("\n".join(sums) + "\n", encoding="utf-8")


def _parameters(weights: Path) -> int:
    with safe_open(weights, framework="np") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 (not a mapping)
    return sum(math.prod(shape) for shape in shapes)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number}" for key, number in value.items())
    return f"`{value}`" if isinstance(value, str) else str(value)


def main() -> None:
    """Write both files of `foundations/mini`."""
    write_card(FOLDER)


if __name__ == "__main__":
    main()
