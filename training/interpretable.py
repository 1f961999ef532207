"""Make any convolutional network interpretable: a part mask (arXiv 1710.00935, section 3) behind a layer of it.

    model = make_interpretable(model, "layer4", classes=20, example=torch.zeros(1, 3, 224, 224))
    with recorded_maps(model) as recorded:
        logits = model(images)
    for layer, maps in recorded.items():
        layer.state.observe(maps.detach(), labels)
        loss = loss + weight * plain(maps, logits, labels, layer.state)[0]

Nothing is asked of the network but that the layer gives maps, so networks of torchvision and timm go in as they are.
A mask leaves little of a map; `keep_means` gives what follows it maps of the mean that they had.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyzers.errors import PellucidError
from analyzers.manifest import Peak
from training.filter_losses import FilterState
from training.templates import Beta, PartTemplates

LONGEST_SIDE = 64  # the table of templates holds rows^2 columns^2 numbers


class LayerError(PellucidError):
    """A layer cannot be made interpretable."""


class InterpretableLayer(nn.Module):
    """A layer of a network whose filters are each masked by a part template round their own peak.

    Attributes:
        conv: the convolution that the paper adds between the layer and its mask, or None.
        state: running figures of the filters, for the filter losses, and their templates.
        gain: (filters,) factors of the masked maps; 1 until `keep_means` finds them.
        masked: whether the mask is on; without it this is an ordinary layer whose maps are recorded.
        source: the layer as it was.
        recorder: takes the map before the mask while `recorded_maps` is at work.
    """

    gain: Tensor

    def __init__(
        self,
        source: nn.Module,
        output: Tensor,
        classes: int,
        filters: int | None,
        beta: Beta,
        peak: Peak,
        *,
        masked: bool = True,
    ) -> None:
        super().__init__()
        inputs, self.rows, self.columns = output.shape[1:]
        self.conv: nn.Conv2d | None = None
        if filters is not None:
            self.conv = nn.Conv2d(inputs, filters, 3, 1, 1, device=output.device, dtype=output.dtype)
            nn.init.normal_(self.conv.weight, std=0.01)
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type] # it has one
        count = inputs if filters is None else filters
        self.state = FilterState(count, PartTemplates(self.rows, self.columns, count, beta, peak), classes)
        self.state.to(output.device)
        self.register_buffer("gain", torch.ones(count, device=output.device, dtype=output.dtype))
        self.masked = masked
        self.recorder: dict[InterpretableLayer, Tensor] | None = None
        self.train(source.training)
        self.source = source

    def forward(self, *inputs: Any, **options: Any) -> Tensor:  # noqa: ANN401 # whatever the layer takes
        """Run the layer and keep of each map what lies under its template: (batch, filters, rows, columns)."""
        y: Tensor = self.source(*inputs, **options)
        x = F.relu(y if self.conv is None else self.conv(y))
        if x.shape[2:] != (self.rows, self.columns):
            raise LayerError(
                f"the layer's maps have {x.shape[2]} x {x.shape[3]} cells, expected {self.rows} x {self.columns};"
                " give pictures of the example's size"
            )
        if self.recorder is not None:
            self.recorder[self] = x
        return self.mask(x) * self.gain.to(x.dtype)[:, None, None] if self.masked else x

    def mask(self, x: Tensor) -> Tensor:
        """Keep of each map what lies under its template, without the gain."""
        return self.state.templates.mask(x)


def make_interpretable(
    model: nn.Module,
    layer: str,
    *,
    classes: int,
    example: Tensor,
    filters: int | None = None,
    beta: Beta = 4.0,
    peak: Peak = "argmax",
    masked: bool = True,
) -> nn.Module:
    """Put a part mask behind a layer, in place; call it once for each layer, or twice for two masks in a row.

    What the network's next layer sees, a pooling say, is the masked map. In a state dict, the layer's own tensors are
    then found under `<layer>.source`.

    Args:
        model: a network that takes pictures.
        layer: dotted name of the sub-module whose output is to be masked; it runs once in a pass.
        classes: how many there are, for the filter losses.
        example: pictures that the network takes; they fix the size of the maps.
        filters: adds a 3x3 convolution and ReLU of that many filters before the mask, as the paper does; None masks
            the layer's own output, behind a ReLU.
        beta: steepness of the templates, whose radius is side / beta; 0 lets everything pass. With "per-filter" each
            filter's follows the spread of its maps, as in the authors' code.
        peak: what a template is centred on: the map's highest cell, as in the paper, or its centre of mass, as in the
            authors' code.
        masked: False for the ordinary network to compare with, of the same tensors.

    Returns:
        The model.

    Raises:
        LayerError: there is no such layer, it gives no maps or too large ones, or the network cannot go on from it.
    """
    source = _find(model, layer)
    output = _probe(model, source, layer, example)
    made = InterpretableLayer(source, output, classes, filters, beta, peak, masked=masked)
    model.set_submodule(layer, made)
    try:
        with _evaluating(model):
            model(example)
    except Exception as error:  # networks raise what they like
        model.set_submodule(layer, source)
        advice = "name the block around it" if filters is None else f"leave `filters` out or give {output.shape[1]}"
        reason = str(error).partition("\n")[0]
        raise LayerError(f"the network cannot go on from what layer '{layer}' gives now ({reason}); {advice}") from None
    return model


def _find(model: nn.Module, layer: str) -> nn.Module:
    modules: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    if layer not in modules:
        nearest = difflib.get_close_matches(layer, modules, n=5, cutoff=0)
        raise LayerError(f"the network has no layer '{layer}'; the nearest names are {', '.join(nearest) or 'none'}")
    return modules[layer]


def _probe(model: nn.Module, source: nn.Module, layer: str, example: Tensor) -> Tensor:
    """Return what the layer gives on the example."""
    outputs: list[Any] = []
    hook = source.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        with _evaluating(model):
            model(example)
    finally:
        hook.remove()
    if len(outputs) != 1:
        raise LayerError(
            f"layer '{layer}' runs {len(outputs)} times in one pass, expected once; name a layer that runs once,"
            " such as the block around it"
        )
    output = outputs[0]
    if not isinstance(output, Tensor) or output.ndim != 4:
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise LayerError(
            f"layer '{layer}' gives {given}, expected maps (batch, filters, rows, columns);"
            " name a convolution, its ReLU or a block of them"
        )
    if max(output.shape[2:]) > LONGEST_SIDE:
        raise LayerError(
            f"layer '{layer}' gives maps of {output.shape[2]} x {output.shape[3]} cells, expected at most"
            f" {LONGEST_SIDE} in a row or column; name a later layer"
        )
    return output


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation without gradients, and each module back to what it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was in training.items():
            module.training = was


def interpretable_layers(model: nn.Module) -> dict[str, InterpretableLayer]:
    """Return a network's interpretable layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, InterpretableLayer)}


