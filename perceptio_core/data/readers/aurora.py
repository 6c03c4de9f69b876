"""AURORA's training data (arXiv 2412.03548): depth maps to be written down, and marked pictures with a chain of thought.

A JSON list in LLaVA's form, such as ``train_depth_20k.json`` and ``train_depth_annealing_data.json``, a question and an answer
a row. The answer says of which of three kinds it is:

- depth generation: ``<DEPTH_START><DEPTH_41>...<DEPTH_END>`` alone, 100 codes of 128 -> a record of the task ``depth_map``;
- chain of thought about a picture with circles: "Point A is located at (x = 70 y = 120),... .The depth map for the image is
  <DEPTH_START>...<DEPTH_END>. Since point B has a higher pixel value ..." -> a record of the task ``marker``;
- a direct answer about such a picture, "(B)" -> a record of the task ``conversation``: nothing says where its points are.

The codes are those of AURORA's own teacher and codebook. Their form is checked; they are then left out, for `joint_shards`
makes the codes of every picture with the profile's teacher and codebook. The depth span comes before the whole answer, so
the sentence around it goes and the text on both sides of it stays. The form of the long answer is that of
the follow-ups' generators, which were made for the same file; the file itself was not at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from perceptio_core.data.readers.json_rows import list_rows
from perceptio_core.data.readers.llava import turns_of_row
from perceptio_core.data.records import DEPTH_MAP_QUESTION, Point, Record, Refused, Split, Task, inside

CODES, TOKENS = 128, 100
"""Of AURORA's codebook, and of its depth maps."""

_LONGEST = 4000  # characters of an answer; those with 100 codes have under 2,000
_SPAN = re.compile(r"<DEPTH_START>(.*?)<DEPTH_END>", re.DOTALL)
_SENTENCE = re.compile(r"(?:\s*The depth map (?:for|of) the image is)?\s*<DEPTH_START>.*?<DEPTH_END>\s*\.?\s*", re.DOTALL)
_WORD = re.compile(r"<[^<>\s]*>|[^<\s]+|<")
_CODE = re.compile(r"<DEPTH_(\d{1,3})>")
_TOKEN = re.compile(r"<[A-Z]+_[A-Z0-9]+>")
_POINT = re.compile(r"Point ([A-Z]) is located at \(x\s*=\s*(\d{1,5}),?\s*y\s*=\s*(\d{1,5})\)")
_LETTER = re.compile(r"\([A-Z]\)")


def aurora_records(path: Path, *, source: str, split: Split, root: Path, images: str | None) -> Iterator[Record | Refused]:
    """One record per row, and one for all rows that say the same.

    The published file strings ten epochs together, so it says most things several times; how often a record is drawn
    is the mixture's to say. It names pictures by where they lay when it was made: of such a path as much of the end is taken as
    there is below `images`, at least a folder and a file, because pictures with and without circles may have the same name.

    Args:
        path: the JSON file.
        source: name of the data set.
        split: of all records.
        root: data root.
        images: folder of the folders of pictures, below `root`; None: the one that holds the file.

    Yields:
        Records, and refused rows, each with its number and the reason; one more for all rows that were said before. What was
        said is held in memory as 16 bytes each.

    Raises:
        ValueError: the file is absent or not a JSON list.
    """
    folder = images if images is not None else path.parent.relative_to(root).as_posix()
    known: set[bytes] = set()
    again = 0
    for number, row in enumerate(list_rows(path, of="conversations")):
        try:
            if not isinstance(row, dict) or not isinstance(row.get("image"), str):
                raise ValueError("the row is no object with an image")
            task, turn = _task(row.get("conversations"))
            said = blake2b("\0".join((row["image"], *turn)).encode(errors="surrogatepass"), digest_size=16).digest()
            if said in known:
                again += 1
                continue
            image = _found(row["image"], folder=folder, path=path, root=root)
        except ValueError as error:
            yield Refused(file=f"{path.relative_to(root)}#{number}", reason=str(error))
            continue
        known.add(said)
        yield Record(
            record_id=f"{source}/{number}",
            image=image,
            image_name=PurePosixPath(*PurePosixPath(image).parts[-2:]).with_suffix("").as_posix(),
            split=split,
            task=task,
            turns=(turn,),
            points=marked_points(turn[1]) if task == "marker" else (),
            source=source,
        )
    if again:
        reason = f"{again:,} rows say what an earlier row says: once is enough, the mixture decides how often it is drawn"
        yield Refused(file=path.relative_to(root).as_posix(), reason=reason)


def marked_points(text: str) -> tuple[Point, ...]:
    """The points that a chain of thought names, in its order."""
    return tuple(Point(letter, int(x), int(y)) for letter, x, y in _POINT.findall(text))


def _task(said: Any) -> tuple[Task, tuple[str, str]]:
    """What a row's conversation is, and its question and answer in our form."""
    turns = turns_of_row(said)
    if len(turns) != 1:
        raise ValueError(f"expected one question and its answer, got {len(turns)}")
    ((question, answer),) = turns
    if len(answer) > _LONGEST:
        raise ValueError(f"an answer of {len(answer):,} characters; allowed are {_LONGEST:,}")
    spans = _SPAN.findall(answer)
    if len(spans) > 1:
        raise ValueError(f"the answer holds {len(spans)} depth spans, allowed is one")
    for span in spans:
        _check_codes(span)
    text = _SENTENCE.sub(" ", answer).strip()
    if (token := _TOKEN.search(question + text)) is not None:
        raise ValueError(f"the token {token[0][:40]} stands where no depth span is, or is none of AURORA's depth tokens")
    if not spans:
        if _LETTER.fullmatch(text) is None:
            raise ValueError(f"the answer is neither a depth span nor a letter such as (B), nor both in a text: {text[:60]!r}")
        return "conversation", (question, text)
    if not text:
        return "depth_map", (DEPTH_MAP_QUESTION, "")
    letters = [point.letter for point in marked_points(text)]
    if len(letters) < 2 or len(set(letters)) < len(letters):
        raise ValueError(f"a chain of thought says where two points or more are, each once; this one has {letters}")
    return "marker", (question, text)


def _check_codes(span: str) -> None:
    words = _WORD.findall(span)
    for word in words:
        code = _CODE.fullmatch(word)
        if code is None or int(code[1]) >= CODES:
            raise ValueError(f"{word[:40]!r} in a depth span; allowed are <DEPTH_0> to <DEPTH_{CODES - 1}>")
    if len(words) != TOKENS:
        raise ValueError(f"a depth span of {len(words)} codes; AURORA's hold {TOKENS}")


def _found(name: str, *, folder: str, path: Path, root: Path) -> str:
    """The picture's path below the root: the longest end of `name` below `folder` that is a file."""
    parts = [part for part in PurePosixPath(name).parts if part.strip("/")]
    ends = [inside(folder, "/".join(parts[start:]), named_in=path) for start in range(max(1, len(parts) - 1))]
    found = next((end for end in ends if (root / end).is_file()), None)
    if found is None:
        raise ValueError(f"no picture lies at {ends[-1]}, the end of {name[:200]!r} below {folder or 'the data root'}")
    return found
