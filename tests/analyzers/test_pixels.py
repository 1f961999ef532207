"""Pictures as they come from outside: every orientation and depth, and nothing decoded that is too large."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from analyzers.errors import InvalidInputError
from analyzers.pixels import _without_profiles, decode, to_model_input

GRADIENT = np.arange(6 * 10 * 3, dtype=np.uint8).reshape(6, 10, 3)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """Return a PNG whose header promises a large picture, with a few bytes of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def huge_jpeg(width: int, height: int) -> bytes:
    """Return a JPEG whose frame header was overwritten with another size."""
    data = encode(Image.fromarray(GRADIENT), "JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


@pytest.mark.parametrize("value", [0, 1, 2, 127, 128, 254, 255])
def test_every_byte_becomes_its_exact_share_of_255(value: int) -> None:
    model_input = to_model_input(np.full((1, 2, 3, 3), value, np.uint8))
    assert model_input.dtype == np.float32
    assert (model_input == np.float32(value) / np.float32(255)).all()


def test_the_model_s_layout_is_batch_channel_row_column() -> None:
    pixels = np.zeros((2, 4, 5, 3), np.uint8)
    pixels[1, 2, 3, 0] = 255
    model_input = to_model_input(pixels)
    assert model_input.shape == (2, 3, 4, 5)
    assert np.argwhere(model_input).tolist() == [[1, 0, 2, 3]]


def test_the_stored_picture_is_turned_as_each_exif_orientation_says() -> None:
    stored = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    upright = {
        1: [[1, 2, 3], [4, 5, 6]],
        2: [[3, 2, 1], [6, 5, 4]],
        3: [[6, 5, 4], [3, 2, 1]],
        4: [[4, 5, 6], [1, 2, 3]],
        5: [[1, 4], [2, 5], [3, 6]],
        6: [[4, 1], [5, 2], [6, 3]],
        7: [[6, 3], [5, 2], [4, 1]],
        8: [[3, 6], [2, 5], [1, 4]],
        9: [[1, 2, 3], [4, 5, 6]],  # there is no ninth
    }
    for orientation, expected in upright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(Image.fromarray(stored), exif=exif)
        height, width = np.shape(expected)
        picture = decode(data, height, width)
        assert picture.pixels[..., 0].tolist() == expected, orientation
        assert (picture.source_height, picture.source_width) == (height, width)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_format_carries_its_orientation(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decode(encode(Image.fromarray(GRADIENT), kind, exif=exif), 10, 6)
    assert (picture.source_height, picture.source_width) == (10, 6)
    assert picture.pixels.shape == (10, 6, 3)


def test_a_picture_is_stretched_as_pillow_s_antialiased_bilinear_filter_does() -> None:
    picture = decode(encode(Image.fromarray(GRADIENT)), 4, 5)
    expected = Image.fromarray(GRADIENT).resize((5, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(picture.pixels, np.asarray(expected))
    assert (picture.source_width, picture.source_height) == (10, 6)


@pytest.mark.parametrize("low", [0, 1, 128, 255])
def test_16_bit_grey_keeps_its_upper_byte(low: int) -> None:
    high = GRADIENT[..., 0]
    deep = Image.fromarray(high.astype(np.uint16) * 256 + low)
    np.testing.assert_array_equal(decode(encode(deep), 6, 10).pixels, np.repeat(high[..., None], 3, 2))


def test_transparency_is_dropped_in_every_guise() -> None:
    for alpha in (0, 77, 255):
        picture = Image.fromarray(np.dstack([GRADIENT, np.full((6, 10), alpha, np.uint8)]))
        np.testing.assert_array_equal(decode(encode(picture), 6, 10).pixels, GRADIENT)
    palette = Image.fromarray(GRADIENT).quantize(16)
    flat = np.asarray(palette.convert("RGB"))
    for transparency in (3, bytes(range(16))):
        np.testing.assert_array_equal(decode(encode(palette, transparency=transparency), 6, 10).pixels, flat)


def test_black_and_white_becomes_0_and_255() -> None:
    bits = Image.fromarray(np.eye(4, dtype=bool))
    np.testing.assert_array_equal(decode(encode(bits), 4, 4).pixels[..., 0], np.eye(4) * 255)


@pytest.mark.parametrize("make", [huge_png, huge_jpeg])
@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (65_500, 800)])
def test_the_header_alone_is_enough_to_refuse_what_is_too_large(make: object, width: int, height: int) -> None:
    with pytest.raises(InvalidInputError, match="more than the limit"):  # its pixels could not be decoded anyway
        decode(make(width, height), 8, 8)


def test_the_limit_is_the_largest_picture_that_is_taken() -> None:
    data = encode(Image.fromarray(GRADIENT))
    assert decode(data, 6, 10, max_pixels=60).source_width == 10
    with pytest.raises(InvalidInputError) as caught:
        decode(data, 6, 10, max_pixels=59, field="images[3]")
    assert str(caught.value) == "images[3]: is 10 x 6 pixels, more than the limit of 59; send a smaller picture"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_formats_that_nobody_asked_for_are_refused(kind: str) -> None:
    with pytest.raises(InvalidInputError, match=r"not a picture of a known format .* expected JPEG, PNG or WebP"):
        decode(encode(Image.fromarray(GRADIENT), kind), 6, 10)


def test_no_bytes_at_all_are_refused_under_the_field_s_name() -> None:
    with pytest.raises(InvalidInputError) as caught:
        decode(b"", 8, 8, field="images[0]")
    assert caught.value.field == "images[0]"
    assert "is empty" in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_half_a_file_is_refused_as_truncated(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(InvalidInputError, match="the file is damaged or truncated"):
        decode(data[: len(data) // 2], 8, 8)


def segment(kind: int, body: bytes) -> bytes:
    return bytes((0xFF, kind)) + struct.pack(">H", len(body) + 2) + body


def test_profiles_previews_and_comments_of_a_jpeg_are_left_out_and_what_says_how_to_read_it_is_not() -> None:
    random = np.random.default_rng(5)
    buffer, turned = io.BytesIO(), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    picture = Image.fromarray(random.integers(0, 256, (24, 40, 3), np.uint8))
    picture.save(buffer, "JPEG", keep_rgb=True, exif=turned)  # without its Adobe segment it would be read as YCbCr
    plain = buffer.getvalue()
    plain = plain[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\0") + plain[2:]
    body = bytes(60_000)
    large = b"".join(segment(kind, b"ICC_PROFILE\0\1\1" + body) for kind in (0xE2, 0xFE, 0xE1, 0xED) * 20)
    heavy = plain[:2] + b"\xff" + large + plain[2:]
    assert len(_without_profiles(heavy)) < len(plain) + 10
    found, expected = decode(heavy, 40, 24), decode(plain, 40, 24)
    assert np.array_equal(found.pixels, expected.pixels)
    assert (found.source_width, found.source_height) == (24, 40)


@pytest.mark.parametrize("end", [b"", b"\xff", b"\xff\xe2", b"\xff\xe2\0\0", b"\xff\xe2\xff\xff", b"\xff" * 50])
def test_a_jpeg_that_ends_within_a_segment_is_left_to_the_decoder(end: bytes) -> None:
    file = b"\xff\xd8" + end
    assert _without_profiles(file) == file


def test_damaged_exif_is_no_reason_to_warn_or_to_refuse() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description that is longer than four bytes"
    data = np.frombuffer(encode(Image.fromarray(GRADIENT), "JPEG", exif=exif), np.uint8)
    start = data.tobytes().index(b"Exif\0\0") + 6
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = data.copy()
        damaged[start + random.integers(0, 60, 3)] = random.integers(0, 256, 3)
        assert decode(damaged.tobytes(), 8, 8).pixels.shape == (8, 8, 3)  # warnings are errors in the tests
