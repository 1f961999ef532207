"""Execution: by which provider of ONNX Runtime a model is run, and with which of its options.

Options have names of ours with units; `*_options()` say them in ONNX Runtime's words. `choose` decides.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from analyzers.errors import RuntimeNotReadyError

Device = Literal["auto", "cpu", "gpu"]
Provider = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
Options = dict[str, str]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
ON_GPU = (CUDA, TENSORRT)

_NAMES: dict[Provider, str] = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT, "openvino": OPENVINO}
_WHEEL: dict[Provider, str] = {
    "cpu": "pellucid[cpu]",
    "cuda": "pellucid[gpu]",
    "tensorrt": "pellucid[gpu]",
    "openvino": "pellucid[openvino]",
}

_Positive = Annotated[int, Field(ge=1)]
_Shapes = Annotated[str, Field(pattern=r"^[^:,\s]+:\d+(x\d+)*(,[^:,\s]+:\d+(x\d+)*)*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CudaOptions(_Strict):
    """What the CUDA provider is told."""

    device: Annotated[int, Field(ge=0)] = Field(0, description="number of the GPU")
    memory_limit_bytes: _Positive | None = Field(None, description="most that the arena takes; none: the whole GPU")
    arena_extend: Literal["next_power_of_two", "same_as_requested"] = Field(
        "next_power_of_two", description="how the arena grows"
    )
    tf32: bool = Field(False, description="multiply with 10 bits of mantissa; faster, but peaks move")
    conv_search: Literal["exhaustive", "heuristic", "default"] = Field(
        "heuristic", description="how a convolution's algorithm is found; exhaustive tries all for every new batch size"
    )
    conv_workspace: bool = Field(True, description="let convolutions take as much memory as is fastest")
    prefer_nhwc: bool = Field(False, description="run convolutions with channels last")
    fuse_conv_bias: bool = Field(False, description="add a convolution's bias within it; compiles kernels at load")

    def options(self, *, graphs: bool) -> Options:
        """Return them in ONNX Runtime's words; `graphs` says whether runs are captured."""
        extend = {"next_power_of_two": "kNextPowerOfTwo", "same_as_requested": "kSameAsRequested"}
        limit = {} if self.memory_limit_bytes is None else {"gpu_mem_limit": str(self.memory_limit_bytes)}
        return limit | {
            "device_id": str(self.device),
            "arena_extend_strategy": extend[self.arena_extend],
            "use_tf32": _bit(self.tf32),
            "cudnn_conv_algo_search": self.conv_search.upper(),
            "cudnn_conv_use_max_workspace": _bit(self.conv_workspace),
            "prefer_nhwc": _bit(self.prefer_nhwc),
            "fuse_conv_bias": _bit(self.fuse_conv_bias),
            "enable_cuda_graph": _bit(graphs),
        }


class TensorrtOptions(_Strict):
    """What the TensorRT provider is told; the GPU's number is CUDA's."""

    fp16: bool = Field(False, description="let it compute in half precision")
    int8: bool = Field(False, description="let it compute with eight bits; the file must be quantised")
    workspace_bytes: _Positive | None = Field(None, description="most memory for one layer's scratch")
    engine_cache: Path | None = Field(None, description="folder that keeps built engines between starts")
    timing_cache: bool = Field(False, description="keep the layers' timings there too, which makes rebuilding faster")
    min_shapes: _Shapes | None = Field(None, description="least shapes an engine is built for: image:1x3x224x224")
    opt_shapes: _Shapes | None = Field(None, description="shapes it is tuned for")
    max_shapes: _Shapes | None = Field(None, description="largest shapes it is built for")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        given = [shapes is not None for shapes in (self.min_shapes, self.opt_shapes, self.max_shapes)]
        if any(given) and not all(given):
            raise ValueError("min_shapes, opt_shapes and max_shapes belong together; give all three or none")
        if self.timing_cache and self.engine_cache is None:
            raise ValueError("timing_cache needs a folder; give engine_cache as well")
        return self

    def options(self, *, device: int) -> Options:
        """Return them in ONNX Runtime's words."""
        cache = str(self.engine_cache)
        found = {
            "device_id": str(device),
            "trt_fp16_enable": _bit(self.fp16),
            "trt_int8_enable": _bit(self.int8),
        }
        if self.workspace_bytes is not None:
            found["trt_max_workspace_size"] = str(self.workspace_bytes)
        if self.engine_cache is not None:
            found |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": cache}
        if self.timing_cache:
            found |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": cache}
        if self.min_shapes is not None and self.opt_shapes is not None and self.max_shapes is not None:
            found["trt_profile_min_shapes"] = self.min_shapes
            found["trt_profile_opt_shapes"] = self.opt_shapes
            found["trt_profile_max_shapes"] = self.max_shapes
        return found


