"""Between protobuf messages and the kernel's values, in both directions."""

from __future__ import annotations

from dataclasses import asdict

from analyzers import explanation as values
from pellucid.v1 import explain_pb2 as pb


def to_message(explanation: values.Explanation) -> pb.Explanation:
    """Return the message of an Explanation."""
    message = pb.Explanation(
        predictions=[
            pb.Prediction(class_index=p.class_index, class_name=p.class_name, logit=p.logit, probability=p.probability)
            for p in explanation.predictions
        ],
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
                nodes=[pb.Node(**asdict(node)) for node in graph.nodes],
                layers=graph.layers,
                class_name=graph.class_name,
                right=graph.right,
                down=graph.down,
                mirrored=graph.mirrored,
            )
        )
    if explanation.class_features is not None:
        message.class_features.CopyFrom(
            pb.ClassFeatures(ledgers=[_ledger_message(ledger) for ledger in explanation.class_features])
        )
    return message


def from_message(message: pb.Explanation) -> values.Explanation:
    """Return the Explanation of a message."""
    return values.Explanation(
        predictions=tuple(
            values.Prediction(p.class_index, p.class_name, p.logit, p.probability) for p in message.predictions
        ),
        width=message.width,
        height=message.height,
        parts=values.Parts(tuple(map(_part_value, message.parts.parts)), message.parts.layer)
        if message.HasField("parts")
        else None,
        explanatory_graph=_graph_value(message.explanatory_graph) if message.HasField("explanatory_graph") else None,
        class_features=tuple(map(_ledger_value, message.class_features.ledgers))
        if message.HasField("class_features")
        else None,
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


def _ledger_message(ledger: values.Ledger) -> pb.Ledger:
    return pb.Ledger(
        class_index=ledger.class_index,
        class_name=ledger.class_name,
        logit=ledger.logit,
        contributions=[
            pb.Contribution(
                feature=entry.feature,
                contribution=entry.contribution,
                activation=entry.activation,
                part=None if entry.part is None else _part_message(entry.part),
            )
            for entry in ledger.contributions
        ],
        omitted=ledger.omitted,
        rest=ledger.rest,
        bias=ledger.bias,
    )


def _ledger_value(ledger: pb.Ledger) -> values.Ledger:
    return values.Ledger(
        class_index=ledger.class_index,
        class_name=ledger.class_name,
        logit=ledger.logit,
        contributions=tuple(
            values.Contribution(
                entry.feature,
                entry.contribution,
                entry.activation,
                _part_value(entry.part) if entry.HasField("part") else None,
            )
            for entry in ledger.contributions
        ),
        omitted=ledger.omitted,
        rest=ledger.rest,
        bias=ledger.bias,
    )
