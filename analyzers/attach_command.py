"""`pellucid-analyze attach`: explanations for an ONNX classifier, proved before anything is written."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from onnx import ModelProto

from analyzers import cli, preprocessing
from analyzers.attach import DEFAULT_MAX_CLASSES, DEFAULT_MAX_REASONS, Fit, Selection, attach, fit
from analyzers.attach_graph import (
    NODES,
    NODES_OF_A_CLASS,
    attach_graph,
    calibrate,
    describe_file,
    prove_graph,
    without_graph,
)
from analyzers.baseline_command import record_baseline
from analyzers.check_pictures import check_pictures
from analyzers.class_features import INDEX_SETS, check_index_sets
from analyzers.decompose import Tuning
from analyzers.errors import DataError
from analyzers.explanatory_graph import ExplanatoryGraph
from analyzers.files import read_json, write_atomically
from analyzers.graph_file import load_graph
from analyzers.manifest import RULES, ModelInput, Provenance
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.plain import Layer, Plain, load_onnx, manifest_of, read_onnx, read_plain
from analyzers.progress import track
from analyzers.prove import Proof, prove
from analyzers.read_pictures import read_pictures
from analyzers.replace_head import replace_head

log = logging.getLogger("pellucid.analyzers")

PROOF_PICTURES = 32


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command understands."""
    command.add_argument("model", type=Path, metavar="MODEL.onnx", help="plain, or explained already where --graph is")
    command.add_argument("--data", type=Path, metavar="DIR|PACK", help="labelled pictures to find class features on")
    command.add_argument("--graph", type=Path, metavar="graph.npz", help="explanatory graph learned from this model")
    command.add_argument(
        "--graph-nodes",
        type=int,
        metavar="N",
        help=f"of each layer (default {NODES}, of a graph for each class {NODES_OF_A_CLASS}); their parents come along",
    )
    command.add_argument(
        "--graph-form",
        choices=("hard", "soft"),
        default="hard",
        help="a node is at its best cell (default), or at the weighted mean of cells, calibrated on --data",
    )
    cli.add_unreadable(command)
    command.add_argument("--split", default="train", help="which of them to fit on: train, test, all (default train)")
    command.add_argument("--k1", type=int, default=5, help="features counted per picture (default 5)")
    command.add_argument("--k2", type=int, default=5, help="class-specific features per class (default 5)")
    command.add_argument(
        "--rule",
        choices=RULES,
        default="contribution",
        help="what ranks a feature: weight x feature (default), the feature itself as in the paper, or a control",
    )
    group = command.add_argument_group("a decomposed final layer, which reads class features alone")
    group.add_argument(
        "--decompose",
        choices=("kept", "refitted", "tuned"),
        help="keep their weights, refit them to the full layer in closed form, or go on to tune them to the labels"
        " (default: the full layer stays)",
    )
    group.add_argument("--tune-epochs", type=int, default=20, metavar="N", help="of tuning (default 20)")
    group.add_argument("--tune-rate", type=float, default=1e-3, metavar="RATE", help="of tuning (default 0.001)")
    group.add_argument(
        "--distil", type=float, default=0.0, metavar="SHARE", help="0 to 1, how much the full layer teaches (default 0)"
    )
    command.add_argument("--indices", type=Path, metavar="FILE.json", help="take these sets: {class: [features]}")
    command.add_argument("--names", type=Path, metavar="FILE", help="class names, one a line (default: the data's)")
    command.add_argument("--scores", metavar="OUTPUT", help="which output holds the class scores, of several")
    command.add_argument(
        "--max-classes",
        type=int,
        default=DEFAULT_MAX_CLASSES,
        help=f"ledgers per answer at most (default {DEFAULT_MAX_CLASSES})",
    )
    command.add_argument(
        "--max-reasons",
        type=int,
        default=DEFAULT_MAX_REASONS,
        help=f"features that a ledger names at most (default {DEFAULT_MAX_REASONS})",
    )
    preprocessing.add_arguments(command)
    command.add_argument("--output", type=Path, required=True, metavar="models/NAME/1/model.onnx")


def run(options: argparse.Namespace) -> None:
    """Find the class features on labelled pictures, add the explanation outputs, prove them, write the file.

    How the model answers those pictures goes into the file too, as its baseline.
    With `--graph` the explanatory graph is added as well; to a file that has its class features already, that alone.
    """
    data = read_onnx(options.model)
    pictures = None if options.data is None else read_pictures(options.data)
    if pictures is not None and options.unreadable == "skip":
        pictures = check_pictures(pictures, "skip")  # else they are decoded once, and the first bad one ends it
    graph = None if options.graph is None else load_graph(options.graph)
    known = describe_file(data)
    said: list[str] = []
    if graph is not None and known is not None and (pictures is None or known.class_features is not None):
        explained = load_onnx(data)
    elif pictures is None:
        raise DataError(f"{options.model} has no explanations yet; give labelled pictures with --data")
    else:
        explained, sentence = _attach_class_features(options, data, pictures)
        said.append(sentence)
    if graph is not None:
        explained, sentence = _attach_graph(options, explained, graph, pictures)
        said.append(sentence)
    if pictures is not None:
        baseline = record_baseline(explained, pictures.of_split(options.split))
        said.append(f"baseline of {baseline.pictures} pictures")
    write_atomically(options.output, explained.SerializeToString(deterministic=True))
    print(f"{options.output}: {', '.join(said)}")


