"""From a torch network to a plain ONNX classifier with a manifest, and the check that both agree."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # torch's exporter may load ONNX Runtime before `analyzers.runtime` does

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch.export import Dim

from analyzers.errors import ModelError
from analyzers.graph import find_classifier
from analyzers.manifest import Manifest, ModelInput, Provenance, Scores
from analyzers.plain import PRODUCER, Layer, Plain, probe, set_manifest
from training.network import Network

OPSET = 20
TOLERANCE = 1e-4
MAP = "map"


def export(network: Network, classes: tuple[str, ...], size: int) -> Plain:
    """Export a network with a free batch axis; its tensors are `image`, `logits` and `map`."""
    network = network.eval()
    program = quietly_export(network, torch.rand(2, 3, size, size))
    model = program.model_proto
    del model.graph.output[1]  # the map keeps its name as an inner tensor
    manifest = Manifest(
        input=ModelInput(
            tensor="image",
            height=size,
            width=size,
            mean=network.normalisation[0],
            std=network.normalisation[1],
        ),
        classes=classes,
        scores=Scores(tensor="logits"),
        provenance=Provenance(producer=PRODUCER),
    )
    set_manifest(model, manifest)
    onnx.checker.check_model(model, full_check=True)
    return Plain(model, manifest, find_classifier(model))


def quietly_export(network: Network, example: torch.Tensor) -> torch.onnx.ONNXProgram:
    """Run torch's exporter without its chatter about optional packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logits", MAP],
                dynamic_shapes={"x": {0: Dim("batch")}},
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise ModelError("torch's exporter returned nothing")
    return program


def compare(network: Network, plain: Plain, images: npt.NDArray[np.float32]) -> float:
    """Return the largest difference of logits between torch and ONNX Runtime.

    Raises:
        ModelError: it exceeds 1e-4, or a filter peaks at another cell although its two highest cells differ.
    """
    session, _ = probe(plain, Layer(tensor=MAP))
    answer = session.run_images(plain.manifest, images)
    with torch.no_grad():
        logits, maps = (tensor.numpy() for tensor in network.eval()(torch.from_numpy(images)))
    gap = float(abs(logits - answer["logits"]).max())
    own, other = maps.reshape(*maps.shape[:2], -1), answer[MAP].reshape(*maps.shape[:2], -1)
    two = np.sort(own, axis=2)[:, :, -2:]
    moved = int(((own.argmax(2) != other.argmax(2)) & (two[..., 1] - two[..., 0] > TOLERANCE)).sum())
    if gap > TOLERANCE * max(1.0, float(abs(logits).max())) or moved:
        raise ModelError(
            f"torch and ONNX Runtime disagree: logits by {gap:.1e} (at most {TOLERANCE} expected), {moved} peaks moved"
        )
    return gap
