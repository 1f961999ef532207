"""ExplainedModel: a model file, loaded and checked, that turns pictures into Explanations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.errors import InvalidInputError, ModelError
from analyzers.explain import Wanted, explain
from analyzers.explanation import Box, Explanation, Proof
from analyzers.geometry import Frame, locate
from analyzers.manifest import ClassFeatures, Manifest, ModelInput
from analyzers.occlude import draw_elsewhere, paint
from analyzers.runtime import RUNTIME, Device, Session, open_session
from analyzers.what_if import Change, Flip, Float64Array, scales, smallest_flip, what_if

CHECK_TOLERANCE = 1e-3

Outputs = dict[str, npt.NDArray[Any]]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ExplainedModel:
    """A model that is ready to answer.

    Attributes:
        name: its name in the repository.
        version: its version there.
        manifest: what its outputs mean.
        session: ONNX Runtime's session of it.
        sha256: of the file, hexadecimal.
        head: (classes, features) weights of its final layer; None without class features.
    """

    name: str
    version: str
    manifest: Manifest
    session: Session
    sha256: str
    head: Float32Array | None

    def explain(
        self, images: Float32Array, frames: Sequence[Frame], digests: Sequence[str], wanted: Wanted
    ) -> list[Explanation]:
        """Predict and explain a batch in one run.

        Args:
            images: float32 (batch, 3, height, width) in 0..1.
            frames: size of each picture as it was sent.
            digests: SHA-256 of each picture as it was sent.
            wanted: what to include.
        """
        outputs = self.session.run_images(self.manifest, images)
        answers = [explain(self.manifest, outputs, row, frame, wanted) for row, frame in enumerate(frames)]
        return [
            replace(answer, proof=self.signed(answer.proof, digest))
            for answer, digest in zip(answers, digests, strict=True)
        ]

    def signed(self, proof: Proof, digest: str) -> Proof:
        """Return the proof with what it is about: this model, what runs it, and the picture of that SHA-256."""
        return replace(
            proof,
            model_sha256=self.sha256,
            image_sha256=digest,
            execution_provider=self.session.provider,
            runtime=RUNTIME,
        )

    def what_if(
        self, images: Float32Array, frame: Frame, digest: str, changes: Sequence[Change], *, flip: bool, occlude: bool
    ) -> WhatIf:
        """Answer one picture as it is and as it would be.

        Args:
            images: float32 (1, 3, height, width) in 0..1.
            frame: size of the picture as it was sent.
            digest: its SHA-256.
            changes: what counts for less or more.
            flip: whether to look for the smallest set of features that flips the class.
            occlude: whether to paint over the places of what changes, and run the model again on that.

        Raises:
            InvalidInputError: something that is to change is not there, or has no place to be painted over.
        """
        outputs = self.session.run_images(self.manifest, images)
        factors = scales(changes, self.manifest, outputs, 0)
        section = self.manifest.class_features
        if section is None or self.head is None:
            raise InvalidInputError("model", "has no class features, so nothing is known of its final layer")
        logits, pooled = outputs[self.manifest.scores.tensor][0], outputs[section.pooled][0]
        found = smallest_flip(logits, pooled, self.head) if flip else None
        proof = explain(self.manifest, outputs, 0, frame, Wanted()).proof
        painted = None
        if occlude:
            features = list(factors) or list(found.features if found is not None else ())
            painted = self._occlude(images, frame, outputs, features)
        after = what_if(logits, pooled, self.head, factors)
        return WhatIf(logits.astype(np.float64), after, found, painted, self.signed(proof, digest))

    def _occlude(self, images: Float32Array, frame: Frame, outputs: Outputs, features: list[int]) -> Occlusion:
        """Paint over the cells where the features' filters peak, and as many others, all in one run."""
        parts, section = self.manifest.parts, self.manifest.class_features
        if parts is None or section is None or not section.features_are_filters:
            raise InvalidInputError("occlude", "needs parts that are features; those of this model are not")
        fired = [feature for feature in features if outputs[parts.score][0, feature] > 0]
        cells = sorted({int(outputs[parts.cell][0, feature]) for feature in fired})
        if not cells:
            raise InvalidInputError("occlude", "none of what changes has fired in this picture; nothing to paint over")
        draws = draw_elsewhere(parts.grid, cells, images.shape[2:])
        pictures = np.stack([paint(images[0], parts.grid, chosen) for chosen in (cells, *draws)])
        scores, best = self.manifest.scores.tensor, int(outputs[self.manifest.scores.tensor][0].argmax())
        answer = self.session.run({self.manifest.input.tensor: pictures}, [scores])[scores][:, best]
        drops = float(outputs[scores][0, best]) - answer.astype(np.float64)
        return Occlusion(
            places=tuple(locate(parts.grid, cell, frame).cell for cell in cells),
            drop=float(drops[0]),
            elsewhere_drop=float(drops[1:].mean()),
            elsewhere_error=float(drops[1:].std(ddof=1) / np.sqrt(len(draws))),
            elsewhere_draws=len(draws),
        )


@dataclass(frozen=True, slots=True)
class Occlusion:
    """What becomes of the best class's logit when cells are painted over; see the message of the same name."""

    places: tuple[Box, ...]
    drop: float
    elsewhere_drop: float
    elsewhere_error: float
    elsewhere_draws: int


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What the answer is, and what it would be.

    Attributes:
        before: (classes,) logits as it is.
        after: (classes,) logits with the changes.
        flip: the smallest set that flips the class; None if not asked for, or if there is none.
        occlusion: what the pixels say; None if not asked for.
        proof: how exact it is, and what it is about.
    """

    before: Float64Array
    after: Float64Array
    flip: Flip | None
    occlusion: Occlusion | None
    proof: Proof


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
    head = _check(session, manifest)
    return ExplainedModel(name, version, manifest, session, hashlib.sha256(data).hexdigest(), head)


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
