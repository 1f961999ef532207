"""Drawn creatures: a picture data set that needs no download and knows exactly where its parts are.

Eight species have a head, a body, limbs and a tail each, and differ by the shapes of these parts only: colours,
texture, pose, size, place and surroundings are drawn by lot alike for all of them. Everything is painted into
one image of ink codes (part and tone), which is looked up in a palette for the picture and read as it is for the
part marks. A picture is a pure function of seed, index and size.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from analyzers.errors import InvalidInputError
from analyzers.pictures import SPLITS, PartMarks, Pictures

PART_NAMES = ("head", "body", "limbs", "tail")
MIN_SIZE = 48
MIN_VISIBLE_PIXELS = 8

_SUPERSAMPLING = 4
_SWINGS_DEG = (16.0, 0.0, 14.0, 20.0)  # how far each part turns in its joints, either way
_TURN_DEG = 25.0
_HANGS_OUT = 0.12  # share of the creature's extent that the border may cut off
_PART_CODES = 16  # codes below are the backdrop (0) and clutter; part p's tones start at (p + 2) * 8
_TONES = 8

Float64Array = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


class Tone(IntEnum):
    """What a shape is painted with; `MARKING` is the body's spots and stripes."""

    LINE = 0
    MAIN = 1
    ACCENT = 2
    LIGHT = 3
    DARK = 4
    MARKING = 5


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """A filled polygon: (points, 2) x to the right and y down; a body is about 2 wide."""

    tone: Tone
    points: Float64Array


@dataclass(frozen=True, slots=True, eq=False)
class Limb:
    """Shapes around a joint at (x, y) of the body: the head, the body and the tail are limbs, too."""

    joint: tuple[float, float]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Species:
    """A creature that faces right."""

    name: str
    head: Limb
    body: Limb
    limbs: tuple[Limb, ...]
    tail: Limb
    limbs_in_front: bool = False

    @property
    def parts(self) -> tuple[tuple[Limb, ...], ...]:
        """The limbs of each of `PART_NAMES`."""
        return (self.head,), (self.body,), self.limbs, (self.tail,)


@dataclass(frozen=True, slots=True, eq=False)
class Creature:
    """A drawn picture and where the visible parts are, in shares (0..1) of its width and height.

    Attributes:
        pixels: (size, size, 3) uint8, RGB.
        species: index into `SPECIES`.
        part_xy: (P, 2) float32 centres of mass (x, y); NaN where a part is (nearly) invisible.
        part_box: (P, 4) float32 boxes x0, y0, x1, y1; NaN alike.
    """

    pixels: UInt8Array
    species: int
    part_xy: Float32Array
    part_box: Float32Array


# Shapes -------------------------------------------------------------------------------------------------


def _smooth(points: Float64Array) -> Float64Array:
    """Cut the corners off a polygon, twice (Chaikin)."""
    for _ in range(2):
        ahead = np.roll(points, -1, axis=0)
        points = np.stack((0.75 * points + 0.25 * ahead, 0.25 * points + 0.75 * ahead), axis=1).reshape(-1, 2)
    return points


def _polygon(tone: Tone, *points: tuple[float, float]) -> Shape:
    return Shape(tone, np.array(points))


def _blob(tone: Tone, *points: tuple[float, float]) -> Shape:
    return Shape(tone, _smooth(np.array(points)))


def _oval(tone: Tone, x: float, y: float, rx: float, ry: float, tilt_deg: float = 0.0) -> Shape:
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    ring = np.stack((rx * np.cos(angle), ry * np.sin(angle)), axis=1)
    return Shape(tone, ring @ _rotation(tilt_deg) + (x, y))


def _strip(tone: Tone, *nodes: tuple[float, float, float]) -> Shape:
    """Sweep along nodes (x, y, half width), rounded."""
    path, half_width = np.array(nodes)[:, :2], np.array(nodes)[:, 2:]
    along = np.gradient(path, axis=0)
    across = along[:, ::-1] * (-1, 1) / np.linalg.norm(along, axis=1, keepdims=True) * half_width
    return Shape(tone, _smooth(np.concatenate((path + across, (path - across)[::-1]))))


