"""An album of pictures as people have them: every mode, format, orientation and damage that a folder of them may hold."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 32)
"""Width and height of all that are good, upright."""
ORIENTATION = 0x0112


def scene() -> Image.Image:
    """Four quarters of four colours: no turn and no flip of it is itself."""
    width, height = SIZE
    image = Image.new("RGB", SIZE, "white")
    for colour, box in (
        ("red", (0, 0, width // 2, height // 2)),
        ("green", (width // 2, 0, width, height // 2)),
        ("blue", (0, height // 2, width // 2, height)),
    ):
        image.paste(colour, box)
    return image


def encoded(image: Image.Image, kind: str, **how: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **how)
    return stream.getvalue()


def turned(orientation: int, image: Image.Image | None = None) -> tuple[Image.Image, Image.Exif]:
    """A picture as a camera stores it that says by this orientation how to turn it upright (EXIF 2.32, 4.6.4 A)."""
    rows = np.asarray(image or scene())
    stored = {
        1: rows,
        2: rows[:, ::-1],
        3: rows[::-1, ::-1],
        4: rows[::-1],
        5: rows.swapaxes(0, 1),
        6: rows.swapaxes(0, 1)[::-1],
        7: rows.swapaxes(0, 1)[::-1, ::-1],
        8: rows.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return Image.fromarray(np.ascontiguousarray(stored)), exif


def vast_png(width: int, height: int) -> bytes:
    """A PNG whose header promises this size and whose content is nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def good() -> dict[str, bytes]:
    """By file name what must be read, at `SIZE`."""
    plain, gray = scene(), scene().convert("L")
    frames = [plain, plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    rest = frames[1:]
    files = {
        "plain.jpg": encoded(plain, "JPEG", quality=95),
        "plain": encoded(plain, "JPEG", quality=95),
        "png_called.jpg": encoded(plain, "PNG"),
        "gif_called.jpg": encoded(plain, "GIF"),  # as OCR-VQA has them (haotian-liu/LLaVA#1618)
        "cmyk.jpg": encoded(plain.convert("CMYK"), "JPEG", quality=95),
        "cmyk.tif": encoded(plain.convert("CMYK"), "TIFF"),
        "gray.jpg": encoded(gray, "JPEG"),
        "palette.png": encoded(plain.convert("P"), "PNG"),
        "palette_clear.png": encoded(plain.convert("P"), "PNG", transparency=0),
        "palette.gif": encoded(plain.convert("P"), "GIF"),
        "clear.png": encoded(plain.convert("RGBA"), "PNG"),
        "clear.webp": encoded(plain.convert("RGBA"), "WEBP", lossless=True),
        "gray_clear.png": encoded(gray.convert("LA"), "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "deep.tif": encoded(deep, "TIFF"),
        "deep_big_endian.tif": encoded(Image.fromarray(np.asarray(deep).astype(">u2")), "TIFF"),
        "bits.png": encoded(plain.convert("1"), "PNG"),
        "bits.tif": encoded(plain.convert("1"), "TIFF", compression="group4"),
        "ycc.tif": encoded(plain.convert("YCbCr"), "TIFF", compression="jpeg"),  # uncompressed only Pillow 13 reads it
        "packed.tif": encoded(plain, "TIFF", compression="tiff_lzw"),
        "plain.bmp": encoded(plain, "BMP"),
        "moves.gif": encoded(plain, "GIF", save_all=True, append_images=rest),
        "moves.webp": encoded(plain, "WEBP", save_all=True, append_images=rest, lossless=True),
        "moves.png": encoded(plain, "PNG", save_all=True, append_images=rest),
        "pages.tif": encoded(plain, "TIFF", save_all=True, append_images=rest),
        "two.mpo": encoded(plain, "MPO", save_all=True, append_images=rest, quality=95),
        # EXIF as reported in python-pillow/Pillow#4852 and #8348, and without a header at all.
        "exif_empty.jpg": encoded(plain, "JPEG", exif=b"Exif\0\0"),
        "exif_twice.jpg": encoded(plain, "JPEG", exif=b"Exif\0\0Exif\0\0II*\0\x08\0\0\0\0\0"),
        "exif_broken.jpg": encoded(plain, "JPEG", exif=b"Exif\0\0XXXXXXXXXXXX", dpi=(72, 72)),
        "exif_broken.png": encoded(plain, "PNG", exif=b"\x00\x08\x00\x02\x01\x12\x00\x03"),
        "exif_broken.webp": encoded(plain, "WEBP", exif=b"Exif\0\0XXXXXXXXXXXX", lossless=True),
    }
    for orientation in range(1, 9):
        stored, exif = turned(orientation)
        for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")):
            how = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
            files[f"turned_{orientation}.{suffix}"] = encoded(stored, kind, exif=exif, **how)
    return files


def bad() -> dict[str, tuple[bytes, str]]:
    """By file name what must be refused, and how its reason begins."""
    noise = Image.effect_noise((64, 64), 60).convert("RGB")
    allowed = "allowed are JPEG, PNG, WEBP, GIF, BMP, TIFF"
    return {
        "empty.jpg": (b"", "the file is empty"),
        "cut.jpg": (encoded(noise, "JPEG")[:-400], "damaged or cut off: "),
        "cut.png": (encoded(noise, "PNG")[:-400], "damaged or cut off: "),
        "cut.webp": (encoded(noise, "WEBP")[:-400], "damaged or cut off: "),
        "cut.tif": (encoded(noise, "TIFF")[:400], "damaged or cut off: "),
        "cut.gif": (encoded(noise, "GIF")[:9], "damaged or cut off: "),
        "gray.pgm": (b"P5 2 2 255 \0\0\0\0", f"PGM is not read; {allowed}"),
        "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), f"HEIC is not read; {allowed}"),
        "page.jpg": (b"<!DOCTYPE html><html>404</html>", f"HTML is not read; {allowed}"),
        "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS is not read"),
        "note.jpg": (b"hello", f"no picture; {allowed}"),
        "vast.png": (vast_png(15_000, 10_000), "15000 x 10000 pixels, at most "),
        "vaster.png": (vast_png(60_000, 60_000), "more than 178956970 pixels, which no setting allows"),
        "float.tif": (encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"), "its pixels are floating-point"),
    }


def write_album(folder: Path) -> list[str]:
    """All of it, and a linked folder with one picture more; returns the paths, from `folder`, of what must be read."""
    folder.mkdir(parents=True)
    for name, content in {**good(), **{name: content for name, (content, _) in bad().items()}}.items():
        (folder / name).write_bytes(content)
    kept = folder.parent / f"{folder.name}-elsewhere"
    kept.mkdir()
    (kept / "in_a_link.png").write_bytes(encoded(scene(), "PNG", optimize=True))
    (folder / "linked").symlink_to(kept, target_is_directory=True)
    return sorted([*good(), "linked/in_a_link.png"])
