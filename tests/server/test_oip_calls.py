"""The calls beside inference: what the server and its models are, what they did, what is not offered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from analyzers import __version__
from analyzers.manifest import Manifest
from server.oip_messages import oip
from tests.conftest import NAMES, SIZE, running_server
from tests.server.test_oip_infer import FLOATS, given, manifest_of


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[triton.InferenceServerClient]:
    options = ("--repository", str(repository), "--max-batch", "6", "--max-delay-ms", "1.5")
    with (
        running_server(*options) as (address, _),
        triton.InferenceServerClient(address) as opened,
    ):
        yield opened


def test_the_server_is_live_and_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()


def test_an_unknown_model_is_not_ready_and_no_error(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("lion")


def test_only_extensions_that_work_are_announced(client: triton.InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert (metadata.name, metadata.version) == ("pellucid", __version__)
    assert list(metadata.extensions) == [
        "classification",
        "model_configuration",
        "statistics",
        "pellucid_explanation",
    ]


def test_metadata_says_what_a_model_takes_and_answers(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("tiny")
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("tiny", ["1"], "onnxruntime_onnx")
    (pictures,) = metadata.inputs
    assert (pictures.name, pictures.datatype, list(pictures.shape)) == ("image", "FP32", [-1, 3, SIZE, SIZE])
    outputs = {output.name: (output.datatype, list(output.shape)) for output in metadata.outputs}
    assert outputs["logits"] == ("FP32", [-1, 3])
    assert outputs["parts.cell"] == ("INT64", [-1, 8])
    assert outputs["class_features.features"] == ("INT64", [-1, 3, 3, 1])
    assert "class_features.head" not in outputs  # the same for every picture, so no answer


def test_both_metadata_and_configuration_hold_the_manifest(client: triton.InferenceServerClient) -> None:
    metadata = oip.ModelMetadataResponse.FromString(client.get_model_metadata("tiny").SerializeToString())
    manifest = Manifest.model_validate_json(metadata.properties["pellucid.manifest"])
    assert manifest.classes == NAMES
    assert manifest == manifest_of(client)
    assert len(metadata.properties["pellucid.sha256"]) == 64


def test_the_configuration_is_what_load_testers_want(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("tiny", as_json=True)["config"]
    assert (config["name"], config["backend"], config["platform"]) == ("tiny", "onnxruntime", "onnxruntime_onnx")
    assert config["max_batch_size"] == 64
    assert config["input"] == [
        {"name": "image", "data_type": "TYPE_FP32", "format": "FORMAT_NCHW", "dims": ["3", "16", "16"]}
    ]
    assert {"name": "parts.cell", "data_type": "TYPE_INT64", "dims": ["8"]} in config["output"]
    assert config["dynamic_batching"] == {"preferred_batch_size": [6], "max_queue_delay_microseconds": "1500"}


def test_statistics_count_pictures_requests_and_runs(client: triton.InferenceServerClient) -> None:
    def now() -> oip.ModelStatistics:
        (of_model,) = client.get_inference_statistics("tiny", "1").model_stats
        return of_model

    before = now()
    for batch in (FLOATS, FLOATS[:1], FLOATS[:1]):
        client.infer("tiny", [given(batch)])
    after = now()
    assert after.inference_count - before.inference_count == 6
    assert after.execution_count - before.execution_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert 0 < after.inference_stats.compute_infer.ns < after.inference_stats.success.ns
    assert after.last_inference > 1.7e12
    sizes = {one.batch_size: one.compute_infer.count for one in after.batch_stats}
    assert sizes[4] >= 1
    assert sizes[1] >= 2


@pytest.mark.parametrize(("name", "version"), [("", ""), ("tiny", "")])
def test_statistics_without_a_version_are_of_every_one_that_is_ready(
    client: triton.InferenceServerClient, name: str, version: str
) -> None:
    found = client.get_inference_statistics(name, version).model_stats
    assert [(one.name, one.version) for one in found] == [("tiny", "1")]


@pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
@pytest.mark.parametrize("named", [("lion",), ("tiny", "9")])
def test_an_unknown_model_is_not_found(client: triton.InferenceServerClient, call: str, named: tuple[str, ...]) -> None:
    with pytest.raises(InferenceServerException) as caught:
        getattr(client, call)(*named)
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    assert f"'{named[-1]}'" in caught.value.message()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("get_trace_settings", "trace settings are not offered"),
        ("get_log_settings", "--log-level"),
        ("get_system_shared_memory_status", "shared memory is not offered"),
        ("unregister_system_shared_memory", "shared memory is not offered"),
        ("get_cuda_shared_memory_status", "shared memory is not offered"),
        ("unregister_cuda_shared_memory", "shared memory is not offered"),
    ],
)
def test_what_is_not_offered_says_so(client: triton.InferenceServerClient, call: str, words: str) -> None:
    with pytest.raises(InferenceServerException, match=words) as caught:
        getattr(client, call)()
    assert caught.value.status() == f"StatusCode.{grpc.StatusCode.UNIMPLEMENTED.name}"


def test_registering_shared_memory_is_not_offered(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="send tensors in the request"):
        client.register_system_shared_memory("mine", "/mine", 64)
    with pytest.raises(InferenceServerException, match="send tensors in the request"):
        client.register_cuda_shared_memory("mine", b"", 0, 64)


def test_explaining_needs_no_more_than_metadata_and_one_answer(client: triton.InferenceServerClient) -> None:
    manifest = manifest_of(client)
    result = client.infer("tiny", [given(FLOATS[:1])])
    logits = result.as_numpy(manifest.scores.tensor)
    section = manifest.class_features
    assert section is not None
    ledger = result.as_numpy(section.contributions)[0, 0].sum() + result.as_numpy(section.bias)[0, 0]
    best = result.as_numpy(section.classes)[0, 0]
    assert np.isclose(ledger + result.as_numpy(section.rest)[0, best], logits[0, best], atol=1e-5)
