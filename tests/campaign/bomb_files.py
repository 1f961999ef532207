"""Pictures that are small on the wire and would be large, or slow, in memory."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache

from PIL import Image

from tests.campaign.requests import encoded

MIB = 2**20
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def black_png(width: int, height: int, *extra: bytes, bits: int = 1, rows: int | None = None) -> bytes:
    """Return a grey PNG, made without holding its pixels; `rows` less than its height cuts it short."""
    packer, row = zlib.compressobj(9), bytes(1 + (width * bits + 7) // 8)
    body = b"".join([*(packer.compress(row) for _ in range(height if rows is None else rows)), packer.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return SIGNATURE + header + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def zeros(size_bytes: int) -> bytes:
    """Return so many zeros, compressed."""
    packer = zlib.compressobj(9)
    block = bytes(MIB)
    return b"".join([*(packer.compress(block) for _ in range(size_bytes // MIB)), packer.flush()])


def grown_jpeg(width: int, height: int, *, progressive: bool = False) -> bytes:
    """Return a small JPEG whose header says width x height."""
    file = bytearray(encoded("JPEG", progressive=progressive))
    place = file.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    struct.pack_into(">HH", file, place + 5, height, width)
    return bytes(file)


def grown_webp(width: int, height: int) -> bytes:
    """Return a small lossless WebP whose header says width x height, each 14 bits less one."""
    file = bytearray(encoded("WEBP", lossless=True))
    place = file.index(b"VP8L") + 9
    (bits,) = struct.unpack_from("<I", file, place)
    struct.pack_into("<I", file, place, bits >> 28 << 28 | height - 1 << 14 | width - 1)
    return bytes(file)


def animated_webp(frames: int, canvas: int) -> bytes:
    """Return an animated WebP of many small frames on a canvas that its header makes large."""
    pictures = [Image.new("RGB", (16, 16), (number % 256, 0, 0)) for number in range(frames)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=1, lossless=True, method=0)
    file = bytearray(buffer.getvalue())
    place = file.index(b"VP8X") + 12
    size = (canvas - 1).to_bytes(3, "little")
    file[place : place + 6] = size + size
    return bytes(file)


def exif(entries: int, first: int) -> bytes:
    """Return EXIF data whose directory says so many entries and goes on at `first`: itself, or far behind the end."""
    entry = struct.pack("<HHII", 0x0112, 5, 2**31 - 1, first)
    directory = struct.pack("<H", entries) + entry * min(entries, 2000) + struct.pack("<I", first)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory


def with_exif(data: bytes) -> bytes:
    """Return a JPEG with that EXIF data."""
    file = encoded("JPEG")
    return file[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + file[2:]


def with_profile(parts: int) -> bytes:
    """Return a JPEG with a colour profile in so many parts of 64 KB, as many as there can be at 255."""
    body = b"ICC_PROFILE\0%c%c" + bytes(60_000)
    file = encoded("JPEG")
    parts_ = [body % (number + 1, parts) for number in range(parts)]
    return file[:2] + b"".join(b"\xff\xe2" + struct.pack(">H", len(one) + 2) + one for one in parts_) + file[2:]


@cache
def bombs() -> dict[str, bytes]:
    """Return every bomb by name; each must be refused."""
    profile = zeros(200 * MIB)
    frame = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    return {
        "a real PNG of 13,300 x 13,300": black_png(13_300, 13_300),
        "a real PNG of 7,072 x 7,072": black_png(7_072, 7_072),
        "a PNG header of 2^31 - 1 squared": _header_only(),
        "a PNG of 1 x 2^31 - 1": black_png(1, 2**31 - 1, rows=1),
        "a PNG with 200 MB of profile": black_png(20_000, 20_000, chunk(b"iCCP", b"p\0\0" + profile), rows=1),
        "an animated PNG of 2^31 frames": black_png(20_000, 20_000, frame, rows=1),
        "a JPEG of 65,500 x 65,500": grown_jpeg(65_500, 65_500),
        "a progressive JPEG of 65,500 x 65,500": grown_jpeg(65_500, 65_500, progressive=True),
        "a JPEG of 7,100 x 7,100": grown_jpeg(7_100, 7_100),
        "the largest WebP": grown_webp(16_383, 16_383),
        "a WebP of 7,100 x 7,100": grown_webp(7_100, 7_100),
        "a WebP of 1,000 frames on 16,383 x 16,383": animated_webp(1000, 16_383),
        "a WebP of 2 frames on 8,000 x 8,000": animated_webp(2, 8_000),
    }


def _header_only() -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0))
    return SIGNATURE + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@cache
def oddities() -> dict[str, bytes]:
    """Return small pictures with something odd beside the pixels; they may be answered, but must cost no more."""
    text = zeros(200 * MIB)
    return {
        "a PNG with 200 MB of zTXt": black_png(8, 8, chunk(b"zTXt", b"Comment\0\0" + text)),
        "a PNG with 200 MB of iTXt": black_png(8, 8, chunk(b"iTXt", b"Comment\0\1\0\0\0" + text)),
        "a PNG with 100 texts of 1 MB": black_png(8, 8, *[chunk(b"zTXt", b"Comment\0\0" + zeros(MIB))] * 100),
        "a JPEG whose EXIF goes on at itself": with_exif(exif(1, 8)),
        "a JPEG whose EXIF has 65,535 entries": with_exif(exif(65_535, 8)),
        "a JPEG whose EXIF is 4 GiB away": with_exif(exif(3, 2**32 - 2)),
        "a JPEG with 15 MB of profile": with_profile(255),
        "a WebP of 200 frames of 16 x 16": animated_webp(200, 16),
    }
