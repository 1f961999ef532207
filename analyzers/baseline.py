"""The Baseline: how a model answered known pictures, kept as JSON in its metadata under `pellucid.baseline`.

A server holds what it answers lately against it. Everything is a histogram: of predicted classes, of the margin
between the two best logits, of every feature's value and of every node's percentile, each in bins between the
baseline's own quantiles. How far two histograms are apart is their Jensen-Shannon divergence, in bits, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from analyzers.documents import read_document
from analyzers.errors import DataError, ModelError
from analyzers.manifest import Manifest

if TYPE_CHECKING:
    from onnx import ModelProto

BASELINE_KEY = "pellucid.baseline"
MAX_PICTURES = 4000  # more of them tell little more
MAX_COLUMNS = 2048  # features, or nodes; of more, every second, every third, ...
MAX_BYTES = 4 << 20
WHATS = ("classes", "confidence", "features", "nodes")
_SHARES = {"confidence": 10, "features": 5, "nodes": 5}  # bins
_DRAWS = 64

FloatArray = npt.NDArray[np.floating[Any]]
Int64Array = npt.NDArray[np.int64]
Outputs = Mapping[str, npt.NDArray[Any]]
Count = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Columns(_Section):
    """Histograms of several numbers, one row a number.

    Attributes:
        edges: between the bins, ascending; a value on an edge is in the bin below.
        above: how many pictures were above each edge.
    """

    edges: Annotated[tuple[tuple[float, ...], ...], Field(min_length=1)]
    above: Annotated[tuple[tuple[Count, ...], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_length(self) -> Columns:
        edges = {len(row) for row in self.edges}
        if len(edges) != 1 or edges == {0} or [len(row) for row in self.edges] != [len(row) for row in self.above]:
            raise ValueError("edges and above must be tables of the same size")
        if any(list(row) != sorted(row) for row in self.edges):
            raise ValueError("edges must ascend")
        if any(list(row) != sorted(row, reverse=True) for row in self.above):
            raise ValueError("above must descend")
        return self

    @classmethod
    def of(cls, values: FloatArray, bins: int) -> Columns:
        """Take them from values, (pictures, numbers), with edges at their quantiles."""
        edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], axis=0).T
        rounded = np.array([[float(f"{edge:.6g}") for edge in row] for row in edges])
        return cls(edges=rounded.tolist(), above=above(values, rounded).tolist())

    def counts(self, pictures: int) -> Int64Array:
        """Return (numbers, bins): how many of so many pictures were in each bin."""
        return counts_of(np.array(self.above, np.int64), pictures)


class Baseline(_Section):
    """How a model answered known pictures.

    Attributes:
        schema_version: of this section.
        pictures: how many.
        classes: how often each class was the best.
        confidence: of the best logit minus the next, one row; of the logit where there is one class.
        features: of what the final layer reads, or else of the parts' scores; None without either.
        nodes: of the percentiles of an explanatory graph's nodes, layer by layer; None without a graph.
    """

    schema_version: Literal[1] = Field(alias="schema", default=1)
    pictures: Annotated[int, Field(ge=1)]
    classes: tuple[Count, ...]
    confidence: Columns
    features: Columns | None = None
    nodes: Columns | None = None

    @model_validator(mode="after")
    def _counts_fit(self) -> Baseline:
        if sum(self.classes) != self.pictures:
            raise ValueError(f"classes add up to {sum(self.classes)}, there were {self.pictures} pictures")
        for columns in (self.confidence, self.features, self.nodes):
            if columns is not None and max(row[0] for row in columns.above) > self.pictures:
                raise ValueError(f"more than {self.pictures} pictures are above an edge")
        return self

    @classmethod
    def of(cls, manifest: Manifest, batches: Iterable[Outputs]) -> Baseline:
        """Take it from a model's outputs, batch by batch.

        Raises:
            DataError: there is no picture, or an output is not finite.
        """
        seen: dict[str, list[FloatArray]] = {}
        for outputs in batches:
            for source, tensors in sources(manifest).items():
                if (values := gathered(outputs, source, tensors)) is not None:
                    seen.setdefault(source, []).append(values)
        if not seen:
            raise DataError("there is no picture to take a baseline from")
        whole: dict[str, FloatArray] = {}
        for source, parts in seen.items():
            whole |= numbers_of(source, np.concatenate(parts))
        if not all(np.isfinite(values).all() for values in whole.values()):
            raise DataError("the model answers numbers that are not finite, so that it can have no baseline")
        columns = {what: Columns.of(whole[what], bins) for what, bins in _SHARES.items() if what in whole}
        best = whole["classes"][:, 0].astype(np.int64)
        counts = np.bincount(best, minlength=len(manifest.classes)).tolist()
        return cls(pictures=len(best), classes=counts, **columns)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Baseline | None:
        """Read the baseline of a model file's metadata; None where it has none.

        Raises:
            ModelError: it is damaged, too long, or of a later version.
        """
        text = metadata.get(BASELINE_KEY)
        if text is None:
            return None
        if len(text) > MAX_BYTES:
            raise ModelError(f"the baseline has {len(text)} characters, at most {MAX_BYTES} are read; record it anew")
        return read_document(cls, text, name="baseline", remedy="record it anew")

    def check(self, manifest: Manifest, outputs: Outputs) -> None:
        """Hold it against what the model answers.

        Raises:
            ModelError: it is not of this model.
        """
        found = {"classes": len(manifest.classes), "confidence": 1}
        for source, tensors in sources(manifest).items():
            if source != "scores" and (values := gathered(outputs, source, tensors)) is not None:
                found[source] = values.shape[1]
        for what, mine in self.histograms().items():
            size = mine.shape[1] if what == "classes" else mine.shape[0]
            if size != found.get(what, 0):
                raise ModelError(f"the baseline has {size} {what}, the model {found.get(what, 0)}; record it anew")

    def histograms(self) -> dict[str, Int64Array]:
        """Return (numbers, bins) counts of each of `WHATS` that there is; classes are bins of one number."""
        columns = {"confidence": self.confidence, "features": self.features, "nodes": self.nodes}
        counts = {what: each.counts(self.pictures) for what, each in columns.items() if each is not None}
        return {"classes": np.array([self.classes], np.int64)} | counts

    def edges(self) -> dict[str, FloatArray]:
        """Return (numbers, edges) of each of `WHATS` but the classes that there is."""
        columns = {"confidence": self.confidence, "features": self.features, "nodes": self.nodes}
        return {what: np.array(each.edges) for what, each in columns.items() if each is not None}


@dataclass(frozen=True, slots=True)
class Shift:
    """How far two histograms are apart.

    Attributes:
        found: mean over the numbers, in bits, 0 to 1.
        by_chance: what to expect of as many pictures if both were drawn from the same.
    """

    found: float
    by_chance: float


def sources(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Return the outputs that are looked at: of the scores, the features and the nodes, as far as there are any."""
    features, parts, graph = manifest.class_features, manifest.parts, manifest.explanatory_graph
    found: dict[str, tuple[str, ...]] = {"scores": (manifest.scores.tensor,)}
    if features is not None or parts is not None:
        found["features"] = (features.pooled if features is not None else parts.score if parts is not None else "",)
    if graph is not None:
        found["nodes"] = tuple(layer.percentile for layer in graph.layers)
    return found