def keep_means(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the gains of a network's interpretable layers so that each masked filter has the mean of its whole map.

    A template leaves the activation near the peak only, up to twenty times less than there was, and what follows was
    made for all of it: call this once, on some pictures, before a trained network learns on, or one without batch
    normalisation begins to learn. Filters that are silent on these pictures keep a gain of 1.

    Args:
        model: the network.
        batches: pictures (batch, 3, h, w); gone through once a layer, for a layer sees the gains of those before.
    """
    images = list(batches)
    with _evaluating(model), recorded_maps(model) as first:
        model(images[0])
    for layer in [layer for layer in first if layer.masked]:  # in the order in which they run
        whole, left = torch.zeros_like(layer.gain), torch.zeros_like(layer.gain)
        with _evaluating(model), recorded_maps(model) as maps:
            for batch in images:
                model(batch)
                whole += maps[layer].mean((0, 2, 3))
                left += layer.mask(maps[layer]).mean((0, 2, 3))
        layer.gain.copy_(torch.where(left > 0, whole / left.clamp(min=torch.finfo(left.dtype).tiny), 1.0))


@contextmanager
def recorded_maps(model: nn.Module) -> Iterator[dict[InterpretableLayer, Tensor]]:
    """Collect the maps that interpretable layers give inside the block, before the mask, for the filter losses."""
    maps: dict[InterpretableLayer, Tensor] = {}
    layers = interpretable_layers(model).values()
    for layer in layers:
        layer.recorder = maps
    try:
        yield maps
    finally:
        for layer in layers:
            layer.recorder = None


class WithMaps(nn.Module):
    """A network that returns, behind its logits, each interpretable layer's maps before the mask; for export too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(batch, 3, h, w) -> logits, and maps (batch, filters, rows, columns) in `interpretable_layers`' order."""
        with recorded_maps(self.model) as maps:
            logits = self.model(x)
        return logits, *(maps[layer] for layer in interpretable_layers(self.model).values())
