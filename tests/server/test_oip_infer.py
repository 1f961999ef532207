"""ModelInfer over the Open Inference Protocol, asked by the protocol's most used client."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from analyzers.explain import Wanted, explain
from analyzers.geometry import Frame
from analyzers.manifest import Manifest
from analyzers.pixels import to_model_input
from server.client import Client
from server.convert import from_message, to_message
from server.oip_contents import small_numbers
from server.oip_messages import oip
from tests.conftest import NAMES, SIZE, random_pictures, unsigned

PICTURES = random_pictures(4, seed=7).encoded
PIXELS = random_pictures(4, seed=7).decoded(SIZE, SIZE)
FLOATS = to_model_input(PIXELS)
FRAME = Frame(scale_x=1, scale_y=1, width=SIZE, height=SIZE)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as opened:
        yield opened


def given(array: np.ndarray, datatype: str = "FP32") -> triton.InferInput:
    made = triton.InferInput("image", list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def encoded(pictures: tuple[bytes, ...]) -> triton.InferInput:
    return given(np.array(pictures, np.object_), "BYTES")


def tensors(result: triton.InferResult) -> dict[str, np.ndarray]:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def same(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    return list(some) == list(others) and all(np.array_equal(some[name], others[name]) for name in some)


def test_every_output_of_one_run_is_answered_in_the_graphs_order(client: triton.InferenceServerClient) -> None:
    result = client.infer("tiny", [given(FLOATS)])
    response = result.get_response()
    assert (response.model_name, response.model_version) == ("tiny", "1")
    metadata = client.get_model_metadata("tiny")
    assert [output.name for output in response.outputs] == [output.name for output in metadata.outputs]
    assert len(response.raw_output_contents) == len(response.outputs) > 10
    for said, got in zip(metadata.outputs, response.outputs, strict=True):
        assert said.datatype == got.datatype
        assert list(got.shape) == [4, *said.shape[1:]]


def test_floats_bytes_and_encoded_pictures_are_answered_alike(client: triton.InferenceServerClient) -> None:
    floats = tensors(client.infer("tiny", [given(FLOATS)]))
    assert same(floats, tensors(client.infer("tiny", [given(PIXELS, "UINT8")])))
    assert same(floats, tensors(client.infer("tiny", [encoded(PICTURES)])))


def typed(datatype: str, shape: tuple[int, ...], **contents: object) -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(
        name="image", datatype=datatype, shape=shape, contents=oip.InferTensorContents(**contents)
    )
    return oip.ModelInferRequest(model_name="tiny", inputs=[tensor])


def test_typed_elements_are_read_as_raw_ones_are_and_answered_raw(
    address: str, client: triton.InferenceServerClient
) -> None:
    requests = [
        typed("FP32", FLOATS.shape, fp32_contents=FLOATS.ravel().tolist()),
        typed("UINT8", PIXELS.shape, uint_contents=PIXELS.ravel().tolist()),
        typed("BYTES", (4,), bytes_contents=PICTURES),
    ]
    raw = client.infer("tiny", [given(FLOATS)]).get_response()
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for request in requests:
            response = oip.ModelInferResponse.FromString(call(request.SerializeToString(), timeout=10))
            assert list(response.raw_output_contents) == list(raw.raw_output_contents)


def test_typed_bytes_are_read_over_their_whole_range() -> None:
    numbers = [0, 1, 127, 128, 129, 254, 255, 255, 128, 1, 0] * 30
    assert small_numbers(oip.InferTensorContents(uint_contents=numbers), "field").tolist() == numbers


def test_only_wanted_outputs_come_and_in_the_order_asked_for(client: triton.InferenceServerClient) -> None:
    names = ["parts.score", "logits", "parts.cell"]
    wanted = [triton.InferRequestedOutput(name) for name in names]
    result = client.infer("tiny", [given(FLOATS)], outputs=wanted, request_id="mine")
    assert [output.name for output in result.get_response().outputs] == names
    assert result.get_response().id == "mine"
    whole = tensors(client.infer("tiny", [given(FLOATS)]))
    assert all(np.array_equal(result.as_numpy(name), whole[name]) for name in names)


def test_a_classification_names_the_best_classes_of_each_picture(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("parts.cell"), triton.InferRequestedOutput("logits", class_count=2)]
    result = client.infer("tiny", [given(FLOATS)], outputs=wanted)
    logits = client.infer("tiny", [given(FLOATS)]).as_numpy("logits")
    texts = result.as_numpy("logits")
    assert texts.shape == (4, 2)
    for row, found in zip(logits, texts, strict=True):
        best = np.argsort(-row)[:2]
        assert [text.decode() for text in found] == [f"{row[c]:.6f}:{c}:{NAMES[c]}" for c in best]
    assert result.as_numpy("parts.cell").dtype == np.int64


def manifest_of(client: triton.InferenceServerClient) -> Manifest:
    config = client.get_model_config("tiny").config
    return Manifest.model_validate_json(config.parameters["pellucid.manifest"].string_value)


def test_explanations_made_from_the_tensors_are_those_of_the_richer_protocol(
    address: str, client: triton.InferenceServerClient
) -> None:
    manifest, wanted = manifest_of(client), Wanted(evidence=True)
    with Client(address) as own:
        answers = own.explain(PICTURES, evidence="float32")
    outputs = tensors(client.infer("tiny", [encoded(PICTURES)]))
    made = [explain(manifest, outputs, row, FRAME, wanted) for row in range(4)]
    assert [from_message(to_message(one)) for one in unsigned(made)] == unsigned(answers)
    assert made[0].class_features
    assert made[0].class_features[0].evidence is not None


def test_asynchronous_calls_each_get_their_own_rows(client: triton.InferenceServerClient) -> None:
    alone = [client.infer("tiny", [given(FLOATS[row : row + 1])]).as_numpy("logits") for row in range(4)]
    done: queue.Queue[tuple[int, object, object]] = queue.Queue()
    for number in range(40):
        row = number % 4
        client.async_infer(
            "tiny", [given(FLOATS[row : row + 1])], lambda result, error, row=row: done.put((row, result, error))
        )
    for _ in range(40):
        row, result, error = done.get(timeout=20)
        assert error is None
        assert np.array_equal(result.as_numpy("logits"), alone[row])


def test_the_asyncio_client_is_answered_alike(address: str, client: triton.InferenceServerClient) -> None:
    async def ask() -> dict[str, np.ndarray]:
        async with triton_aio.InferenceServerClient(address) as opened:
            assert await opened.is_server_live()
            return tensors(await opened.infer("tiny", [given(FLOATS)]))

    assert same(asyncio.run(ask()), tensors(client.infer("tiny", [given(FLOATS)])))


def test_a_model_version_may_be_named_and_what_is_unknown_in_the_parameters_is_not_read(
    client: triton.InferenceServerClient,
) -> None:
    result = client.infer(
        "tiny", [given(FLOATS)], model_version="1", priority=3, parameters={"team": "birds", "weight": 0.5}
    )
    assert result.as_numpy("logits").shape == (4, 3)


def test_a_timeout_that_suffices_changes_nothing(client: triton.InferenceServerClient) -> None:
    assert client.infer("tiny", [given(FLOATS)], timeout=20_000_000).as_numpy("logits").shape == (4, 3)
