"""Between protobuf messages and the kernel's values, in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from analyzers import explanation as values
from pellucid.v1 import explain_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

_Fired = Mapping[int, values.Part]
_NUMBERS: dict[int, np.dtype[np.floating]] = {
    pb.EVIDENCE_TYPE_FLOAT32: np.dtype("<f4"),
    pb.EVIDENCE_TYPE_FLOAT16: np.dtype("<f2"),
}


def to_message(explanation: values.Explanation, evidence: pb.EvidenceType = pb.EVIDENCE_TYPE_FLOAT32) -> pb.Explanation:
    """Return the message of an Explanation, its evidence, if it has any, in these numbers."""
    message = pb.Explanation()
    put(message, explanation, evidence)
    return message


def put(message: pb.Explanation, explanation: values.Explanation, evidence: pb.EvidenceType) -> None:
    """Write an Explanation into an empty message, where it stands: put into another one it would be copied whole."""
    message.width, message.height = explanation.width, explanation.height
    for prediction in explanation.predictions:
        message.predictions.add(
            class_index=prediction.class_index,
            class_name=prediction.class_name,
            logit=prediction.logit,
            probability=prediction.probability,
        )
    if explanation.parts is not None:
        message.parts.layer = explanation.parts.layer
        _put_parts(message.parts.parts, explanation.parts.parts)
    if explanation.explanatory_graph is not None:
        _put_graph(message.explanatory_graph, explanation.explanatory_graph)
    if explanation.class_features is not None:
        _put_class_features(message.class_features, explanation, evidence)
    message.proof.CopyFrom(proof_message(explanation.proof))


def proof_message(proof: values.Proof) -> pb.Proof:
    """Return the message of a Proof."""
    return pb.Proof(
        completeness_gap=proof.completeness_gap,
        exact=proof.exact,
        inexact=proof.inexact,
        model_sha256=proof.model_sha256,
        image_sha256=proof.image_sha256,
        execution_provider=proof.execution_provider,
        runtime=proof.runtime,
    )


def prediction_message(prediction: values.Prediction) -> pb.Prediction:
    """Return the message of a Prediction."""
    return pb.Prediction(
        class_index=prediction.class_index,
        class_name=prediction.class_name,
        logit=prediction.logit,
        probability=prediction.probability,
    )


def from_message(message: pb.Explanation) -> values.Explanation:
    """Return the Explanation of a message."""
    # Where a model has both rows and its features are filters, `parts` names some of them already.
    own = message.parts.parts if message.class_features.features_are_filters else ()
    fired = {part.filter: _part_value(part) for part in (*own, *message.class_features.parts)}
    return values.Explanation(
        predictions=tuple(map(prediction_value, message.predictions)),
        width=message.width,
        height=message.height,
        parts=values.Parts(tuple(map(_part_value, message.parts.parts)), message.parts.layer)
        if message.HasField("parts")
        else None,
        explanatory_graph=_graph_value(message.explanatory_graph) if message.HasField("explanatory_graph") else None,
        class_features=tuple(_ledger_value(ledger, fired) for ledger in message.class_features.ledgers)
        if message.HasField("class_features")
        else None,
        contrast=_contrast_value(message.class_features.contrast, fired)
        if message.class_features.HasField("contrast")
        else None,
        proof=proof_value(message.proof),
    )


def prediction_value(message: pb.Prediction) -> values.Prediction:
    """Return the Prediction of a message."""
    return values.Prediction(message.class_index, message.class_name, message.logit, message.probability)


def proof_value(message: pb.Proof) -> values.Proof:
    """Return the Proof of a message."""
    return values.Proof(
        completeness_gap=message.completeness_gap if message.HasField("completeness_gap") else None,
        exact=message.exact,
        inexact=message.inexact,
        model_sha256=message.model_sha256,
        image_sha256=message.image_sha256,
        execution_provider=message.execution_provider,
        runtime=message.runtime,
    )


def _graph_value(graph: pb.ExplanatoryGraph) -> values.ExplanatoryGraph:
    return values.ExplanatoryGraph(
        nodes=tuple(
            values.Node(n.layer, n.node, n.filter, n.x, n.y, n.score, n.percentile, tuple(n.parents))
            for n in graph.nodes
        ),
        layers=tuple(graph.layers),
        class_name=graph.class_name,
        right=graph.right,
        down=graph.down,
        mirrored=graph.mirrored,
    )


def _put_graph(message: pb.ExplanatoryGraph, graph: values.ExplanatoryGraph) -> None:
    message.SetInParent()
    message.layers.extend(graph.layers)
    message.class_name = graph.class_name
    message.right, message.down, message.mirrored = graph.right, graph.down, graph.mirrored
    for node in graph.nodes:
        message.nodes.add(
            layer=node.layer,
            node=node.node,
            filter=node.filter,
            x=node.x,
            y=node.y,
            score=node.score,
            percentile=node.percentile,
            parents=node.parents,
        )


def _box_message(box: values.Box) -> pb.Box:
    return pb.Box(left=box.left, top=box.top, right=box.right, bottom=box.bottom)


def _box_value(box: pb.Box) -> values.Box:
    return values.Box(box.left, box.top, box.right, box.bottom)


@lru_cache(maxsize=1 << 11)  # a filter peaks in few places; each entry takes some 2 KB
def _unscored(
    number: int, x: float, y: float, cell: values.Box, receptive_field: values.Box, learned_for: str
) -> pb.Part:
    return pb.Part(
        filter=number,
        x=x,
        y=y,
        cell=_box_message(cell),
        receptive_field=_box_message(receptive_field),
        learned_for=learned_for,
    )


def _put_parts(messages: RepeatedCompositeFieldContainer[pb.Part], parts: Iterable[values.Part]) -> None:
    for part in parts:
        message = messages.add()
        message.CopyFrom(_unscored(part.filter, part.x, part.y, part.cell, part.receptive_field, part.learned_for))
        message.score = part.score


def _part_value(part: pb.Part) -> values.Part:
    return values.Part(
        filter=part.filter,
        score=part.score,
        x=part.x,
        y=part.y,
        cell=_box_value(part.cell),
        receptive_field=_box_value(part.receptive_field),
        learned_for=part.learned_for,
    )


def _put_class_features(message: pb.ClassFeatures, explanation: values.Explanation, evidence: pb.EvidenceType) -> None:
    message.SetInParent()
    ledgers, contrast = explanation.class_features or (), explanation.contrast
    for ledger in ledgers:
        _put_ledger(message.ledgers.add(), ledger, evidence)
    entries = [entry for ledger in ledgers for entry in ledger.contributions]
    if contrast is not None:
        entries += contrast.contributions
        _put_contrast(message.contrast, contrast)
    listed = set() if explanation.parts is None else {part.filter for part in explanation.parts.parts}
    fired = {entry.feature: entry.part for entry in entries if entry.part is not None and entry.feature not in listed}
    message.features_are_filters = any(entry.part is not None for entry in entries)
    _put_parts(message.parts, (fired[feature] for feature in sorted(fired)))


def _put_contrast(message: pb.Contrast, contrast: values.Contrast) -> None:
    message.SetInParent()
    message.class_index, message.class_name = contrast.class_index, contrast.class_name
    message.against_index, message.against_name = contrast.against_index, contrast.against_name
    message.margin, message.rest, message.bias = contrast.margin, contrast.rest, contrast.bias
    _put_contributions(message.contributions, contrast.contributions)


def _contrast_value(contrast: pb.Contrast, fired: _Fired) -> values.Contrast:
    return values.Contrast(
        class_index=contrast.class_index,
        class_name=contrast.class_name,
        against_index=contrast.against_index,
        against_name=contrast.against_name,
        margin=contrast.margin,
        contributions=tuple(_contribution_value(entry, fired) for entry in contrast.contributions),
        rest=contrast.rest,
        bias=contrast.bias,
    )


def _put_contributions(
    messages: RepeatedCompositeFieldContainer[pb.Contribution], contributions: Iterable[values.Contribution]
) -> None:
    for entry in contributions:
        messages.add(feature=entry.feature, contribution=entry.contribution, activation=entry.activation)


def _contribution_value(entry: pb.Contribution, fired: _Fired) -> values.Contribution:
    return values.Contribution(entry.feature, entry.contribution, entry.activation, fired.get(entry.feature))


def _evidence_message(evidence: values.EvidenceMap, kind: pb.EvidenceType) -> pb.EvidenceMap:
    numbers = np.array(evidence.values, _NUMBERS[kind])
    return pb.EvidenceMap(
        rows=numbers.shape[0],
        columns=numbers.shape[1],
        type=kind,
        data=numbers.tobytes(),
        area=_box_message(evidence.area),
    )


def _evidence_value(message: pb.EvidenceMap) -> values.EvidenceMap:
    numbers = np.frombuffer(message.data, _NUMBERS[message.type]).reshape(message.rows, message.columns)
    rows = tuple(tuple(row) for row in numbers.astype(np.float64).tolist())
    return values.EvidenceMap(rows, _box_value(message.area))


def _put_ledger(message: pb.Ledger, ledger: values.Ledger, evidence: pb.EvidenceType) -> None:
    message.class_index, message.class_name, message.logit = ledger.class_index, ledger.class_name, ledger.logit
    message.omitted, message.rest, message.bias = ledger.omitted, ledger.rest, ledger.bias
    _put_contributions(message.contributions, ledger.contributions)
    if ledger.evidence is not None:
        message.evidence.CopyFrom(_evidence_message(ledger.evidence, evidence))


def _ledger_value(ledger: pb.Ledger, fired: _Fired) -> values.Ledger:
    return values.Ledger(
        class_index=ledger.class_index,
        class_name=ledger.class_name,
        logit=ledger.logit,
        contributions=tuple(_contribution_value(entry, fired) for entry in ledger.contributions),
        omitted=ledger.omitted,
        rest=ledger.rest,
        bias=ledger.bias,
        evidence=_evidence_value(ledger.evidence) if ledger.HasField("evidence") else None,
    )
