"""The one place that loads ONNX Runtime: telemetry off, the right wheel, the device that was asked for."""

from __future__ import annotations

import os
import re

# Read once, at import: ONNX Runtime >= 1.29 otherwise opens a data base in the home directory and looks up hosts.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from analyzers.errors import ModelError, ModelRunError, PellucidError
from analyzers.manifest import Manifest

Device = Literal["auto", "cpu", "gpu"]
Tensors = Mapping[str, npt.NDArray[Any]]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
WHEELS = ("onnxruntime", "onnxruntime-gpu")


class RuntimeNotReadyError(PellucidError):
    """ONNX Runtime is absent, installed twice, or lacks the device that was asked for."""


def _installed(wheel: str) -> bool:
    try:
        version(wheel)
    except PackageNotFoundError:
        return False
    return True


def check_wheels(installed: Iterable[str]) -> None:
    """Refuse an environment in which pip has put both ONNX Runtime wheels over each other, or none.

    Raises:
        RuntimeNotReadyError: saying what to install or to remove.
    """
    found = sorted(installed)
    if not found:
        raise RuntimeNotReadyError(
            "ONNX Runtime is not installed; install pellucid[cpu], or pellucid[gpu] on a machine with CUDA"
        )
    if len(found) > 1:
        raise RuntimeNotReadyError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files;"
            " uninstall both, then install exactly one of pellucid[cpu] and pellucid[gpu]"
        )


check_wheels(wheel for wheel in WHEELS if _installed(wheel))

import onnxruntime as ort  # noqa: E402 (the telemetry switch and the check must come first)

RUNTIME = f"onnxruntime {ort.__version__}"

# Where in its own source ONNX Runtime was: codes, files with lines, C++ names with their arguments.
_SOURCE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : "
    r"|\S+\.(?:cc|cpp|h|py):\d+\s*|\S*/\S+\.(?:cc|cpp|h|py)\s*"
    r"|(?:static )?(?:\w+[*&]? )?\w+(?:<[^>]*>)?::[\w:]+(?:\([^)]*\)?)?\s?"
)

ort.set_default_logger_severity(4)  # nothing but fatal ones: errors come as exceptions, with a sentence of ours


def providers(device: Device) -> list[str]:
    """Return the execution providers for a device, best first.

    Raises:
        RuntimeNotReadyError: the GPU was asked for and this ONNX Runtime has no CUDA provider.
    """
    if device == "cpu":
        return [CPU]
    if CUDA in ort.get_available_providers():
        ort.preload_dlls()  # finds the CUDA and cuDNN libraries that pip installed
        return [CUDA, CPU]
    if device == "gpu":
        raise RuntimeNotReadyError(
            "the GPU was asked for, but this ONNX Runtime has no CUDA provider; install pellucid[gpu] or use the CPU"
        )
    return [CPU]


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
    """

    session: ort.InferenceSession
    provider: str
    inputs: dict[str, list[int | str | None]]
    outputs: tuple[str, ...]

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
        try:
            values = self.session.run(names, dict(feeds), None if run is None else run.options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ModelRunError(f"the model failed to run: {_one_line(error)}") from None
        return dict(zip(names, values, strict=True))

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


def open_session(model: Path | bytes, *, device: Device = "cpu", threads: int = 0) -> Session:
    """Load a model file.

    Args:
        model: path of the file, or its content.
        device: "auto" takes the GPU if there is one; "gpu" refuses to fall back to the CPU.
        threads: threads within one run; 0 takes every core.

    Raises:
        ModelError: the file is missing, truncated or not a model that ONNX Runtime can run.
        RuntimeNotReadyError: the GPU was asked for and cannot be had.
    """
    if isinstance(model, Path):
        try:
            model = model.read_bytes()
        except OSError as error:
            raise ModelError(f"the file cannot be read: {error.strerror}") from None
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the cores alone
    chosen = providers(device)
    if device == "gpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    fallback = device == "auto" and CUDA in chosen  # ONNX Runtime announces one on stdout even where there is none
    try:
        session = ort.InferenceSession(model, options, providers=chosen, enable_fallback=int(fallback))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        if device == "gpu":
            open_session(model, device="cpu", threads=threads)  # a file that is no model is not the GPU's fault
            raise RuntimeNotReadyError(f"the GPU was asked for and cannot run the model: {_one_line(error)}") from None
        raise ModelRunError(f"ONNX Runtime cannot load the file: {_one_line(error)}") from None
    inputs = {given.name: list(given.shape) for given in session.get_inputs()}
    outputs = tuple(output.name for output in session.get_outputs())
    return Session(session, session.get_providers()[0], inputs, outputs)


def _one_line(error: Exception) -> str:
    return _SOURCE.sub("", " ".join(str(error).split()))[:200].strip() or type(error).__name__
