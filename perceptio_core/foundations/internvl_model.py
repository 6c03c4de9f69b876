"""Mini's InternVL before it has learned anything: its tokenizer, its sizes, how its language model starts (ours)."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast, Qwen2Config

from perceptio_core.data.shards import markers as marker_language
from perceptio_core.foundations.pointing import GATHERING, LOOKING
from perceptio_core.foundations.vision_tower import tower_config

SIZE, PATCH = 128, 16  # pixels
IMAGE_TOKENS = (SIZE // PATCH) ** 2
VOCABULARY = 900
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
# phrases of co-training, so that the tokenizer does not spell them out byte by byte; no answer to them is ever shown
REQUESTS = (
    marker_language.QUESTION,
    "What is the depth map for the image?",
    "Please segment the object in this image.",
    "Sure, here it is.",
)


def train_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of VOCABULARY tokens with InternVL's special tokens; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )


def model_config(tokenizer: PreTrainedTokenizerFast) -> InternVLConfig:
    """A 4.1 M-parameter InternVL: the tower of `vision_tower`, 64 image tokens, a four-layer Qwen2.

    Its rotary base is low: among 64 image tokens and short texts, a place must be told from the next.
    """
    return InternVLConfig(
        vision_config=tower_config(),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=1.0,
        tie_word_embeddings=False,
    )


@torch.no_grad()
def initialise_language(
    model: InternVLForConditionalGeneration,
    *,
    gain: float = 16.0,
    to_image: float = 36.0,
    spoken: float = 0.05,
) -> None:
    """Start the language model at "gather words, look at the image tokens that are like them, say what they hold".

    In the manner of the mimetic initialisation of Trockman and Kolter (arXiv 2305.09828). Image tokens are drawn to the words
    for what they show (`WordAlignment`), so a word of a question finds its place in the picture from the first step on: from
    layer GATHERING on output projections are near the transposed values, so attention copies; from layer LOOKING on queries
    are near `gain` times the keys, so it goes to what is alike, with a bias of `to_image` towards image tokens. The output
    head is near `spoken` times the embeddings. Embeddings have unit variance: smaller ones are drowned by what the first
    layers learn to add to them.
    """
    words_VD = model.get_input_embeddings().weight.normal_()
    model.lm_head.weight.add_(spoken * words_VD)
    for number, layer in enumerate(model.model.language_model.layers):
        attention = layer.self_attn
        if number >= GATHERING:
            values_HD = attention.v_proj.weight
            attention.o_proj.weight.mul_(0.5).add_(0.5 * values_HD.T / values_HD.square().sum(1).mean())
        if number >= LOOKING:
            attention.q_proj.weight.mul_(0.5).add_(gain * attention.k_proj.weight)
            image_D = words_VD[model.config.image_token_id]
            attention.q_proj.bias.copy_(to_image * attention.k_proj.weight @ image_D)
