"""ExplainedModel: a model file, loaded and checked, that turns pictures into Explanations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.errors import ModelError
from analyzers.explain import Wanted, explain
from analyzers.explanation import Explanation
from analyzers.geometry import Frame
from analyzers.manifest import Manifest, ModelInput
from analyzers.runtime import Device, Session, open_session

CHECK_TOLERANCE = 1e-3

Outputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ExplainedModel:
    """A model that is ready to answer.

    Attributes:
        name: its name in the repository.
        version: its version there.
        manifest: what its outputs mean.
        session: ONNX Runtime's session of it.
        sha256: of the file, hexadecimal.
    """

    name: str
    version: str
    manifest: Manifest
    session: Session
    sha256: str

    def explain(self, images: npt.NDArray[np.float32], frames: Sequence[Frame], wanted: Wanted) -> list[Explanation]:
        """Predict and explain a batch in one run.

        Args:
            images: float32 (batch, 3, height, width) in 0..1.
            frames: size of each picture as it was sent.
            wanted: what to include.
        """
        outputs = self.session.run_images(self.manifest, images)
        return [explain(self.manifest, outputs, row, frame, wanted) for row, frame in enumerate(frames)]


def load_model(path: Path, name: str, version: str, *, device: Device, threads: int) -> ExplainedModel:
    """Load a model file and check that it does what its manifest says.

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
    _check(session, manifest)
    return ExplainedModel(name, version, manifest, session, hashlib.sha256(data).hexdigest())


def _check(session: Session, manifest: Manifest) -> None:
    """Run the model once on two made-up pictures and hold every output against the manifest."""
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
        top, k = features.max_classes, features.k2
        shapes |= {
            features.classes: (2, top),
            features.features: (2, top, k, 1),
            features.activations: (2, top, k),
        }
        shapes |= {features.contributions: (2, top, k), features.rest: (2, classes), features.bias: (2, top)}
        integers |= {features.classes, features.features}
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
    if features is not None:
        _check_ledgers(manifest, outputs)


def _check_input(session: Session, size: ModelInput) -> None:
    if (shape := session.inputs.get(size.tensor)) is None:
        raise ModelError(f"the manifest names the input '{size.tensor}' but the graph has none of that name")
    meant = [3, size.height, size.width]
    if len(shape) != 4 or any(isinstance(a, int) and a != b for a, b in zip(shape[1:], meant, strict=True)):
        raise ModelError(f"the input '{size.tensor}' has shape {shape}, the manifest means {[shape[0], *meant]}")


def _check_ledgers(manifest: Manifest, outputs: Outputs) -> None:
    features = manifest.class_features
    if features is None:
        return
    top = outputs[features.classes]
    if not ((top >= 0) & (top < len(manifest.classes))).all():
        raise ModelError(f"the output '{features.classes}' names classes that do not exist")
    logits = outputs[manifest.scores.tensor]
    total = outputs[features.contributions].sum(-1) + outputs[features.bias]
    total = total + np.take_along_axis(outputs[features.rest], top, 1)
    gap = float(abs(total - np.take_along_axis(logits, top, 1)).max())
    if not gap <= CHECK_TOLERANCE * max(1.0, float(abs(logits).max())):
        raise ModelError(f"its ledgers do not add up to its logits: they are off by {gap:.1e}")
