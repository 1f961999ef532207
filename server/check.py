"""Open a model file's content and check that it does what its manifest and its probe say."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers import probe
from analyzers.baseline import Baseline
from analyzers.certificate import Certificate
from analyzers.errors import ModelError
from analyzers.execution import CPU, Device, Execution
from analyzers.explain import Wanted, explain
from analyzers.geometry import Frame
from analyzers.manifest import ClassFeatures, ExplanatoryGraph, Manifest, ModelInput, Parts
from analyzers.runtime import Session, open_session
from server.onnx_scan import scan

log = logging.getLogger("pellucid.repository")

CHECK_TOLERANCE = 1e-3
MAX_PIXELS = 50_000_000
MIN_GAIN = 1.03
LONG_SECONDS = 0.5  # so long a run is not disturbed by much
OUTSIDE = 1.0  # how far beyond the picture, in sizes of it, a node may be: cells at the edge look past it

Float32Array = npt.NDArray[np.float32]
Outputs = dict[str, npt.NDArray[Any]]


@dataclass(slots=True)
class _Meant:
    """What the manifest says of the outputs: the shape of each for two pictures, and which are not floats."""

    shapes: dict[str, tuple[int, ...]]
    integers: set[str] = field(default_factory=set)
    booleans: set[str] = field(default_factory=set)


def open_checked(
    data: bytes, *, device: Device, threads: int, max_batch: int, execution: Execution | None = None
) -> tuple[Session, Manifest, Float32Array | None]:
    """Open a file's content, check it, and warm it up; returns the session, its manifest and its final layer's weights.

    Raises:
        ModelError: it is not an explained model, or does not do what it says.
    """
    scan(data)
    session = open_session(data, device=device, threads=threads, execution=execution)
    manifest = Manifest.from_metadata(session.metadata)
    head = check(session, manifest)
    warm(session, manifest, max_batch)
    return session, manifest, head


def check(session: Session, manifest: Manifest) -> Float32Array | None:
    """Run the model on two made-up pictures and hold every output against the manifest, the probe and the baseline.

    Returns:
        (classes, features) weights of its final layer; None without class features.

    Raises:
        ModelError: something does not fit; the sentence says what.
    """
    _check_input(session, manifest.input)
    _check_kinds(session)
    written = probe.Probe.from_metadata(session.metadata)
    variant = Certificate.from_metadata(session.metadata)
    outputs = session.run_images(manifest, probe.pictures(manifest.input, 0 if written is None else written.seed))
    meant = _Meant({manifest.scores.tensor: (2, len(manifest.classes))})
    if manifest.parts is not None:
        _expect_parts(meant, manifest.parts)
    if manifest.class_features is not None:
        _expect_features(meant, manifest.class_features, len(manifest.classes), outputs)
    if manifest.explanatory_graph is not None:
        _expect_graph(meant, manifest.explanatory_graph)
    _compare(outputs, meant)
    _check_ranges(manifest, outputs)
    head = None if manifest.class_features is None else _check_ledgers(session, manifest, outputs)
    if not np.isfinite(outputs[manifest.scores.tensor]).all():
        raise ModelError(f"the output '{manifest.scores.tensor}' holds numbers that are not finite")
    if written is None:
        log.info("the file has no probe, so nobody can tell whether it still answers as it did when it was written")
    else:
        found = probe.Probe.of(manifest, outputs, written.seed)
        written.compare(found, _tolerance(session, variant))
    if (baseline := Baseline.from_metadata(session.metadata)) is not None:
        baseline.check(manifest, outputs)
    return head


def _tolerance(session: Session, variant: Certificate | None) -> float:
    """Return by how much answers may differ from those that the file was written with."""
    if variant is not None and variant.form == "int8":
        return probe.ROUNDED_TOLERANCE
    if variant is None and session.provider == CPU:
        return probe.TOLERANCE
    return probe.LOOSE_TOLERANCE


def warm(session: Session, manifest: Manifest, max_batch: int) -> None:
    """Run batches of one, of the largest and of captured sizes, so that no request pays for what is set up then.

    Raises:
        ModelError: it cannot run them.
    """
    shape = (3, manifest.input.height, manifest.input.width)
    for count in sorted({1, max_batch, *session.captured}):
        outputs = session.run_images(manifest, np.zeros((count, *shape), np.float32))
        for tensor, values in outputs.items():
            if values.shape[:1] != (count,):
                raise ModelError(
                    f"the output '{tensor}' has shape {list(values.shape)} for {count} pictures; expected a row of each"
                )


def worthwhile_batch(session: Session, manifest: Manifest, max_batch: int) -> int:
    """Return `max_batch` if pictures that share a run take less time than one by one, and 1 if they do not.

    A GPU, and a CPU with small pictures, gain much; on a CPU large pictures gain nothing and wait for each other.
    """
    alone, together = (_fastest(session, manifest, count) for count in (1, max_batch))
    return max_batch if together * MIN_GAIN <= alone * max_batch else 1


def _fastest(session: Session, manifest: Manifest, count: int) -> float:
    """Return the least of up to three times that so many pictures take, in seconds; others may be running."""
    images = np.zeros((count, 3, manifest.input.height, manifest.input.width), np.float32)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        session.run_images(manifest, images)
        times.append(time.perf_counter() - started)
        if times[-1] > LONG_SECONDS:
            break
    return min(times)


def _expect_parts(meant: _Meant, parts: Parts) -> None:
    meant.shapes |= {parts.cell: (2, parts.filters), parts.score: (2, parts.filters)}
    meant.integers.add(parts.cell)


def _expect_features(meant: _Meant, features: ClassFeatures, classes: int, outputs: Outputs) -> None:
    top, k = features.max_classes, features.reasons
    meant.shapes |= {
        features.classes: (2, top),
        features.features: (2, top, k, 1),
        features.activations: (2, top, k),
        features.contributions: (2, top, k),
        features.rest: (2, classes),
        features.bias: (2, top),
    }
    meant.integers |= {features.classes, features.features}
    if features.omitted is not None:
        meant.shapes[features.omitted] = (2, top)
    if features.evidence is not None and features.grid is not None:
        meant.shapes[features.evidence] = (2, top, *features.grid.cells)
    if (contrast := features.contrast) is not None:
        most = outputs[contrast.features].shape[1:] if contrast.features in outputs else (k,)
        meant.shapes |= {contrast.features: (2, *most), contrast.contributions: (2, *most)}
        if contrast.total is not None:
            meant.shapes[contrast.total] = (2,)
        meant.integers.add(contrast.features)


def _expect_graph(meant: _Meant, graph: ExplanatoryGraph) -> None:
    for layer in graph.layers:
        nodes = len(layer.node[0])
        meant.shapes |= {layer.position: (2, nodes, 2), layer.score: (2, nodes)}
        meant.shapes |= {layer.percentile: (2, nodes), layer.present: (2, nodes)}
        meant.booleans.add(layer.present)
    if graph.graph is not None:
        meant.shapes[graph.graph] = (2,)
        meant.integers.add(graph.graph)
    if graph.displacement is not None:
        meant.shapes[graph.displacement] = (2, 2)
    if graph.mirrored is not None:
        meant.shapes[graph.mirrored] = (2,)
        meant.booleans.add(graph.mirrored)


def _compare(outputs: Outputs, meant: _Meant) -> None:
    for tensor, shape in meant.shapes.items():
        if tensor not in outputs:
            raise ModelError(f"the manifest names the output '{tensor}' but the graph has none of that name")
        found = outputs[tensor]
        if found.shape != shape:
            raise ModelError(f"the output '{tensor}' has shape {list(found.shape)}, the manifest means {list(shape)}")
        kind = (
            "integers" if tensor in meant.integers else "booleans" if tensor in meant.booleans else "floats of 32 bits"
        )
        if found.dtype.kind != kind[0] or (kind[0] == "f" and found.dtype != np.float32):
            raise ModelError(f"the output '{tensor}' is {found.dtype}, the manifest means {kind}")


def _check_ranges(manifest: Manifest, outputs: Outputs) -> None:
    """Check that parts and nodes are where there is something: in the grid, near the picture, of a graph there is."""
    if (parts := manifest.parts) is not None:
        rows, columns = parts.grid.cells
        _within(outputs, parts.cell, 0, rows * columns - 1, f"outside the grid of {[rows, columns]} cells")
        _within(outputs, parts.score, -_LARGEST, _LARGEST, "among numbers that are not finite")
    if (graph := manifest.explanatory_graph) is None:
        return
    for layer in graph.layers:
        _within(outputs, layer.position, -OUTSIDE, 1 + OUTSIDE, "far outside the picture")
        _within(outputs, layer.percentile, 0, 100, "outside of 0 to 100")
    if graph.graph is not None:
        _within(outputs, graph.graph, 0, len(graph.layers[0].node) - 1, "among graphs that do not exist")


_LARGEST = float(np.finfo(np.float32).max)


def _within(outputs: Outputs, tensor: str, low: float, high: float, where: str) -> None:
    values = outputs[tensor]
    if not ((values >= low) & (values <= high)).all():  # what is not a number is not within either
        raise ModelError(f"the output '{tensor}' lies {where}")


def _check_input(session: Session, size: ModelInput) -> None:
    if (shape := session.inputs.get(size.tensor)) is None:
        raise ModelError(f"the manifest names the input '{size.tensor}' but the graph has none of that name")
    if others := session.inputs.keys() - {size.tensor}:
        raise ModelError(f"the graph wants the input '{min(others)}' as well; expected '{size.tensor}' alone")
    meant = [3, size.height, size.width]
    if len(shape) != 4 or any(isinstance(a, int) and a != b for a, b in zip(shape[1:], meant, strict=True)):
        raise ModelError(f"the input '{size.tensor}' has shape {shape}, the manifest means {[shape[0], *meant]}")
    if size.height * size.width > MAX_PIXELS:
        raise ModelError(f"the manifest means pictures of {size.height} x {size.width}; at most {MAX_PIXELS} pixels go")
    if shape[0] == 0:
        raise ModelError(f"the input '{size.tensor}' takes batches of no picture")


def _check_kinds(session: Session) -> None:
    if len(set(session.outputs)) < len(session.outputs):
        raise ModelError("the graph has two outputs of the same name")
    for output in session.session.get_outputs():
        if not output.type.startswith("tensor(") or output.type == "tensor(string)":
            raise ModelError(f"the output '{output.name}' is a {output.type}; expected a tensor of numbers")


def _check_ledgers(session: Session, manifest: Manifest, outputs: Outputs) -> Float32Array:
    """Check that ledgers, contrast and evidence add up; return the final layer's weights."""
    features = manifest.class_features
    if features is None:
        raise ModelError("the file has no class features")
    _within(outputs, features.classes, 0, len(manifest.classes) - 1, "among classes that do not exist")
    for tensor in (features.pooled, features.head):
        if tensor not in session.outputs:
            raise ModelError(f"the manifest names the output '{tensor}' but the graph has none of that name")
    tensor, pictures = manifest.input.tensor, session.batch(manifest.input.tensor) or 1
    images = np.zeros((pictures, 3, manifest.input.height, manifest.input.width), np.float32)
    head = session.run({tensor: images}, [features.head])[features.head]
    meant = [len(manifest.classes), outputs[features.pooled].shape[-1]]
    if list(head.shape) != meant or head.dtype != np.float32:
        raise ModelError(f"the output '{features.head}' has shape {list(head.shape)}, the manifest means {meant}")
    for row in (0, 1):
        frame = Frame(1, 1, manifest.input.width, manifest.input.height)
        gap = explain(manifest, outputs, row, frame, Wanted(top_k_classes=len(manifest.classes))).proof.completeness_gap
        largest = float(abs(outputs[manifest.scores.tensor]).max())
        if gap is None or not gap <= CHECK_TOLERANCE * max(1.0, largest):
            raise ModelError(f"its ledgers do not add up to its logits: they are off by {gap or 0.0:.1e}")
    return np.asarray(head)
