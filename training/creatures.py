"""Drawn creatures: a picture data set that needs no download and knows exactly where its parts are.

Eight species differ by the shapes of their head, body, limbs and tail only: colours, texture, pose, size,
place, surroundings and light fall by lot, alike for all. Everything is painted into one image of ink codes
(part and tone); a palette turns it into the picture, and the part marks are measured on it.
"""

from __future__ import annotations

import io
from cmath import rect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from analyzers.errors import InvalidInputError
from analyzers.pictures import SPLITS, PartMarks, Pictures

PART_NAMES = ("head", "body", "limbs", "tail")
MIN_VISIBLE_PIXELS = 8

_SUPERSAMPLING = 4
_HEAD, _BODY, _LIMBS, _TAIL, _TEXTURE = range(5)  # the parts, and the spots or stripes that the body wears
_SWING_RAD = np.array(((0.28,), (0.0,), (0.25,), (0.35,), (0.0,)))  # of each in its joint, either way
_TURN_RAD = 0.44  # of the whole creature, either way
_HANGS_OUT = 0.12  # share of the creature's extent that a border of the picture may cut off
_TONES = ("line", "main", "accent", "light", "dark", "marking")
_LINE, _MAIN, _ACCENT, _LIGHT, _DARK, _MARKING = range(6)
_CODES = 8  # ink codes of a part: tone + 8 part; then follow the backdrop's and those of the clutter
_BACKDROP = _CODES * len(PART_NAMES)

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]
Polygon = npt.NDArray[np.complex128]  # corners x + iy, x to the right and y down
Shape = tuple[int, Polygon]  # with its tone
Part = tuple[list[complex], list[Shape]]  # where it joins the body, and what hangs at each of these joints

# A creature faces right, its body around 0 0 and about 200 long. A part has joints (x y) and after them shapes:
# a tone and an oval (x y rx ry and perhaps a tilt in rad / 100) or a strip (x y half-width, x y half-width, ...).
_DRAWINGS = """\
fox
head 80 -20: main 10 -30 24, -2 -95 0; main 40 -30 24, 45 -97 0; main 25 -20 42 36; light 25 -5 26, 105 10 6;
  dark 100 7 10 9; light 40 -24 10 10; dark 40 -24 5 5
body 0 0: main 0 0 100 44
limbs -70 25, -40 25, 45 25, 75 25: main 0 -20 21, 0 30 14, 0 60 14; main 10 60 20 13
tail -85 -10: main 15 10 10, -40 0 26, -85 -30 36, -115 -80 26, -110 -140 0; light -114 -75 28, -110 -138 0

rabbit
head 55 -40: main 10 -35 12, -12 -80 17, -40 -140 8; main 25 -35 12, 22 -85 17, 12 -150 8; main 25 -15 46 38 17;
  light 22 -70 9, 15 -135 4; light 50 0 16 14; dark 68 -10 6 6; light 32 -24 11 11; dark 32 -24 6 6
body 0 0: main -20 5 80 62; main 30 0 50 48
limbs -45 40, 40 40: main 0 -20 20, 0 5 16, 0 30 14; main 15 28 38 16
tail -95 5: light 0 -16 20 20; light 0 16 20 20; light -20 0 20 20

stag
head 70 -20: accent 45 -90 7, 10 -120 7, 5 -180 4; accent 10 -120 7, -42 -162 5; accent 50 -90 7, 72 -130 7, 60 -185 4;
  accent 70 -122 7, 112 -162 5; main -10 25 30, 20 -30 22, 45 -75 18; main 20 -85 20, 60 -75 26, 120 -50 13;
  dark 108 -55 9 9; light 58 -80 9 9; dark 58 -80 5 5
body 0 0: main -5 0 95 42
limbs -75 20, -48 20, 45 20, 70 20: main 0 -20 14, 0 55 9, 0 110 9; dark 0 95 11, 0 120 15
tail -85 -15: main 10 0 15, -25 -20 24, -50 -60 0

heron
head 60 -25: main -10 15 18, 30 -15 13, 10 -60 10, 20 -110 12; accent 35 -122 15, 145 -108 0;
  dark 20 -135 8, -15 -135 6, -45 -120 2; main 25 -122 26 20; light 33 -125 8 8; dark 33 -125 4 4
body 0 0: main -120 20 8, -20 5 50, 50 -10 55, 100 -15 30
limbs -15 25, 20 25: accent 0 -20 9, 0 68 6, 0 135 6; accent 0 125 6, -25 150 5; accent 0 125 6, 38 150 5
tail -75 15: accent 10 0 10, -80 -6 10; accent 10 0 10, -78 22 10; accent 10 0 10, -70 48 10

peacock
head 45 -20: main 30 -100 3, 8 -142 3; main 30 -100 3, 30 -142 3; main 30 -100 3, 52 -142 3;
  accent 8 -142 8 8; accent 30 -142 8 8; accent 52 -142 8 8; main -10 20 30, 20 -35 18, 30 -85 15;
  accent 40 -88 13, 80 -80 0; main 30 -88 22 20; light 36 -92 8 8; dark 36 -92 4 4
body 0 0: main 0 0 72 42 -35
limbs -15 25, 15 25: accent 0 -20 9, 0 34 6, 0 68 6; accent 0 58 6, -25 83 5; accent 0 58 6, 38 83 5
tail -30 5: main -93 16 85 29 297; main -93 -15 85 29 330; main -83 -45 85 29 364; main -64 -69 85 29 397;
  main -37 -86 85 29 430; main -7 -94 85 29 464; main 24 -91 85 29 497; accent -141 24 20 17 297;
  accent -141 -23 20 17 330; accent -126 -68 20 17 364; accent -97 -105 20 17 397; accent -57 -131 20 17 430;
  accent -11 -143 20 17 464; accent 36 -138 20 17 497

narwhal
head 70 0: light 40 -12 12, 190 -45 0; main 20 0 50 47; dark 30 24 3, 60 10 3; light 30 -8 8 8; dark 30 -8 4 4
body 0 0: main -115 5 14, 0 0 56, 100 0 50
limbs -30 35, 50 35: main 0 -10 20, -20 35 20, -60 75 0
tail -90 4: main 20 0 20, -50 0 10; main -30 5 10, -60 -20 22, -95 -75 0; main -30 -5 10, -60 20 22, -95 75 0

elephant
head 75 -30: main 40 0 24, 78 30 17, 80 75 13, 105 100 9; light 45 25 7, 65 50 6, 105 50 0; main 30 -8 50 45;
  accent -5 0 36 50 17; light 48 -16 8 8; dark 48 -16 4 4
body 0 0: main 0 0 100 68
limbs -68 40, -30 40, 32 40, 66 40: main 0 -20 27, 0 33 18, 0 65 18; dark 0 52 20, 0 74 22
tail -90 -15: main 10 0 7, -30 10 6, -40 70 5; dark -41 75 11 18

turtle
head 85 15: main -20 10 15, 15 2 15, 40 -15 15; main 45 -15 30 24 17; light 52 -20 8 8; dark 52 -20 4 4
body 0 0: main 0 -90 45, 0 -40 95, 0 35 120; accent -105 30 10, 105 30 10
limbs -60 25, 60 25: main 0 -10 22, -15 25 22, -50 60 0
tail -90 20: main 20 0 18, -70 15 0"""


