"""Make any convolutional network interpretable: a part mask (arXiv 1710.00935, section 3) behind a layer of it.

    model = make_interpretable(model, "layer4", classes=20, example=torch.zeros(1, 3, 224, 224))
    with recorded_maps(model) as recorded:
        logits = model(images)
    for layer, maps in recorded.items():
        layer.state.observe(maps.detach(), labels)
        loss = loss + weight * plain(maps, logits, labels, layer.state)[0]

Nothing is asked of the network but that the layer gives maps, so networks of torchvision and timm go in as they are.
Templates have peak 1, as in `training.parts`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyzers.errors import PellucidError
from analyzers.parts import part_template
from training.filter_losses import FilterState

Peak = Literal["argmax", "centroid"]

LONGEST_SIDE = 64  # the table of templates holds rows^2 columns^2 numbers


class LayerError(PellucidError):
    """A layer cannot be made interpretable."""


def part_templates(rows: int, columns: int, beta: float = 4.0) -> Tensor:
    """Return the part templates of a map as a table (rows columns, rows columns), row mu centred on cell mu.

    The paper's n is the side of a square map; here it is the side of the square of equal area.
    """
    side = max(rows, columns)
    square = torch.from_numpy(part_template(side, beta * (side / math.sqrt(rows * columns))))
    inside = torch.arange(side * side).reshape(side, side)[:rows, :columns].flatten()
    return square[inside][:, inside]


class InterpretableLayer(nn.Module):
    """A layer of a network whose filters are each masked by a part template round their own peak.

    Attributes:
        conv: the convolution that the paper adds between the layer and its mask, or None.
        state: running figures of the filters, for the filter losses.
        source: the layer as it was.
        recorder: takes the map before the mask while `recorded_maps` is at work.
    """

    table: Tensor

    def __init__(
        self, source: nn.Module, output: Tensor, classes: int, filters: int | None, beta: float, peak: Peak
    ) -> None:
        super().__init__()
        inputs, self.rows, self.columns = output.shape[1:]
        self.conv: nn.Conv2d | None = None
        if filters is not None:
            self.conv = nn.Conv2d(inputs, filters, 3, 1, 1, device=output.device, dtype=output.dtype)
            nn.init.normal_(self.conv.weight, std=0.01)
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type] # it has one
        templates = part_templates(self.rows, self.columns, beta)
        self.state = FilterState(inputs if filters is None else filters, 1, classes)
        self.state.templates = templates
        self.state.to(output.device)
        # For maps >= 0, max(x T, 0) = x max(T, 0): clamping the table saves an operation.
        self.register_buffer("table", templates.clamp(min=0).to(output.device, output.dtype), persistent=False)
        self.peak = peak
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
        return x * F.embedding(self._centre(x.detach()), self.table).reshape(x.shape)

    def _centre(self, x: Tensor) -> Tensor:
        """Return the cell that each template is centred on, (batch, filters)."""
        if self.peak == "argmax":
            return x.flatten(2).argmax(2)
        total = x.sum((2, 3)).clamp(min=1e-9)
        row = (x.sum(3) * torch.arange(self.rows, device=x.device)).sum(2) / total
        column = (x.sum(2) * torch.arange(self.columns, device=x.device)).sum(2) / total
        row, column = ((centre + 0.5).floor().long() for centre in (row, column))  # halves go up, as in MATLAB
        return row.clamp(0, self.rows - 1) * self.columns + column.clamp(0, self.columns - 1)


def make_interpretable(
    model: nn.Module,
    layer: str,
    *,
    classes: int,
    example: Tensor,
    filters: int | None = None,
    beta: float = 4.0,
    peak: Peak = "argmax",
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
        beta: steepness of the templates; 0 lets everything pass.
        peak: what a template is centred on: the map's highest cell, as in the paper, or its centre of mass, as in the
            authors' code.

    Returns:
        The model.

    Raises:
        LayerError: there is no such layer, it gives no maps or too large ones, or the network cannot go on from it.
    """
    source = _find(model, layer)
    output = _probe(model, source, layer, example)
    made = InterpretableLayer(source, output, classes, filters, beta, peak)
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
