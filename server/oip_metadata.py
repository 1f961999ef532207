"""What a model is, in the words of the Open Inference Protocol: metadata, configuration, statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from analyzers.certificate import CERTIFICATE_KEY
from analyzers.manifest import METADATA_KEY
from server.layout import FILE
from server.model import ExplainedModel
from server.oip_messages import oip
from server.statistics import Duration

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"

SHA256_KEY = "pellucid.sha256"
PROVIDER_KEY = "pellucid.execution_provider"
OPTIONS_KEY = "pellucid.provider_options"  # JSON, in ONNX Runtime's words

# ONNX Runtime's name of a type: the protocol's datatype, and its number in a model's configuration.
_TYPES = {
    "tensor(float)": ("FP32", oip.TYPE_FP32),
    "tensor(double)": ("FP64", oip.TYPE_FP64),
    "tensor(float16)": ("FP16", oip.TYPE_FP16),
    "tensor(bool)": ("BOOL", oip.TYPE_BOOL),
    "tensor(int8)": ("INT8", oip.TYPE_INT8),
    "tensor(int16)": ("INT16", oip.TYPE_INT16),
    "tensor(int32)": ("INT32", oip.TYPE_INT32),
    "tensor(int64)": ("INT64", oip.TYPE_INT64),
    "tensor(uint8)": ("UINT8", oip.TYPE_UINT8),
    "tensor(uint16)": ("UINT16", oip.TYPE_UINT16),
    "tensor(uint32)": ("UINT32", oip.TYPE_UINT32),
    "tensor(uint64)": ("UINT64", oip.TYPE_UINT64),
}


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    datatype: str
    number: oip.DataType
    shape: list[int]


def _input(model: ExplainedModel) -> _Tensor:
    size = model.manifest.input
    return _Tensor(size.tensor, *_TYPES["tensor(float)"], [-1, 3, size.height, size.width])


def _outputs(model: ExplainedModel) -> list[_Tensor]:
    """Return the outputs with a row for each picture, of types that can be sent, in the graph's order."""
    return [
        _Tensor(
            output.name,
            *_TYPES[output.type],
            [-1, *(axis if isinstance(axis, int) else -1 for axis in output.shape[1:])],
        )
        for output in model.session.session.get_outputs()
        if output.name in model.outputs and output.type in _TYPES
    ]


def _properties(model: ExplainedModel) -> dict[str, str]:
    """Return all that a client needs to turn output tensors into an Explanation, and what runs the model."""
    properties = {
        METADATA_KEY: model.manifest.to_json(),
        SHA256_KEY: model.sha256,
        PROVIDER_KEY: model.session.provider,
        OPTIONS_KEY: json.dumps(dict(model.session.options)),
    }
    certificate = model.session.metadata.get(CERTIFICATE_KEY)  # a smaller copy says what it is a copy of
    return properties if certificate is None else properties | {CERTIFICATE_KEY: certificate}


def metadata_message(model: ExplainedModel, versions: Sequence[str]) -> oip.ModelMetadataResponse:
    """Say what a model takes and answers, and which of its versions are ready."""

    def tensor(one: _Tensor) -> oip.ModelMetadataResponse.TensorMetadata:
        return oip.ModelMetadataResponse.TensorMetadata(name=one.name, datatype=one.datatype, shape=one.shape)

    return oip.ModelMetadataResponse(
        name=model.name,
        versions=versions,
        platform=PLATFORM,
        inputs=[tensor(_input(model))],
        outputs=map(tensor, _outputs(model)),
        properties=_properties(model),
    )


def config_message(
    model: ExplainedModel, *, max_images: int, max_batch: int, max_delay_ms: float
) -> oip.ModelConfigResponse:
    """Say how a model is served: pictures in a request, pictures in a run, how long they wait for others."""
    given = _input(model)
    properties = _properties(model).items()
    config = oip.ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend=BACKEND,
        default_model_filename=FILE,
        max_batch_size=max_images,
        input=[
            oip.ModelInput(
                name=given.name,
                data_type=given.number,
                format=oip.ModelInput.FORMAT_NCHW,
                dims=given.shape[1:],
            )
        ],
        output=[oip.ModelOutput(name=one.name, data_type=one.number, dims=one.shape[1:]) for one in _outputs(model)],
        dynamic_batching=oip.ModelDynamicBatching(
            preferred_batch_size=[max_batch], max_queue_delay_microseconds=round(1000 * max_delay_ms)
        ),
        model_transaction_policy=oip.ModelTransactionPolicy(decoupled=False),
        parameters={key: oip.ModelParameter(string_value=text) for key, text in properties},
    )
    return oip.ModelConfigResponse(config=config)


def statistics_message(model: ExplainedModel) -> oip.ModelStatistics:
    """Say what a model has answered since it was loaded."""
    counts = model.batcher.statistics.snapshot()
    return oip.ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=round(1000 * counts.last),
        inference_count=counts.pictures,
        execution_count=counts.runs,
        inference_stats=oip.InferStatistics(
            success=_duration(counts.success),
            fail=_duration(counts.fail),
            queue=_duration(counts.queue),
            compute_input=oip.StatisticDuration(count=counts.runs),
            compute_infer=_duration(counts.infer),
            compute_output=_duration(counts.output),
        ),
        batch_stats=[
            oip.InferBatchStatistics(
                batch_size=size,
                compute_input=oip.StatisticDuration(count=infer.count),
                compute_infer=_duration(infer),
                compute_output=_duration(output),
            )
            for size, (infer, output) in sorted(counts.batches.items())
        ],
    )


def _duration(duration: Duration) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=duration.count, ns=round(1e9 * duration.seconds))
