"""Where the learner's feature maps come from: any ONNX model, or a torch model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from analyzers.conv_maps import open_maps
from analyzers.execution import Device
from analyzers.manifest import ModelInput
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from training.feature_cache import Maps, MapSource
from training.ranks import Ranks

BATCH = 32


class OnnxMaps:
    """Maps of an ONNX model through ONNX Runtime.

    Attributes:
        pictures: how many there are.
    """

    def __init__(self, model: ModelProto, picture: ModelInput, pictures: Pictures, device: Device = "cpu") -> None:
        self.pictures = len(pictures)
        self._model, self._picture, self._shown, self._device = model, picture, pictures, device

    def batches(self, tensors: Sequence[str]) -> Iterator[Maps]:
        """Yield the maps of all pictures in order, a batch at a time."""
        session = open_maps(self._model, tensors, device=self._device)
        for pixels in self._shown.batches(self._picture.height, self._picture.width, BATCH):
            yield session.run({self._picture.tensor: to_model_input(pixels)})


class SharedMaps:
    """Maps that several processes compute, each its own batches, and all of them get.

    Attributes:
        pictures: how many there are.
    """

    def __init__(self, own: MapSource, pictures: int, ranks: Ranks) -> None:
        """Take the source of the batches number, number + count, ...; `pictures` is how many all processes have."""
        self.pictures = pictures
        self._own, self._ranks = own, ranks

    def batches(self, tensors: Sequence[str]) -> Iterator[Maps]:
        """Yield the maps of all pictures in order, a batch at a time."""
        own = iter(self._own.batches(tensors))
        while True:
            found = [maps for maps in self._ranks.gather(next(own, None)) if maps is not None]
            yield from found
            if len(found) < self._ranks.count:
                return


def onnx_maps(
    model: ModelProto, picture: ModelInput, pictures: Pictures, device: Device, ranks: Ranks
) -> OnnxMaps | SharedMaps:
    """Return the maps of an ONNX model; processes share the batches out."""
    if ranks.count == 1:
        return OnnxMaps(model, picture, pictures, device)
    number = np.arange(len(pictures))
    own = pictures.take(number[number // BATCH % ranks.count == ranks.number])
    return SharedMaps(OnnxMaps(model, picture, own, device), len(pictures), ranks)


class TorchMaps:
    """Maps of a torch model: what its modules of these names give.

    Attributes:
        pictures: how many there are.
    """

    def __init__(self, model: nn.Module, pictures: int, batches: Callable[[], Iterator[Tensor]]) -> None:
        """Take the model as it is; `batches` starts anew on each call and yields inputs in the same order."""
        self.pictures = pictures
        self._model, self._batches = model, batches

    def batches(self, tensors: Sequence[str]) -> Iterator[Maps]:
        """Yield the outputs of the named modules, a batch at a time."""
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
            return lambda module, inputs, output: seen.update({name: output.detach()})

        hooks = [self._model.get_submodule(name).register_forward_hook(keep(name)) for name in tensors]
        try:
            for images in self._batches():
                with torch.no_grad():
                    self._model(images)
                yield {name: np.asarray(seen[name].float().cpu()) for name in tensors}
        finally:
            for hook in hooks:
                hook.remove()