def gathered(outputs: Outputs, source: str, tensors: tuple[str, ...]) -> FloatArray | None:
    """Return a source's (batch, numbers), at most `MAX_COLUMNS` of them but for the scores; None if outputs lack it."""
    present = [outputs[tensor] for tensor in tensors if tensor in outputs]
    if len(present) < len(tensors):
        return None
    values = present[0] if len(present) == 1 else np.concatenate(present, axis=1)
    values = values.reshape(len(values), -1)
    return values if source == "scores" else values[:, :: -(-values.shape[1] // MAX_COLUMNS)]


def numbers_of(source: str, values: FloatArray) -> dict[str, FloatArray]:
    """Return what is compared, (pictures, numbers) each, by its name in `WHATS`."""
    if source != "scores":
        return {source: values}
    two = -np.partition(-values, min(1, values.shape[1] - 1), axis=1)[:, :2]
    return {
        "classes": values.argmax(1)[:, None].astype(np.float32),
        "confidence": two[:, :1] - two[:, 1:] if values.shape[1] > 1 else two,
    }


def above(values: FloatArray, edges: FloatArray) -> Int64Array:
    """Return (numbers, edges): how many of the values (pictures, numbers) are above each edge."""
    return np.stack([(values > edge).sum(0) for edge in edges.T], axis=1).astype(np.int64)


def counts_of(above: Int64Array, pictures: int) -> Int64Array:
    """Return (numbers, bins) from how many of the pictures are above each edge."""
    ends = np.full((len(above), 1), pictures), np.zeros((len(above), 1), np.int64)
    return -np.diff(np.concatenate([ends[0], above, ends[1]], axis=1), axis=1)


def divergence(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> FloatArray:
    """Return the Jensen-Shannon divergence over the last axis, in bits: (KL(p|m) + KL(q|m)) / 2 with m = (p + q) / 2.

    Args:
        first: counts (..., bins), at least one in each row.
        second: the same.
    """
    p, q = (counts / counts.sum(-1, keepdims=True) for counts in (first, second))
    middle = np.where(p + q > 0, (p + q) / 2, 1)
    logs = [share * np.log2(np.where(share > 0, share / middle, 1)) for share in (p, q)]
    return np.asarray((logs[0] + logs[1]).sum(-1) / 2, np.float64)


def shift(baseline: Int64Array, window: Int64Array) -> Shift:
    """Compare two histograms, (numbers, bins) counts, and say what chance alone would show.

    Chance: as many pictures as on either side are drawn from both together, a fixed number of times.
    """
    known, recent = int(baseline[0].sum()), int(window[0].sum())
    shares = (baseline + window) / (known + recent)
    random, draws = np.random.default_rng(0), max(1, _DRAWS // len(baseline))
    drawn = [random.multinomial(pictures, shares, size=(draws, len(shares))) for pictures in (known, recent)]
    return Shift(float(divergence(baseline, window).mean()), float(divergence(*drawn).mean()))


def forget(model: ModelProto) -> None:
    """Take the baseline out of a model's metadata; what it described is no longer so."""
    for place in reversed([n for n, entry in enumerate(model.metadata_props) if entry.key == BASELINE_KEY]):
        del model.metadata_props[place]


def record(model: ModelProto, baseline: Baseline) -> None:
    """Write a baseline into a model's metadata, in place of the one that is there."""
    forget(model)
    model.metadata_props.add(key=BASELINE_KEY, value=baseline.model_dump_json(by_alias=True, exclude_none=True))


def forget_nodes(model: ModelProto) -> None:
    """Take the nodes out of a model's baseline, whose graph goes or becomes another."""
    known = Baseline.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    if known is not None and known.nodes is not None:
        record(model, known.model_copy(update={"nodes": None}))