def _rotation(degrees: float) -> Float64Array:
    """Return the matrix to multiply (points, 2) with from the right; turns clockwise as seen on the screen."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array(((cos, sin), (-sin, cos)))


def _eye(x: float, y: float, radius: float) -> tuple[Shape, ...]:
    return (_oval(Tone.LIGHT, x, y, radius, radius), _oval(Tone.DARK, x, y, radius / 2, radius / 2))


def _paw(length: float, foot: float) -> tuple[Shape, ...]:
    leg = _strip(Tone.MAIN, (0, -0.2, 0.17), (0, length / 2, 0.15), (0, length, 0.13))
    return (leg, _oval(Tone.MAIN, foot / 2, length, foot, 0.13))


def _hoof(length: float, width: float) -> tuple[Shape, ...]:
    leg = _strip(Tone.MAIN, (0, -0.2, width * 1.3), (0, length / 2, width), (0, length, width))
    return (
        leg,
        _polygon(
            Tone.DARK, *((x * width, length + y) for x, y in ((-1, -0.2), (1, -0.2), (1.3, 0), (-1.3, 0)))
        ),
    )


def _claw(length: float) -> tuple[Shape, ...]:
    toes = (_strip(Tone.ACCENT, (0, length, 0.05), (x, length + 0.16, 0.05)) for x in (-0.2, 0.12, 0.34))
    return (_strip(Tone.ACCENT, (0, -0.2, 0.09), (0, length / 2, 0.06), (0, length, 0.06)), *toes)


def _fin(length: float, width: float) -> tuple[Shape, ...]:
    return (
        _strip(Tone.MAIN, (0, -0.1, width), (-0.3 * length, 0.5 * length, width), (-length, length, 0.03)),
    )


def _fan(radius: float, first_deg: float, last_deg: float, feathers: int) -> Iterator[Shape]:
    """Yield feathers around the joint, the eye of each in accent; 0 degrees points left, 90 up."""
    for degrees in np.linspace(first_deg, last_deg, feathers):
        turn = _rotation(degrees)
        for tone, reach, length, width in (
            (Tone.MAIN, 0.55, 0.5, 0.17),
            (Tone.ACCENT, 0.84, 0.12, 0.1),
        ):
            yield Shape(tone, _oval(tone, -reach * radius, 0, length * radius, width * radius).points @ turn)


# Species ------------------------------------------------------------------------------------------------


def _limb(joint: tuple[float, float], *shapes: Shape) -> Limb:
    return Limb(joint, shapes)


def _limbs(y: float, xs: tuple[float, ...], shapes: tuple[Shape, ...]) -> tuple[Limb, ...]:
    return tuple(Limb((x, y), shapes) for x in xs)


_MAIN, _ACCENT, _LIGHT, _DARK = Tone.MAIN, Tone.ACCENT, Tone.LIGHT, Tone.DARK

_SPECIES = (
    Species(
        "fox",
        _limb(
            (0.8, -0.2),
            _polygon(_MAIN, (-0.12, -0.3), (-0.02, -0.9), (0.3, -0.45)),
            _polygon(_MAIN, (0.2, -0.45), (0.42, -0.92), (0.58, -0.3)),
            _oval(_MAIN, 0.25, -0.2, 0.42, 0.36),
            _blob(_LIGHT, (0.3, -0.25), (1.05, 0.02), (1.05, 0.14), (0.25, 0.15)),
            _oval(_DARK, 1.0, 0.05, 0.1, 0.09),
            *_eye(0.4, -0.24, 0.1),
        ),
        _limb((0, 0), _oval(_MAIN, 0, 0, 1.0, 0.44)),
        _limbs(0.25, (-0.7, -0.4, 0.45, 0.75), _paw(0.62, 0.18)),
        _limb(
            (-0.85, -0.1),
            _strip(
                _MAIN,
                (0.15, 0.1, 0.1),
                (-0.4, 0, 0.26),
                (-0.85, -0.3, 0.36),
                (-1.15, -0.8, 0.26),
                (-1.1, -1.25, 0),
            ),
            _blob(_LIGHT, (-1.45, -0.72), (-0.85, -0.85), (-1.08, -1.35), (-1.2, -1.35)),
        ),
    ),
    Species(
        "rabbit",
        _limb(
            (0.55, -0.4),
            _strip(_MAIN, (0.1, -0.35, 0.12), (-0.12, -0.8, 0.17), (-0.4, -1.4, 0.08)),
            _strip(_MAIN, (0.25, -0.35, 0.12), (0.22, -0.85, 0.17), (0.12, -1.5, 0.08)),
            _strip(_LIGHT, (0.23, -0.5, 0.06), (0.21, -0.85, 0.09), (0.15, -1.3, 0.03)),
            _oval(_MAIN, 0.25, -0.15, 0.46, 0.38, 10),
            _oval(_LIGHT, 0.5, 0.0, 0.16, 0.14),
            _oval(_DARK, 0.68, -0.1, 0.06, 0.05),
            *_eye(0.32, -0.24, 0.11),
        ),
        _limb((0, 0), _oval(_MAIN, -0.2, 0.05, 0.8, 0.62), _oval(_MAIN, 0.3, 0.0, 0.5, 0.48)),
        (
            _limb((-0.45, 0.4), _oval(_MAIN, 0.15, 0.28, 0.48, 0.17)),
            _limb((0.3, 0.3), *_paw(0.36, 0.2)),
            _limb((0.55, 0.3), *_paw(0.36, 0.2)),
        ),
        _limb(
            (-0.95, 0.05),
            *(
                _oval(_LIGHT, x, y, 0.2, 0.2)
                for x, y in ((-0.08, -0.16), (-0.08, 0.16), (-0.26, 0), (-0.05, 0))
            ),
        ),
    ),
    Species(
        "stag",
        _limb(
            (0.7, -0.2),
            _strip(_ACCENT, (0.45, -0.9, 0.07), (0.1, -1.2, 0.07), (0.05, -1.8, 0.04)),
            _strip(_ACCENT, (0.1, -1.25, 0.06), (-0.2, -1.35, 0.06), (-0.4, -1.65, 0.04)),
            _strip(_ACCENT, (0.5, -0.9, 0.07), (0.72, -1.3, 0.07), (0.6, -1.85, 0.04)),
            _strip(_ACCENT, (0.7, -1.25, 0.06), (0.95, -1.35, 0.06), (1.1, -1.65, 0.04)),
            _strip(_MAIN, (-0.1, 0.25, 0.3), (0.2, -0.3, 0.22), (0.45, -0.75, 0.18)),
            _blob(_MAIN, (0.3, -1.0), (0.75, -0.95), (1.15, -0.65), (1.1, -0.42), (0.5, -0.45), (0.25, -0.7)),
            _oval(_DARK, 1.05, -0.58, 0.09, 0.08),
            *_eye(0.58, -0.76, 0.09),
        ),
        _limb((0, 0), _oval(_MAIN, -0.05, 0, 0.95, 0.42)),
        _limbs(0.2, (-0.75, -0.48, 0.45, 0.7), _hoof(1.15, 0.08)),
        _limb(
            (-0.9, -0.15), _blob(_MAIN, (0.1, 0.2), (0.1, -0.2), (-0.35, -0.55), (-0.5, -0.25), (-0.2, 0.15))
        ),
    ),
    Species(
        "heron",
        _limb(
            (0.6, -0.25),
            _strip(_MAIN, (-0.1, 0.15, 0.18), (0.3, -0.15, 0.13), (0.1, -0.6, 0.1), (0.2, -1.1, 0.12)),
            _polygon(_ACCENT, (0.35, -1.35), (1.45, -1.05), (0.35, -1.08)),
            _strip(_DARK, (0.2, -1.35, 0.08), (-0.15, -1.35, 0.06), (-0.45, -1.2, 0.02)),
            _oval(_MAIN, 0.25, -1.22, 0.26, 0.2),
            *_eye(0.33, -1.25, 0.08),
        ),
        _limb(
            (0, 0), _blob(_MAIN, (1.0, -0.5), (0.9, 0.3), (0, 0.5), (-1.2, 0.3), (-1.1, 0.1), (-0.2, -0.5))
        ),
        _limbs(0.25, (-0.12, 0.2), _claw(1.35)),
        _limb(
            (-0.75, 0.15),
            *(
                _strip(_ACCENT, (0.1, 0, 0.1), (-0.4, y / 2, 0.1), (-0.75, y, 0.05))
                for y in (0.0, 0.24, 0.46)
            ),
        ),
    ),
    Species(
        "peacock",
        _limb(
            (0.45, -0.2),
            *(
                _strip(_MAIN, (0.3, -1.0, 0.03), (x / 2 + 0.15, -1.2, 0.03), (x, -1.4, 0.03))
                for x in (0.1, 0.3, 0.5)
            ),
            *(_oval(_ACCENT, x, -1.42, 0.08, 0.08) for x in (0.08, 0.3, 0.52)),
            _strip(_MAIN, (-0.1, 0.2, 0.3), (0.2, -0.35, 0.18), (0.3, -0.85, 0.15)),
            _polygon(_ACCENT, (0.42, -1.0), (0.78, -0.8), (0.42, -0.78)),
            _oval(_MAIN, 0.3, -0.88, 0.22, 0.2),
            *_eye(0.36, -0.92, 0.08),
        ),
        _limb((0, 0), _oval(_MAIN, 0, 0, 0.72, 0.42, -20)),
        _limbs(0.25, (-0.15, 0.15), _claw(0.68)),
        _limb((-0.3, 0.05), *_fan(1.7, -10, 105, 7)),
    ),
    Species(
        "narwhal",
        _limb(
            (0.7, 0.0),
            _polygon(_LIGHT, (0.4, -0.2), (1.75, -0.42), (0.42, -0.02)),
            _blob(_MAIN, (-0.15, -0.48), (0.4, -0.46), (0.68, -0.1), (0.6, 0.3), (0.2, 0.45), (-0.2, 0.42)),
            _strip(_DARK, (0.3, 0.22, 0.03), (0.45, 0.2, 0.03), (0.58, 0.12, 0.03)),
            *_eye(0.28, -0.08, 0.08),
        ),
        _limb(
            (0, 0), _blob(_MAIN, (1.0, -0.48), (1.0, 0.45), (0, 0.56), (-1.1, 0.2), (-1.1, -0.1), (0, -0.56))
        ),
        _limbs(0.3, (-0.15, 0.5), _fin(0.6, 0.17)),
        _limb(
            (-0.9, 0.02),
            _strip(_MAIN, (0.2, 0, 0.2), (-0.2, 0, 0.14), (-0.5, 0, 0.1)),
            _blob(_MAIN, (-0.35, 0.05), (-0.45, -0.3), (-0.95, -0.7), (-0.85, -0.2), (-0.65, 0)),
            _blob(_MAIN, (-0.35, -0.05), (-0.45, 0.3), (-0.95, 0.7), (-0.85, 0.2), (-0.65, 0)),
        ),
        limbs_in_front=True,
    ),
    Species(
        "elephant",
        _limb(
            (0.75, -0.3),
            _strip(_MAIN, (0.4, 0, 0.24), (0.78, 0.3, 0.17), (0.8, 0.75, 0.13), (1.05, 1.0, 0.09)),
            _strip(_LIGHT, (0.45, 0.25, 0.07), (0.65, 0.5, 0.06), (1.05, 0.5, 0.02)),
            _oval(_MAIN, 0.3, -0.08, 0.5, 0.45),
            _oval(_ACCENT, -0.05, 0.0, 0.36, 0.5, 10),
            *_eye(0.48, -0.16, 0.08),
        ),
        _limb((0, 0), _oval(_MAIN, 0, 0, 1.0, 0.68)),
        _limbs(0.4, (-0.68, -0.3, 0.32, 0.66), _hoof(0.68, 0.18)),
        _limb(
            (-0.9, -0.15),
            _strip(_MAIN, (0.1, 0, 0.07), (-0.3, 0.1, 0.06), (-0.4, 0.7, 0.05)),
            _oval(_DARK, -0.41, 0.75, 0.11, 0.18),
        ),
    ),
    Species(
        "turtle",
        _limb(
            (0.85, 0.15),
            _strip(_MAIN, (-0.2, 0.1, 0.15), (0.15, 0.02, 0.15), (0.4, -0.15, 0.15)),
            _oval(_MAIN, 0.45, -0.15, 0.3, 0.24, 10),
            *_eye(0.52, -0.2, 0.08),
        ),
        _limb(
            (0, 0),
            _blob(
                _MAIN, (-1.15, 0.35), (-0.95, -0.45), (-0.3, -0.85), (0.3, -0.85), (0.95, -0.45), (1.15, 0.35)
            ),
            _strip(_ACCENT, (-1.0, 0.3, 0.1), (0, 0.3, 0.1), (1.0, 0.3, 0.1)),
        ),
        _limbs(0.25, (-0.6, 0.6), _fin(0.5, 0.2)),
        _limb((-0.9, 0.25), _polygon(_MAIN, (0.2, -0.16), (0.2, 0.16), (-0.6, 0.2))),
    ),
)
SPECIES = tuple(species.name for species in _SPECIES)

# Pictures -----------------------------------------------------------------------------------------------


def draw(
    seed: int,
    index: int,
    size: int = 64,
    *,
    species: int | None = None,
    without: frozenset[str] = frozenset(),
) -> Creature:
    """Draw picture `index` of data set `seed`.

    Args:
        seed: the data set; not negative.
        index: the picture; not negative.
        size: height and width in pixels.
        species: index into `SPECIES`; `index` modulo their number if not given.
        without: parts to leave out. Nothing else changes, except that what was behind them is seen.

    Raises:
        InvalidInputError: the size is too small, or there is no such part.
    """
    if size < MIN_SIZE:
        raise InvalidInputError("size", f"is {size} pixels; creatures need at least {MIN_SIZE}")
    if unknown := without.difference(PART_NAMES):
        raise InvalidInputError(
            "without", f"names {', '.join(sorted(unknown))}; the parts are {', '.join(PART_NAMES)}"
        )
    rng = np.random.default_rng([seed, index])
    number = index % len(_SPECIES) if species is None else species
    canvas = size * _SUPERSAMPLING
    # Every random number is drawn before anything is painted, and alike for each species.
    scene = _Scene(_clutter(canvas, rng), *_pose(_SPECIES[number], canvas, rng))
    backdrop, palette = _colours(size, rng)
    gain, noise = (
        rng.uniform(0.75, 1.15),
        rng.standard_normal((size, size, 3), np.float32) * rng.uniform(2, 9),
    )

    codes = _paint(scene, canvas, without, limbs_in_front=_SPECIES[number].limbs_in_front)
    ink = Image.fromarray(codes)
    ink.putpalette(palette.tobytes(), "RGBA")
    picture = Image.alpha_composite(backdrop, ink.convert("RGBA").reduce(_SUPERSAMPLING)).convert("RGB")
    pixels = np.clip(np.asarray(picture) * np.float32(gain) + noise, 0, 255).astype(np.uint8)
    return Creature(pixels, number, *_marks(codes))


def creatures(count: int, *, seed: int = 0, size: int = 64, test_share: float = 0.25) -> Pictures:
    """Draw pictures 0 to `count` - 1 of data set `seed`; the last `test_share` of them are the test split."""
    drawn = [draw(seed, index, size) for index in range(count)]
    is_test = np.arange(count) >= count - round(count * test_share)
    return Pictures(
        names=SPECIES,
        encoded=tuple(_png(creature.pixels) for creature in drawn),
        label=np.array([creature.species for creature in drawn], np.int64),
        split=np.where(is_test, SPLITS.index("test"), SPLITS.index("train")).astype(np.int64),
        group=np.arange(count, dtype=np.int64),
        parts=PartMarks(
            names=PART_NAMES,
            xy=np.stack([creature.part_xy for creature in drawn]),
            box=np.stack([creature.part_box for creature in drawn]),
        ),
    )


def _png(pixels: UInt8Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """What is painted, in canvas pixels: clutter, the shapes of each part, and the body's texture."""

    clutter: list[Shape]
    parts: list[list[Shape]]
    texture: list[Shape]


