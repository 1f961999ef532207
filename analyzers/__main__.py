"""`pellucid-analyze`: attach explanations to an ONNX classifier, evaluate and inspect explained models."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from analyzers import (
    attach_command,
    baseline_command,
    certify_command,
    cli,
    inspect_plain,
    optimise_command,
    preprocessing,
    sweep_command,
)
from analyzers.certificate import Certificate
from analyzers.check_pictures import check_pictures
from analyzers.errors import DataError
from analyzers.evaluate import evaluate
from analyzers.files import write_atomically
from analyzers.gallery import FILTERS, PICTURES, gallery
from analyzers.graph_file import load_graph
from analyzers.graph_inspect import describe_graph, graph_lines
from analyzers.graph_page import graph_page
from analyzers.manifest import METADATA_KEY, Manifest
from analyzers.plain import read_onnx
from analyzers.quality import DEFAULT_PICTURES
from analyzers.quality_table import quality_lines
from analyzers.read_pictures import read_pictures
from analyzers.runtime import open_session

PROGRAM = "pellucid-analyze"
_PRINTED = {
    "parts": ("location_instability", "tracking_ratio"),
    "explanatory_graph": ("location_instability", "tracking_ratio", "purity", "predictive_gain", "part_localization"),
}
PROOF_PICTURES = 32


def main(arguments: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = _parser().parse_args(arguments)
    return cli.run(PROGRAM, lambda: options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "attach", help="add explanations to an ONNX classifier", description=attach_command.run.__doc__
    )
    attach_command.add_arguments(command)
    command.set_defaults(run=attach_command.run)

    command = commands.add_parser("evaluate", help="measure an explained model", description=_evaluate.__doc__)
    command.add_argument("model", type=Path, metavar="MODEL.onnx")
    command.add_argument("--data", type=Path, required=True, metavar="DIR|PACK")
    cli.add_unreadable(command)
    command.add_argument("--split", default="test", help="train, test or all (default test)")
    command.add_argument("--report", type=Path, metavar="report.json", help="where the JSON goes (default stdout)")
    command.add_argument(
        "--quality",
        type=int,
        nargs="?",
        const=DEFAULT_PICTURES,
        default=0,
        metavar="N",
        help=f"also measure the quality of evidence by cell, on N pictures (default {DEFAULT_PICTURES}); takes minutes",
    )
    command.add_argument("--html", type=Path, metavar="page.html", help="also write a page with galleries of filters")
    command.add_argument("--gallery-filters", type=int, default=FILTERS, help=f"at most (default {FILTERS})")
    command.add_argument("--gallery-pictures", type=int, default=PICTURES, help=f"of each (default {PICTURES})")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser(
        "baseline", help="record what later answers are held against", description=baseline_command.run.__doc__
    )
    baseline_command.add_arguments(command)
    command.set_defaults(run=baseline_command.run)

    command = commands.add_parser(
        "certify", help="compare a smaller copy's explanations", description=certify_command.run.__doc__
    )
    certify_command.add_arguments(command)
    command.set_defaults(run=certify_command.run)

    command = commands.add_parser(
        "optimise", help="make a smaller copy that explains alike", description=optimise_command.run.__doc__
    )
    optimise_command.add_arguments(command)
    command.set_defaults(run=optimise_command.run)

    command = commands.add_parser(
        "sweep", help="how many class features models need", description=sweep_command.run.__doc__
    )
    sweep_command.add_arguments(command)
    command.set_defaults(run=sweep_command.run)

    command = commands.add_parser("inspect", help="say what a model or graph file is", description=_inspect.__doc__)
    command.add_argument("model", type=Path, metavar="MODEL.onnx|GRAPH.npz")
    command.add_argument("--json", action="store_true", help="the manifest, or what the graph holds, as JSON")
    command.add_argument("--html", type=Path, metavar="page.html", help="of a graph: nodes and patches")
    command.add_argument("--data", type=Path, metavar="DIR|PACK", help="the pictures that the graph was learned from")
    command.add_argument("--split", default="train", help="which of them (default train)")
    command.add_argument("--scores", metavar="OUTPUT", help="of a plain model: which output holds the class scores")
    preprocessing.add_arguments(command)
    command.set_defaults(run=_inspect)
    return parser


def _evaluate(options: argparse.Namespace) -> None:
    """Measure accuracy with all features and with the class features alone, and how exactly the ledgers add up."""
    pictures = check_pictures(read_pictures(options.data), options.unreadable)
    report = evaluate(cli.read_model(options.model), pictures, split=options.split, quality=options.quality)
    if options.html is not None:
        page = gallery(
            cli.read_model(options.model),
            pictures,
            report,
            title=f"{options.model.parent.parent.name or options.model.name}: where filters look",
            split=options.split,
            filters=options.gallery_filters,
            per_filter=options.gallery_pictures,
        )
        write_atomically(options.html, page)
    text = json.dumps(report, indent=2) + "\n"
    if options.report is None:
        print(text, end="")
        return
    write_atomically(options.report, text.encode())
    for name in ("accuracy", "accuracy_class_features"):
        figure = report[name]
        print(f"{name:<24} {figure['value']:.4f} ± {figure['standard_error']:.4f}  (n = {figure['n']})")
    for row in report.get("accuracy_by_k", ()):
        print(f"{'  k = ' + str(row['k']):<24} {row['value']:.4f} ± {row['standard_error']:.4f}")
    print(f"{'completeness_gap':<24} {report['completeness_gap']['value']:.1e}")
    if "quality" in report:
        print("\n".join(quality_lines(report["quality"])))
    for row, names in _PRINTED.items():
        figures = {name: report[row][name] for name in names if name in report.get(row, {})}
        known = {name: figure for name, figure in figures.items() if figure["value"] is not None}
        if known:
            print(f"{row}")
        for name, figure in known.items():
            error = "" if figure["standard_error"] is None else f" ± {figure['standard_error']:.3f}"
            controls = ", ".join(f"{control} {value:.3f}" for control, value in figure["controls"].items() if value)
            print(f"{'  ' + name:<24} {figure['value']:.3f}{error}  ({controls})")


def _inspect(options: argparse.Namespace) -> None:
    """Say what a model file takes, knows and can explain, or what an explanatory graph holds.

    Of a plain classifier it says what `attach` would find: the final layer, the features and the map behind them.
    """
    if options.model.suffix == ".npz":
        graph = load_graph(options.model)
        if options.html is not None:
            if options.data is None:
                raise DataError("a page shows the pictures that a graph was learned from; give them with --data")
            pictures = read_pictures(options.data)
            if graph.classes:
                pictures = pictures.relabelled(graph.classes)
            title = f"{options.model.name}: part patterns"
            write_atomically(options.html, graph_page(graph, pictures.of_split(options.split), title=title))
        print(json.dumps(describe_graph(graph), indent=2) if options.json else "\n".join(graph_lines(graph)))
        return
    data = read_onnx(options.model)
    session = open_session(data)
    if METADATA_KEY not in session.metadata:
        found = inspect_plain.look(data, preprocessing.read_arguments(options), options.scores)
        shown = json.dumps(inspect_plain.as_json(found), indent=2) if options.json else None
        print(shown or "\n".join(inspect_plain.lines(found)))
        return
    manifest = Manifest.from_metadata(session.metadata)
    if options.json:
        print(json.dumps(json.loads(manifest.to_json()), indent=2))
        return
    size = manifest.input
    classes = ", ".join(manifest.classes[:8]) + (" ..." if len(manifest.classes) > 8 else "")
    print(
        f"input           {size.tensor}: {size.channels} {size.height} x {size.width}, mean {size.mean}, std {size.std}"
    )
    print(f"classes         {len(manifest.classes)}: {classes}")
    print(f"producer        {manifest.provenance.producer}")
    print(f"rows            {', '.join(manifest.rows) or 'none (a plain classifier)'}")
    if (parts := manifest.parts) is not None:
        kind = "interpretable" if parts.interpretable else "ordinary"
        print(
            f"parts           {parts.filters} filters of the {kind} layer {parts.layer}, {parts.grid.cells} cells,"
            f" stride {parts.grid.stride}, receptive field {parts.grid.receptive_field}"
        )
    if (features := manifest.class_features) is not None:
        print(
            f"class_features  {features.k2} of each class (k1 = {features.k1}, rule {features.rule}),"
            f" ledgers for {features.max_classes} classes, {features.reasons} reasons each"
        )
        layer = "full" if features.decomposed is None else f"decomposed, weights {features.decomposed}"
        where = f"to the cells of {features.map}" if features.exact else f"false: {features.inexact}"
        print(f"final layer     {layer}")
        print(f"exact           {where}")
    print(f"fitted on       {manifest.provenance.pictures} pictures of {manifest.provenance.data or 'nothing'}")
    if (certificate := Certificate.from_metadata(session.metadata)) is not None:
        compared = certificate.data
        print(f"copy            {certificate.form} of the file with SHA-256 {certificate.model_sha256}")
        print(f"certificate     {compared.pictures} pictures, {', '.join(certificate.failed) or 'nothing'} missed")


if __name__ == "__main__":
    sys.exit(main())
