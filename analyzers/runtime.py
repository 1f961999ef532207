"""Sessions: a model file loaded into ONNX Runtime, on the device that was asked for, with errors in one sentence."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.errors import ModelError, ModelRunError, PellucidError
from analyzers.errors import RuntimeNotReadyError as RuntimeNotReadyError
from analyzers.execution import CPU, ON_GPU, OPENVINO, Choice, Device, Execution, choose
from analyzers.manifest import Manifest
from analyzers.placement import RECORD, listed, placed, why_not_captured
from analyzers.run_paths import Bound, Captured, Plain, RunPath, Tensors
from analyzers.wheel import RUNTIME as RUNTIME
from analyzers.wheel import ort as ort

# Where in its own source ONNX Runtime was: codes, files with lines, C++ names with their arguments.
_SOURCE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : "
    r"|\S+\.(?:cc|cpp|h|py):\d+\s*|\S*/\S+\.(?:cc|cpp|h|py)\s*"
    r"|(?:static )?(?:\w+[*&]? )?\w+(?:<[^>]*>)?::[\w:]+(?:\([^)]*\)?)?\s?"
)
_SHRINK = "memory.enable_memory_arena_shrinkage"


class Run:
    """One run of a model, that can be ended from another thread."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()

    def end(self) -> None:
        """End it after the node that it is at; whoever runs it gets a ModelError."""
        self.options.terminate = True


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded model file.

    Attributes:
        session: ONNX Runtime's own session.
        provider: the execution provider that runs it.
        inputs: shapes of the graph's inputs by name; an axis that is free is a name or None.
        outputs: names of the graph's outputs.
        path: how a run reaches the device.
        options: what the provider was told, in ONNX Runtime's words.
        on_cpu: which nodes the CPU runs although another provider runs the model; empty where none, or not known.
        run_options: what every run is told.
    """

    session: ort.InferenceSession
    provider: str
    inputs: dict[str, list[int | str | None]]
    outputs: tuple[str, ...]
    path: RunPath
    options: Mapping[str, str] = field(default_factory=dict)
    on_cpu: str = ""
    run_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata.

        Raises:
            ModelError: it is not text.
        """
        try:
            return dict(self.session.get_modelmeta().custom_metadata_map)
        except UnicodeDecodeError:
            raise ModelError("the file's metadata is not UTF-8 text; the file is damaged") from None

    def run(self, feeds: Tensors, outputs: Sequence[str] = (), run: Run | None = None) -> dict[str, npt.NDArray[Any]]:
        """Run once and return these outputs by name, every one where none is named; `run` can end it.

        Raises:
            ModelError: the graph refused these inputs or failed.
        """
        names = list(outputs or self.outputs)
        options = ort.RunOptions() if run is None else run.options
        for key, value in self.run_options.items():
            options.add_run_config_entry(key, value)
        try:
            values = self.path(feeds, names, options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ModelRunError(f"the model failed to run: {_one_line(error)}") from None
        return dict(zip(names, values, strict=True))

    @property
    def captured(self) -> tuple[int, ...]:
        """The batch sizes whose runs are captured and replayed."""
        return self.path.sizes if isinstance(self.path, Captured) else ()

    def batch(self, tensor: str) -> int | None:
        """Return how many pictures the input `tensor` takes at a time, None for any number."""
        size = self.inputs[tensor][0]
        return size if isinstance(size, int) else None

    def run_images(
        self,
        manifest: Manifest,
        images: npt.NDArray[np.float32],
        outputs: Sequence[str] = (),
        run: Run | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Run a batch of pictures, float32 (batch, 3, height, width), and return outputs, all where none is named.

        The final layer's weights, the same for every picture, stay where they are. A model that takes a fixed number
        of pictures is run as often as needed, the last time with zeros behind the pictures.
        """
        tensor = manifest.input.tensor
        fixed = None if manifest.class_features is None else manifest.class_features.head
        names = outputs or [name for name in self.outputs if name != fixed]
        size = self.batch(tensor)
        if size is None or size == len(images):
            return self.run({tensor: images}, names, run)
        padded = np.zeros((-len(images) % size, *images.shape[1:]), np.float32)
        blocks = np.concatenate([images, padded]).reshape(-1, size, *images.shape[1:])
        answers = [self.run({tensor: block}, names, run) for block in blocks]
        return {name: np.concatenate([answer[name] for answer in answers])[: len(images)] for name in names}


def open_session(
    model: Path | bytes, *, device: Device = "cpu", threads: int = 0, execution: Execution | None = None
) -> Session:
    """Load a model file.

    Args:
        model: path of the file, or its content.
        device: "auto" takes the GPU if there is one; "gpu" refuses to fall back to the CPU, for any node.
        threads: threads within one run; 0 takes every core.
        execution: which provider, and how; see there.

    Raises:
        ModelError: the file is missing, truncated or not a model that ONNX Runtime can run so.
        RuntimeNotReadyError: the GPU or a provider was asked for and cannot be had.
    """
    if isinstance(model, Path):
        try:
            model = model.read_bytes()
        except OSError as error:
            raise ModelError(f"the file cannot be read: {error.strerror}") from None
    how = execution or Execution()
    choice = choose(device, how, ort.get_available_providers(), threads=threads)
    try:
        session = _load(model, choice, threads)
    except ModelRunError as error:
        if choice.first == CPU:
            raise
        raise _why_not(model, how, threads, str(error)) from None
    provider = session.get_providers()[0]
    if choice.strict and provider != choice.first:
        raise RuntimeNotReadyError(_does_not_start(choice.first))
    nodes = placed(session)
    shrink = f"cpu:0;gpu:{how.cuda.device}" if provider in ON_GPU else "cpu:0"
    return Session(
        session,
        provider,
        inputs={given.name: list(given.shape) for given in session.get_inputs()},
        outputs=tuple(output.name for output in session.get_outputs()),
        path=_path(session, provider, how),
        options=dict(choice.providers).get(provider, {}),
        on_cpu=listed(nodes[CPU]) if provider != CPU and CPU in nodes else "",
        run_options={_SHRINK: shrink} if how.shrink_arena else {},
    )


def _load(model: bytes, choice: Choice, threads: int) -> ort.InferenceSession:
    """Open ONNX Runtime's session.

    Raises:
        ModelRunError: it does not want to.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the cores alone
    names = [name for name, _ in choice.providers]
    if choice.first != CPU:
        options.add_session_config_entry(RECORD, "1")
    if choice.first in ON_GPU:
        with redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()  # finds the CUDA and cuDNN libraries that pip installed
    if choice.first == OPENVINO:  # it has its own, and stumbles over an output that has been folded into a constant
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if CPU not in names:  # ONNX Runtime wants it to be in the list or to be ruled out, not both
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # ONNX Runtime announces a fallback on stdout even where there is none.
    fallback = not choice.strict and len(names) > 1 and choice.providers[0][1].get("enable_cuda_graph") != "1"
    try:
        return ort.InferenceSession(model, options, providers=list(choice.providers), enable_fallback=int(fallback))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ModelRunError(f"ONNX Runtime cannot load the file: {_one_line(error)}") from None


def _why_not(model: bytes, how: Execution, threads: int, said: str) -> PellucidError:
    """Return what keeps a file from being run as it should be, found by letting the CPU help.

    Raises:
        ModelError: it is no model; that is not the device's fault.
    """
    open_session(model, device="cpu", threads=threads)
    plainly = how.model_copy(update={"cuda_graphs": (), "provider": "cuda" if how.provider == "auto" else how.provider})
    choice = choose("auto", plainly, ort.get_available_providers(), threads=threads)
    try:
        session = _load(model, choice, threads)
    except ModelRunError:
        return RuntimeNotReadyError(f"{choice.first} was asked for and does not run the model; {said}")
    if session.get_providers()[0] != choice.first:
        return RuntimeNotReadyError(_does_not_start(choice.first))
    nodes = placed(session)
    if how.cuda_graphs and (reason := why_not_captured(nodes)):
        return ModelError(f"its runs cannot be captured as CUDA graphs: {reason}; leave cuda_graphs out")
    if CPU in nodes:
        there = listed(nodes[CPU])
        return ModelError(
            f"the GPU was asked for, but the CPU would run nodes of the model ({there}); device auto allows it"
        )
    return RuntimeNotReadyError(f"{choice.first} was asked for and does not run the model; {said}")


def _does_not_start(provider: str) -> str:
    if provider in ON_GPU:
        where = "is there a GPU, with its driver and libraries?"
        return f"the GPU was asked for, but {provider} does not start on this machine; {where}"
    return f"{provider} was asked for and does not start on this machine"


def _path(session: ort.InferenceSession, provider: str, how: Execution) -> RunPath:
    if provider not in ON_GPU:
        return Plain(session)
    device = ("cuda", how.cuda.device)
    if how.cuda_graphs:
        rows = [output.name for output in session.get_outputs() if not isinstance(output.shape[0], int)]
        if not rows:
            raise ModelError(
                "its runs cannot be captured as CUDA graphs: its batch size is fixed; leave cuda_graphs out"
            )
        return Captured(session, device, how.cuda_graphs, rows)
    return Bound(session, device) if how.io_binding else Plain(session)


def _one_line(error: Exception) -> str:
    return _SOURCE.sub("", " ".join(str(error).split()))[:200].strip() or type(error).__name__
