"""Draw a sweep: the grid of k1 and k2, the rules, and the heads, one row a model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analyzers.files import write_atomically


def draw(reports: dict[str, dict[str, Any]], path: Path) -> None:
    """Write a PNG of the reports of `sweep`, by name."""
    figure = Figure(figsize=(15, 4.4 * len(reports)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(reports), 3, squeeze=False)
    for row, (name, report) in zip(axes, reports.items(), strict=True):
        _grid(row[0], name, report)
        _rules(row[1], report)
        _heads(row[2], report)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _grid(axes: Axes, name: str, report: dict[str, Any]) -> None:
    grid = report["grid"]
    values = [[100 * value for value in row] for row in grid["accuracy"]]
    axes.imshow(values, cmap="viridis", aspect="auto")
    middle = (min(map(min, values)) + max(map(max, values))) / 2
    for down, row in enumerate(values):
        for across, value in enumerate(row):
            colour = "white" if value < middle else "black"
            axes.text(across, down, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(grid["k2"])), grid["k2"])
    axes.set_yticks(range(len(grid["k1"])), grid["k1"])
    axes.set_xlabel("k2: features per class")
    axes.set_ylabel("k1: features counted per picture")
    axes.set_title(f"{name}: accuracy in %, rule {grid['rule']}")


def _rules(axes: Axes, report: dict[str, Any]) -> None:
    for rule, figures in report["rules"].items():
        k, values = [figure["k"] for figure in figures], [100 * figure["value"] for figure in figures]
        style = "--" if rule == "random" else "-"
        axes.plot(k, values, style, marker="o", label=rule.replace("_", " "))
    _finish(axes, report, "what ranks a feature (k1 = k2, weights kept)")


def _heads(axes: Axes, report: dict[str, Any]) -> None:
    rows = report["heads"]
    for kind in ("kept", "refitted", "tuned"):
        if kind in rows[0]:
            values = [100 * row[kind]["value"] for row in rows]
            errors = [100 * row[kind]["standard_error"] for row in rows]
            axes.errorbar([row["k"] for row in rows], values, errors, marker="o", capsize=3, label=f"weights {kind}")
    _finish(axes, report, f"the decomposed layer, rule {rows[0]['rule']}")


def _finish(axes: Axes, report: dict[str, Any], title: str) -> None:
    axes.axhline(100 * report["accuracy"]["value"], color="black", linewidth=0.8, label="all features")
    axes.set_xscale("log")
    k = [figure["k"] for figure in report["heads"]]
    axes.set_xticks(k, map(str, k))
    axes.minorticks_off()
    axes.set_xlabel("features per class")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
