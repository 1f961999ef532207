"""`pellucid-analyze baseline`: what a model answers to known pictures, written into its file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import ModelProto

from analyzers import cli
from analyzers.baseline import MAX_PICTURES, Baseline, Outputs, record, sources
from analyzers.check_pictures import check_pictures
from analyzers.files import write_atomically
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.plain import load_onnx, manifest_of, read_onnx
from analyzers.progress import track
from analyzers.read_pictures import read_pictures
from analyzers.runtime import open_session

_BATCH = 32


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command understands."""
    command.add_argument("model", type=Path, metavar="MODEL.onnx")
    command.add_argument(
        "--data", type=Path, required=True, metavar="DIR|PACK", help="pictures like those to be served"
    )
    cli.add_unreadable(command)
    command.add_argument("--split", default="all", help="which of them: train, test, all (default all)")
    command.add_argument("--output", type=Path, required=True, metavar="models/NAME/1/model.onnx")


def run(options: argparse.Namespace) -> None:
    """Record how a model answers pictures, as the baseline that a server holds its later answers against.

    Labels do not matter. Take pictures like those to be served that the model was not trained on: it is surer of those.
    """
    model = load_onnx(read_onnx(options.model))
    pictures = check_pictures(read_pictures(options.data), options.unreadable).of_split(options.split)
    baseline = record_baseline(model, pictures)
    write_atomically(options.output, model.SerializeToString(deterministic=True))
    print(f"{options.output}: a baseline of {baseline.pictures} pictures, {', '.join(baseline.histograms())}")


def record_baseline(model: ModelProto, pictures: Pictures) -> Baseline:
    """Write into a model's metadata how it answers pictures, at most `MAX_PICTURES` of them, evenly spaced.

    Raises:
        ModelError: it has no manifest.
        DataError: it answers numbers that are not finite.
    """
    known = manifest_of(model)
    session, size = open_session(model.SerializeToString()), known.input
    chosen = pictures.take(np.arange(0, len(pictures), -(-len(pictures) // MAX_PICTURES)))
    wanted = [tensor for tensors in sources(known).values() for tensor in tensors]

    def answers() -> Iterator[Outputs]:
        batches = chosen.batches(size.height, size.width, _BATCH)
        for pixels in track(batches, "baseline", -(-len(chosen) // _BATCH)):
            yield session.run_images(known, to_model_input(pixels), wanted)

    baseline = Baseline.of(known, answers())
    record(model, baseline)
    return baseline