def _attach_class_features(options: argparse.Namespace, data: bytes, pictures: Pictures) -> tuple[ModelProto, str]:
    names = cli.read_names(options.names) if options.names else pictures.names
    plain = read_plain(data, names=names, preprocessing=preprocessing.read_arguments(options), scores=options.scores)
    pictures = pictures.relabelled(plain.manifest.classes).of_split(options.split)
    fitted = _fit(options, plain, pictures)
    if fitted.head is not None:
        plain = replace_head(plain, fitted.head)
    explained = attach(
        plain,
        fitted.selection,
        max_classes=options.max_classes,
        max_reasons=options.max_reasons,
        decomposed=options.decompose,
        provenance=Provenance(
            producer=plain.manifest.provenance.producer,
            data=f"{options.data.name}, {options.split}",
            data_fingerprint=pictures.fingerprint(),
            pictures=len(pictures),
        ),
    )
    proof = prove(plain, explained, Layer(), _proof_pictures(plain.manifest.input, pictures))
    chance = float(np.bincount(pictures.label).max() / len(pictures))
    if fitted.accuracy <= chance + 0.02 and len(pictures.names) > 1:
        log.warning(
            "the model gets %.1f %% of the pictures right, hardly more than the largest class alone (%.1f %%); are the"
            " pre-processing and the order of the class names right?",
            100 * fitted.accuracy,
            100 * chance,
        )
    changed = "logits unchanged" if fitted.head is None else f"final layer decomposed ({options.decompose})"
    return explained, f"{changed}, {_said(explained, proof)}; {fitted.accuracy:.1%} of the pictures right"


def _said(explained: ModelProto, proof: Proof) -> str:
    """Return what was proved, and what could not be."""
    section = manifest_of(explained).class_features
    ledgers = f"ledgers add up within {proof.completeness_gap:.1e}"
    if proof.location_gap is not None:
        return f"{ledgers}, over all cells of '{section.map if section else ''}' within {proof.location_gap:.1e}"
    return f"{ledgers}, but contributions have no place: {section.inexact if section else ''} (exact: false)"


def _attach_graph(
    options: argparse.Namespace, model: ModelProto, graph: ExplanatoryGraph, pictures: Pictures | None
) -> tuple[ModelProto, str]:
    """Attach the graph to a model with a manifest, and prove it."""
    known = manifest_of(model)
    fitted = None
    if options.graph_form == "soft":
        if pictures is None:
            raise DataError("soft nodes score otherwise than those that were learned; give --data to calibrate them on")
        fitted = pictures.relabelled(known.classes).of_split(options.split)
    with_graph = attach_graph(model, graph, nodes=options.graph_nodes, form=options.graph_form)
    if fitted is not None:
        with_graph = calibrate(with_graph, fitted)
    gap = prove_graph(without_graph(model), with_graph, _proof_pictures(known.input, pictures))
    section = manifest_of(with_graph).explanatory_graph
    numbers = [] if section is None else [number for layer in section.layers for own in layer.node for number in own]
    nodes = sum(number >= 0 for number in numbers)
    where = f"where numpy finds them within {gap:.1e}" if options.graph_form == "hard" else "calibrated"
    return with_graph, f"logits unchanged, {nodes} nodes {where}"


def _fit(options: argparse.Namespace, plain: Plain, pictures: Pictures) -> Fit:
    given = None
    if options.indices is not None:
        classes, features = plain.found.head.weight.shape
        given = Selection(check_index_sets(read_json(options.indices, INDEX_SETS), classes, features), None, "given")
    size, step = plain.manifest.input, 32
    batches = zip(
        map(to_model_input, pictures.batches(size.height, size.width, step)),
        (pictures.label[start : start + step] for start in range(0, len(pictures), step)),
        strict=True,
    )
    return fit(
        plain,
        track(batches, "class features", -(-len(pictures) // step)),
        given,
        k1=options.k1,
        k2=options.k2,
        rule=options.rule,
        decomposed=options.decompose,
        tuning=Tuning(options.tune_epochs, options.tune_rate, distil=options.distil),
    )


def _proof_pictures(size: ModelInput, pictures: Pictures | None) -> np.ndarray:
    """Return real pictures, if there are any, and random ones."""
    random = np.random.default_rng(0).random((4, 3, size.height, size.width), np.float32)
    if pictures is None:
        return random
    real = pictures.take(np.arange(min(len(pictures), PROOF_PICTURES))).decoded(size.height, size.width)
    return np.concatenate([to_model_input(real), random])
