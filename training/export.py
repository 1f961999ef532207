"""From a torch network to a plain ONNX classifier with a manifest, and the check that both agree."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # torch's exporter may load ONNX Runtime before `analyzers.runtime` does

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch.export import Dim

from analyzers.errors import ModelError
from analyzers.find_head import find_classifier
from analyzers.manifest import Manifest, ModelInput, Provenance, Scores
from analyzers.parts import misplaced
from analyzers.plain import PRODUCER, Layer, Plain, probe, set_manifest
from training.network import Network
from training.templates import centre

OPSET = 20
TOLERANCE = 1e-4
MAP = "map"


def export(
    network: Network, classes: tuple[str, ...], size: int, activation: Literal["softmax", "sigmoid"] = "softmax"
) -> Plain:
    """Export a network with a free batch axis; its tensors are `image`, `logits` and `map`.

    Args:
        network: the network; its gain and its masks go into the file's numbers.
        classes: their names.
        size: height and width of the pictures in pixels.
        activation: what turns its logits into probabilities.
    """
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
        scores=Scores(tensor="logits", activation=activation),
        provenance=Provenance(producer=PRODUCER),
    )
    set_manifest(model, manifest)
    onnx.checker.check_model(model, full_check=True)
    return Plain(model, manifest, find_classifier(model, manifest.input))


def reported_layer(network: Network, interpretable: bool = False) -> Layer:
    """Return the exported map as the layer whose filters are reported as parts, each at the centre of its template.

    Args:
        network: what was exported.
        interpretable: whether its filters were taught parts; those that are masked were in any case.
    """
    parts = network.parts
    if parts is None:
        return Layer(tensor=MAP)
    return Layer(
        tensor=MAP,
        interpretable=interpretable or parts.masked,
        learned_for=tuple(parts.state.learned_for.tolist()),
        peak=parts.state.templates.peak,
    )


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
    peak = reported_layer(network).peak
    cell = centre(torch.from_numpy(maps), peak).numpy()
    two = np.sort(maps.reshape(*maps.shape[:2], -1), axis=2)[:, :, -2:]
    clear = (two[..., -1] - two[..., 0] > TOLERANCE) | (peak != "argmax")
    moved = int((misplaced(answer[MAP], cell, peak) & clear).sum())
    if gap > TOLERANCE * max(1.0, float(abs(logits).max())) or moved:
        raise ModelError(
            f"torch and ONNX Runtime disagree: logits by {gap:.1e} (at most {TOLERANCE} expected), {moved} peaks moved"
        )
    return gap