@dataclass(frozen=True, slots=True, eq=False)
class Creature:
    """A drawn picture and where its visible parts are, in shares (0..1) of its width and height.

    Attributes:
        pixels: (size, size, 3) uint8, RGB.
        species: index into `SPECIES`.
        part_xy: (P, 2) float32 centres of mass (x, y); NaN where fewer than 8 pixels of a part are visible.
        part_box: (P, 4) float32 boxes x0, y0, x1, y1; NaN alike.
    """

    pixels: UInt8Array
    species: int
    part_xy: Float32Array
    part_box: Float32Array


def _oval(x: float, y: float, rx: float, ry: float, tilt_rad: float = 0.0) -> Polygon:
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return (rx * np.cos(angle) + 1j * ry * np.sin(angle)) * rect(1, tilt_rad) + complex(x, y)


def _strip(*nodes: Sequence[float]) -> Polygon:
    """Sweep along nodes (x, y, half width) and round the corners; half width 0 makes a point."""
    x, y, half_width = np.array(nodes).T
    along = np.gradient(x + 1j * y)
    across = 1j * along / np.abs(along) * half_width
    points = np.concatenate((x + 1j * y + across, (x + 1j * y - across)[::-1]))
    for _ in range(2):  # Chaikin's corner cutting
        ahead = np.roll(points, -1)
        points = np.stack((0.75 * points + 0.25 * ahead, 0.25 * points + 0.75 * ahead), axis=1).ravel()
    return points


def _part(drawing: str) -> Part:
    joints, shapes = drawing.split(maxsplit=1)[1].split(":")
    read = []
    for tone, numbers in (shape.split(maxsplit=1) for shape in shapes.split(";")):
        nodes = _numbers(numbers)
        read.append((_TONES.index(tone), _strip(*nodes) if len(nodes) > 1 else _oval(*nodes[0])))
    return [complex(*joint) for joint in _numbers(joints)], read


def _numbers(text: str) -> list[list[float]]:
    return [[float(number) / 100 for number in node.split()] for node in text.split(",")]


_SPECIES = {
    name: tuple(map(_part, parts))
    for name, *parts in (drawing.replace("\n  ", " ").splitlines() for drawing in _DRAWINGS.split("\n\n"))
}
SPECIES = tuple(_SPECIES)


