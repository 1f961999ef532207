"""From a model's raw outputs to Explanations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers import ledgers, nodes, parts
from analyzers.errors import InvalidInputError
from analyzers.explanation import Explanation, Parts, Prediction, Proof
from analyzers.geometry import Frame
from analyzers.manifest import ROWS, Manifest, Scores

Outputs = Mapping[str, npt.NDArray[Any]]

DEFAULT_TOP_K_CLASSES = 5
DEFAULT_TOP_K_REASONS = 10
DEFAULT_MAX_NODES = 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which part of an explanation is wanted.

    Attributes:
        rows: names of rows; every row of the model where empty.
        top_k_classes: how many classes, 0 for the default.
        top_k_reasons: how many reasons per row and class, 0 for the default.
        max_nodes: how many nodes of each layer of the explanatory graph, 0 for the default.
        min_percentile: 0..100, nodes below it are left out.
        evidence: whether ledgers say where, by cell.
    """

    rows: frozenset[str] = frozenset()
    top_k_classes: int = 0
    top_k_reasons: int = 0
    max_nodes: int = 0
    min_percentile: float = 0.0
    evidence: bool = False

    def __post_init__(self) -> None:
        for row in sorted(self.rows):
            if row not in ROWS:
                raise InvalidInputError("rows", f"has the unknown row '{row[:40]}'; there are {', '.join(ROWS)}")
        if not 0 <= self.min_percentile <= 100:
            raise InvalidInputError("min_percentile", f"is {self.min_percentile:g}; expected 0 to 100")
        for name in ("top_k_classes", "top_k_reasons", "max_nodes"):
            if (value := getattr(self, name)) < 0:
                raise InvalidInputError(name, f"is {value}; expected 0 (the default) or more")

    def includes(self, row: str) -> bool:
        """Whether `row` is wanted."""
        return not self.rows or row in self.rows


def _unsigned(proof: Proof) -> Proof:
    return proof


def explain(
    manifest: Manifest,
    outputs: Outputs,
    row: int,
    frame: Frame,
    wanted: Wanted,
    *,
    sign: Callable[[Proof], Proof] = _unsigned,
) -> Explanation:
    """Explain picture `row` of a batch.

    Args:
        manifest: what the model's outputs mean.
        outputs: the model's output tensors by name, batch first.
        row: which picture of the batch.
        frame: the size of that picture, to which positions refer.
        wanted: what to include.
        sign: adds to the proof what only the caller knows, such as which file answered.
    """
    logits = outputs[manifest.scores.tensor][row]
    top_k_classes = min(wanted.top_k_classes or DEFAULT_TOP_K_CLASSES, manifest.max_classes)
    top_k_reasons = wanted.top_k_reasons or DEFAULT_TOP_K_REASONS
    fired: parts.Fired | None = None
    if manifest.parts is not None and (wanted.includes("parts") or wanted.includes("class_features")):
        fired = parts.decode(manifest.parts, manifest.classes, outputs, row, frame)
    decoded = None
    section = manifest.class_features
    if section is not None:
        decoded = ledgers.decode(
            section,
            logits,
            manifest.classes,
            outputs,
            row,
            fired or {},
            frame,
            top_k_classes=top_k_classes,
            top_k_reasons=top_k_reasons,
            evidence=wanted.evidence,
        )
    shown = decoded if wanted.includes("class_features") else None
    return Explanation(
        predictions=predictions(manifest, logits, top_k_classes),
        width=frame.width,
        height=frame.height,
        parts=Parts(fired.strongest(top_k_reasons), manifest.parts.layer)
        if manifest.parts is not None and fired is not None and wanted.includes("parts")
        else None,
        explanatory_graph=nodes.decode(
            manifest.explanatory_graph,
            manifest.classes,
            outputs,
            row,
            frame,
            min_percentile=wanted.min_percentile,
            max_nodes=wanted.max_nodes or DEFAULT_MAX_NODES,
        )
        if manifest.explanatory_graph is not None and wanted.includes("explanatory_graph")
        else None,
        class_features=None if shown is None else shown.ledgers,
        contrast=None if shown is None else shown.contrast,
        proof=sign(
            Proof(
                completeness_gap=None if decoded is None else decoded.gap,
                exact=section is not None and section.exact,
                inexact="the model has no class features" if section is None else section.inexact,
            )
        ),
    )


def probabilities(scores: Scores, logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Apply the model's activation over the last axis, in float64 so that nothing overflows."""
    values = logits.astype(np.float64)
    if scores.activation == "sigmoid":
        small = np.exp(-abs(values))
        return np.asarray(np.where(values >= 0, 1, small) / (1 + small), np.float64)
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    shares: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


def predictions(manifest: Manifest, logits: npt.NDArray[Any], count: int) -> tuple[Prediction, ...]:
    """Return the `count` best classes, most probable first."""
    probability = probabilities(manifest.scores, logits)
    order = np.argsort(-logits, kind="stable")[:count]  # ties: lowest class first, as in the graph's TopK
    return tuple(Prediction(int(c), manifest.classes[c], float(logits[c]), float(probability[c])) for c in order)
