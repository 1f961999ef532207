"""Draw an explained prediction: the parts on the picture, beside a bar chart of the ledger."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from PIL import Image, ImageOps

from analyzers.explanation import Box, Explanation, Ledger
from analyzers.files import write_atomically
from analyzers.ledger import describe

FOR, AGAINST, NEUTRAL = "#2166ac", "#b2182b", "#777777"  # ends of the colour-blind safe RdBu scale


def draw(encoded: bytes, explanation: Explanation, path: Path) -> None:
    """Write a PNG of the picture with the parts that argue for its class, and of the ledger.

    Args:
        encoded: the picture file.
        explanation: its explanation, with class features.
        path: where the PNG goes.

    Raises:
        ValueError: the explanation has no ledger to draw.
    """
    if not explanation.class_features:
        raise ValueError("the explanation has no class features; there is no ledger to draw")
    ledger, best = explanation.class_features[0], explanation.predictions[0]
    figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    picture, chart = figure.subplots(1, 2, width_ratios=(1, 1.35))
    picture.imshow(np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")))
    picture.set_title(f"{best.class_name}  {best.probability:.1%}", fontsize=13)
    picture.set_axis_off()
    radius, labelled = explanation.width / 32, Counter[Box]()
    largest = max((abs(entry.contribution) for entry in ledger.contributions), default=1.0)
    for number, entry in enumerate(ledger.contributions, start=1):
        if entry.part is None:
            continue
        part, colour = entry.part, FOR if entry.contribution >= 0 else AGAINST
        cell, share = part.cell, abs(entry.contribution) / largest
        corner, extent = (cell.left - 0.5, cell.top - 0.5), (cell.right - cell.left, cell.bottom - cell.top)
        picture.add_patch(Rectangle(corner, *extent, fill=False, edgecolor=colour, linewidth=1 + 2 * share))
        place = (corner[0] + 2 * radius * labelled[cell], corner[1])  # filters that share a cell stand side by side
        labelled[cell] += 1
        picture.add_patch(Circle(place, radius, color=colour))
        picture.text(*place, str(number), color="white", fontsize=9, ha="center", va="center", weight="bold")
    _bars(chart, ledger)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _bars(axes: Axes, ledger: Ledger) -> None:
    amounts = [entry.contribution for entry in ledger.contributions]
    labels = [f"{number}  {describe(entry)}" for number, entry in enumerate(ledger.contributions, start=1)]
    colours = [FOR if amount >= 0 else AGAINST for amount in amounts]
    for amount, label in ((ledger.omitted, "not listed"), (ledger.rest, "rest"), (ledger.bias, "bias")):
        if amount or label != "not listed":
            amounts.append(amount)
            labels.append(label)
            colours.append(NEUTRAL)
    amounts.append(ledger.logit)
    labels.append(f"= logit of {ledger.class_name}")
    colours.append("black")
    places = np.arange(len(amounts))[::-1]
    axes.barh(places, amounts, color=colours, height=0.7)
    axes.set_yticks(places, labels, fontsize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    span = max(map(abs, amounts)) or 1.0
    axes.set_xlim(min(0.0, *amounts) - 0.2 * span, max(0.0, *amounts) + 0.2 * span)
    for place, amount in zip(places, amounts, strict=True):
        axes.annotate(
            f"{amount:+.2f}",
            (amount, place),
            xytext=(4 if amount >= 0 else -4, 0),
            textcoords="offset points",
            ha="left" if amount >= 0 else "right",
            va="center",
            fontsize=9,
        )
    axes.set_xlabel("contribution, logits")
    axes.spines[["top", "right"]].set_visible(False)
