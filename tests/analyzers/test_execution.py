"""Which provider runs a model, and what it is told; nothing here needs the provider itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from analyzers.errors import RuntimeNotReadyError
from analyzers.execution import (
    CPU,
    CUDA,
    OPENVINO,
    TENSORRT,
    CudaOptions,
    Device,
    Execution,
    OpenvinoOptions,
    Provider,
    TensorrtOptions,
    choose,
)

GPU_WHEEL = (TENSORRT, CUDA, CPU)
CPU_WHEEL = (CPU,)
OPENVINO_WHEEL = (OPENVINO, CPU)


def chosen(device: Device, provider: Provider, available: tuple[str, ...]) -> tuple[list[str], bool]:
    choice = choose(device, Execution(provider=provider), available)
    return [name for name, _ in choice.providers], choice.strict


@pytest.mark.parametrize(
    ("device", "provider", "available", "names", "strict"),
    [
        ("auto", "auto", CPU_WHEEL, [CPU], False),
        ("auto", "auto", GPU_WHEEL, [CUDA, CPU], False),
        ("auto", "auto", OPENVINO_WHEEL, [CPU], False),
        ("cpu", "auto", GPU_WHEEL, [CPU], False),
        ("gpu", "auto", GPU_WHEEL, [CUDA], True),
        ("auto", "cuda", GPU_WHEEL, [CUDA, CPU], True),
        ("gpu", "cuda", GPU_WHEEL, [CUDA], True),
        ("auto", "tensorrt", GPU_WHEEL, [TENSORRT, CUDA, CPU], True),
        ("gpu", "tensorrt", GPU_WHEEL, [TENSORRT, CUDA], True),
        ("auto", "cpu", GPU_WHEEL, [CPU], True),
        ("auto", "openvino", OPENVINO_WHEEL, [OPENVINO, CPU], True),
        ("cpu", "openvino", OPENVINO_WHEEL, [OPENVINO, CPU], True),
    ],
)
def test_a_gpu_is_taken_where_there_is_one_and_what_is_asked_for_is_had_or_refused(
    device: Device, provider: Provider, available: tuple[str, ...], names: list[str], strict: bool
) -> None:
    assert chosen(device, provider, available) == (names, strict)


@pytest.mark.parametrize("provider", ["auto", "cuda", "tensorrt"])
def test_with_the_gpu_asked_for_the_cpu_is_not_in_the_list_which_onnx_runtime_refuses(provider: Provider) -> None:
    assert CPU not in chosen("gpu", provider, GPU_WHEEL)[0]


@pytest.mark.parametrize(
    ("device", "provider", "available", "words"),
    [
        ("gpu", "auto", CPU_WHEEL, r"the GPU was asked for, but .* no CUDA provider; install pellucid\[gpu\]"),
        ("auto", "cuda", CPU_WHEEL, r"the provider cuda was asked for, but .* install pellucid\[gpu\]"),
        ("auto", "tensorrt", CPU_WHEEL, r"has no TensorrtExecutionProvider; install pellucid\[gpu\]"),
        ("auto", "openvino", GPU_WHEEL, r"has no OpenVINOExecutionProvider; install pellucid\[openvino\]"),
        ("cpu", "cuda", GPU_WHEEL, r"cuda does not run on the device that was asked for \(cpu\)"),
        ("gpu", "openvino", OPENVINO_WHEEL, r"openvino does not run on the device that was asked for \(gpu\)"),
        ("gpu", "cpu", GPU_WHEEL, r"cpu does not run on the device that was asked for \(gpu\)"),
    ],
)
def test_what_cannot_be_had_says_what_to_install_or_to_change(
    device: Device, provider: Provider, available: tuple[str, ...], words: str
) -> None:
    with pytest.raises(RuntimeNotReadyError, match=words):
        chosen(device, provider, available)


def test_captured_runs_on_the_cpu_are_refused_and_without_a_gpu_left_out() -> None:
    execution = Execution(cuda_graphs=(1, 8))
    with pytest.raises(RuntimeNotReadyError, match=r"^cuda_graphs need a GPU"):
        choose("cpu", execution, GPU_WHEEL)
    assert choose("auto", execution, CPU_WHEEL).first == CPU
    assert dict(choose("auto", execution, GPU_WHEEL).providers)[CUDA]["enable_cuda_graph"] == "1"


def test_what_cuda_is_told_keeps_all_bits_and_one_algorithm_unless_asked_otherwise() -> None:
    told = CudaOptions().options(graphs=False)
    assert told["use_tf32"] == "0"
    assert told["cudnn_conv_algo_search"] == "HEURISTIC"
    assert "gpu_mem_limit" not in told
    told = CudaOptions(device=1, memory_limit_bytes=2**30, arena_extend="same_as_requested", tf32=True).options(
        graphs=True
    )
    assert told["device_id"] == "1"
    assert told["gpu_mem_limit"] == "1073741824"
    assert told["arena_extend_strategy"] == "kSameAsRequested"
    assert told["use_tf32"] == told["enable_cuda_graph"] == "1"


def test_what_tensorrt_is_told() -> None:
    assert TensorrtOptions().options(device=0) == {"device_id": "0", "trt_fp16_enable": "0", "trt_int8_enable": "0"}
    shapes = {"min_shapes": "image:1x3x8x8", "opt_shapes": "image:4x3x8x8", "max_shapes": "image:8x3x8x8"}
    told = TensorrtOptions(fp16=True, engine_cache=Path("/c"), timing_cache=True, **shapes).options(device=2)
    assert told["trt_fp16_enable"] == told["trt_engine_cache_enable"] == told["trt_timing_cache_enable"] == "1"
    assert told["trt_engine_cache_path"] == told["trt_timing_cache_path"] == "/c"
    assert told["trt_profile_max_shapes"] == "image:8x3x8x8"


def test_openvino_keeps_single_precision_unless_asked_otherwise() -> None:
    told = OpenvinoOptions().options(threads=2)
    assert told["device_type"] == "CPU"
    config = json.loads(told["load_config"])["CPU"]
    assert config == {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "2"}
    assert "INFERENCE_NUM_THREADS" not in OpenvinoOptions().options(threads=0)["load_config"]


def test_openvino_has_a_stream_for_each_run_at_a_time_and_its_threads_are_those_of_all_streams() -> None:
    config = json.loads(OpenvinoOptions().for_runs(4).options(threads=2)["load_config"])["CPU"]
    assert (config["NUM_STREAMS"], config["INFERENCE_NUM_THREADS"]) == ("4", "8")
    assert OpenvinoOptions(streams=3).for_runs(4).streams == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cuda_graphs": (1,), "shrink_arena": True}, "shrink_arena takes away the memory"),
        ({"cuda_graphs": (1,), "provider": "openvino"}, "not by openvino"),
        ({"cuda_graphs": (0,)}, "greater than or equal to 1"),
        ({"tensorrt": {"min_shapes": "image:1x3x8x8"}}, "belong together"),
        ({"tensorrt": {"timing_cache": True}}, "needs a folder"),
        ({"tensorrt": {"min_shapes": "1x3", "opt_shapes": "1x3", "max_shapes": "1x3"}}, "should match pattern"),
        ({"cuda": {"use_tf32": True}}, "Extra inputs are not permitted"),
        ({"privider": "cuda"}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict_each_other_or_are_misspelt_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Execution.model_validate(settings)
