"""The Probe: what a model answered when its file was written, kept as JSON in its metadata under `pellucid.probe`.

Whoever loads the file later runs the same two made-up pictures through it and compares. A file whose weights were
altered since, or a runtime that computes something else, is found out before anybody gets its answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from analyzers.documents import read_document
from analyzers.errors import ModelError
from analyzers.manifest import Manifest, ModelInput

if TYPE_CHECKING:
    from onnx import ModelProto

    from analyzers.runtime import Session

PROBE_KEY = "pellucid.probe"
TOLERANCE = 1e-3
LOOSE_TOLERANCE = 2e-2  # GPUs multiply in TF32 or half precision
ROUNDED_TOLERANCE = 1e-1  # of eight bits: where one kernel rounds up, another's next number is a 256th of the range off
_DIGITS = 5
_BLOCKS = 8

Float32Array = npt.NDArray[np.float32]
Values = tuple[float, float]


class Probe(BaseModel):
    """What came of the two pictures.

    Attributes:
        schema_version: of this section.
        seed: of the pictures.
        logits: of each picture, one a class.
        parts: sum of each picture's part scores; None without parts.
        rest: sum of each picture's rests, over all classes; None without class features.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = Field(alias="schema", default=1)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    logits: tuple[tuple[float, ...], tuple[float, ...]]
    parts: Values | None = None
    rest: Values | None = None

    @classmethod
    def of(cls, manifest: Manifest, outputs: Mapping[str, npt.NDArray[Any]], seed: int = 0) -> Probe:
        """Take from a model's outputs for `pictures` what is kept of them."""
        parts, features = manifest.parts, manifest.class_features
        return cls(
            seed=seed,
            logits=tuple(tuple(map(_rounded, row)) for row in outputs[manifest.scores.tensor]),
            parts=None if parts is None else _sums(outputs[parts.score]),
            rest=None if features is None else _sums(outputs[features.rest]),
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Probe | None:
        """Read the probe of a model file's metadata; None where it has none.

        Raises:
            ModelError: it is damaged, or of a later version.
        """
        text = metadata.get(PROBE_KEY)
        if text is None:
            return None
        return read_document(cls, text, name="probe", remedy="attach the explanations anew")

    def compare(self, found: Probe, tolerance: float = TOLERANCE) -> None:
        """Hold this, which was written, against what is found now.

        Args:
            found: of the same pictures.
            tolerance: share of the largest number that is written, or of 1 where that is larger.

        Raises:
            ModelError: they differ by more.
        """
        for name in ("logits", "parts", "rest"):
            written, now = (np.array(getattr(probe, name) or (), np.float64) for probe in (self, found))
            gap = float(abs(written - now).max(initial=0.0)) if written.shape == now.shape else np.inf
            if not gap <= tolerance * max(1.0, float(abs(written).max(initial=0.0))):
                raise ModelError(
                    f"its answers are not those it was written with: its {name} are off by {gap:.1e};"
                    " the file was altered or its weights are damaged, make it anew"
                )


def pictures(size: ModelInput, seed: int = 0) -> Float32Array:
    """Return two made-up pictures (2, 3, height, width) in 0..1, the same whatever the machine: noise, and blocks."""
    numbers = np.arange(3 * size.height * size.width, dtype=np.uint32) + np.uint32(seed)
    noise = _hashed(numbers).reshape(3, size.height, size.width)
    row, column = (np.arange(length) * _BLOCKS // length for length in (size.height, size.width))
    blocks = _hashed(np.arange(3 * _BLOCKS**2, dtype=np.uint32) + np.uint32(seed)).reshape(3, _BLOCKS, _BLOCKS)
    return np.stack([noise, blocks[:, row[:, None], column]])


def record(model: ModelProto, session: Session, manifest: Manifest) -> None:
    """Write into a model's metadata what its session answers now; a model that answers no numbers gets no probe."""
    for place in reversed([n for n, entry in enumerate(model.metadata_props) if entry.key == PROBE_KEY]):
        del model.metadata_props[place]
    try:
        probe = Probe.of(manifest, session.run_images(manifest, pictures(manifest.input)))
    except ValidationError:
        return
    model.metadata_props.add(key=PROBE_KEY, value=probe.model_dump_json(by_alias=True, exclude_none=True))


def _hashed(numbers: npt.NDArray[np.uint32]) -> Float32Array:
    """Return numbers of 0..1 that look like noise; a fixed function, as no library's random stream is for ever."""
    mixed = numbers * np.uint32(0x9E3779B1)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    mixed ^= mixed >> np.uint32(16)
    return (mixed >> np.uint32(8)).astype(np.float32) / np.float32(2**24)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _sums(scores: npt.NDArray[Any]) -> Values:
    first, second = map(_rounded, scores.sum(axis=1, dtype=np.float64))
    return first, second