def _pose(species: Species, canvas: int, rng: np.random.Generator) -> tuple[list[list[Shape]], list[Shape]]:
    """Place the parts and the body's texture on the canvas, the head wholly inside."""
    limbs = (*species.parts, (Limb((0, 0), _texture(rng)),))
    stretch = rng.uniform(0.88, 1.12, (len(limbs), 2))
    swing_deg = rng.uniform(-1, 1, (len(limbs), 4)) * np.array((*_SWINGS_DEG, 0.0))[:, None]
    turn = _rotation(rng.uniform(-_TURN_DEG, _TURN_DEG)) * (rng.choice((-1, 1)), 1)
    posed = [
        [
            Shape(
                shape.tone,
                (shape.points * stretch[row] @ _rotation(swing_deg[row, at]) + limb.joint * stretch[1])
                @ turn,
            )
            for at, limb in enumerate(row_limbs)
            for shape in limb.shapes
        ]
        for row, row_limbs in enumerate(limbs)
    ]
    head = np.concatenate([shape.points for shape in posed[0]])
    whole = np.concatenate([shape.points for shapes in posed[:-1] for shape in shapes])
    scale = rng.uniform(0.55, 1.0) * 0.97 * canvas / np.ptp(whole, axis=0).max()
    slack, rim = _HANGS_OUT * scale * np.ptp(whole, axis=0), 1.5 * _SUPERSAMPLING
    low = np.maximum(rim - scale * head.min(axis=0), -slack - scale * whole.min(axis=0))
    high = np.minimum(canvas - rim - scale * head.max(axis=0), canvas + slack - scale * whole.max(axis=0))
    place = rng.uniform(low, high)
    placed = [[Shape(shape.tone, shape.points * scale + place) for shape in shapes] for shapes in posed]
    return placed[:-1], placed[-1]


