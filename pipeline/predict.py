"""``perceptio predict``: questions about pictures, answered by a trained checkpoint; masks and depth maps as files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data.images import open_image
from perceptio_core.files import whole
from perceptio_core.progress import track
from perceptio_core.report.pictures import overlay

if TYPE_CHECKING:
    from perceptio_core.model.inference import Prediction

BATCH_SIZE = 8
"""Questions per pass (ours)."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture to ask about, and the name of its files; `listed` where a folder gave it and nobody named it."""

    path: Path
    name: str
    listed: bool


@dataclass(frozen=True, kw_only=True)
class _Asked:
    picture: Picture
    image: Image.Image
    question: str
    name: str


def predict(
    *,
    paths: Sequence[Path],
    questions: Sequence[str],
    checkpoint: str | Path,
    out: Path,
    as_json: bool,
    device: str | None,
    dtype: str | None,
) -> bool:
    """Print the answers; write masks, drawn over the picture and one by one, and depth maps as pictures into `out`.

    A picture that cannot be read costs a line on stderr, and the others are answered.

    Args:
        paths: pictures, and folders of pictures with all folders in them.
        questions: each is asked of each picture.
        checkpoint: a folder, or a repository of the hub.
        out: folder of the files, made if absent.
        as_json: print a line of JSON for each picture and question: picture, question, answer, raw, masks (files), overview
            and depth (a file or null); for a picture that cannot be read: picture, error.
        device: torch device; by default the GPU where there is one.
        dtype: of the language model; by default as it was saved.

    Returns:
        Whether every picture was read.

    Raises:
        ValueError: a path is absent, there is no picture, no checkpoint, or no such device, or `out` cannot be written to.
    """
    pictures = find_pictures(paths, out=out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out}: {error.strerror}") from error
    from perceptio_core.model.inference import Perceptor  # brings torch, which takes seconds: a wrong path is said before

    perceptor = Perceptor.from_pretrained(checkpoint, device=device, dtype=dtype, batch_size=BATCH_SIZE)
    single = len(pictures) * len(questions) == 1
    bad: list[Picture] = []
    others = 0

    def asked() -> Iterator[_Asked]:
        nonlocal others
        for picture in pictures if single else track(pictures, label="predict", unit="pictures"):
            try:
                image = open_image(picture.path)
            except ValueError as error:
                if picture.listed and picture.path.suffix.lower() not in _SUFFIXES:
                    others += 1
                    continue
                bad.append(picture)
                print(f"perceptio: {error}", file=sys.stderr)
                if as_json:
                    _line({"picture": str(picture.path), "error": str(error)})
                continue
            for number, question in enumerate(questions, start=1):
                name = picture.name if len(questions) == 1 else f"{picture.name}.q{number}"
                yield _Asked(picture=picture, image=image, question=question, name=name)

    for batch in _batches(asked(), size=BATCH_SIZE):
        predictions = perceptor.predict([one.image for one in batch], [one.question for one in batch])
        for one, prediction in zip(batch, predictions, strict=True):
            try:
                files = _write(one, prediction, out=out)
            except OSError as error:
                raise ValueError(f"{error.filename or out}: {error.strerror}") from error
            if as_json:
                asked_of = {"picture": str(one.picture.path), "question": one.question}
                _line({**asked_of, "answer": prediction.text, "raw": prediction.raw, **files})
            elif single:
                print(prediction.text)
                _say_files(files)
            else:
                print(f"{one.picture.path}: {one.question}: {prediction.text}", flush=True)
    if others:
        print(f"perceptio: {others} files that are no pictures were left out", file=sys.stderr)
    return not bad


def find_pictures(paths: Sequence[Path], *, out: Path) -> list[Picture]:
    """The pictures of paths, in their order, those of a folder by their paths; each with a name of its own for its files.

    Raises:
        ValueError: a path is absent, there is no picture, or `out` lies in a folder that is read, so that the next run would
            take its masks for pictures.
    """
    found: list[tuple[Path, bool]] = []
    for path in paths:
        if path.is_dir():
            if out.resolve().is_relative_to(path.resolve()):
                raise ValueError(f"--out {out}: lies in {path}, so that masks would be taken for pictures; name another folder")
            files = sorted(file for file in path.rglob("*") if file.is_file())
            found += [(file, True) for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        elif path.exists():
            found.append((path, False))
        else:
            raise ValueError(f"{path}: no such picture or folder")
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))}: no picture there")
    names: set[str] = set()
    pictures = []
    for path, listed in found:
        name, number = path.stem, 1
        while name in names:  # pictures of one name in two folders, or of two formats
            number += 1
            name = f"{path.stem}-{number}"
        names.add(name)
        pictures.append(Picture(path=path, name=name, listed=listed))
    return pictures


def depth_picture(depth_RR: NDArray[np.float32], *, size: tuple[int, int]) -> Image.Image:
    """A depth map in [-1, 1] as a gray picture of the given (width, height): white is near."""
    gray = ((np.clip(depth_RR, -1, 1) + 1) * 127.5).round().astype(np.uint8)
    return Image.fromarray(gray).resize(size, Image.Resampling.BILINEAR)


def _batches(asked: Iterator[_Asked], *, size: int) -> Iterator[list[_Asked]]:
    batch: list[_Asked] = []
    for one in asked:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(one: _Asked, prediction: Prediction, *, out: Path) -> dict[str, list[str] | str | None]:
    """The files of an answer: a mask each, white on black; all of them over the picture; the depth map."""
    masks = [
        _save(Image.fromarray(mask_HW.astype(np.uint8) * 255), out / f"{one.name}.mask-{number}.png")
        for number, mask_HW in enumerate(prediction.masks, start=1)
    ]
    overview = depth = None
    if prediction.masks:
        overview = _save(overlay(one.image, prediction.masks), out / f"{one.name}.masks.png")
    if prediction.depth_map is not None:
        depth = _save(depth_picture(prediction.depth_map, size=one.image.size), out / f"{one.name}.depth.png")
    return {"masks": masks, "overview": overview, "depth": depth}


def _save(picture: Image.Image, path: Path) -> str:
    with whole(path) as unfinished:
        picture.save(unfinished, format="PNG")
    return str(path)


def _say_files(files: dict[str, list[str] | str | None]) -> None:
    for file in [*(files["masks"] or ()), files["overview"], files["depth"]]:
        if file:
            print(f"wrote {file}", file=sys.stderr)
    for kind, name in (("masks", "mask"), ("depth", "depth map")):
        if not files[kind]:
            print(f"no {name} in this answer", file=sys.stderr)


def _line(row: dict[str, object]) -> None:
    print(json.dumps(row, ensure_ascii=False), flush=True)
