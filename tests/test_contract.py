"""The API contract: fields of `pellucid.v1` may be added, never changed or removed."""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from pellucid.v1 import explain_pb2 as pb
from tests.conftest import ROOT

GOLDEN = ROOT / "proto" / "contract.txt"
SOURCE = ROOT / "proto" / "pellucid" / "v1" / "explain.proto"


def contract() -> list[str]:
    """Return every field, enum value and method, one a line."""
    lines = []

    def describe(message: Descriptor) -> None:
        lines.extend(f"{message.full_name}.{field.name} = {field.number}: {kind(field)}" for field in message.fields)
        for enum in message.enum_types:
            lines.extend(f"{enum.full_name}.{value.name} = {value.number}" for value in enum.values)
        for nested in message.nested_types:
            describe(nested)

    for name in sorted(pb.DESCRIPTOR.message_types_by_name):
        describe(pb.DESCRIPTOR.message_types_by_name[name])
    for service in pb.DESCRIPTOR.services_by_name.values():
        lines.extend(
            f"{service.full_name}.{method.name}: {method.input_type.name} -> {method.output_type.name}"
            for method in service.methods
        )
    return lines


def kind(field: FieldDescriptor) -> str:
    """Return the field's type in proto syntax."""
    types = {number: name[5:].lower() for name, number in vars(FieldDescriptor).items() if name.startswith("TYPE_")}
    of = field.message_type or field.enum_type
    repeated = "repeated " if field.is_repeated else ""
    return repeated + (of.full_name if of is not None else types[field.type])


def test_no_field_of_the_contract_changed_or_vanished() -> None:
    missing = sorted(set(GOLDEN.read_text().splitlines()) - set(contract()))
    assert not missing, f"clients rely on {missing}; fields may only be added within v1"


def test_every_addition_is_written_into_the_contract() -> None:
    added = sorted(set(contract()) - set(GOLDEN.read_text().splitlines()))
    assert not added, f"add to {GOLDEN.name}: {added}"


def test_every_element_of_the_contract_is_explained() -> None:
    lines = SOURCE.read_text().splitlines()
    for number, line in enumerate(lines):
        text = line.strip()
        element = text.startswith(("message ", "service ", "rpc ", "enum ")) or (" = " in text and text.endswith(";"))
        if element and not text.startswith(("//", "syntax", "package")):
            before = lines[number - 1].strip()
            assert before.startswith("//"), f"{SOURCE.name}:{number + 1} has no comment: {text}"


def test_an_explanation_survives_the_way_over_the_wire() -> None:
    from analyzers.explanation import (
        Box,
        Contribution,
        Explanation,
        ExplanatoryGraph,
        Ledger,
        Node,
        Part,
        Parts,
        Prediction,
    )
    from server.convert import from_message, to_message

    part = Part(3, 1.5, 10.0, 20.5, Box(8, 18, 12, 23), Box(0, 0, 32, 48), "owl")
    ledger = Ledger(1, "owl", 2.5, (Contribution(3, 1.25, 0.5, part), Contribution(4, 0.5, 0.25)), 0.25, -0.5, 1.0)
    nodes = (Node(0, 5, 3, 10.5, 20.25, -1.5, 75.0), Node(1, 7, 2, 11.5, 21.0, -2.5, 50.0, (5,)))
    graph = ExplanatoryGraph(nodes, ("top", "low"), "owl", 1.5, -2.25, mirrored=True)
    sent = Explanation((Prediction(1, "owl", 2.5, 0.75),), 64, 48, Parts((part,), "map"), (ledger,), graph)
    assert from_message(pb.Explanation.FromString(to_message(sent).SerializeToString())) == sent
    bare = Explanation((Prediction(0, "cat", 0.5, 0.5),), 1, 1)
    assert from_message(to_message(bare)) == bare
