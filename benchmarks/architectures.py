"""The published InternVL models' sizes, without their weights: configuration and processor of each.

The tokenizer knows the bytes and as many meaningless words as it takes, so that a text is as many tokens as bytes: enough to
build and to time the models, and nothing to talk to.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.internvl import InternVLVisionConfig

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of one InternVL's language model; all have InternViT-300M-448px before it and an output head of its own.

    Attributes:
        repo: the published model that has this architecture.
        published: its number of parameters.
        width, inner, layers, heads, key_heads, head_dim: of the language model.
        rows: of the embedding.
        tokens: of the tokenizer.
        qwen3: Qwen3 (norms on queries and keys, no biases), else Qwen2 (biases on queries, keys and values).
    """

    repo: str
    published: int
    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    rows: int
    tokens: int
    qwen3: bool = False

    def config(self) -> InternVLConfig:
        """The configuration in `transformers`' form."""
        kind = Qwen3Config if self.qwen3 else Qwen2Config
        text = kind(
            vocab_size=self.rows,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            head_dim=self.head_dim,
            max_position_embeddings=32768,
            tie_word_embeddings=False,
        )
        return InternVLConfig(
            vision_config=InternVLVisionConfig(attention_bias=True),  # its other defaults are InternViT-300M-448px's
            text_config=text,
            image_token_id=SPECIAL.index("<IMG_CONTEXT>"),
            tie_word_embeddings=False,
        )


# Sizes: config.json of Qwen2.5-{0.5B, 3B, 7B}-Instruct and Qwen3-4B. Rows: config.json of InternVL2.5 and InternVL3, whose
# native form has one token more, <video>; InternVL3.5 has Qwen3's rows, of which its tokens (about as many) leave some free.
# Parameters: counted by others from the published weights; of InternVL3-8B-hf the closed formula of the test, which agrees
# with the 15.89 GB of bf16 on the hub.
INTERNVL3_1B = Architecture(
    repo="OpenGVLab/InternVL3-1B-hf",
    published=938_193_024,
    width=896,
    inner=4864,
    layers=24,
    heads=14,
    key_heads=2,
    head_dim=64,
    rows=151_674,
    tokens=151_675,
)
INTERNVL2_5_4B = Architecture(
    repo="OpenGVLab/InternVL2_5-4B",
    published=3_712_637_952,
    width=2048,
    inner=11008,
    layers=36,
    heads=16,
    key_heads=2,
    head_dim=128,
    rows=151_674,
    tokens=151_674,
)
INTERNVL3_5_4B = Architecture(
    repo="OpenGVLab/InternVL3_5-4B-HF",
    published=4_732_489_216,
    width=2560,
    inner=9728,
    layers=36,
    heads=32,
    key_heads=8,
    head_dim=128,
    rows=151_936,
    tokens=151_679,
    qwen3=True,
)
INTERNVL3_8B = Architecture(
    repo="OpenGVLab/InternVL3-8B-hf",
    published=7_944_373_760,
    width=3584,
    inner=18944,
    layers=28,
    heads=28,
    key_heads=4,
    head_dim=128,
    rows=151_674,
    tokens=151_675,
)
BASES = {"perceptio-1b": INTERNVL3_1B, "perceptio-4b": INTERNVL3_5_4B, "perceptio-8b": INTERNVL3_8B}
"""The base model of each profile of the paper's sizes."""


def processor_of(tokens: int) -> InternVLProcessor:
    """InternVL's processor with a tokenizer of so many tokens: one for every byte, and others that mean nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *alphabet]
    words += [f"\x00{number}" for number in range(tokens - len(words))]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=names
    )
    size = {"height": 448, "width": 448}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size),
        tokenizer=fast,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=256,
        chat_template=TEMPLATE,
    )