class OpenvinoOptions(_Strict):
    """What the OpenVINO provider is told; it runs on the CPU."""

    precision: Literal["f32", "bf16"] = Field(
        "f32", description="in what it computes; by itself it takes the fastest, and logits and peaks move"
    )
    streams: _Positive | None = Field(None, description="runs at a time within it; none: as many as of the model")
    cache: Path | None = Field(None, description="folder that keeps compiled models between starts")

    def for_runs(self, at_a_time: int) -> OpenvinoOptions:
        """Return the same with streams for so many runs at a time, where their number was left open."""
        return self if self.streams else self.model_copy(update={"streams": at_a_time})

    def options(self, *, threads: int) -> Options:
        """Return them in ONNX Runtime's words; `threads` of each run, 0 leave the number to OpenVINO."""
        streams = self.streams or 1
        config = {"INFERENCE_PRECISION_HINT": self.precision, "NUM_STREAMS": str(streams)}
        if threads:
            config["INFERENCE_NUM_THREADS"] = str(streams * threads)  # of all streams together
        found = {"device_type": "CPU", "load_config": json.dumps({"CPU": config})}
        return found if self.cache is None else found | {"cache_dir": str(self.cache)}


class Execution(_Strict):
    """How a model is run."""

    provider: Provider = Field("auto", description="auto takes cuda where there is a GPU, or else cpu")
    io_binding: bool = Field(True, description="on a GPU, keep what a run reads and writes there, copied once")
    cuda_graphs: tuple[_Positive, ...] = Field(
        (), description="batch sizes whose runs are captured on the GPU and replayed, such as 1, 2, 4, 8; none: never"
    )
    shrink_arena: bool = Field(False, description="give memory back after every run; slower")
    cuda: CudaOptions = CudaOptions()
    tensorrt: TensorrtOptions = TensorrtOptions()
    openvino: OpenvinoOptions = OpenvinoOptions()

    @model_validator(mode="after")
    def _captures_stay(self) -> Self:
        if self.cuda_graphs and self.shrink_arena:
            raise ValueError("shrink_arena takes away the memory that captured runs use; leave it or cuda_graphs out")
        if self.cuda_graphs and self.provider in ("cpu", "openvino", "tensorrt"):
            raise ValueError(f"cuda_graphs are captured by the provider cuda, not by {self.provider}")
        return self


@dataclass(frozen=True, slots=True)
class Choice:
    """What a session is opened with.

    Attributes:
        providers: names, best first, with their options.
        strict: whether it is an error if another provider than the first ends up running the model.
    """

    providers: tuple[tuple[str, Options], ...]
    strict: bool = False

    @property
    def first(self) -> str:
        """The provider that is meant to run the model."""
        return self.providers[0][0]


def choose(device: Device, execution: Execution, available: Collection[str], *, threads: int = 0) -> Choice:
    """Choose providers.

    Args:
        device: "gpu" wants every node there; "cpu" none.
        execution: what is wished.
        available: the providers that this ONNX Runtime has.
        threads: within one run, for those that ask.

    Raises:
        RuntimeNotReadyError: the wishes contradict each other, or this ONNX Runtime lacks the provider.
    """
    wanted = execution.provider
    if wanted == "auto":
        wanted = "cuda" if device == "gpu" or (device == "auto" and CUDA in available) else "cpu"
        if execution.cuda_graphs and wanted == "cpu" and device == "cpu":
            raise RuntimeNotReadyError("cuda_graphs need a GPU, but the device is the CPU; leave them out")
    on_gpu = wanted in ("cuda", "tensorrt")
    if (device == "gpu" and not on_gpu) or (device == "cpu" and on_gpu):
        raise RuntimeNotReadyError(f"the provider {wanted} does not run on the device that was asked for ({device})")
    if _NAMES[wanted] not in available:
        asked = "the GPU was asked for" if device == "gpu" else f"the provider {wanted} was asked for"
        lacks = "CUDA provider" if wanted == "cuda" else _NAMES[wanted]
        instead = f"install {_WHEEL[wanted]} or use the CPU"
        raise RuntimeNotReadyError(f"{asked}, but this ONNX Runtime has no {lacks}; {instead}")
    found = _with_options(wanted, execution, threads)
    if device != "gpu" and wanted != "cpu":
        found = [*found, (CPU, {})]  # with the GPU asked for, ONNX Runtime wants no CPU in the list
    strict = device == "gpu" or execution.provider != "auto"
    return Choice(tuple(found), strict)


def _with_options(wanted: Provider, execution: Execution, threads: int) -> list[tuple[str, Options]]:
    cuda = (CUDA, execution.cuda.options(graphs=bool(execution.cuda_graphs)))
    if wanted == "cuda":
        return [cuda]
    if wanted == "tensorrt":
        return [(TENSORRT, execution.tensorrt.options(device=execution.cuda.device)), cuda]
    if wanted == "openvino":
        return [(OPENVINO, execution.openvino.options(threads=threads))]
    return [(CPU, {})]


def _bit(whether: bool) -> str:
    return str(int(whether))