def _texture(rng: np.random.Generator) -> tuple[Shape, ...]:
    """Choose a plain, spotted or striped body."""
    kind, x, y, radius = rng.integers(3), *rng.uniform(-1, 1, (2, 16)), rng.uniform(0.06, 0.15)
    tilt = rng.uniform(-0.4, 0.4)
    if kind == 0:
        return ()
    if kind == 1:
        return tuple(_oval(Tone.MARKING, 1.1 * x[n], 0.7 * y[n], radius, radius) for n in range(len(x)))
    middles = np.arange(-1.2, 1.2, 4 * radius)
    return tuple(
        _strip(Tone.MARKING, (m - tilt, -1.0, radius), (m, 0, radius), (m + tilt, 1.0, radius))
        for m in middles
    )


def _clutter(canvas: int, rng: np.random.Generator) -> list[Shape]:
    """Scatter ovals, blobs, sticks and lines; each keeps its own ink, whatever its tone."""
    shapes = []
    for _ in range(rng.integers(3, 11)):
        kind, place, turn = rng.integers(4), rng.uniform(0, 1, 2), _rotation(rng.uniform(0, 360))
        long, wide, bend = rng.uniform(0.08, 0.3), rng.uniform(0.02, 0.09), rng.uniform(-0.1, 0.1)
        spokes = rng.uniform(0.4, 1.0, (8, 1)) * _oval(Tone.MAIN, 0, 0, long, 1.5 * wide).points[:16:2]
        shape = (
            _oval(Tone.MAIN, 0, 0, long / 2, wide),
            Shape(Tone.MAIN, _smooth(spokes)),
            _strip(Tone.MAIN, (-long, 0, wide / 3), (0, bend, wide / 2), (long, 0, wide / 4)),
            _strip(Tone.MAIN, (-2 * long, 0, 0.008), (0, bend, 0.01), (2 * long, 0, 0.008)),
        )[kind]
        shapes.append(Shape(shape.tone, (shape.points @ turn + place) * canvas))
    return shapes


