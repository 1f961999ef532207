"""Load a model file and check that it does what its manifest says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from analyzers.errors import ModelError
from analyzers.explain import Wanted, explain
from analyzers.geometry import Frame
from analyzers.manifest import ClassFeatures, Manifest, ModelInput
from analyzers.runtime import Device, Session, open_session
from server.batcher import BatchLimits, Outputs
from server.model import ExplainedModel, Float32Array
from server.workers import Workers

CHECK_TOLERANCE = 1e-3


ALONE = BatchLimits(max_batch=1, max_delay_seconds=0, max_queue=1, instances=1)


def load_model(
    path: Path,
    name: str,
    version: str,
    *,
    device: Device,
    threads: int,
    workers: Workers | None = None,
    limits: BatchLimits = ALONE,
) -> ExplainedModel:
    """Load a model file and check that it does what its manifest says.

    Args:
        path: of the file.
        name: what to call it.
        version: of that name.
        device: where it runs.
        threads: within one run.
        workers: who runs what is asked through its queue; nobody where left out.
        limits: of that queue.

    Raises:
        ModelError: it is missing, truncated, not ONNX, or does not fit its manifest.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"there is no {path.name} in version {version}") from None
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from None
    session = open_session(data, device=device, threads=threads)
    manifest = Manifest.from_metadata(session.metadata)
    head = _check(session, manifest)
    return ExplainedModel.of(
        name,
        version,
        session,
        manifest,
        sha256=hashlib.sha256(data).hexdigest(),
        head=head,
        workers=workers or Workers(0),
        limits=limits,
    )


def _check(session: Session, manifest: Manifest) -> Float32Array | None:
    """Run the model once on two made-up pictures and hold every output against the manifest; return its head."""
    size = manifest.input
    _check_input(session, size)
    images = np.random.default_rng(0).random((2, 3, size.height, size.width), np.float32)
    outputs = session.run_images(manifest, images)
    classes = len(manifest.classes)
    shapes: dict[str, tuple[int, ...]] = {manifest.scores.tensor: (2, classes)}
    integers: set[str] = set()
    if (parts := manifest.parts) is not None:
        shapes |= {parts.cell: (2, parts.filters), parts.score: (2, parts.filters)}
        integers.add(parts.cell)
    if (features := manifest.class_features) is not None:
        top, k = features.max_classes, features.reasons
        shapes |= {
            features.classes: (2, top),
            features.features: (2, top, k, 1),
            features.activations: (2, top, k),
        }
        shapes |= {features.contributions: (2, top, k), features.rest: (2, classes), features.bias: (2, top)}
        integers |= {features.classes, features.features}
        if features.omitted is not None:
            shapes[features.omitted] = (2, top)
        if features.evidence is not None and features.grid is not None:
            shapes[features.evidence] = (2, top, *features.grid.cells)
        if (contrast := features.contrast) is not None:
            most = outputs[contrast.features].shape[1:] if contrast.features in outputs else (k,)
            shapes |= {contrast.features: (2, *most), contrast.contributions: (2, *most)}
            if contrast.total is not None:
                shapes[contrast.total] = (2,)
            integers.add(contrast.features)
    booleans: set[str] = set()
    if (graph := manifest.explanatory_graph) is not None:
        for layer in graph.layers:
            nodes = len(layer.node[0])
            shapes |= {layer.position: (2, nodes, 2), layer.score: (2, nodes)}
            shapes |= {layer.percentile: (2, nodes), layer.present: (2, nodes)}
            booleans.add(layer.present)
        if graph.graph is not None:
            shapes[graph.graph] = (2,)
            integers.add(graph.graph)
        if graph.displacement is not None:
            shapes[graph.displacement] = (2, 2)
        if graph.mirrored is not None:
            shapes[graph.mirrored] = (2,)
            booleans.add(graph.mirrored)
    for tensor, shape in shapes.items():
        if tensor not in outputs:
            raise ModelError(f"the manifest names the output '{tensor}' but the graph has none of that name")
        if outputs[tensor].shape != shape:
            raise ModelError(
                f"the output '{tensor}' has shape {list(outputs[tensor].shape)}, the manifest means {list(shape)}"
            )
        meant = "integers" if tensor in integers else "booleans" if tensor in booleans else "floats"
        if outputs[tensor].dtype.kind != meant[0]:
            raise ModelError(f"the output '{tensor}' is {outputs[tensor].dtype}, the manifest means {meant}")
    if parts is not None and not (outputs[parts.cell] < parts.grid.cells[0] * parts.grid.cells[1]).all():
        raise ModelError(f"the output '{parts.cell}' lies outside the grid of {list(parts.grid.cells)} cells")
    if graph is not None and graph.graph is not None and not (outputs[graph.graph] < len(graph.layers[0].node)).all():
        raise ModelError(f"the output '{graph.graph}' names graphs that do not exist")
    return None if features is None else _check_ledgers(session, manifest, features, outputs)


def _check_input(session: Session, size: ModelInput) -> None:
    if (shape := session.inputs.get(size.tensor)) is None:
        raise ModelError(f"the manifest names the input '{size.tensor}' but the graph has none of that name")
    meant = [3, size.height, size.width]
    if len(shape) != 4 or any(isinstance(a, int) and a != b for a, b in zip(shape[1:], meant, strict=True)):
        raise ModelError(f"the input '{size.tensor}' has shape {shape}, the manifest means {[shape[0], *meant]}")


def _check_ledgers(session: Session, manifest: Manifest, features: ClassFeatures, outputs: Outputs) -> Float32Array:
    """Check that ledgers, contrast and evidence add up; return the final layer's weights."""
    top = outputs[features.classes]
    if not ((top >= 0) & (top < len(manifest.classes))).all():
        raise ModelError(f"the output '{features.classes}' names classes that do not exist")
    for tensor in (features.pooled, features.head):
        if tensor not in session.outputs:
            raise ModelError(f"the manifest names the output '{tensor}' but the graph has none of that name")
    images = np.zeros((1, 3, manifest.input.height, manifest.input.width), np.float32)
    head = session.run({manifest.input.tensor: images}, [features.head])[features.head]
    width = outputs[features.pooled].shape[-1]
    if head.shape != (len(manifest.classes), width) or head.dtype != np.float32:
        meant = [len(manifest.classes), width]
        raise ModelError(f"the output '{features.head}' has shape {list(head.shape)}, the manifest means {meant}")
    for row in (0, 1):
        frame = Frame(1, 1, manifest.input.width, manifest.input.height)
        gap = explain(manifest, outputs, row, frame, Wanted(top_k_classes=len(manifest.classes))).proof.completeness_gap
        largest = float(abs(outputs[manifest.scores.tensor]).max())
        if gap is None or not gap <= CHECK_TOLERANCE * max(1.0, largest):
            raise ModelError(f"its ledgers do not add up to its logits: they are off by {gap or 0.0:.1e}")
    return np.asarray(head)