def draw(
    seed: int, index: int, size: int = 64, *, species: int | None = None, without: frozenset[str] = frozenset()
) -> Creature:
    """Draw picture `index` of data set `seed` (neither negative), `size` pixels high and wide.

    The species is `index` modulo their number unless given; all lots fall alike for any of them. Leaving parts
    out (`without`) changes nothing else, except that what was behind them is seen.

    Raises:
        InvalidInputError: there is no such part.
    """
    if unknown := without.difference(PART_NAMES):
        raise InvalidInputError("without", f"names {sorted(unknown)}; the parts are {', '.join(PART_NAMES)}")
    species = index % len(SPECIES) if species is None else species
    rng, canvas = np.random.default_rng([seed, index]), size * _SUPERSAMPLING
    # All lots are drawn before anything is painted.
    clutter, posed = _clutter(canvas, rng), _pose(_SPECIES[SPECIES[species]], canvas, rng)
    palette, is_flipped, (down, across) = _palette(rng), rng.random() < 0.5, rng.uniform(-0.17, 0.17, (2, 3))
    light = rng.uniform(0.75, 1.15) + np.linspace(-down, down, size)[:, None] + np.linspace(-across, across, size)
    noise = rng.normal(0, rng.uniform(2, 8), light.shape)

    codes = _paint(clutter, posed, canvas, without)[:, :: -1 if is_flipped else 1]
    ink = Image.fromarray(codes)
    ink.putpalette(palette.tobytes())
    pixels = np.asarray(ink.convert("RGB").reduce(_SUPERSAMPLING)) * light + noise
    return Creature(np.clip(pixels, 0, 255).astype(np.uint8), species, *_marks(codes))


def creatures(
    count: int, *, seed: int = 0, size: int = 64, test_share: float = 0.25, without: bool = False
) -> Pictures:
    """Draw pictures 0 to `count` - 1 of data set `seed`; the last `test_share` of them are the test split.

    With `without`, each is also drawn without each of its parts: the truth of what a part is worth to a model.
    """
    drawn = [draw(seed, index, size) for index in range(count)]
    is_test = np.arange(count) >= count - round(count * test_share)
    xy, box = np.stack([one.part_xy for one in drawn]), np.stack([one.part_box for one in drawn])
    return Pictures(
        names=SPECIES,
        encoded=tuple(_png(one.pixels) for one in drawn),
        label=np.array([one.species for one in drawn], np.int64),
        split=np.where(is_test, SPLITS.index("test"), SPLITS.index("train")).astype(np.int64),
        group=np.arange(count, dtype=np.int64),
        parts=PartMarks(PART_NAMES, xy, box),
        without=tuple(
            tuple(_png(draw(seed, index, size, without=frozenset({part})).pixels) for part in PART_NAMES)
            for index in range(count)
        )
        if without
        else None,
    )


