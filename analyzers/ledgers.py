"""`class_features` in an answer: from a model's raw outputs to ledgers that add up to the logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers import explanation, manifest
from analyzers.geometry import Frame, area

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a model says about one picture's classes, as values.

    Attributes:
        ledgers: one for each of the best classes.
        contrast: the best of them against the runner-up, if the model has it.
        gap: largest difference between a logit and what its ledger or evidence adds up to.
    """

    ledgers: tuple[explanation.Ledger, ...]
    contrast: explanation.Contrast | None
    gap: float


def decode(
    section: manifest.ClassFeatures,
    logits: Float32Array,
    names: tuple[str, ...],
    outputs: Mapping[str, npt.NDArray[Any]],
    row: int,
    parts: Mapping[int, explanation.Part],
    frame: Frame,
    *,
    top_k_classes: int,
    top_k_reasons: int,
    evidence: bool,
) -> Decoded:
    """Return the ledgers of picture `row` for its best classes; `parts` are the filters that fired, by number."""
    named = parts if section.features_are_filters else {}
    count = min(top_k_classes, section.max_classes)
    numbers = outputs[section.classes][row, :count].tolist()
    features = outputs[section.features][row, :count, :, 0].tolist()
    shares, activations, bias = (
        outputs[tensor][row, :count].tolist() for tensor in (section.contributions, section.activations, section.bias)
    )
    beyond = [0.0] * count if section.omitted is None else outputs[section.omitted][row, :count].tolist()
    rest, logit = (values[numbers].tolist() for values in (outputs[section.rest][row], logits))
    where = None if section.evidence is None else outputs[section.evidence][row, :count]
    ledgers = []
    for rank, number in enumerate(numbers):
        kept, omitted = _contributions(features[rank], shares[rank], activations[rank], named, top_k_reasons)
        ledgers.append(
            explanation.Ledger(
                class_index=number,
                class_name=names[number],
                logit=logit[rank],
                contributions=kept,
                omitted=omitted + beyond[rank],
                rest=rest[rank],
                bias=bias[rank],
                evidence=_evidence(section, where[rank], frame) if evidence and where is not None else None,
            )
        )
    gaps = [0.0, *(abs(ledger.total - ledger.logit) for ledger in ledgers)]
    if where is not None:
        sums = where.sum((1, 2), dtype=np.float64).tolist()
        gaps += [abs(sums[rank] + bias[rank] - logit[rank]) for rank in range(count)]
    contrast = None
    if section.contrast is not None:
        contrast = _contrast(section, section.contrast, logits, names, outputs, row, named, top_k_reasons)
        gaps.append(abs(contrast.total - contrast.margin))
    return Decoded(tuple(ledgers), contrast, float(np.max(gaps)))  # NaN stays NaN


def _contributions(
    features: list[int],
    shares: list[float],
    activations: list[float],
    parts: Mapping[int, explanation.Part],
    most: int,
) -> tuple[tuple[explanation.Contribution, ...], float]:
    """Return the largest contributions, and the sum of the others; features below 0 are padding."""
    chosen = [place for place, feature in enumerate(features) if feature >= 0]
    order = sorted(chosen, key=lambda place: -abs(shares[place]))
    kept = tuple(
        explanation.Contribution(features[i], shares[i], activations[i], parts.get(features[i])) for i in order[:most]
    )
    return kept, math.fsum(shares[i] for i in order[most:])


def _contrast(
    section: manifest.ClassFeatures,
    tensors: manifest.Contrast,
    logits: Float32Array,
    names: tuple[str, ...],
    outputs: Mapping[str, npt.NDArray[Any]],
    row: int,
    parts: Mapping[int, explanation.Part],
    most: int,
) -> explanation.Contrast:
    best, other = (int(number) for number in outputs[section.classes][row, :2])
    bias = outputs[section.bias][row, :2].astype(np.float64)
    features = outputs[tensors.features][row]
    shares = outputs[tensors.contributions][row].tolist()
    activations = outputs[section.pooled][row, features].tolist()
    kept, omitted = _contributions(features.tolist(), shares, activations, parts, most)
    return explanation.Contrast(
        class_index=best,
        class_name=names[best],
        against_index=other,
        against_name=names[other],
        margin=float(logits[best]) - float(logits[other]),
        contributions=kept,
        rest=_total(section, tensors, outputs, row) - math.fsum(shares) + omitted,
        bias=float(bias[0] - bias[1]),
    )


def _total(
    section: manifest.ClassFeatures,
    tensors: manifest.Contrast,
    outputs: Mapping[str, npt.NDArray[Any]],
    row: int,
) -> float:
    """Return what all features argue for the best class against the runner-up."""
    if tensors.total is not None:
        return float(outputs[tensors.total][row])
    best, other = outputs[section.evidence or ""][row, :2].sum((1, 2), dtype=np.float64)
    return float(best - other)


def _evidence(
    section: manifest.ClassFeatures, values: npt.NDArray[Any], frame: Frame
) -> explanation.EvidenceMap | None:
    if section.grid is None:
        return None
    rows = tuple(tuple(row) for row in values.astype(np.float64).tolist())
    return explanation.EvidenceMap(rows, area(section.grid, frame))
