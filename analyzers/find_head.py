"""The head of a classifier: from its scores back to the features that its last linear layer reads.

The graph's structure says where to look, numbers decide. The nodes between features and scores are replayed on their
own, which yields the layer's weights in whatever form an exporter wrote them, and everything found is held against
the model's own answers for pictures of noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from analyzers.class_features import Head
from analyzers.errors import ModelError
from analyzers.graph import Graph, attributes, grid_of
from analyzers.manifest import Grid, ModelInput
from analyzers.replay_head import LINEAR, RESHAPES, FloatArray, Replay, Values, close, close_but_for_rounding
from analyzers.runtime import open_session

_ACTIVATIONS = {"Softmax": "softmax", "LogSoftmax": "softmax", "Sigmoid": "sigmoid"}
_AFFINE = frozenset({"Add", "Sub", "Mul", "Div", "BatchNormalization", "Slice", "Gather"})
_POOLS = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean", "ReduceSum"})
_ROWS = 256  # unit vectors that are replayed at once


@dataclass(frozen=True, slots=True)
class Classifier:
    """What was found at the end of a graph.

    Attributes:
        logits: tensor of class scores before the activation, (batch, classes).
        pooled: tensor of features that the final layer reads, (batch, features).
        head: the final layer's numbers.
        map: conv map behind the features, (batch, channels, height, width), whose cells have a place in the picture;
            None if there is none.
        activation: "softmax" or "sigmoid" if the graph ends in one, else None.
        flat: whether the features are the map's cells themselves, channel by channel, instead of their means.
        grid: where the map's cells lie.
        inexact: why contributions cannot be split over the cells of a map, with the place in the graph; "" if they can.
    """

    logits: str
    pooled: str
    head: Head
    map: str | None
    activation: str | None
    flat: bool = False
    grid: Grid | None = None
    inexact: str = ""


@dataclass(slots=True)
class _Chain:
    """Nodes from the scores backwards, as long as they are affine in one tensor.

    Attributes:
        nodes: the last node of the graph first.
        data: for each node the input that comes from the picture.
        linear: place in `nodes` of the last linear layer.
        pools: places in `nodes` of the poolings, one after the other.
        stop: the node at which the chain ends; None at the picture itself.
    """

    nodes: list[NodeProto]
    data: list[str]
    linear: int | None = None
    pools: tuple[int, ...] = ()
    stop: NodeProto | None = None


def find_classifier(model: ModelProto, picture: ModelInput, scores: str | None = None) -> Classifier:
    """Find the final linear layer behind an output and the features and the map before it.

    Reshapes that our own outputs need are appended to `model`; nothing that is there changes.

    Args:
        model: the graph, ready to take `picture`.
        picture: its input.
        scores: the output that holds the class scores; the model's only output where None.

    Raises:
        ModelError: there is no linear layer right before the output; the message names what stands there.
    """
    graph = Graph(model)
    last = _scores(model, scores)
    moving = _depends_on_picture(graph, picture.tensor)
    softened, passed = _before_activation(graph, last)
    tensor = passed[-1].input[0] if softened else last
    chain = _walk(graph, tensor, moving)
    values = _observe(model, picture, [last, tensor, *chain.data, *_inputs(passed)], _constants(graph, chain, moving))
    activation = _check_activation(passed, values) if softened else None
    return _Finder(model, graph, tensor, chain, values).find(activation)


def _scores(model: ModelProto, scores: str | None) -> str:
    names = [output.name for output in model.graph.output]
    if scores is not None and scores not in names:
        raise ModelError(f"the model has no output '{scores[:80]}'; there are {', '.join(names[:8])}")
    if scores is None and len(names) != 1:
        raise ModelError(
            f"the model has {len(names)} outputs ({', '.join(names[:8])}); say with --scores which holds the class"
            " scores"
        )
    return scores or names[0]


def _depends_on_picture(graph: Graph, picture: str) -> set[str]:
    """Return the tensors whose values come from the picture, not just from its size."""
    moving = {picture}
    for node in graph.model.graph.node:
        if node.op_type not in {"Shape", "Size"} and any(name in moving for name in node.input):
            moving.update(node.output)
    return moving


def _inputs(nodes: Iterable[NodeProto]) -> list[str]:
    return [node.input[0] for node in nodes]


def _before_activation(graph: Graph, tensor: str) -> tuple[bool, list[NodeProto]]:
    """Return whether an activation ends the graph, and the nodes from the output back to it."""
    passed: list[NodeProto] = []
    softened = 0
    while (node := graph.producer.get(tensor)) is not None and node.op_type in RESHAPES | _ACTIVATIONS.keys():
        passed.append(node)
        if node.op_type in _ACTIVATIONS:
            softened = len(passed)
        tensor = node.input[0]
    return softened > 0, passed[:softened]


def _check_activation(passed: list[NodeProto], values: Values) -> str:
    """Return what the one activation behind the logits is."""
    active = [node for node in passed if node.op_type in _ACTIVATIONS]
    shape = values[active[0].input[0]].shape
    axis = int(str(attributes(active[0]).get("axis", -1)))
    over_classes = active[0].op_type == "Sigmoid" or (axis != 0 and shape[axis] == np.prod(shape[1:]))
    if len(active) > 1 or not over_classes:
        raise ModelError(
            f"'{active[-1].output[0]}' is made by a second activation or one across pictures, {active[0].op_type}"
        )
    return _ACTIVATIONS[active[0].op_type]


def _walk(graph: Graph, tensor: str, moving: set[str]) -> _Chain:
    """Follow the scores backwards through what is affine, to the features at least, to their map at most."""
    chain = _Chain([], [])
    while (node := graph.producer.get(tensor)) is not None:
        chain.stop = node
        data = [name for name in node.input if name in moving]
        if len(data) != 1 or node.op_type not in RESHAPES | LINEAR | _AFFINE | _POOLS:
            break
        if node.op_type == "Div" and data[0] != node.input[0]:
            break
        place = len(chain.nodes)
        if node.op_type in LINEAR:
            if chain.linear is not None:
                break
            chain.linear = place
            if chain.pools:  # a layer that was applied to every cell before the mean: its input is the map
                chain.nodes.append(node)
                chain.data.append(data[0])
                break
        elif node.op_type in _POOLS:
            between = chain.nodes[chain.pools[-1] + 1 :] if chain.pools else []
            if any(one.op_type not in RESHAPES for one in between):
                break
            chain.pools = (*chain.pools, place)
        elif node.op_type in _AFFINE and chain.linear is not None and chain.pools:
            break
        chain.nodes.append(node)
        chain.data.append(data[0])
        tensor = data[0]
    else:
        chain.stop = None
    return chain


def _constants(graph: Graph, chain: _Chain, moving: set[str]) -> list[str]:
    """Return the inputs of the chain's nodes that are computed from numbers of the file alone."""
    return [
        name
        for node in chain.nodes
        for name in node.input
        if name and name not in moving and graph.constant(name) is None
    ]