def _colours(size: int, rng: np.random.Generator) -> tuple[Image.Image, UInt8Array]:
    """Choose a backdrop, and a palette (codes, RGBA) that stands out from it; its first entry is transparent."""
    hue, lightness, saturation = rng.uniform(0, 1), rng.uniform(0.15, 0.9), rng.uniform(0.1, 0.8)
    ends = np.array([_rgb(hue + h, lightness + l, saturation) for h, l in rng.uniform(-0.12, 0.12, (2, 2))])
    down, across = rng.uniform(-1, 1, 2)
    ramp = down * np.linspace(-0.5, 0.5, size)[:, None] + across * np.linspace(-0.5, 0.5, size)
    field = ends[0] + (ramp[..., None] + 1) / 2 * (ends[1] - ends[0])

    palette = np.zeros((_PART_CODES + _TONES * len(PART_NAMES), 4))
    palette[1:, 3] = 1
    for code in range(1, _PART_CODES):
        palette[code, :3] = _rgb(*rng.uniform((0, 0.1, 0), (1, 0.9, 0.9)))
    own = np.array((rng.uniform(), (lightness + rng.uniform(0.22, 0.78)) % 1, rng.uniform(0.1, 0.9)))
    accent, marking = (
        own + rng.uniform((-0.5, 0.25, -0.2), (0.5, 0.6, 0.3)),
        own + rng.uniform((-0.2, 0.2, 0), (0.2, 0.8, 0.3)),
    )
    for first in range(_PART_CODES, len(palette), _TONES):
        main = _rgb(*own + rng.uniform(-1, 1, 3) * (0.04, 0.07, 0.1))
        inks = {
            Tone.LINE: 0.35 * main,
            Tone.MAIN: main,
            Tone.ACCENT: _rgb(accent[0], accent[1] % 1, accent[2]),
            Tone.LIGHT: np.array((0.93, 0.92, 0.88)),
            Tone.DARK: np.array((0.1, 0.09, 0.12)),
            Tone.MARKING: _rgb(marking[0], marking[1] % 1, marking[2]),
        }
        for tone, ink in inks.items():
            palette[first + tone, :3] = ink
    backdrop = Image.fromarray((field * 255).astype(np.uint8)).convert("RGBA")
    return backdrop, (palette * 255).astype(np.uint8)


