"""A plain ONNX classifier, ours or anybody's: read, brought to one form, tried out beside the file as it came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, helper, numpy_helper

from analyzers import __version__, manifest
from analyzers.errors import ModelError
from analyzers.graph import Classifier, Graph, find_classifier
from analyzers.manifest import METADATA_KEY, Manifest, ModelInput, Provenance, Scores
from analyzers.runtime import Session, open_session

MIN_OPSET = 18  # ReduceMax takes its axes as an input from here on
MIN_IR_VERSION = 8  # that of operator set 18; initializers need not be inputs
TOLERANCE = 1e-4
PRODUCER = f"pellucid {__version__}"


@dataclass(frozen=True, slots=True)
class Layer:
    """The conv map whose filters are reported as parts.

    Attributes:
        tensor: its name in the graph, before any mask; None takes the map that the head pools.
        interpretable: whether it was trained with part templates.
        learned_for: class of each filter, where filters were learned for classes.
        peak: which cell of a map is reported, the one that its part template is centred on.
    """

    tensor: str | None = None
    interpretable: bool = False
    learned_for: tuple[int, ...] | None = None
    peak: manifest.Peak = "argmax"


POOLED = Layer()


@dataclass(frozen=True, slots=True)
class Plain:
    """A plain classifier, ready to be explained.

    Attributes:
        model: the graph; its input takes float32 (batch, 3, height, width) in 0..1.
        manifest: what is known about it, without rows.
        found: its final layer and the map before it.
    """

    model: ModelProto
    manifest: Manifest
    found: Classifier


def load_onnx(data: bytes) -> ModelProto:
    """Parse an ONNX file and bring it to a usable operator set.

    Raises:
        ModelError: it is not ONNX, is inconsistent, keeps weights elsewhere, or cannot be converted.
    """
    try:
        model = onnx.load_model_from_string(data)
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
            raise ModelError("the model keeps weights in other files; save it as one file first")
        onnx.checker.check_model(model)
    except ModelError:
        raise
    except Exception as error:  # protobuf and onnx raise unrelated classes
        raise ModelError(f"the file is not a valid ONNX model: {_one_line(error)}") from None
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, MIN_OPSET)
        except Exception as error:  # the converter raises RuntimeError and its own classes
            raise ModelError(
                f"the model has operator set {opset} and cannot be converted to {MIN_OPSET}: {str(error)[:200]}"
            ) from None
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in constants]:
        model.graph.input.remove(value)
    model.ir_version = max(model.ir_version, MIN_IR_VERSION)
    return model


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_plain(
    data: bytes,
    *,
    names: tuple[str, ...] | None = None,
    mean: manifest.Triple | None = None,
    std: manifest.Triple | None = None,
    size: tuple[int, int] | None = None,
) -> Plain:
    """Read a plain classifier, one of ours or anybody's.

    Args:
        data: the ONNX file.
        names: class names, needed where the file does not carry them.
        mean: what the model expects to be subtracted from pictures in 0..1, per channel; goes into the graph.
        std: what it expects to be divided by, per channel; goes into the graph.
        size: (height, width) where the input's shape leaves them open.

    Raises:
        ModelError: it cannot be explained; the message says at which place of the graph.
    """
    model = load_onnx(data)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY in metadata:
        known = Manifest.from_metadata(metadata)
        if known.rows:
            raise ModelError(f"the file is explained already ({', '.join(known.rows)}); attach to the plain model")
        if (mean or known.input.mean, std or known.input.std) != (known.input.mean, known.input.std):
            raise ModelError(
                f"the file normalises its pictures itself, by mean {known.input.mean} and std {known.input.std};"
                " leave --mean and --std out"
            )
        return Plain(model, known, find_classifier(model))
    found = find_classifier(model)
    if names is None or len(names) != len(found.head.bias):
        given = "none are known" if names is None else f"there are {len(names)} names"
        raise ModelError(f"the model has {len(found.head.bias)} classes and {given}; give one name a class")
    picture = picture_input(model, size, mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0))
    plain = Plain(
        model,
        Manifest(
            input=picture,
            classes=names,
            scores=Scores(tensor=found.logits, activation="sigmoid" if found.activation == "sigmoid" else "softmax"),
            provenance=Provenance(producer=f"{PRODUCER} on {model.producer_name or 'an unnamed exporter'}"[:200]),
        ),
        found,
    )
    _try_out(plain, data)
    return plain


def picture_input(
    model: ModelProto, size: tuple[int, int] | None, mean: manifest.Triple, std: manifest.Triple
) -> ModelInput:
    """Check the picture input, free its batch axis and put the normalisation behind it."""
    graph = Graph(model)
    value = graph.single_input()
    dimensions = value.type.tensor_type.shape.dim
    shape = [d.dim_value or "?" for d in dimensions]
    if value.type.tensor_type.elem_type != TensorProto.FLOAT or len(shape) != 4 or shape[1] not in (3, "?"):
        raise ModelError(f"the input '{value.name}' has shape {shape}; expected float32 (batch, 3, height, width)")
    height, width = ((d.dim_value or (0 if size is None else size[axis])) for axis, d in enumerate(dimensions[2:4]))
    if height < 1 or width < 1:
        raise ModelError(f"the input '{value.name}' leaves its size open; say which with --size HEIGHT,WIDTH")
    if size is not None and size != (height, width):
        raise ModelError(f"the input '{value.name}' is {height} x {width}, not {size[0]} x {size[1]}; leave --size out")
    if not np.isfinite((mean, std)).all() or min(std) <= 0:
        raise ModelError(f"mean {mean} and std {std} cannot normalise; expected finite numbers and std above 0")
    dimensions[0].dim_param = "batch"
    dimensions[1].dim_value, dimensions[2].dim_value, dimensions[3].dim_value = 3, height, width
    for output in model.graph.output:
        for dimension in output.type.tensor_type.shape.dim[:1]:
            dimension.dim_param = "batch"
    del model.graph.value_info[:]  # shapes inferred for the batch axis that was
    name = value.name
    if any(mean) or any(s != 1 for s in std):
        taken = {value.name, *graph.producer}
        name = next(name for name in ("image", "picture", "pellucid.picture") if name not in taken)
        constants = {"pellucid.mean": mean, "pellucid.std": std}
        for key, triple in constants.items():
            array = np.array(triple, np.float32).reshape(1, 3, 1, 1)
            model.graph.initializer.append(numpy_helper.from_array(array, key))
        model.graph.node.insert(0, helper.make_node("Sub", [name, "pellucid.mean"], ["pellucid.centred"]))
        model.graph.node.insert(1, helper.make_node("Div", ["pellucid.centred", "pellucid.std"], [value.name]))
        value.name = name
    return ModelInput(tensor=name, height=height, width=width, mean=mean, std=std)


def _try_out(plain: Plain, data: bytes) -> None:
    """Run noise through the file as it came and as it is now: freed, converted, and normalising by itself.

    Raises:
        ModelError: they differ, or the batch axis cannot be freed.
    """
    picture, head = plain.manifest.input, plain.found.head
    images = np.random.default_rng(0).random((2, 3, picture.height, picture.width), np.float32)
    session, _ = probe(plain)
    for count in (1, 2):
        answer = session.run_images(plain.manifest, images[:count])
        for tensor, wanted in ((plain.found.logits, len(head.bias)), (plain.found.pooled, head.weight.shape[1])):
            if (shape := list(answer[tensor].shape)) != [count, wanted]:
                raise ModelError(f"'{tensor}' has shape {shape} for {count} pictures; expected {[count, wanted]}")
    original = open_session(data)
    source, output = original.session.get_inputs()[0], plain.model.graph.output[0].name
    mean, std = (np.array(triple, np.float32).reshape(1, 3, 1, 1) for triple in (picture.mean, picture.std))
    count = source.shape[0] if isinstance(source.shape[0], int) else 2
    expected = original.run({source.name: ((images - mean) / std)[np.arange(count) % 2]})[output][:2]
    gap = float(abs(expected - answer[output][: len(expected)]).max())
    if not gap <= TOLERANCE * max(1.0, float(abs(expected).max())):
        raise ModelError(f"'{output}' differs by {gap:.1e} once the file is converted; export it with operator set 18")


def probe(plain: Plain, layer: Layer = POOLED) -> tuple[Session, str | None]:
    """Load the plain model with its features, and the map of `layer`, as further outputs.

    Returns:
        The session and the name of the map, if there is one.
    """
    model = ModelProto()
    model.CopyFrom(plain.model)
    tensor = layer.tensor or plain.found.map
    present = {output.name for output in model.graph.output}
    for name in (plain.found.logits, plain.found.pooled, tensor):
        if name is not None and name not in present:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
            present.add(name)
    return open_session(model.SerializeToString()), tensor


def manifest_of(model: ModelProto) -> Manifest:
    """Return a model's manifest.

    Raises:
        ModelError: it has none, or it is wrong.
    """
    return Manifest.from_metadata({entry.key: entry.value for entry in model.metadata_props})


def set_manifest(model: ModelProto, explained: Manifest) -> None:
    """Write the manifest into the metadata and remove what exporters leave behind (stack traces, local paths)."""
    others = {entry.key: entry.value for entry in model.metadata_props if entry.key != METADATA_KEY}
    helper.set_model_props(model, others | {METADATA_KEY: explained.to_json()})
    model.producer_name, model.producer_version, model.doc_string = "pellucid", __version__, ""
    _strip(model.graph)
    for function in model.functions:
        _strip(function)


def _strip(element: Message) -> None:
    """Clear every comment and every metadata entry below a part of a model."""
    for field, value in element.ListFields():
        if field.name in {"doc_string", "metadata_props"}:
            element.ClearField(field.name)
        elif field.message_type is not None:
            for item in value if isinstance(value, Sequence) else (value,):
                _strip(item)
