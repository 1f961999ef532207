"""Prove an explained file on pictures: logits unchanged, ledgers that add up for every class, peaks in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, numpy_helper

from analyzers import class_features, parts
from analyzers.errors import ModelError
from analyzers.manifest import ClassFeatures
from analyzers.plain import TOLERANCE, Layer, Plain, manifest_of, probe
from analyzers.runtime import open_session

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Proof:
    """What `prove` found.

    Attributes:
        pictures: how many pictures were compared.
        logits_gap: largest absolute difference between the plain and the explained file's logits, the first picture
            also alone.
        completeness_gap: largest absolute difference between a logit and its ledger, over all classes, and between
            the margin of the best class and its contrast to the runner-up.
        location_gap: largest absolute difference between a logit and its evidence summed over all cells + bias, and
            between a feature and the mean of its map; None where contributions have no place.
        moved_peaks: peaks whose cell or value differs from the maps' own.
    """

    pictures: int
    logits_gap: float
    completeness_gap: float
    location_gap: float | None
    moved_peaks: int


def prove(plain: Plain, explained: ModelProto, layer: Layer, images: Float32Array) -> Proof:
    """Run the plain and the explained file on the same pictures.

    Raises:
        ModelError: the logits changed, the best classes are others, a ledger does not add up, or a peak moved.
    """
    described = manifest_of(explained)
    section, scores = described.class_features, described.scores.tensor
    if section is None:
        raise ModelError("the file has no class features, so there is nothing to prove")
    probed, tensor = probe(plain, layer)
    truth = probed.run_images(plain.manifest, images)
    session = open_session(explained.SerializeToString())
    answer, alone = session.run_images(described, images), session.run_images(described, images[:1])
    logits, pooled = truth[plain.found.logits], truth[plain.found.pooled]
    head = plain.found.head
    # Over all classes: the file's own rest, and the chosen features' share computed here, independently.
    chosen = next(numpy_helper.to_array(t) for t in explained.graph.initializer if t.name == "class_features/index")
    own = class_features.membership(head, chosen[:, :, 0])
    total = pooled.astype(np.float64) @ np.where(own, head.weight, 0).T + answer[section.rest] + head.bias
    ledgers = answer[section.contributions].sum(-1, dtype=np.float64) + answer[section.bias]
    if section.omitted is not None:
        ledgers += answer[section.omitted]
    ledgers += np.take_along_axis(answer[section.rest], answer[section.classes], 1)
    best = -np.sort(-logits, axis=1)[:, : section.max_classes]
    gaps = [abs(total - logits), abs(ledgers - best)]
    if section.contrast is not None:
        bias = answer[section.bias].astype(np.float64)
        if section.contrast.total is not None:
            every = answer[section.contrast.total]
        else:
            sums = answer[section.evidence or ""][:, :2].sum((2, 3), dtype=np.float64)
            every = sums[:, 0] - sums[:, 1]
        gaps.append(abs(every + bias[:, 0] - bias[:, 1] - (best[:, 0] - best[:, 1])))
        gaps.append(abs(_contrast(plain, section, answer) - answer[section.contrast.contributions]))
    located = None
    if section.evidence is not None and section.map is not None:
        located = _location_gap(
            section, answer, probe(plain, Layer(section.map))[0].run_images(plain.manifest, images), logits
        )
    scale = max(1.0, float(abs(logits).max()))
    moved = 0
    if described.parts is not None and tensor is not None:
        flat = truth[tensor].reshape(len(images), described.parts.filters, -1)
        differ = abs(flat.max(-1) - answer[described.parts.score]) > TOLERANCE * max(1.0, float(abs(flat).max()))
        elsewhere = parts.misplaced(truth[tensor], answer[described.parts.cell], described.parts.peak)
        moved = int((elsewhere | differ).sum())
    proof = Proof(
        pictures=len(images),
        logits_gap=float(max(abs(answer[scores] - logits).max(), abs(alone[scores] - logits[:1]).max())),
        completeness_gap=float(max(gap.max() for gap in gaps)),
        location_gap=located,
        moved_peaks=moved,
    )
    worst = max(proof.logits_gap, proof.completeness_gap, proof.location_gap or 0.0)
    finite = np.isfinite([proof.logits_gap, proof.completeness_gap, proof.location_gap or 0.0]).all()
    if not (finite and worst <= TOLERANCE * scale and not moved):
        raise ModelError(f"the explained file does not agree with the plain one and was not written: {proof}")
    return proof


def _contrast(plain: Plain, section: ClassFeatures, answer: Mapping[str, Any]) -> Float32Array:
    """Return (w_A - w_B) f of the features that the contrast names, computed here."""
    if section.contrast is None:
        raise ModelError("the file has no contrast")
    weight, two = plain.found.head.weight, answer[section.classes][:, :2]
    every = (weight[two[:, 0]] - weight[two[:, 1]]) * answer[section.pooled]
    return np.asarray(np.take_along_axis(every, answer[section.contrast.features], 1))


def _location_gap(
    section: ClassFeatures, answer: Mapping[str, Any], truth: Mapping[str, Any], logits: Float32Array
) -> float:
    """Return how far evidence is from the logits that it adds up to, and features from the means of their maps."""
    maps, pooled = truth[section.map or ""], answer[section.pooled]
    own = maps.reshape(len(maps), -1) if section.flat else maps.mean((2, 3), dtype=np.float64)
    summed = answer[section.evidence or ""].sum((2, 3), dtype=np.float64) + answer[section.bias]
    best = np.take_along_axis(logits, answer[section.classes], 1)
    return float(max(abs(own - pooled).max(), abs(summed - best).max()))
