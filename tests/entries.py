"""Entries of shards, made of a picture and annotations."""

import io
from collections.abc import Sequence

from PIL import Image

from perceptio_core.data.shards.entry import Annotation, Entry


def entry(image: Image.Image, *annotations: Annotation, image_key: str = "k", depth_codes: Sequence[int] = (0,)) -> Entry:
    """A picture as PNG, with what is said about it."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return Entry(
        image=stream.getvalue(),
        extension="png",
        image_key=image_key,
        width=image.width,
        height=image.height,
        depth_codes=depth_codes,
        annotations=annotations,
    )
