"""Between protobuf messages and the kernel's values, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from analyzers import explanation as values
from pellucid.v1 import explain_pb2 as pb

_Fired = Mapping[int, values.Part]
_NUMBERS: dict[int, np.dtype[np.floating]] = {
    pb.EVIDENCE_TYPE_FLOAT32: np.dtype("<f4"),
    pb.EVIDENCE_TYPE_FLOAT16: np.dtype("<f2"),
}


def to_message(explanation: values.Explanation, evidence: pb.EvidenceType = pb.EVIDENCE_TYPE_FLOAT32) -> pb.Explanation:
    """Return the message of an Explanation, its evidence, if it has any, in these numbers."""
    message = pb.Explanation(
        predictions=[prediction_message(prediction) for prediction in explanation.predictions],
        width=explanation.width,
        height=explanation.height,
    )
    if explanation.parts is not None:
        message.parts.CopyFrom(
            pb.Parts(parts=[_part_message(part) for part in explanation.parts.parts], layer=explanation.parts.layer)
        )
    if (graph := explanation.explanatory_graph) is not None:
        message.explanatory_graph.CopyFrom(
            pb.ExplanatoryGraph(
                nodes=[_node_message(node) for node in graph.nodes],
                layers=graph.layers,
                class_name=graph.class_name,
                right=graph.right,
                down=graph.down,
                mirrored=graph.mirrored,
            )
        )
    if explanation.class_features is not None:
        message.class_features.CopyFrom(_class_features_message(explanation, evidence))
    message.proof.CopyFrom(proof_message(explanation.proof))
    return message


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


def _node_message(node: values.Node) -> pb.Node:
    return pb.Node(
        layer=node.layer,
        node=node.node,
        filter=node.filter,
        x=node.x,
        y=node.y,
        score=node.score,
        percentile=node.percentile,
        parents=node.parents,
    )


@lru_cache(maxsize=4096)  # most boxes are cells of the same few grids
def _box_message(box: values.Box) -> pb.Box:
    return pb.Box(left=box.left, top=box.top, right=box.right, bottom=box.bottom)


def _box_value(box: pb.Box) -> values.Box:
    return values.Box(box.left, box.top, box.right, box.bottom)


def _part_message(part: values.Part) -> pb.Part:
    return pb.Part(
        filter=part.filter,
        score=part.score,
        x=part.x,
        y=part.y,
        cell=_box_message(part.cell),
        receptive_field=_box_message(part.receptive_field),
        learned_for=part.learned_for,
    )


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


def _class_features_message(explanation: values.Explanation, evidence: pb.EvidenceType) -> pb.ClassFeatures:
    ledgers, contrast = explanation.class_features or (), explanation.contrast
    entries = [entry for ledger in ledgers for entry in ledger.contributions]
    entries += [] if contrast is None else contrast.contributions
    listed = set() if explanation.parts is None else {part.filter for part in explanation.parts.parts}
    fired = {entry.feature: entry.part for entry in entries if entry.part is not None and entry.feature not in listed}
    message = pb.ClassFeatures(
        ledgers=[_ledger_message(ledger, evidence) for ledger in ledgers],
        parts=[_part_message(fired[feature]) for feature in sorted(fired)],
        features_are_filters=any(entry.part is not None for entry in entries),
    )
    if contrast is not None:
        message.contrast.CopyFrom(
            pb.Contrast(
                class_index=contrast.class_index,
                class_name=contrast.class_name,
                against_index=contrast.against_index,
                against_name=contrast.against_name,
                margin=contrast.margin,
                contributions=map(_contribution_message, contrast.contributions),
                rest=contrast.rest,
                bias=contrast.bias,
            )
        )
    return message


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


def _contribution_message(entry: values.Contribution) -> pb.Contribution:
    return pb.Contribution(feature=entry.feature, contribution=entry.contribution, activation=entry.activation)


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


def _ledger_message(ledger: values.Ledger, evidence: pb.EvidenceType) -> pb.Ledger:
    return pb.Ledger(
        class_index=ledger.class_index,
        class_name=ledger.class_name,
        logit=ledger.logit,
        contributions=map(_contribution_message, ledger.contributions),
        omitted=ledger.omitted,
        rest=ledger.rest,
        bias=ledger.bias,
        evidence=None if ledger.evidence is None else _evidence_message(ledger.evidence, evidence),
    )


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
