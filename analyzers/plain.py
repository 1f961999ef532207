"""A plain ONNX classifier, ours or anybody's: read, brought to one form, tried out beside the file as it came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data
from onnx.inliner import inline_local_functions

from analyzers import __version__, manifest
from analyzers.class_features import Head
from analyzers.cli import read_model
from analyzers.errors import ModelError, ModelRunError
from analyzers.find_head import Classifier, find_classifier
from analyzers.graph import Graph, ancestors
from analyzers.manifest import METADATA_KEY, Manifest, Provenance, Scores
from analyzers.preprocessing import NOTHING, Preprocessing, as_it_was, frozen_batch, picture_input, refuse_other_numbers
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


def read_onnx(path: Path) -> bytes:
    """Read an ONNX file, and into it the weights that its exporter kept in files beside it.

    Raises:
        ModelError: it is not there, or keeps weights outside its own folder.
    """
    data = read_model(path)
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # protobuf raises its own classes; `load_onnx` says what is wrong
        return data
    outside = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    if not outside:
        return data
    folder = path.resolve().parent
    for tensor in outside:
        location = ExternalDataInfo(tensor).location
        weights = folder / location
        if not location or weights.is_symlink() or not weights.resolve().is_relative_to(folder):
            raise ModelError(
                f"the model keeps '{tensor.name}' in '{location[:80]}', outside its own folder; save it as one file"
            )
        if not weights.is_file():
            raise ModelError(f"the model keeps '{tensor.name}' in '{location[:80]}', which is not beside it")
    try:
        load_external_data_for_model(model, str(folder))
        return model.SerializeToString()
    except Exception as error:  # onnx and protobuf raise unrelated classes
        raise ModelError(f"the weights beside the model cannot be read: {_one_line(error)}") from None


def load_onnx(data: bytes) -> ModelProto:
    """Parse an ONNX file and bring it to a usable operator set.

    Raises:
        ModelError: it is not ONNX, is inconsistent, keeps weights elsewhere, or cannot be converted.
    """
    try:
        model = onnx.load_model_from_string(data)
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
            raise ModelError(
                "the model keeps weights in other files; read it from its folder, or save it as one file first"
            )
        onnx.checker.check_model(model)
        if model.functions:
            model = inline_local_functions(model)
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
    preprocessing: Preprocessing = NOTHING,
    scores: str | None = None,
) -> Plain:
    """Read a plain classifier, one of ours or anybody's.

    Args:
        data: the ONNX file.
        names: class names, needed where the file does not carry them.
        preprocessing: what the model wants its pictures to be.
        scores: the output that holds the class scores, where there are several.

    Raises:
        ModelError: it cannot be explained; the message says at which place of the graph.
    """
    model = load_onnx(data)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY in metadata:
        known = Manifest.from_metadata(metadata)
        if known.rows:
            raise ModelError(f"the file is explained already ({', '.join(known.rows)}); attach to the plain model")
        refuse_other_numbers(known.input, preprocessing)
        return Plain(model, known, find_classifier(model, known.input, known.scores.tensor))
    refuse_unfit(model)
    frozen = frozen_batch(model)
    picture = picture_input(model, preprocessing)
    try:
        found = find_classifier(model, picture, scores)
    except ModelError as error:
        if not (frozen and isinstance(error, ModelRunError)):
            raise
        raise ModelError(
            f"the model was exported for a batch of {frozen} and its batch axis cannot be freed; export it with a free"
            f" (dynamic) batch axis: {error}"
        ) from None
    if names is None or len(names) != len(found.head.bias):
        given = "none are known" if names is None else f"there are {len(names)} names"
        raise ModelError(f"the model has {len(found.head.bias)} classes and {given}; give one name a class")
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


_CONTROL = frozenset({"If", "Loop", "Scan"})
_QUANTISED = frozenset(
    [
        "QuantizeLinear",
        "DynamicQuantizeLinear",
        "DequantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    ]
)
_HALVES: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


def refuse_unfit(model: ModelProto) -> None:
    """Refuse what cannot be explained whatever its head: control flow, quantised numbers, half precision.

    Raises:
        ModelError: naming the place.
    """
    for node in ancestors(Graph(model), *(output.name for output in model.graph.output)):
        place = f"{node.op_type} '{node.name or node.output[0]}'"
        if node.op_type in _CONTROL:
            raise ModelError(
                f"the model has control flow at {place}; export it for fixed shapes, as one straight graph"
            )
        if node.op_type in _QUANTISED:
            raise ModelError(
                f"the model is quantised, first at {place}; attach to the float32 model, then compare the quantised"
                " copy with `pellucid-analyze certify`"
            )
    kinds = [(tensor.name, tensor.data_type) for tensor in model.graph.initializer]
    kinds += [(value.name, value.type.tensor_type.elem_type) for value in model.graph.input]
    for name, kind in kinds:
        if kind in _HALVES:
            raise ModelError(
                f"the model keeps {_HALVES[kind]} numbers, first '{name}'; attach to the float32 model, then"
                " compare the smaller copy with `pellucid-analyze certify`"
            )


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
    frozen = source.shape[0] if isinstance(source.shape[0], int) else 2
    prepared = as_it_was(plain.model, picture, images)
    rows = [prepared[np.arange(first, first + frozen) % 2] for first in (0, 1)]
    expected = np.stack([original.run({source.name: row})[output][0] for row in rows])
    gap = float(abs(expected - answer[output]).max())
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


def explained_plain(model: ModelProto) -> Plain:
    """Return an explained model as the classifier in it; its manifest and initializers say where everything is.

    Raises:
        ModelError: it has no class features.
    """
    known = manifest_of(model)
    section = known.class_features
    if section is None:
        raise ModelError("the model has no class features; attach them with `pellucid-analyze attach`")
    graph = Graph(model)
    weight, bias = (graph.constant(f"class_features/{name}") for name in ("head_weight", "class_bias"))
    if weight is None or bias is None:
        raise ModelError("the file lacks the numbers of its final layer; attach the explanations anew")
    head = Head(weight.astype(np.float32), bias.astype(np.float32))
    found = Classifier(
        known.scores.tensor, section.pooled, head, section.map, None, section.flat, section.grid, section.inexact
    )
    return Plain(model, known, found)


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