def _png(pixels: UInt8Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _pose(parts: tuple[Part, ...], canvas: int, rng: np.random.Generator) -> list[list[Shape]]:
    """Place the shapes of each part, and of the body's texture, on the canvas; the head is wholly inside."""
    bends = rng.uniform(0.88, 1.12, (5, 1)) * np.exp(1j * rng.uniform(-1, 1, (5, 4)) * _SWING_RAD)
    bends[_TEXTURE] = bends[_BODY]
    turn = rect(1, rng.uniform(-_TURN_RAD, _TURN_RAD))
    posed = [
        [(tone, (points * bend[n] + joint) * turn) for n, joint in enumerate(joints) for tone, points in shapes]
        for (joints, shapes), bend in zip((*parts, _texture(rng)), bends, strict=True)
    ]
    head, whole = (
        np.array([corner for shapes in some for _, points in shapes for corner in _flat(points)]).reshape(-1, 2)
        for some in (posed[:_BODY], posed[:_TEXTURE])
    )
    scale = rng.uniform(0.55, 0.97) * canvas / np.ptp(whole, axis=0).max()
    slack, rim = _HANGS_OUT * scale * np.ptp(whole, axis=0), 0.025 * canvas
    low = np.maximum(rim - scale * head.min(axis=0), -slack - scale * whole.min(axis=0))
    high = np.minimum(canvas - rim - scale * head.max(axis=0), canvas + slack - scale * whole.max(axis=0))
    place = complex(*rng.uniform(low, high))
    return [[(tone, points * scale + place) for tone, points in shapes] for shapes in posed]


def _texture(rng: np.random.Generator) -> Part:
    """Choose a plain, spotted or striped body."""
    radius, tilt_rad = rng.uniform(0.06, 0.15), rng.uniform(-0.35, 0.35)
    spots = [(1.1 * x, 0.7 * y, radius, radius, 0.0) for x, y in rng.uniform(-1, 1, (16, 2))]
    stripes = [(x, 0.0, radius, 2.0, tilt_rad) for x in np.arange(-1.2, 1.2, 4 * radius)]
    return [0], [(_MARKING, _oval(*oval)) for oval in ([], spots, stripes)[rng.integers(3)]]


def _clutter(canvas: int, rng: np.random.Generator) -> list[Polygon]:
    """Scatter ovals, blobs, sticks and lines that resemble nothing in particular."""
    polygons = []
    for _ in range(rng.integers(3, 11)):
        length, width, bend = rng.uniform((0.05, 0.02, -0.1), (0.15, 0.08, 0.1))
        nodes = np.array(((-length, 0, width), (0, bend, width), (length, 0, width)))
        nodes *= rng.uniform(0.3, 1, (3, 1)) * ((1, 1, 1), (3, 1, 0.2))[rng.integers(2)]
        points = _oval(0, 0, length, width) if rng.random() < 0.3 else _strip(*nodes)
        polygons.append((points * rect(1, rng.uniform(0, 2 * np.pi)) + complex(*rng.random(2))) * canvas)
    return polygons


def _palette(rng: np.random.Generator) -> UInt8Array:
    """Choose (codes, RGB) colours by hue, lightness and saturation; creature and backdrop differ in lightness."""
    inks = rng.uniform((0, 0.15, 0), (1, 0.9, 0.9), (_BACKDROP + 11, 3))
    own = inks[_BACKDROP] + rng.uniform((0, 0.28, -0.3), (1, 0.72, 0.3))
    parts = inks[:_BACKDROP].reshape(len(PART_NAMES), _CODES, 3)
    parts[:, _MAIN] = own % 1 + rng.uniform((-0.04, -0.07, -0.1), (0.04, 0.07, 0.1), (len(PART_NAMES), 3))
    parts[:, _LINE] = parts[:, _MAIN] * (1, 0.35, 0.35)
    parts[:, _ACCENT] = (own + rng.uniform((0, 0.25, -0.2), (1, 0.6, 0.3))) % 1
    parts[:, _MARKING] = (own + rng.uniform((0, 0.2, 0), (0.4, 0.8, 0.3))) % 1
    parts[:, _LIGHT], parts[:, _DARK] = (0, 0.92, 0), (0, 0.08, 0)
    hue, lightness, saturation = inks.T[..., None]
    rgb = lightness + 0.4 * saturation * np.cos(2 * np.pi * (hue + np.arange(3) / 3))
    return np.asarray(255 * np.clip(rgb, 0.04, 0.95), np.uint8)


def _paint(clutter: list[Polygon], posed: list[list[Shape]], canvas: int, without: frozenset[str]) -> UInt8Array:
    """Paint (canvas, canvas) ink codes."""
    image, texture = Image.new("L", (canvas, canvas), _BACKDROP), Image.new("1", (canvas, canvas))
    pen = ImageDraw.Draw(image)
    for code, points in enumerate(clutter, start=_BACKDROP + 1):
        pen.polygon(_flat(points), fill=code)
    for part in (_TAIL, _LIMBS, _BODY, _HEAD):
        if PART_NAMES[part] in without:
            continue
        for _, points in posed[part]:  # before the fills, so that only the silhouette's line stays
            pen.line(_flat(points) + _flat(points[:2]), fill=part * _CODES + _LINE, width=canvas // 48)
        for tone, points in posed[part]:
            pen.polygon(_flat(points), fill=part * _CODES + tone)
    for _, points in posed[_TEXTURE]:
        ImageDraw.Draw(texture).polygon(_flat(points), fill=1)
    codes = np.array(image)
    codes[(codes == _BODY * _CODES + _MAIN) & np.asarray(texture)] = _BODY * _CODES + _MARKING
    return codes


def _flat(points: Polygon) -> list[float]:
    flat: list[float] = points.view(np.float64).tolist()
    return flat


def _marks(codes: UInt8Array) -> tuple[Float32Array, Float32Array]:
    """Measure the visible parts: centres (P, 2) and boxes (P, 4) in shares of the picture."""
    marks, middle = np.full((len(PART_NAMES), 6), np.nan, np.float32), np.arange(len(codes)) + 0.5
    for part in range(len(PART_NAMES)):
        mask = codes // _CODES == part
        columns, rows = mask.sum(axis=0), mask.sum(axis=1)
        if columns.sum() >= MIN_VISIBLE_PIXELS * _SUPERSAMPLING**2:
            x, y = np.flatnonzero(columns), np.flatnonzero(rows)
            marks[part, :2] = np.average(middle, weights=columns), np.average(middle, weights=rows)
            marks[part, 2:] = x[0], y[0], x[-1] + 1, y[-1] + 1
    marks /= np.float32(len(codes))
    return marks[:, :2], marks[:, 2:]
