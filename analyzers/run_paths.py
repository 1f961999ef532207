"""How a run reaches the device: plainly, with everything bound to it, or as a captured CUDA graph.

All three give the same numbers. `Session` picks one and turns what ONNX Runtime raises into sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from analyzers.wheel import ort

Arrays = Sequence[npt.NDArray[Any]]
Tensors = Mapping[str, npt.NDArray[Any]]

GRAPH_ID = "gpu_graph_id"
NOT_CAPTURED = "-1"


class RunPath(Protocol):
    """Runs a session once."""

    def __call__(self, feeds: Tensors, names: Sequence[str], options: ort.RunOptions) -> Arrays:
        """Return these outputs in their order; `options` can end the run from another thread."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Hands ONNX Runtime arrays and takes arrays."""

    session: ort.InferenceSession

    def __call__(self, feeds: Tensors, names: Sequence[str], options: ort.RunOptions) -> Arrays:
        """Run; any number of threads at a time."""
        found: Arrays = self.session.run(list(names), dict(feeds), options)
        return found


@dataclass(frozen=True, slots=True)
class Bound:
    """Copies inputs to the device once and outputs back once, after the run and not between its nodes.

    A binding belongs to one run, so any number of threads run at a time.

    Attributes:
        session: what is run.
        device: "cuda" or "cpu", and its number.
    """

    session: ort.InferenceSession
    device: tuple[str, int]

    def __call__(self, feeds: Tensors, names: Sequence[str], options: ort.RunOptions) -> Arrays:
        """Run; any number of threads at a time."""
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in names:
            binding.bind_output(name, *self.device)
        self.session.run_with_iobinding(binding, options)
        found: Arrays = binding.copy_outputs_to_cpu()
        return found


@dataclass(frozen=True, slots=True)
class _Buffers:
    """One batch size's input and outputs, at addresses that stay."""

    binding: ort.IOBinding
    given: ort.OrtValue
    found: dict[str, ort.OrtValue]


class Captured:
    """Replays runs that were captured once per batch size; a batch goes into the next size, zeros behind it.

    A captured graph belongs to the thread and to the addresses that it was captured with, and a session that captures
    may not be run by two threads. So one thread, its own, runs everything, and each size keeps its buffers. What is
    larger than every size, or has several inputs, runs there as well, without capture.

    Attributes:
        sizes: the batch sizes, ascending.
    """

    def __init__(
        self, session: ort.InferenceSession, device: tuple[str, int], sizes: Sequence[int], outputs: Sequence[str]
    ) -> None:
        """Capture nothing yet; the first run of each size does.

        Args:
            session: opened with `enable_cuda_graph`.
            device: "cuda" or "cpu", and its number.
            sizes: batch sizes.
            outputs: those with a row for each picture; others are run without capture.
        """
        self.sizes = tuple(sorted(set(sizes)))
        self._session = session
        self._device = device
        self._outputs = tuple(outputs)
        self._uncaptured = Bound(session, device)
        self._buffers: dict[int, _Buffers] = {}
        self._thread = ThreadPoolExecutor(1, "captured")

    def __call__(self, feeds: Tensors, names: Sequence[str], options: ort.RunOptions) -> Arrays:
        """Run; other threads wait meanwhile. A replay is one launch, so it can be ended before it and not within."""
        return self._thread.submit(self._run, feeds, names, options).result()

    def _run(self, feeds: Tensors, names: Sequence[str], options: ort.RunOptions) -> Arrays:
        if options.terminate:
            raise InterruptedError("the run was ended before it began")
        (tensor, array), *others = feeds.items()
        size = next((size for size in self.sizes if size >= len(array)), None)
        if size is None or others or not set(names) <= set(self._outputs):
            options.add_run_config_entry(GRAPH_ID, NOT_CAPTURED)
            return self._uncaptured(feeds, names, options)
        if size not in self._buffers:
            self._buffers[size] = self._bind(tensor, array, size)
        buffers = self._buffers[size]
        buffers.given.update_inplace(_padded(array, size))
        options.add_run_config_entry(GRAPH_ID, str(size))
        self._session.run_with_iobinding(buffers.binding, options)
        return [np.array(buffers.found[name].numpy()[: len(array)]) for name in names]

    def _bind(self, tensor: str, array: npt.NDArray[Any], size: int) -> _Buffers:
        """Find out from an ordinary run how large the outputs are, and make room for them."""
        options = ort.RunOptions()
        options.add_run_config_entry(GRAPH_ID, NOT_CAPTURED)
        picture = _padded(array, size)
        shapes = self._uncaptured({tensor: picture}, self._outputs, options)
        binding = self._session.io_binding()
        given = ort.OrtValue.ortvalue_from_numpy(picture, *self._device)
        binding.bind_ortvalue_input(tensor, given)
        found = {}
        for name, value in zip(self._outputs, shapes, strict=True):
            found[name] = ort.OrtValue.ortvalue_from_shape_and_type(value.shape, value.dtype.type, *self._device)
            binding.bind_ortvalue_output(name, found[name])
        return _Buffers(binding, given, found)


def _padded(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Return the rows with zeros behind them."""
    if len(array) == size:
        return np.ascontiguousarray(array)
    padded = np.zeros((size, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
