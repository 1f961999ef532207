"""ExplainedModel: a model file, loaded and checked, that turns pictures into Explanations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.errors import InvalidInputError
from analyzers.explain import Wanted, explain
from analyzers.explanation import Box, Explanation, Proof
from analyzers.geometry import Frame, locate
from analyzers.manifest import Manifest
from analyzers.occlude import draw_elsewhere, paint
from analyzers.runtime import RUNTIME, Session
from analyzers.what_if import Change, Flip, Float64Array, scales, smallest_flip, what_if

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
