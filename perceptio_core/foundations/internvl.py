"""Mini's InternVL: a small instance of `transformers`' class, taught to see and to speak about procedural scenes (ours).

Two phases: the vision tower (`vision_tower`) and the language model (`language`). Depth, depth order and masks are in neither.
Run as `python -m perceptio_core.foundations.internvl --out foundations/mini`.
"""

import argparse
import json
import logging
from pathlib import Path

from transformers import (
    GotOcr2ImageProcessor,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from perceptio_core.files import follow_umask
from perceptio_core.foundations.cache import scene_cache
from perceptio_core.foundations.internvl_model import IMAGE_TOKENS, SIZE
from perceptio_core.foundations.language import language_scores, pretrain_language
from perceptio_core.foundations.run import begin, hardware, seconds_of
from perceptio_core.foundations.vision_tower import pretrain_tower

log = logging.getLogger(__name__)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save(model: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a checkpoint directory that `transformers` loads by itself."""
    model.save_pretrained(out)
    follow_umask(*out.glob("*.safetensors"))
    InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            size={"height": SIZE, "width": SIZE},
            crop_to_patches=False,
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        ),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size={"height": SIZE, "width": SIZE}),
        image_seq_length=IMAGE_TOKENS,
        chat_template=TEMPLATE,
    ).save_pretrained(out)


def main() -> None:
    """Command line: all phases, resumable, then the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tower-steps", type=int, default=2500, help="steps of the vision tower (%(default)s)")
    parser.add_argument("--tower-batch", type=int, default=128, help="their images (%(default)s)")
    parser.add_argument("--tower-lr", type=float, default=1.5e-3, help="their peak learning rate (%(default)s)")
    parser.add_argument("--align-steps", type=int, default=300, help="steps of the projector alone (%(default)s)")
    parser.add_argument("--language-steps", type=int, default=2600, help="steps of the language phase (%(default)s)")
    parser.add_argument("--language-batch", type=int, default=96, help="their images (%(default)s)")
    parser.add_argument("--language-lr", type=float, default=2e-3, help="their peak learning rate (%(default)s)")
    arguments, command = begin(parser, "internvl")
    train, val = scene_cache("train", arguments.scenes), scene_cache("val", 400)
    work = Path(".work/foundations")
    scores = pretrain_tower(
        train=train,
        val=val,
        steps=arguments.tower_steps,
        batch=arguments.tower_batch,
        lr=arguments.tower_lr,
        seed=arguments.seed,
        work=work / "tower",
        workers=arguments.workers,
    )
    model, tokenizer = pretrain_language(
        train=train,
        tower=work / "tower",
        align_steps=arguments.align_steps,
        steps=arguments.language_steps,
        batch=arguments.language_batch,
        lr=arguments.language_lr,
        seed=arguments.seed,
        work=work / "language",
        workers=arguments.workers,
    )
    model.eval()
    save(model, tokenizer, arguments.out / "internvl")
    scores |= language_scores(model, tokenizer, val)
    report = {
        "command": command,
        "seed": arguments.seed,
        "data": {"scenes": arguments.scenes, "size": SIZE},
        "steps": {
            "tower": arguments.tower_steps,
            "alignment": arguments.align_steps,
            "language": arguments.language_steps,
        },
        "scores": scores,
        "seconds": round(sum(seconds_of(work / phase) for phase in ("tower", "language/alignment", "language"))),
        "hardware": hardware(arguments.workers),
    }
    (arguments.out / "internvl" / "metrics.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    log.info("%s", report)


if __name__ == "__main__":
    main()
