"""From encoded pictures to the numbers that a model takes: one implementation for training, fitting and serving."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from analyzers.errors import InvalidInputError

FORMATS = ("JPEG", "PNG", "WEBP")

DEFAULT_MAX_PIXELS = 50_000_000

# A PNG's texts and colour profile may be packed a thousandfold. Nothing in them matters here but the orientation, which
# is short, so that longer ones are left out before anything is unpacked.
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP"))
_MAX_TEXT_BYTES = 4096
_MAX_TEXTS = 16
_MAX_CHUNKS = 1 << 16
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 16

# A JPEG's profiles, previews and comments are kept three times over by the decoder, which uses none of them.
_JPEG = b"\xff\xd8"
_SCAN, _EXIF, _ADOBE = 0xDA, 0xE1, 0xEE
_UNUSED = frozenset((*range(0xE1, 0xF0), 0xFE)) - {_ADOBE}

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture at the model's size, and the size it came in.

    Attributes:
        pixels: (height, width, 3) uint8, RGB.
        source_width: width before resizing, in pixels, after the EXIF orientation.
        source_height: height before resizing, in pixels, after the EXIF orientation.
    """

    pixels: UInt8Array
    source_width: int
    source_height: int


def decode(
    encoded: bytes,
    height: int,
    width: int,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    field: str = "image",
) -> Picture:
    """Decode a JPEG, PNG or WebP file and stretch it to `height` x `width` (bilinear, antialiased).

    Args:
        encoded: the file's bytes.
        height: the model's input height in pixels.
        width: the model's input width in pixels.
        max_pixels: refuse pictures whose header promises more; checked before any pixel is decoded.
        field: how to name the picture in an error.

    Raises:
        InvalidInputError: the bytes are no such picture, are truncated, or promise too many pixels.
    """
    if not encoded:
        raise InvalidInputError(field, "is empty; expected the bytes of a JPEG, PNG or WebP file")
    if encoded.startswith(_PNG):
        encoded = _without_long_texts(encoded)
    elif encoded.startswith(_JPEG):
        encoded = _without_profiles(encoded)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `max_pixels` decides, and what cannot be decoded raises
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise InvalidInputError(
                        field,
                        f"is {image.width} x {image.height} pixels, more than the limit of {max_pixels};"
                        " send a smaller picture",
                    )
                if image.format == "PNG" and _lacks_rows(image, encoded):
                    raise OSError("its last rows are missing")
                rgb = _to_rgb(image)
                source_width, source_height = rgb.size
                if (source_width, source_height) != (width, height):
                    rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
                return Picture(np.asarray(rgb), source_width, source_height)
    except UnidentifiedImageError:
        raise InvalidInputError(
            field, f"is not a picture of a known format ({len(encoded)} bytes); expected JPEG, PNG or WebP"
        ) from None
    except (Image.DecompressionBombError, MemoryError):
        raise InvalidInputError(
            field, f"would decode to far more than the limit of {max_pixels} pixels; send a smaller picture"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, zlib.error) as error:
        # Pillow's decoders raise any of these on damaged files.
        raise InvalidInputError(
            field,
            f"cannot be decoded ({str(error)[:120] or type(error).__name__}); the file is damaged or truncated",
        ) from None


def _without_long_texts(png: bytes) -> bytes:
    """Return a PNG without texts and profiles that are long, or many; a damaged one is left to the decoder."""
    kept, start, place, texts = [], 0, len(_PNG), 0
    for _ in range(_MAX_CHUNKS):
        if place + 8 > len(png):
            break
        (size,) = struct.unpack_from(">I", png, place)
        kind, end = png[place + 4 : place + 8], place + size + 12
        if kind in _TEXTS:
            texts += 1
            if size > _MAX_TEXT_BYTES or texts > _MAX_TEXTS:
                kept.append(memoryview(png)[start:place])
                start = min(end, len(png))
        place = end
    return b"".join((*kept, memoryview(png)[start:])) if start else png


def _without_profiles(jpeg: bytes) -> bytes:
    """Return a JPEG without what is neither pixels nor orientation, if that is much; a damaged one as it is."""
    kept, start, place, dropped, exifs = [], 0, len(_JPEG), 0, 0
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF and jpeg[place + 1] != _SCAN:
        if (kind := jpeg[place + 1]) == 0xFF:  # markers may be filled up with any number of these
            place += 1
            continue
        end = place + 2 + struct.unpack_from(">H", jpeg, place + 2)[0]
        exif = kind == _EXIF and jpeg.startswith(b"Exif\0\0", place + 4)
        exifs += exif
        if kind in _UNUSED and not (exif and exifs <= _MAX_TEXTS) and end <= len(jpeg):
            kept.append(memoryview(jpeg)[start:place])
            start, dropped = end, dropped + end - place
        place = end
    return b"".join((*kept, memoryview(jpeg)[start:])) if dropped > _MAX_TEXT_BYTES else jpeg


def _lacks_rows(image: Image.Image, png: bytes) -> bool:
    """Whether a PNG's data end before its last row; Pillow leaves such rows at zero without a word."""
    bottom = image.crop((0, image.height - 1, image.width, image.height)).tobytes()
    if any(bottom) or "interlace" in image.info:
        return False
    depth, colour = png[24], png[25]
    row_bytes = 1 + (image.width * depth * _CHANNELS.get(colour, 1) + 7) // 8
    missing, unpacker = row_bytes * image.height, zlib.decompressobj()
    for data in _pixel_data(png):
        while data and missing > 0:
            missing -= len(unpacker.decompress(data, 1 << 16))
            data = unpacker.unconsumed_tail
    return missing > 0


_CHANNELS = {2: 3, 4: 2, 6: 4}  # by PNG's colour type; the others have one


def _pixel_data(png: bytes) -> Iterator[bytes]:
    place = len(_PNG)
    while place + 8 <= len(png):
        (size,) = struct.unpack_from(">I", png, place)
        if png[place + 4 : place + 8] == b"IDAT":
            yield png[place + 8 : place + 8 + size]
        place += size + 12


def _to_rgb(image: Image.Image) -> Image.Image:
    """Turn upright by EXIF, bring 16-bit grey to 8 bits and drop alpha."""
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    rgb = image.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_model_input(pixels: UInt8Array) -> Float32Array:
    """Turn uint8 pictures (batch, height, width, 3) into the model's float32 (batch, 3, height, width) in 0..1."""
    return np.divide(pixels.transpose(0, 3, 1, 2), np.float32(255), dtype=np.float32, order="C")
