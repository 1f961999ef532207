"""Draw an explained prediction: parts and part patterns on the picture, beside a bar chart of the ledger."""

from __future__ import annotations

import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from PIL import Image, ImageOps

from analyzers.explanation import Box, EvidenceMap, Explanation, ExplanatoryGraph, Ledger
from analyzers.files import write_atomically
from analyzers.ledger import describe

LAYERS = ("#fde725", "#21918c", "#440154", "#777777")  # viridis, from large patterns to small
FOR, AGAINST, NEUTRAL = "#2166ac", "#b2182b", "#777777"  # ends of the colour-blind safe RdBu scale


def draw(encoded: bytes, explanation: Explanation, path: Path) -> None:
    """Write a PNG of the picture with the parts that argue for its class, and of the ledger.

    Between them stand its evidence by cell and its explanatory graph. What the explanation lacks is left out.

    Args:
        encoded: the picture file.
        explanation: its explanation, with class features or an explanatory graph.
        path: where the PNG goes.

    Raises:
        ValueError: the explanation has neither a ledger nor a graph to draw.
    """
    ledgers, graph, best = explanation.class_features, explanation.explanatory_graph, explanation.predictions[0]
    if not ledgers and graph is None:
        raise ValueError(
            "the explanation has neither class features nor an explanatory graph; there is nothing to draw"
        )
    evidence = ledgers[0].evidence if ledgers else None
    widths = [1.0] * (bool(ledgers) + (evidence is not None) + (graph is not None)) + [1.35] * bool(ledgers)
    figure = Figure(figsize=(4.7 * sum(widths), 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))
    for picture in axes[: widths.count(1.0)]:
        picture.imshow(pixels)
        picture.set_axis_off()
    axes[0].set_title(f"{best.class_name}  {best.probability:.1%}", fontsize=13)
    if evidence is not None:
        axes[1].imshow(pixels.mean(2), cmap="gray", vmin=0, vmax=255)  # so that colour says one thing
        _evidence(axes[1], evidence, f"evidence for {best.class_name}, by cell")
    if graph is not None:
        _graph(axes[bool(ledgers) + (evidence is not None)], graph)
    if ledgers:
        _parts(axes[0], explanation, ledgers[0])
        _bars(axes[-1], ledgers[0])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _parts(picture: Axes, explanation: Explanation, ledger: Ledger) -> None:
    """Outline the cells of the parts that argue for or against the class, numbered as in the chart."""
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


def _evidence(picture: Axes, evidence: EvidenceMap, title: str) -> None:
    """Lay the evidence over the picture, cells as cells, on a scale that is even about 0, with its unit."""
    values, area = np.array(evidence.values), evidence.area
    largest = float(abs(values).max()) or 1.0
    limits = picture.get_xlim(), picture.get_ylim()
    shown = picture.imshow(
        values,
        cmap="RdBu",
        vmin=-largest,
        vmax=largest,
        alpha=0.65,
        interpolation="nearest",
        extent=(area.left - 0.5, area.right - 0.5, area.bottom - 0.5, area.top - 0.5),
    )
    picture.set_xlim(limits[0])
    picture.set_ylim(limits[1])
    picture.set_title(title, fontsize=11)
    picture.figure.colorbar(shown, ax=picture, shrink=0.75, label="logits per cell")


def _graph(picture: Axes, graph: ExplanatoryGraph) -> None:
    """Draw every node, small patterns small, with an edge to each of its parents."""
    place = {(node.layer, node.node): (node.x - 0.5, node.y - 0.5) for node in graph.nodes}
    for node in graph.nodes:
        for parent in node.parents:
            (x, y), (up_x, up_y) = place[node.layer, node.node], place[node.layer - 1, parent]
            picture.plot([x, up_x], [y, up_y], color="white", linewidth=0.7, alpha=0.6, zorder=2)
    for number, name in enumerate(graph.layers):
        own = [place[node.layer, node.node] for node in graph.nodes if node.layer == number]
        size, colour = 110 / (1 + number) ** 1.3, LAYERS[min(number, len(LAYERS) - 1)]
        across, down = [p[0] for p in own], [p[1] for p in own]
        label = f"{name} ({len(own)})"
        picture.scatter(
            across, down, s=size, color=colour, edgecolor="black", linewidth=0.6, label=label, zorder=3 + number
        )
    picture.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(graph.layers), fontsize=8, frameon=False)
    whose = f" of {graph.class_name}" if graph.class_name else ""
    picture.set_title(f"part patterns{whose}{', mirrored' if graph.mirrored else ''}", fontsize=13)


def heat_map(explanation: Explanation, layer: int, share: float = 0.5) -> npt.NDArray[np.float64]:
    """Return where a layer's patterns are, (height, width) of the picture that was sent, 0..1.

    The sum of a Gaussian at each of the best nodes, 15 pixels wide at 224 and cut at 20 (arXiv 1708.01785).

    Args:
        explanation: with an explanatory graph.
        layer: 0 is the top one.
        share: of the layer's nodes in the answer, by score.
    """
    graph = explanation.explanatory_graph
    own = sorted((node for node in graph.nodes if node.layer == layer), key=lambda node: -node.score) if graph else []
    scale = max(explanation.width, explanation.height) / 224
    row, column = np.mgrid[: explanation.height, : explanation.width] + 0.5
    total = np.zeros((explanation.height, explanation.width))
    for node in own[: math.ceil(len(own) * share)]:
        down, right = row - node.y, column - node.x
        near = np.exp(-(down**2 + right**2) / (2 * (15 * scale) ** 2))
        total += np.where((abs(down) <= 20 * scale) & (abs(right) <= 20 * scale), near, 0)
    return np.asarray(total / max(total.max(), 1e-12))


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
