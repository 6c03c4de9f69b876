"""The tokenizer of an original InternVL, with the tokens and the chat template that `InternVLProcessor` works with.

Qwen's is read from its own files. InternLM2's is code beside a SentencePiece model; the code is not run: `transformers` reads
the model, and what it makes of it has to agree with SentencePiece itself on a probe.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from perceptio_core.convert.checkpoint_files import Section
from perceptio_core.convert.internvl_config import INTERNLM2, language_model
from perceptio_core.model.assembly import END_TOKEN

TOKENS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The turns of the original conversation ``internvl2_5`` without its system prompt, as in OpenGVLab's own -hf models."""
_PROBE = "Which of 12 points is the closest?\n  (A) é 点"


def read_tokenizer(source: Path, config: Section) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a folder.

    Args:
        source: holds tokenizer.json; or vocab.json and merges.txt (Qwen); or tokenizer.model (InternLM2).
        config: the original `config.json`.

    Raises:
        ValueError: there is none, it lacks a token that is needed, or has more tokens than the model has rows.
    """
    internlm2 = language_model(config) == INTERNLM2
    llm = config.section("llm_config")
    rows = llm.get("vocab_size", int)
    if (source / "tokenizer.json").is_file():
        read = PreTrainedTokenizerFast.from_pretrained(source)
        backend = read.backend_tokenizer
    elif internlm2 and (source / "tokenizer.model").is_file():
        read = _read_sentencepiece(source)
        backend = _without_renamed(read.backend_tokenizer, rows)
    elif not internlm2 and (source / "vocab.json").is_file() and (source / "merges.txt").is_file():
        read = Qwen2Tokenizer.from_pretrained(source)
        backend = read.backend_tokenizer
    else:
        kind = "tokenizer.model" if internlm2 else "vocab.json with merges.txt"
        raise ValueError(f"{source}: holds no tokenizer; expected is tokenizer.json, or {kind}")
    if missing := [token for token in (*TOKENS.values(), END_TOKEN) if backend.token_to_id(token) is None]:
        raise ValueError(f"{source}: its tokenizer lacks {', '.join(missing)}")
    if backend.get_vocab_size() > rows:
        raise llm.fault("vocab_size", f"at least {backend.get_vocab_size()}, the tokens of the tokenizer")
    # InternLM2 has always seen a <s> first; Perceptio's sequences hold what the template says and no more.
    begin = read.bos_token if internlm2 else ""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=begin or None,
        eos_token=END_TOKEN,
        pad_token=read.pad_token,
        model_max_length=read.model_max_length,
        chat_template=begin + TEMPLATE,
        # <video>, which Perceptio never writes, may lie beyond the embedding's rows, as in OpenGVLab's own -hf models
        extra_special_tokens={**TOKENS, "video_token": "<video>"},
    )


def _read_sentencepiece(source: Path) -> PreTrainedTokenizerFast:
    path = source / "tokenizer.model"
    if not (is_sentencepiece_available() and is_protobuf_available()):
        raise ValueError(
            f"{path}: it takes two packages to read it: pip install sentencepiece protobuf. A tokenizer.json beside it does too"
        )
    from sentencepiece import SentencePieceProcessor

    read = PreTrainedTokenizerFast.from_pretrained(source)
    expected = SentencePieceProcessor(model_file=str(path)).encode(_PROBE)
    if read.encode(_PROBE, add_special_tokens=False) != expected:
        raise ValueError(
            f"{path}: transformers reads it as another tokenizer than SentencePiece; put a tokenizer.json beside it"
        )
    return read


def _without_renamed(backend: Tokenizer, rows: int) -> Tokenizer:
    """Without the pieces that the folder's configuration gives other names: `transformers` adds them once more at the end."""
    layout = json.loads(backend.to_str())
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["id"] < rows]
    return Tokenizer.from_str(json.dumps(layout))
