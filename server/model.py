"""ExplainedModel: a model file, loaded and checked, that turns pictures into Explanations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from analyzers.errors import InvalidInputError
from analyzers.explain import Wanted, explain
from analyzers.explanation import Box, Explanation, Proof
from analyzers.geometry import Frame, locate
from analyzers.manifest import Manifest
from analyzers.occlude import draw_elsewhere, paint
from analyzers.runtime import RUNTIME, Run, Session
from analyzers.what_if import Change, Flip, Float64Array, scales, smallest_flip, what_if
from server.batcher import Batcher, BatchLimits
from server.call import traced
from server.drift import Drift
from server.request import Images, assemble
from server.shared_run import Outputs
from server.workers import Workers

Float32Array = npt.NDArray[np.float32]
T = TypeVar("T")


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
        outputs: names of its outputs that have a row for each picture, in the graph's order.
        batcher: where its pictures wait for each other.
        drift: compares what it answers lately with the file's baseline; None without one, or if nobody wants to know.
    """

    name: str
    version: str
    manifest: Manifest
    session: Session
    sha256: str
    head: Float32Array | None
    outputs: tuple[str, ...]
    batcher: Batcher
    drift: Drift | None = None

    @classmethod
    def of(
        cls,
        name: str,
        version: str,
        session: Session,
        manifest: Manifest,
        *,
        sha256: str,
        head: Float32Array | None,
        workers: Workers,
        limits: BatchLimits,
        drift: Drift | None = None,
    ) -> ExplainedModel:
        """Put a checked file's session and manifest behind a queue of its own."""
        constant = None if manifest.class_features is None else manifest.class_features.head
        outputs = tuple(output for output in session.outputs if output != constant)
        batcher = Batcher(partial(_run, session, manifest), workers, limits, None if drift is None else drift.watch)
        return cls(name, version, manifest, session, sha256, head, outputs, batcher, drift)

    async def run(
        self, images: Images, names: Sequence[str], finish: Callable[[Outputs, int], T], *, made_up: bool = False
    ) -> T:
        """Run pictures, alone or with those of other requests, and return finish(outputs, start); see `Batcher.run`."""
        return await self.batcher.run(images, names, finish, made_up=made_up)

    def decoded(self, began: float) -> None:
        """Count that a request's pictures have been read since `began`, in seconds of `time.monotonic`."""
        now = time.monotonic()
        self.batcher.statistics.decoded(now - began)
        if (call := traced()) is not None:
            call.stage("decode", began, now)

    def answer(
        self, outputs: Outputs, start: int, frames: Sequence[Frame], digests: Sequence[str], wanted: Wanted
    ) -> list[Explanation]:
        """Explain the pictures whose rows begin at `start`; arguments as in `explain`."""
        return [
            explain(self.manifest, outputs, start + row, frame, wanted, sign=partial(self.signed, digest=digest))
            for row, (frame, digest) in enumerate(zip(frames, digests, strict=True))
        ]

    def explain(
        self, images: Images, frames: Sequence[Frame], digests: Sequence[str], wanted: Wanted
    ) -> list[Explanation]:
        """Predict and explain a batch in one run, at once and in this thread.

        Args:
            images: as `run` takes them.
            frames: size of each picture as it was sent.
            digests: SHA-256 of each picture as it was sent.
            wanted: what to include.
        """
        outputs = self.session.run_images(self.manifest, assemble([images]))
        return self.answer(outputs, 0, frames, digests, wanted)

    def signed(self, proof: Proof, digest: str) -> Proof:
        """Return the proof with what it is about: this model, what runs it, and the picture of that SHA-256."""
        return Proof(
            proof.completeness_gap,
            proof.exact,
            proof.inexact,
            model_sha256=self.sha256,
            image_sha256=digest,
            execution_provider=self.session.provider,
            runtime=RUNTIME,
        )

    async def what_if(
        self, images: Images, frame: Frame, digest: str, changes: Sequence[Change], *, flip: bool, occlude: bool
    ) -> WhatIf:
        """Answer one picture as it is and as it would be.

        Args:
            images: one picture, as `run` takes it.
            frame: size of the picture as it was sent.
            digest: its SHA-256.
            changes: what counts for less or more.
            flip: whether to look for the smallest set of features that flips the class.
            occlude: whether to paint over the places of what changes, and run the model again on that.

        Raises:
            InvalidInputError: something that is to change is not there, or has no place to be painted over.
        """

        def finish(outputs: Outputs, start: int) -> tuple[WhatIf, Outputs, list[int]]:
            own = {name: values[start : start + 1] for name, values in outputs.items()}
            return self._what_if(own, frame, digest, changes, flip=flip, occlude=occlude)

        answer, outputs, features = await self.run(images, self.outputs, finish)
        return replace(answer, occlusion=await self._occlude(images, frame, outputs, features)) if occlude else answer

    def _what_if(
        self, outputs: Outputs, frame: Frame, digest: str, changes: Sequence[Change], *, flip: bool, occlude: bool
    ) -> tuple[WhatIf, Outputs, list[int]]:
        """Return the answer without an occlusion, the picture's outputs, and the features to paint over."""
        factors = scales(changes, self.manifest, outputs, 0)
        section = self.manifest.class_features
        if section is None or self.head is None:
            raise InvalidInputError("model", "has no class features, so nothing is known of its final layer")
        logits, pooled = outputs[self.manifest.scores.tensor][0], outputs[section.pooled][0]
        found = smallest_flip(logits, pooled, self.head) if flip else None
        proof = explain(self.manifest, outputs, 0, frame, Wanted()).proof
        after = what_if(logits, pooled, self.head, factors)
        answer = WhatIf(logits.astype(np.float64), after, found, None, self.signed(proof, digest))
        return answer, outputs, list(factors) or list(found.features if found is not None else ())

    async def _occlude(self, images: Images, frame: Frame, outputs: Outputs, features: list[int]) -> Occlusion:
        """Paint over the cells where the features' filters peak, and as many others, all in one run."""
        parts, section = self.manifest.parts, self.manifest.class_features
        if parts is None or section is None or not section.features_are_filters:
            raise InvalidInputError("occlude", "needs parts that are features; those of this model are not")
        fired = [feature for feature in features if outputs[parts.score][0, feature] > 0]
        cells = sorted({int(outputs[parts.cell][0, feature]) for feature in fired})
        if not cells:
            raise InvalidInputError("occlude", "none of what changes has fired in this picture; nothing to paint over")
        picture, grid = assemble([images])[0], parts.grid
        draws = draw_elsewhere(grid, cells, picture.shape[1:])
        pictures = await asyncio.to_thread(lambda: np.stack([paint(picture, grid, each) for each in (cells, *draws)]))
        scores, best = self.manifest.scores.tensor, int(outputs[self.manifest.scores.tensor][0].argmax())
        answer = await self.run(
            pictures, [scores], lambda found, start: found[scores][start : start + len(pictures), best], made_up=True
        )
        drops = float(outputs[scores][0, best]) - answer.astype(np.float64)
        return Occlusion(
            places=tuple(locate(parts.grid, cell, frame).cell for cell in cells),
            drop=float(drops[0]),
            elsewhere_drop=float(drops[1:].mean()),
            elsewhere_error=float(drops[1:].std(ddof=1) / np.sqrt(len(draws))),
            elsewhere_draws=len(draws),
        )


def _run(session: Session, manifest: Manifest, images: list[Images], names: Sequence[str], run: Run) -> Outputs:
    return session.run_images(manifest, assemble(images), names, run)


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
