"""Chats in the manner of `transformers`, read as what the model is asked: one picture, the turns so far, a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps
from transformers.image_utils import load_image

from perceptio_core.rgb import to_rgb

_FORM = "allowed is user, assistant, user, ...: a picture in the first question alone, texts, and a question at the end"


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A picture (RGB), the (question, answer) pairs so far, and the question to answer."""

    image: Image.Image
    history: list[tuple[str, str]]
    question: str


def read_chat(messages: Sequence[Mapping[str, Any]]) -> Chat:
    """Read a chat.

    Args:
        messages: {"role": "user" or "assistant", "content": ...}, where the content is a text or a list of {"type": "text",
            "text": ...} and {"type": "image", "image" or "url" or "path": ...}, as `picture` takes it; OpenAI's
            {"type": "image_url"} too. The picture comes before its question wherever it stands in the message, as it did in
            training. Perception tokens in answers are what they spell, so that masks of earlier turns may be told.

    Raises:
        ValueError: a chat of another form, for which the model was not trained, or a picture that cannot be read.
    """
    roles = [message.get("role") for message in messages]
    if roles != (["user", "assistant"] * len(roles))[: len(roles)] or len(roles) % 2 == 0:
        raise ValueError(f"a chat of {roles}; {_FORM}")
    images: list[Any] = []
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        found = [_source(part) for part in parts if part.get("type") in ("image", "image_url")]
        if (found and images) or len(found) > 1 or (not found and not images):
            raise ValueError(f"a chat with {len(found)} pictures in message {len(texts) + 1} of {len(roles)}; {_FORM}")
        if others := {str(part.get("type")) for part in parts} - {"image", "image_url", "text"}:
            raise ValueError(f"a chat with {', '.join(sorted(others))}; {_FORM}")
        images += found
        texts.append("".join(str(part["text"]) for part in parts if part["type"] == "text"))
    return Chat(image=picture(images[0]), history=list(zip(texts[:-1:2], texts[1::2], strict=True)), question=texts[-1])


def picture(source: Any) -> Image.Image:
    """A picture in RGB, upright by its EXIF orientation.

    Args:
        source: a PIL image; or the path, address or base64 text of one, which `transformers` opens.

    Raises:
        ValueError: it is none of these, or cannot be read.
    """
    try:
        return to_rgb(ImageOps.exif_transpose(source) if isinstance(source, Image.Image) else load_image(source))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{str(source)[:200]}: {error}") from error


def _source(part: Mapping[str, Any]) -> Any:
    """Where an image part says that its picture is."""
    given = part.get("image_url") if part["type"] == "image_url" else None
    source = given.get("url") if isinstance(given, Mapping) else given
    return next((part[key] for key in ("image", "url", "path", "base64") if part.get(key) is not None), source)
