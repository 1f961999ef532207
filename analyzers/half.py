"""Half precision: a copy whose body has weights and arithmetic of 16 bits."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference

from analyzers.body import body, outside
from analyzers.errors import ModelError
from analyzers.plain import manifest_of

_LOGGER = "onnxruntime.transformers.float16"
_OWN = "/float32"  # ends the name of what body and explanation both read, in the explanation's precision


def to_half(model: ModelProto) -> ModelProto:
    """Return a copy whose body computes in half precision; inputs, outputs and the explanation stay float32.

    On a processor ONNX Runtime computes most of it in single precision all the same: what is tested there is what the
    rounding of weights and of values between operators does.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    inside = body(model, manifest_of(model))
    after = outside(model, inside)
    # The body alone goes through the converter: nodes that it is told to leave out, it joins by half-precision values.
    trunk = _trunk(model, inside, after)
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        half = convert_float_to_float16(trunk, keep_io_types=True, disable_shape_infer=False)
    finally:
        logger.setLevel(level)
    return _joined(model, half, after)


def _trunk(model: ModelProto, inside: list[NodeProto], after: list[NodeProto]) -> ModelProto:
    """Return the body as a model of its own, whose outputs are all that is read of it elsewhere."""
    read = _inputs(after) | {output.name for output in model.graph.output}
    kinds = {value.name: value for value in shape_inference.infer_shapes(model).graph.value_info}
    border = [name for node in inside for name in node.output if name in read]
    outputs = [kinds.get(name, helper.make_tensor_value_info(name, TensorProto.FLOAT, None)) for name in border]
    trunk = _like(model, inside, _inputs(inside))
    trunk.graph.output.extend(outputs)
    return trunk


def _joined(model: ModelProto, half: ModelProto, after: list[NodeProto]) -> ModelProto:
    """Put the rest of the model behind the converted body."""
    kept = _like(model, after, _inputs(after) | {output.name for output in model.graph.output})
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    shared = {t.name for t in kept.graph.initializer if kinds.get(t.name, t.data_type) != t.data_type}
    for tensor in kept.graph.initializer:
        if tensor.name in shared:
            tensor.name += _OWN
    for node in kept.graph.node:
        for place, name in enumerate(node.input):
            if name in shared:
                node.input[place] = name + _OWN
    taken = {tensor.name for tensor in half.graph.initializer}
    given = taken | {value.name for value in model.graph.input}
    joined = _like(model, [*_sorted(half.graph.node, given), *kept.graph.node], set())
    joined.graph.initializer.extend(half.graph.initializer)
    joined.graph.initializer.extend(tensor for tensor in kept.graph.initializer if tensor.name not in taken)
    joined.graph.output.extend(model.graph.output)
    joined.metadata_props.extend(model.metadata_props)
    return joined


def _sorted(nodes: Iterable[NodeProto], given: set[str]) -> list[NodeProto]:
    """Return nodes in an order in which each follows what it reads; the converter puts its casts last."""
    ready, waiting, known = [], list(nodes), set(given)
    while waiting:
        later = []
        for node in waiting:
            if all(not name or name in known for name in node.input):
                ready.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ModelError("the model cannot be brought to half precision: its body reads what it does not make")
        waiting = later
    return ready


def _like(model: ModelProto, nodes: Iterable[NodeProto], constants: set[str]) -> ModelProto:
    """Return a model of these nodes and of those initializers, with the same inputs and operator sets."""
    made = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    made.graph.name = model.graph.name
    made.graph.input.extend(model.graph.input)
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in constants)
    return made


def _inputs(nodes: Iterable[NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.input if name}