def _observe(model: ModelProto, picture: ModelInput, tensors: list[str], constants: list[str]) -> Values:
    """Run two pictures of noise and return the tensors' values."""
    probed = ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    names = list(dict.fromkeys([*tensors, *constants]))
    inputs = {value.name for value in model.graph.input}
    probed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in inputs)
    noise = np.random.default_rng(0).random((2, 3, picture.height, picture.width), np.float32)
    values = open_session(probed.SerializeToString()).run({picture.tensor: noise}) | {picture.tensor: noise}
    for name in tensors:
        array = values[name]
        if array.dtype != np.float32:
            raise ModelError(f"'{name}' is {array.dtype}; expected float32 from the final layer to the scores")
        if array.ndim < 2 or len(array) != 2:
            raise ModelError(
                f"'{name}' has shape {list(array.shape)} for 2 pictures; expected one row a picture, export the model"
                " with a free batch axis"
            )
        if not np.isfinite(array).all():
            raise ModelError(f"'{name}' is not finite for pictures of noise; is the pre-processing right?")
    return values


class _Finder:
    """Decides where the features are, and reads the numbers of the layer."""

    def __init__(self, model: ModelProto, graph: Graph, logits: str, chain: _Chain, values: Values) -> None:
        self.model, self.graph, self.logits, self.chain, self.values = model, graph, logits, chain, values
        self.summed = False  # whether the features are sums over the map instead of means

    def find(self, activation: str | None) -> Classifier:
        """Return the classifier; the steps are those of the module's description."""
        chain = self.chain
        if chain.linear is None:
            self._no_linear_layer()
        averaged_after = bool(chain.pools) and chain.pools[0] < (chain.linear or 0)
        cut = self._cut()
        features = self._features(cut, averaged_after)
        replay = Replay(self.graph, chain.nodes[: cut + 1], chain.data[cut], self.values, self.logits)
        head = self._read_head(replay, features, averaged_after)
        space, layout, flat = self._map(cut, features, averaged_after)
        shape = (1, 1, 1, 1) if space is None else self.values[space].shape
        cells = (shape[1], shape[2]) if layout == "NHWC" else (shape[2], shape[3])
        logits = self.logits
        if self.values[logits].ndim != 2:
            logits = self._append("Flatten", logits, "pellucid.logits", axis=1)
        if space is not None and layout == "NHWC":
            space = self._append("Transpose", space, "pellucid.map", perm=[0, 3, 1, 2])
        pooled = self._pooled(cut, features, space, averaged_after)
        if self.summed:  # features are means in every file, whatever factor the exporter left in the layer
            factor = np.array(1 / (cells[0] * cells[1]), np.float32)
            self.model.graph.initializer.append(numpy_helper.from_array(factor, "pellucid.share"))
            pooled = self._append("Mul", pooled, "pellucid.mean_features", "pellucid.share")
            head = Head(head.weight / factor, head.bias)
        live = np.flatnonzero(head.weight.any(0))
        tokens = any(node.op_type in {"Gather", "Slice"} for node in self.chain.nodes[: self.chain.linear])
        if (
            tokens and 0 < len(live) < features.shape[1] / 2
        ):  # a layer that was applied to all tokens, of which one is read
            head, space = Head(np.ascontiguousarray(head.weight[:, live]), head.bias), None
            self.model.graph.initializer.append(numpy_helper.from_array(live.astype(np.int64), "pellucid.live"))
            pooled = self._append("Gather", pooled, "pellucid.live_features", "pellucid.live", axis=1)
        grid = None if space is None else grid_of(self.model, space, cells)
        if grid is None:
            return Classifier(logits, pooled, head, None, activation, inexact=self._reason(cut))
        return Classifier(logits, pooled, head, space, activation, flat, grid)

    def _no_linear_layer(self) -> None:
        stop = self.chain.stop
        found = "the picture itself" if stop is None else f"{stop.op_type} '{stop.name}'"
        mean = "a mean of " if self.chain.pools else ""
        raise ModelError(
            f"no final linear layer: '{self.logits}' is {mean}what is made by {found}; expected Gemm, MatMul and Add or"
            " a 1x1 Conv with constant weights right before the scores"
        )

    def _cut(self) -> int:
        """Return the place of the node whose input the features are read from: a pooling, a reshape or the layer."""
        chain = self.chain
        linear = chain.linear or 0
        after = [place for place in chain.pools if place > linear]
        if after and self.values[self._output(after[0])].size == self._channels(after):
            return after[0] - 1
        cut = linear
        while cut + 1 < len(chain.nodes) and chain.nodes[cut + 1].op_type in RESHAPES:
            cut += 1
        return cut

    def _output(self, place: int) -> str:
        """Return the tensor that a node of the chain hands to the node behind it."""
        return self.chain.data[place - 1] if place else self.logits

    def _channels(self, pools: list[int]) -> int:
        """Return how many numbers the poolings leave of two pictures if they average over all of two axes."""
        before = self.values[self.chain.data[pools[-1]]].shape
        after = self.values[self._output(pools[0])].shape
        kept = [size for size in after[1:] if size != 1]
        return 2 * (kept[0] if len(kept) == 1 and kept[0] in before[1:] else int(len(kept) == 0))

    def _features(self, cut: int, averaged_after: bool) -> FloatArray:
        """Return the features of the two pictures of noise, (2, features)."""
        source = self.values[self.chain.data[cut]]
        if not averaged_after:
            return source.reshape(2, -1)
        if source.ndim != 4:
            raise ModelError(f"'{self.chain.data[cut]}' has shape {list(source.shape)}; expected a map before the mean")
        return np.asarray(source.mean(self._space_axes(cut), dtype=np.float64), np.float32)

    def _space_axes(self, cut: int) -> tuple[int, int]:
        return (2, 3) if self.chain.nodes[cut].op_type == "Conv" else (1, 2)

    def _read_head(self, replay: Replay, features: FloatArray, averaged_after: bool) -> Head:
        width = features.shape[1]
        source = self.values[replay.source].shape[1:]

        def spread(rows: FloatArray) -> FloatArray:
            """From (rows, features) to what stands at the cut; every cell the same where the mean comes after."""
            if not averaged_after:
                return rows.reshape(len(rows), *source)
            shape = (
                (len(rows), width, 1, 1) if source[0] == width and replay.channels_first else (len(rows), 1, 1, width)
            )
            return np.ascontiguousarray(np.broadcast_to(rows.reshape(shape), (len(rows), *source)))

        bias = replay.run(spread(np.zeros((1, width), np.float32)))[0]
        random = np.random.default_rng(1).standard_normal((8, width)).astype(np.float32)
        wanted = replay.run(spread(random))
        for weight in replay.stored(len(bias), width):
            if close_but_for_rounding(random @ weight.T, wanted, bias):
                return self._checked(Head(weight, bias), features)
        weight = np.empty((len(bias), width), np.float32)
        for start in range(0, width, _ROWS):
            unit = np.eye(min(_ROWS, width - start), width, start, np.float32)
            weight[:, start : start + len(unit)] = (replay.run(spread(unit)) - bias).T
        if not close_but_for_rounding(random @ weight.T, wanted, bias):
            raise ModelError(f"what lies between '{replay.source}' and '{self.logits}' is not one linear layer")
        return self._checked(Head(weight, bias), features)

    def _checked(self, head: Head, features: FloatArray) -> Head:
        logits = self.values[self.logits].reshape(2, -1)
        if not close(features @ head.weight.T + head.bias, logits):
            raise ModelError(
                f"the layer before '{self.logits}' does not make the model's own scores out of its features"
            )
        return head

    def _map(self, cut: int, features: FloatArray, averaged_after: bool) -> tuple[str | None, str, bool]:
        """Return the map, its layout, and whether the features are its cells; None where there is none."""
        chain = self.chain
        if averaged_after:
            return chain.data[cut], "NCHW" if self._space_axes(cut) == (2, 3) else "NHWC", False
        after = [place for place in chain.pools if place > (chain.linear or 0)]
        if not after or cut >= after[0]:  # no mean: the layer reads the cells themselves, or a vector
            source = chain.data[cut]
            shape = self.values[source].shape
            flat = len(shape) == 4 and shape[2] * shape[3] > 1
            return (source, "NCHW", True) if flat else (None, "", False)
        candidates = [chain.data[place] for place in range(after[-1], len(chain.data))]
        for layout, axes in (("NCHW", (2, 3)), ("NHWC", (1, 2))):
            for name in reversed(candidates):
                array = self.values[name]
                if array.ndim != 4:
                    continue
                mean, cells = array.mean(axes, dtype=np.float64), array.shape[axes[0]] * array.shape[axes[1]]
                averaged = close(mean, features, floor=0.0)
                self.summed = not averaged and close(mean * cells, features, floor=0.0)
                if averaged or self.summed:
                    return name, layout, False
        return None, "", False

    def _reason(self, cut: int) -> str:
        """Say why contributions have no place: what makes the features, or the map that they are means of."""
        chain = self.chain
        after = [place for place in chain.pools if place > (chain.linear or 0) and place > cut]
        source = chain.data[after[-1]] if after else chain.data[cut]
        node = self.graph.producer.get(source)
        while node is not None and node.op_type in RESHAPES | {"Gather", "Slice"}:
            node = self.graph.producer.get(node.input[0])
        made = "the picture itself" if node is None else f"{node.op_type} '{node.name or node.output[0]}'"
        if after:
            return (
                f"the final layer reads means of '{source}', made by {made}, whose cells have no place in the picture"
            )
        return f"the final layer reads '{source}', made by {made}, not means over the cells of a conv map"

    def _pooled(self, cut: int, features: FloatArray, space: str | None, averaged_after: bool) -> str:
        """Return a tensor (batch, features) that holds the features; appends one where the graph has none."""
        if averaged_after:
            if space is None:
                raise ModelError("there is no map to average")
            return self._append(
                "Flatten", self._append("GlobalAveragePool", space, "pellucid.mean_map"), "pellucid.features", axis=1
            )
        for name in self.chain.data[(self.chain.linear or 0) : cut + 1]:
            array = self.values[name]
            if array.shape == features.shape and np.array_equal(array, features):
                return name
        return self._append("Flatten", self.chain.data[cut], "pellucid.features", axis=1)

    def _append(self, operator: str, source: str, name: str, *others: str, **options: Any) -> str:  # noqa: ANN401 (attributes of any operator)
        self.model.graph.node.append(helper.make_node(operator, [source, *others], [name], name=name, **options))
        return name
