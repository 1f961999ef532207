"""The protocol's messages: those of the published protocol, and never in the way of another package's."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2

from pellucid.v1 import explain_pb2
from server.oip_messages import FILE as OURS
from server.oip_messages import SERVICE, oip
from tests.conftest import ROOT
from tests.test_contract import kind

SOURCE = ROOT / "proto" / "inference" / "open_inference.proto"
ADDED = {"inference.ModelMetadataResponse.properties"}  # in the published protocol, not in that client's

ROUND_TRIP = """
request = service_pb2.ModelInferRequest(model_name="tiny", id="mine", raw_input_contents=[b"abc"])
request.parameters["timeout"].int64_param = 5
read = oip.ModelInferRequest.FromString(request.SerializeToString())
assert read.parameters["timeout"].int64_param == 5 and read.raw_input_contents == [b"abc"]
assert service_pb2.ModelInferRequest.FromString(read.SerializeToString()) == request
"""
IMPORTS = ("from tritonclient.grpc import service_pb2", "from server.oip_messages import oip")


@pytest.mark.parametrize("imports", [IMPORTS, IMPORTS[::-1]])
def test_another_packages_messages_of_the_same_names_fit_into_the_process(imports: tuple[str, str]) -> None:
    subprocess.run([sys.executable, "-c", "\n".join([*imports, ROUND_TRIP])], check=True, cwd=ROOT)


def messages(of: dict[str, Descriptor]) -> Iterator[Descriptor]:
    for message in of.values():
        yield message
        yield from messages(message.nested_types_by_name)


IN_THE_COLLECTOR = """
import gc, weakref
import numpy as np
from server.oip_messages import oip

gc.collect()
gc.disable()
kept, cycle = [], [np.zeros(1)]
def use(_):
    kept.append(oip.ModelInferRequest.FromString(b"\\x2a\\x03\\x0a\\x01a").inputs[0])

alarm = weakref.ref(cycle[0], use)  # an array is no container: its end comes while the collector takes things apart
cycle.append(cycle)
use(None)
kept.clear()
del cycle
gc.collect()
assert kept, "nothing was used while the collector was at work"
oip.ModelInferRequest.InferInputTensor(name="image")
"""


def test_messages_may_be_used_while_the_garbage_collector_is_at_work() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_COLLECTOR], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", [OURS, explain_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR])
def test_every_class_of_messages_is_there_for_good(file: FileDescriptor) -> None:
    classes = {one.full_name: weakref.ref(GetMessageClass(one)) for one in messages(dict(file.message_types_by_name))}
    gc.collect()
    assert classes
    assert [name for name, found in classes.items() if found() is None] == []


def test_every_field_has_the_number_and_type_that_other_clients_know() -> None:
    files = [service_pb2.DESCRIPTOR, *service_pb2.DESCRIPTOR.dependencies]
    theirs = {one.full_name: one for file in files for one in messages(file.message_types_by_name)}
    fields = 0
    for message in messages(OURS.message_types_by_name):
        for field in message.fields:
            if message.full_name.removesuffix("Entry") != message.full_name or field.full_name in ADDED:
                continue
            known = theirs[message.full_name].fields_by_name[field.name]
            assert (field.number, kind(field)) == (known.number, kind(known)), field.full_name
            fields += 1
    assert fields > 90


def test_every_enum_value_has_the_number_that_other_clients_know() -> None:
    theirs = service_pb2.DESCRIPTOR.dependencies[0].enum_types_by_name["DataType"]
    assert {value.name: value.number for value in OURS.enum_types_by_name["DataType"].values} == {
        value.name: value.number for value in theirs.values
    }


def test_every_call_that_other_clients_know_is_there() -> None:
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    ours = OURS.services_by_name["GRPCInferenceService"]
    assert ours.full_name == SERVICE == theirs.full_name
    assert set(ours.methods_by_name) == set(theirs.methods_by_name)


def test_every_element_is_explained() -> None:
    lines = SOURCE.read_text().splitlines()
    for number, line in enumerate(lines):
        text = line.strip()
        element = text.startswith(("message ", "service ", "rpc ", "enum ", "oneof ")) or " = " in text
        if element and not text.startswith(("//", "syntax", "package")):
            assert lines[number - 1].strip().startswith("//"), f"{SOURCE.name}:{number + 1} has no comment: {text}"


def test_reflection_tells_of_both_protocols(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        for file in (OURS, explain_pb2.DESCRIPTOR):
            (service,) = file.services_by_name.values()
            ask = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service.full_name)
            (answer,) = stub.ServerReflectionInfo(iter([ask]), timeout=10)
            assert answer.file_descriptor_response.file_descriptor_proto[0] == file.serialized_pb


def test_messages_are_built_like_those_of_a_generated_module() -> None:
    output = oip.ModelOutput(name="logits", data_type=oip.TYPE_FP32, dims=[3])
    assert oip.ModelOutput.FromString(output.SerializeToString()).data_type == 11