def _rgb(hue: float, lightness: float, saturation: float) -> Float64Array:
    return np.array(colorsys.hls_to_rgb(hue % 1, min(max(lightness, 0.12), 0.92), min(max(saturation, 0), 1)))


def _paint(scene: _Scene, canvas: int, without: frozenset[str], *, limbs_in_front: bool) -> UInt8Array:
    """Paint (canvas, canvas) ink codes."""
    image = Image.new("L", (canvas, canvas))
    pen = ImageDraw.Draw(image)
    for code, shape in enumerate(scene.clutter, start=1):
        pen.polygon(shape.points.ravel().tolist(), fill=code)
    for name in ("tail", "body", "limbs", "head") if limbs_in_front else ("tail", "limbs", "body", "head"):
        if name in without:
            continue
        part = PART_NAMES.index(name)
        outlines = [shape.points.ravel().tolist() for shape in scene.parts[part]]
        for outline in outlines:  # before the fills, so that only the silhouette stays
            pen.line(outline + outline[:4], fill=_code(part, Tone.LINE), width=max(1, canvas // 48))
        for shape, outline in zip(scene.parts[part], outlines, strict=True):
            pen.polygon(outline, fill=_code(part, shape.tone))
    texture = Image.new("L", (canvas, canvas))
    pen = ImageDraw.Draw(texture)
    for shape in scene.texture:
        pen.polygon(shape.points.ravel().tolist(), fill=1)
    body = PART_NAMES.index("body")
    codes = np.array(image)
    codes[(codes == _code(body, Tone.MAIN)) & (np.asarray(texture) > 0)] = _code(body, Tone.MARKING)
    return codes


def _code(part: int, tone: Tone) -> int:
    return _PART_CODES + _TONES * part + tone


def _marks(codes: UInt8Array) -> tuple[Float32Array, Float32Array]:
    """Measure the visible parts: centres (P, 2) and boxes (P, 4) in shares of the picture."""
    xy = np.full((len(PART_NAMES), 2), np.nan, np.float32)
    box = np.full((len(PART_NAMES), 4), np.nan, np.float32)
    middles = (np.arange(len(codes)) + 0.5) / len(codes)
    owner = codes // _TONES
    for part in range(len(PART_NAMES)):
        mask = owner == _code(part, Tone.LINE) // _TONES
        columns, rows = np.count_nonzero(mask, axis=0), np.count_nonzero(mask, axis=1)
        visible = columns.sum()
        if visible < MIN_VISIBLE_PIXELS * _SUPERSAMPLING**2:
            continue
        xy[part] = (columns @ middles / visible, rows @ middles / visible)
        x, y = np.flatnonzero(columns), np.flatnonzero(rows)
        box[part] = np.array((x[0], y[0], x[-1] + 1, y[-1] + 1)) / len(codes)
    return xy, box
