"""Pages that people judge by eye: self-contained HTML, pictures inlined, no scripts, names escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageDraw

from analyzers.explanation import Box
from analyzers.pixels import UInt8Array

SIDE = 160  # of an inlined picture in pixels: sharp at the 120 that the page gives it

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def render(template: str, **values: Any) -> bytes:  # noqa: ANN401 - whatever a template shows
    """Fill a template that lies beside this file, UTF-8."""
    return _TEMPLATES.get_template(template).render(values).encode()


def inlined(pixels: UInt8Array, boxes: Sequence[tuple[Box, str]] = ()) -> str:
    """Return a picture as a `data:` address of a JPEG of at most `SIDE` pixels a side.

    Args:
        pixels: (height, width, 3).
        boxes: what is outlined, in its pixels, each with its colour; later ones over earlier ones.
    """
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    image = Image.fromarray(pixels).resize((max(1, round(width * scale)), max(1, round(height * scale))))
    drawing = ImageDraw.Draw(image)
    for box, colour in boxes:
        left, top, right, bottom = (value * scale for value in (box.left, box.top, box.right, box.bottom))
        drawing.rectangle((left, top, right - 1, bottom - 1), outline="black", width=3)
        drawing.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline=colour, width=1)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
