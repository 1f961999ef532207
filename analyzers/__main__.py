"""`pellucid-analyze`: attach explanations to an ONNX classifier, evaluate and inspect explained models."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from analyzers import cli
from analyzers.attach import DEFAULT_MAX_CLASSES, Selection, attach, select
from analyzers.check_pictures import check_pictures
from analyzers.class_features import check_index_sets
from analyzers.errors import DataError, ModelError
from analyzers.evaluate import evaluate
from analyzers.files import write_atomically
from analyzers.gallery import FILTERS, PICTURES, gallery
from analyzers.graph_file import load_graph
from analyzers.graph_inspect import describe_graph, graph_lines
from analyzers.manifest import Manifest, Provenance
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.plain import Layer, Plain, read_plain
from analyzers.progress import track
from analyzers.prove import prove
from analyzers.read_pictures import read_pictures
from analyzers.runtime import open_session

PROGRAM = "pellucid-analyze"
PROOF_PICTURES = 32


def main(arguments: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = _parser().parse_args(arguments)
    return cli.run(PROGRAM, lambda: options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "attach", help="add explanations to a plain ONNX classifier", description=_attach.__doc__
    )
    command.add_argument("model", type=Path, metavar="PLAIN.onnx")
    command.add_argument("--data", type=Path, required=True, metavar="DIR|PACK", help="labelled pictures")
    _add_unreadable(command)
    command.add_argument("--split", default="train", help="which of them to fit on: train, test, all (default train)")
    command.add_argument("--k1", type=int, default=5, help="features counted per picture (default 5)")
    command.add_argument("--k2", type=int, default=5, help="class-specific features per class (default 5)")
    command.add_argument(
        "--rule",
        choices=("contribution", "feature"),
        default="contribution",
        help="what ranks a feature: weight x feature (default), or the feature itself as in the paper",
    )
    command.add_argument("--indices", type=Path, metavar="FILE.json", help="take these sets: {class: [features]}")
    command.add_argument("--names", type=Path, metavar="FILE", help="class names, one a line (default: the data's)")
    command.add_argument("--mean", type=cli.triple, metavar="R,G,B", help="subtracted from pictures in 0..1")
    command.add_argument("--std", type=cli.triple, metavar="R,G,B", help="then divided by")
    command.add_argument("--size", type=cli.pair, metavar="H,W", help="picture size where the model leaves it open")
    command.add_argument("--max-classes", type=int, default=DEFAULT_MAX_CLASSES, help="ledgers per answer at most")
    command.add_argument("--output", type=Path, required=True, metavar="models/NAME/1/model.onnx")
    command.set_defaults(run=_attach)

    command = commands.add_parser("evaluate", help="measure an explained model", description=_evaluate.__doc__)
    command.add_argument("model", type=Path, metavar="MODEL.onnx")
    command.add_argument("--data", type=Path, required=True, metavar="DIR|PACK")
    _add_unreadable(command)
    command.add_argument("--split", default="test", help="train, test or all (default test)")
    command.add_argument("--report", type=Path, metavar="report.json", help="where the JSON goes (default stdout)")
    command.add_argument("--html", type=Path, metavar="page.html", help="also write a page with galleries of filters")
    command.add_argument("--gallery-filters", type=int, default=FILTERS, help=f"at most (default {FILTERS})")
    command.add_argument("--gallery-pictures", type=int, default=PICTURES, help=f"of each (default {PICTURES})")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("inspect", help="say what a model or graph file is", description=_inspect.__doc__)
    command.add_argument("model", type=Path, metavar="MODEL.onnx|GRAPH.npz")
    command.add_argument("--json", action="store_true", help="the manifest, or what the graph holds, as JSON")
    command.set_defaults(run=_inspect)
    return parser


def _add_unreadable(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--unreadable",
        choices=("refuse", "skip"),
        default="refuse",
        help="what to do about pictures that cannot be read (default refuse)",
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def _attach(options: argparse.Namespace) -> None:
    """Find the class features on labelled pictures, add the explanation outputs, prove them, write the file."""
    pictures = check_pictures(read_pictures(options.data), options.unreadable)
    names = cli.read_names(options.names) if options.names else pictures.names
    plain = read_plain(_read(options.model), names=names, mean=options.mean, std=options.std, size=options.size)
    pictures = pictures.relabelled(plain.manifest.classes).of_split(options.split)
    selection = _selection(options, plain, pictures)
    explained = attach(
        plain,
        selection,
        max_classes=options.max_classes,
        provenance=Provenance(
            producer=plain.manifest.provenance.producer,
            data=f"{options.data.name}, {options.split}",
            data_fingerprint=pictures.fingerprint(),
            pictures=len(pictures),
        ),
    )
    proof = prove(plain, explained, Layer(), _proof_pictures(plain, pictures))
    write_atomically(options.output, explained.SerializeToString(deterministic=True))
    print(f"{options.output}: logits unchanged, ledgers add up within {proof.completeness_gap:.1e}")


def _selection(options: argparse.Namespace, plain: Plain, pictures: Pictures) -> Selection:
    if options.indices is not None:
        try:
            document = json.loads(options.indices.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise DataError(f"{options.indices} is not JSON; expected {{class number: [feature numbers]}}") from None
        classes, features = plain.found.head.weight.shape
        return Selection(check_index_sets(document, classes, features), None, "given")
    size, step = plain.manifest.input, 32
    batches = zip(
        map(to_model_input, pictures.batches(size.height, size.width, step)),
        (pictures.label[start : start + step] for start in range(0, len(pictures), step)),
        strict=True,
    )
    shown = track(batches, "class features", -(-len(pictures) // step))
    return select(plain, shown, k1=options.k1, k2=options.k2, rule=options.rule)


def _proof_pictures(plain: Plain, pictures: Pictures) -> np.ndarray:
    """Return real pictures and random ones."""
    size = plain.manifest.input
    real = pictures.take(np.arange(min(len(pictures), PROOF_PICTURES))).decoded(size.height, size.width)
    random = np.random.default_rng(0).random((4, 3, size.height, size.width), np.float32)
    return np.concatenate([to_model_input(real), random])


def _evaluate(options: argparse.Namespace) -> None:
    """Measure accuracy with all features and with the class features alone, and how exactly the ledgers add up."""
    pictures = check_pictures(read_pictures(options.data), options.unreadable)
    report = evaluate(_read(options.model), pictures, split=options.split)
    if options.html is not None:
        page = gallery(
            _read(options.model),
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
    for name in ("location_instability", "tracking_ratio"):
        figure = report.get("parts", {}).get(name)
        if figure is not None and figure["value"] is not None:
            controls = ", ".join(f"{control} {value:.3f}" for control, value in figure["controls"].items())
            print(f"{name:<24} {figure['value']:.3f} ± {figure['standard_error']:.3f}  ({controls})")


def _inspect(options: argparse.Namespace) -> None:
    """Say what a model file takes, knows and can explain, or what an explanatory graph holds."""
    if options.model.suffix == ".npz":
        graph = load_graph(options.model)
        print(json.dumps(describe_graph(graph), indent=2) if options.json else "\n".join(graph_lines(graph)))
        return
    session = open_session(_read(options.model))
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
            f" ledgers for {features.max_classes} classes"
        )
    print(f"fitted on       {manifest.provenance.pictures} pictures of {manifest.provenance.data or 'nothing'}")


if __name__ == "__main__":
    sys.exit(main())
