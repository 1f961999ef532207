"""Pictures of every size, orientation and kind: seen upright, in RGB, and answered in their own pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import pytest
from PIL import ExifTags, Image

from server.client import Client
from tests.conftest import SIZE, png, unsigned

random = np.random.default_rng(5)
RGB = random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
GREY = RGB[..., 0]
ALPHA = random.integers(0, 256, (SIZE, SIZE), np.uint8)
GREY16 = random.integers(0, 2**16, (SIZE, SIZE)).astype(np.uint16)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address) as opened:
        yield opened


def encode(image: Image.Image, kind: str = "PNG", orientation: int | None = None, **options: object) -> bytes:
    """Encode a picture, with an EXIF orientation if there is one."""
    if orientation is not None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def three(grey: np.ndarray) -> np.ndarray:
    """Return a grey picture as RGB."""
    return np.stack([grey] * 3, -1)


def decoded(encoded: bytes) -> np.ndarray:
    """Return the RGB of a lossy file, read by hand."""
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def rgb16(pixels: np.ndarray) -> bytes:
    """Return a PNG of 16 bits a channel; Pillow cannot write one."""
    deep = pixels.astype(">u2") << 8 | 0x5A
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


PALETTE = Image.fromarray(RGB).quantize(17)
JPEG = encode(Image.fromarray(RGB), "JPEG", quality=80)
PROGRESSIVE = encode(Image.fromarray(RGB), "JPEG", quality=80, progressive=True)
GREY_JPEG = encode(Image.fromarray(GREY), "JPEG")
CMYK_JPEG = encode(Image.fromarray(RGB).convert("CMYK"), "JPEG")
WEBP = encode(Image.fromarray(RGB), "WEBP", quality=80)
MOVING = encode(Image.fromarray(RGB), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (16, 16))])

# Each kind of file, and the RGB that the model must see.
KINDS: dict[str, tuple[bytes, np.ndarray]] = {
    "RGB PNG": (png(RGB), RGB),
    "PNG with alpha, which is dropped": (encode(Image.fromarray(np.dstack([RGB, ALPHA]))), RGB),
    "grey PNG": (encode(Image.fromarray(GREY)), three(GREY)),
    "grey PNG with alpha": (encode(Image.fromarray(np.dstack([GREY, ALPHA]))), three(GREY)),
    "grey PNG of 16 bits": (encode(Image.fromarray(GREY16)), three((GREY16 >> 8).astype(np.uint8))),
    "RGB PNG of 16 bits": (rgb16(RGB), RGB),
    "PNG of 1 bit": (encode(Image.fromarray(GREY > 99)), three(np.where(GREY > 99, 255, 0).astype(np.uint8))),
    "palette PNG": (encode(PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "palette PNG with a transparent colour": (encode(PALETTE, transparency=3), np.asarray(PALETTE.convert("RGB"))),
    "JPEG": (JPEG, decoded(JPEG)),
    "progressive JPEG": (PROGRESSIVE, decoded(PROGRESSIVE)),
    "grey JPEG": (GREY_JPEG, decoded(GREY_JPEG)),
    "CMYK JPEG": (CMYK_JPEG, decoded(CMYK_JPEG)),
    "lossless WebP": (encode(Image.fromarray(RGB), "WEBP", lossless=True), RGB),
    "lossy WebP": (WEBP, decoded(WEBP)),
    "moving WebP, of which the first frame counts": (MOVING, RGB),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_seen_as_its_rgb(client: Client, kind: str) -> None:
    encoded, pixels = KINDS[kind]
    assert unsigned(client.explain(encoded)) == unsigned(client.explain(pixels))


# How an upright picture lies in the file, by what EXIF calls it.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_upright_by_its_exif_orientation(client: Client, orientation: int, kind: str) -> None:
    upright = random.integers(0, 256, (20, 44, 3), np.uint8)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {} if kind == "PNG" else {"lossless": True}
    (answer,) = client.explain(encode(stored, kind, orientation, **options))
    assert unsigned([answer]) == unsigned(client.explain(png(upright)))
    assert (answer.width, answer.height) == (44, 20)


def test_a_turned_jpeg_is_answered_in_upright_pixels(client: Client) -> None:
    (answer,) = client.explain(encode(Image.new("RGB", (80, 160)), "JPEG", 6))
    assert (answer.width, answer.height) == (160, 80)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_exif_does_not_know_turns_nothing(client: Client, orientation: int) -> None:
    turned = client.explain(encode(Image.fromarray(RGB), orientation=orientation))
    assert unsigned(turned) == unsigned(client.explain(png(RGB)))


@pytest.mark.parametrize(("width", "height"), [(160, 80), (16, 240), (8, 8), (1, 1), (2400, 16), (333, 47)])
def test_positions_are_pixels_of_the_picture_that_was_sent(client: Client, width: int, height: int) -> None:
    sent = Image.fromarray(RGB).resize((width, height), Image.Resampling.NEAREST)
    (answer,) = client.explain(encode(sent))
    (small,) = client.explain(np.asarray(sent.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
    assert (answer.width, answer.height) == (width, height)
    assert answer.predictions == small.predictions
    assert len(answer.parts.parts) == len(small.parts.parts) > 0
    for part, at_input in zip(answer.parts.parts, small.parts.parts, strict=True):
        assert (part.filter, part.score) == (at_input.filter, at_input.score)
        assert part.x == pytest.approx(at_input.x * width / SIZE)
        assert part.y == pytest.approx(at_input.y * height / SIZE)
        for box, of in ((part.cell, at_input.cell), (part.receptive_field, at_input.receptive_field)):
            wide = {side: value * width / SIZE for side, value in asdict(of).items() if side in ("left", "right")}
            high = {side: value * height / SIZE for side, value in asdict(of).items() if side in ("top", "bottom")}
            assert asdict(box) == pytest.approx(wide | high)
    fired = {part.filter: part for part in answer.parts.parts}
    for ledger in answer.class_features:
        assert all(entry.part == fired.get(entry.feature) for entry in ledger.contributions)


def test_pictures_of_different_sizes_in_one_request_keep_their_own(client: Client) -> None:
    sizes = [(160, 80), (16, 16), (30, 90)]
    pictures = [encode(Image.fromarray(RGB).resize(size)) for size in sizes]
    answers = client.explain(pictures)
    assert [(answer.width, answer.height) for answer in answers] == sizes
    assert answers == [client.explain(picture)[0] for picture in pictures]
