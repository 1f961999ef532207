"""`pellucid-analyze sweep`: how many class features classifiers need, as tables and a figure."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from analyzers import cli, preprocessing
from analyzers.decompose import Tuning
from analyzers.errors import DataError
from analyzers.files import write_atomically
from analyzers.manifest import METADATA_KEY, RULES, Manifest
from analyzers.pictures import Pictures
from analyzers.plain import Plain, explained_plain, load_onnx, read_onnx, read_plain
from analyzers.read_pictures import read_pictures
from analyzers.sweep import K1, K2, PAPER_K, Plan, sweep


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command understands."""
    command.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx", help="explained or plain")
    command.add_argument("--data", type=Path, required=True, metavar="DIR|PACK")
    command.add_argument("--fit-on", default="train", help="split to find class features on (default train)")
    command.add_argument("--split", default="test", help="split to measure on (default test)")
    command.add_argument("--rule", choices=RULES, default="contribution", help="of the grid (default contribution)")
    for name, numbers in (("k1", K1), ("k2", K2), ("k", PAPER_K)):
        shown = ",".join(map(str, numbers))
        command.add_argument(f"--{name}", type=cli.counts, default=numbers, metavar="N,N,...", help=f"default {shown}")
    command.add_argument("--tune", action="store_true", help="also tune the decomposed layers to the labels")
    command.add_argument("--names", type=Path, metavar="FILE", help="class names, one a line (default: the data's)")
    command.add_argument("--scores", metavar="OUTPUT", help="which output holds the class scores, of several")
    command.add_argument("--report", type=Path, metavar="sweep.json", help="all figures as JSON")
    command.add_argument("--figure", type=Path, metavar="sweep.png", help="the grid, the rules and the heads, drawn")
    preprocessing.add_arguments(command)


def run(options: argparse.Namespace) -> None:
    """Measure accuracy over k1 x k2, rules of choice, refits, ablations and the overlap of classes' features.

    Of several models, such as networks of several depths, the tables stand below one another in the order given.
    """
    pictures = read_pictures(options.data)
    plan = Plan(options.k1, options.k2, options.k, options.rule, Tuning() if options.tune else None)
    reports: dict[str, dict[str, Any]] = {}
    for path in options.models:
        plain = _read(options, path, pictures)
        name = path.parent.parent.name if path.name == "model.onnx" else path.stem
        if name in reports:
            raise DataError(f"two models are called {name}; rename one of the files")
        reports[name] = sweep(plain, pictures, plan, fit_on=options.fit_on, split=options.split)
    if options.report is not None:
        write_atomically(options.report, (json.dumps(reports, indent=2) + "\n").encode())
    print("\n\n".join(tables(name, report) for name, report in reports.items()))
    if options.figure is not None:
        from analyzers.sweep_figure import draw  # matplotlib is needed for figures alone

        draw(reports, options.figure)


def _read(options: argparse.Namespace, path: Path, pictures: Pictures) -> Plain:
    data = read_onnx(path)
    model = load_onnx(data)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY in metadata and Manifest.from_metadata(metadata).rows:
        return explained_plain(model)
    names = cli.read_names(options.names) if options.names else pictures.names
    wanted = preprocessing.read_arguments(options)
    return read_plain(data, names=names, preprocessing=wanted, scores=options.scores)


def tables(name: str, report: dict[str, Any]) -> str:
    """Return a report as Markdown."""
    whole, grid = report["accuracy"], report["grid"]
    lines = [
        f"## {name}: {report['model']['features']} features, {report['model']['classes']} classes",
        f"all features: {_percent(whole)} (n = {whole['n']})",
        "",
        f"k1 down, k2 across, rule {grid['rule']}",
        "",
        _row(["k1 \\ k2", *grid["k2"]]),
        _row(["---"] * (len(grid["k2"]) + 1)),
        *(
            _row([k1, *(f"{100 * value:.1f}" for value in values)])
            for k1, values in zip(grid["k1"], grid["accuracy"], strict=True)
        ),
        "",
        _row(["rule, k1 = k2", *(f"k = {figure['k']}" for figure in report["rules"]["feature"])]),
        _row(["---"] * (len(report["rules"]["feature"]) + 1)),
        *(_row([rule, *(f"{100 * f['value']:.1f}" for f in figures)]) for rule, figures in report["rules"].items()),
        "",
    ]
    kinds = [kind for kind in ("kept", "refitted", "tuned") if kind in report["heads"][0]]
    lines += [
        _row(["k", *kinds]),
        _row(["---"] * (len(kinds) + 1)),
        *(_row([row["k"], *(_percent(row[kind]) for kind in kinds)]) for row in report["heads"]),
        "",
        ", ".join(f"{key} {value:.4g}" for key, value in report["concentration"].items()),
        f"class features (k = {report['overlap']['k']}): "
        + ", ".join(f"{key} {report['overlap'][key]:.4g}" for key in ("jaccard", "union", "mutual_information")),
        "",
        _row(["class features replaced by", "the class's own", "as many others", "all but its own"]),
        _row(["---"] * 4),
    ]
    for corruption in ("mean", "zero", "noise"):
        figures = report["ablation"][corruption]
        lines.append(
            _row([corruption, *(f"{100 * figures[arm]['value']:.1f}" for arm in ("removed", "random", "only"))])
        )
    return "\n".join(lines)


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _percent(figure: dict[str, Any]) -> str:
    return f"{100 * figure['value']:.1f} ± {100 * figure['standard_error']:.1f}"
