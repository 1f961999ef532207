"""Damaged and oversized pictures: refused one by one, quickly, and before they cost memory."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import grpc
import numpy as np
import pytest
from PIL import Image

from server.client import Client, ServerError
from tests.conftest import png, running_server

NOISE = np.random.default_rng(2).integers(0, 256, (48, 64, 3), np.uint8)
PROCESS_STATUS = Path("/proc/self/status")
MIB = 2**20


def encode(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "PNG": encode("PNG"),
    "JPEG": encode("JPEG"),
    "progressive JPEG": encode("JPEG", progressive=True),
    "WebP": encode("WEBP"),
    "lossless WebP": encode("WEBP", lossless=True),
}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def black_png(width: int, height: int) -> bytes:
    """Return a complete PNG of 1 bit a pixel, of which every row is there; made without holding the pixels."""
    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    body = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def with_text(size_bytes: int) -> bytes:
    """Return a PNG of one pixel with a compressed comment that unpacks to `size_bytes`."""
    plain = black_png(1, 1)
    end = plain.index(b"IDAT") - 4
    return plain[:end] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(size_bytes), 9)) + plain[end:]


def grown_webp(width: int, height: int) -> bytes:
    """Return a small lossless WebP whose header says width x height, each 14 bits less one."""
    file = bytearray(FILES["lossless WebP"])
    place = file.index(b"VP8L") + 9
    (bits,) = struct.unpack_from("<I", file, place)
    struct.pack_into("<I", file, place, bits >> 28 << 28 | height - 1 << 14 | width - 1)
    return bytes(file)


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[tuple[Client, subprocess.Popen]]:
    """A server of our own, so that its memory is ours to watch."""
    arguments = ("--repository", str(repository), "--log-level", "warning")
    with running_server(*arguments) as (address, process), Client(address) as client:
        client.explain([png(NOISE)] * 8)
        yield client, process


@pytest.fixture(scope="module")
def client(server: tuple[Client, subprocess.Popen]) -> Client:
    return server[0]


def refusal(client: Client, *pictures: bytes) -> str:
    with pytest.raises(ServerError) as caught:
        client.explain(pictures)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT, caught.value
    return str(caught.value)


def outcome(client: Client, picture: bytes) -> grpc.StatusCode:
    try:
        client.explain(picture)
    except ServerError as error:
        return error.code
    return grpc.StatusCode.OK


@pytest.mark.parametrize("left", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", FILES)
def test_a_truncated_picture_is_refused_not_filled_up(client: Client, kind: str, left: float) -> None:
    whole = FILES[kind]
    assert len(client.explain(whole)) == 1
    text = refusal(client, whole, whole[: int(len(whole) * left)])
    assert text.startswith("INVALID_ARGUMENT: encoded_images[1]: ")
    assert "truncated" in text or "expected JPEG, PNG or WebP" in text


@pytest.mark.parametrize("kind", FILES)
def test_damage_anywhere_is_answered_or_an_invalid_argument_never_an_internal_error(client: Client, kind: str) -> None:
    random = np.random.default_rng(len(kind))
    outcomes = set()
    for _ in range(100):
        file = bytearray(FILES[kind])
        file[random.integers(min(len(file), 700))] = random.integers(256)  # headers and tables, mostly
        outcomes.add(outcome(client, bytes(file)))
    assert grpc.StatusCode.INVALID_ARGUMENT in outcomes
    assert outcomes <= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


def test_a_flipped_pixel_of_a_png_is_noticed(client: Client) -> None:
    file = bytearray(FILES["PNG"])
    file[len(file) // 2] ^= 1
    assert "damaged" in refusal(client, bytes(file))


@pytest.mark.skipif(not PROCESS_STATUS.exists(), reason="memory is watched through /proc")
@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (black_png(13_300, 13_300), "is 13300 x 13300 pixels, more than the limit of 50000000"),
        (black_png(7_072, 7_072), "is 7072 x 7072 pixels, more than the limit of 50000000"),
        (grown_webp(7_100, 7_100), "is 7100 x 7100 pixels, more than the limit of 50000000"),
        (grown_webp(16_383, 16_383), "more than the limit of 50000000"),
    ],
    ids=["a real PNG just under Pillow's own limit", "a real PNG just over ours", "WebP", "the largest WebP"],
)
def test_an_oversized_picture_is_refused_at_once_and_costs_no_memory(
    server: tuple[Client, subprocess.Popen], picture: bytes, words: str
) -> None:
    client, process = server
    assert len(picture) < MIB
    before, start = peak_bytes(process.pid), monotonic()
    for _ in range(8):
        assert words in refusal(client, picture)
    assert monotonic() - start < 4
    assert peak_bytes(process.pid) - before < 16 * MIB  # one of them, decoded, takes 50 MB or more


@pytest.mark.skipif(not PROCESS_STATUS.exists(), reason="memory is watched through /proc")
@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_what_is_packed_beside_the_pixels_is_not_unpacked(server: tuple[Client, subprocess.Popen], kind: bytes) -> None:
    client, process = server
    picture = with_text(200 * MIB).replace(b"zTXt", kind)
    client.explain(picture)
    before = peak_bytes(process.pid)
    for _ in range(8):
        assert len(client.explain(picture)) == 1
    assert peak_bytes(process.pid) - before < 16 * MIB


def test_a_text_that_says_which_side_is_up_is_read(client: Client) -> None:
    upright = Image.fromarray(NOISE)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    upright.save(buffer, "PNG", exif=exif)
    (answer,) = client.explain(buffer.getvalue())
    assert (answer.width, answer.height) == (48, 64)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_png_whose_rows_end_early_is_refused_and_one_that_ends_in_black_is_not(client: Client, mode: str) -> None:
    black = NOISE.copy()
    black[-5:] = 0
    whole = Image.fromarray(black).convert("L" if mode == "I;16" else mode)
    buffer = io.BytesIO()
    (Image.fromarray(np.asarray(whole).astype(np.uint16) << 8) if mode == "I;16" else whole).save(buffer, "PNG")
    file = buffer.getvalue()
    assert len(client.explain(file)) == 1
    start, end = file.index(b"IDAT") - 4, file.index(b"IEND") - 4
    rows = zlib.decompress(file[start + 8 : end - 4])
    half = rows[: len(rows) // NOISE.shape[0] * 20]
    short = file[:start] + chunk(b"IDAT", zlib.compress(half)) + file[end:]
    assert "its last rows are missing" in refusal(client, file, short)


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has ever held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def test_the_limit_counts_pixels_and_lets_the_last_one_in(repository: Path) -> None:
    arguments = ("--repository", str(repository), "--max-pixels", "1200")
    with running_server(*arguments) as (address, _), Client(address) as client:
        (answer,) = client.explain(black_png(40, 30))
        assert (answer.width, answer.height) == (40, 30)
        assert "is 1201 x 1 pixels, more than the limit of 1200" in refusal(client, black_png(1201, 1))


def test_one_bad_picture_refuses_the_request_and_says_which(client: Client) -> None:
    good = png(NOISE)
    assert "encoded_images[2]: is not a picture" in refusal(client, good, good, b"nothing", good)
    assert len(client.explain([good] * 4)) == 4
