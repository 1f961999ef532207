"""Attach explanations to a plain ONNX classifier: the same file, more outputs, unchanged logits.

`attach` edits the graph, `prove` runs both files on the same pictures and refuses any difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, helper, numpy_helper

from analyzers import __version__, class_features, manifest, parts
from analyzers.class_features import Histogram, Int64Array, split_head
from analyzers.errors import InvalidInputError, ModelError
from analyzers.graph import Classifier, Graph, filter_by_filter, find_classifier, grid_of
from analyzers.manifest import METADATA_KEY, Manifest, ModelInput, Provenance, Scores
from analyzers.runtime import Session, open_session

MIN_OPSET = 18  # ReduceMax takes its axes as an input from here on
MIN_IR_VERSION = 8  # that of operator set 18; initializers need not be inputs
DEFAULT_MAX_CLASSES = 20
TOLERANCE = 1e-4
PRODUCER = f"pellucid {__version__}"

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layer:
    """The conv map whose filters are reported as parts.

    Attributes:
        tensor: its name in the graph, before any mask; None takes the map that the head pools.
        interpretable: whether it was trained with part templates.
        learned_for: class of each filter, where filters were learned for classes.
    """

    tensor: str | None = None
    interpretable: bool = False
    learned_for: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """The class-specific features of every class and how they were found.

    Attributes:
        sets: (classes, k2) feature numbers; -1 pads.
        k1: features counted per picture; None for given sets.
        rule: what was ranked.
    """

    sets: Int64Array
    k1: int | None
    rule: str


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
    picture = _picture_input(model, size, mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0))
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


def _picture_input(
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


def probe(plain: Plain, layer: Layer = Layer()) -> tuple[Session, str | None]:
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


def select(
    plain: Plain,
    batches: Iterable[tuple[Float32Array, Int64Array]],
    *,
    k1: int,
    k2: int,
    rule: class_features.Rule,
) -> Selection:
    """Find the class-specific features from pictures (batch, 3, height, width) and their true classes."""
    session, _ = probe(plain)
    histogram = Histogram(plain.found.head, k1, rule)
    for images, label in batches:
        histogram.add(session.run_images(plain.manifest, images)[plain.found.pooled], label)
    return Selection(histogram.index_sets(k2), k1, rule)


def attach(
    plain: Plain,
    selection: Selection,
    *,
    layer: Layer = Layer(),
    max_classes: int = DEFAULT_MAX_CLASSES,
    provenance: Provenance | None = None,
) -> ModelProto:
    """Return the classifier with its explanation outputs and manifest; logits are untouched.

    Args:
        plain: the classifier.
        selection: its class-specific features.
        layer: which conv map to report as parts.
        max_classes: for how many of the best classes a ledger is computed.
        provenance: where the explanations came from.

    Raises:
        ModelError: the layer is unknown, or the edited graph is inconsistent.
        InvalidInputError: no class is to have a ledger.
    """
    model = ModelProto()
    model.CopyFrom(plain.model)
    known = plain.manifest
    if max_classes < 1:
        raise InvalidInputError("max_classes", f"is {max_classes}; expected 1 or more")
    if plain.found.logits not in {output.name for output in model.graph.output}:
        model.graph.output.append(
            helper.make_tensor_value_info(plain.found.logits, TensorProto.FLOAT, ["batch", len(known.classes)])
        )
    top = min(max_classes, len(known.classes))
    parts_section = _attach_parts(model, plain, layer)
    explained = known.model_copy(
        update={
            "provenance": provenance or known.provenance,
            "parts": parts_section,
            "class_features": _attach_class_features(model, plain, selection, top, parts_section),
        }
    )
    set_manifest(model, explained)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx raises unrelated classes
        raise ModelError(f"the explained graph is inconsistent: {str(error)[:300]}") from None
    return model


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


def _attach_parts(model: ModelProto, plain: Plain, layer: Layer) -> manifest.Parts | None:
    """Append the `parts` fragment and return its section; None where no conv map was found."""
    tensor = layer.tensor or plain.found.map
    if tensor is None:
        return None
    picture = plain.manifest.input
    session, _ = probe(plain, layer)
    shape = session.run_images(plain.manifest, np.zeros((1, 3, picture.height, picture.width), np.float32))[
        tensor
    ].shape
    if len(shape) != 4 and layer.tensor is None:
        return None
    if len(shape) != 4:
        raise ModelError(f"the layer '{tensor}' has shape {list(shape)}; expected (batch, filters, height, width)")
    if layer.learned_for is not None and len(layer.learned_for) != shape[1]:
        raise ModelError(f"{len(layer.learned_for)} filter classes for the {shape[1]} filters of '{tensor}'")
    grid = grid_of(plain.model, tensor, (shape[2], shape[3]))
    if grid is None:
        return None
    _append(model, parts.FRAGMENT, {"map": tensor}, "parts")
    return manifest.Parts(
        layer=tensor,
        cell="parts.cell",
        score="parts.score",
        grid=grid,
        filters=shape[1],
        interpretable=layer.interpretable,
        learned_for=layer.learned_for,
    )


def _attach_class_features(
    model: ModelProto, plain: Plain, selection: Selection, top: int, parts_section: manifest.Parts | None
) -> manifest.ClassFeatures:
    weight, rest_weight = split_head(plain.found.head, selection.sets)
    numbers = {
        "max_classes": np.array([top], np.int64),
        "index": selection.sets[:, :, None],
        "weight": weight,
        "rest_weight": rest_weight,
        "class_bias": plain.found.head.bias,
    }
    row = "class_features"
    for name, array in numbers.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{row}/{name}"))
    bound = {name: f"{row}/{name}" for name in numbers} | {
        "pooled": plain.found.pooled,
        "logits": plain.found.logits,
    }
    _append(model, class_features.FRAGMENT, bound, row)
    return manifest.ClassFeatures(
        classes=f"{row}.classes",
        features=f"{row}.features",
        activations=f"{row}.activations",
        contributions=f"{row}.contributions",
        rest=f"{row}.rest",
        bias=f"{row}.bias",
        max_classes=top,
        k1=selection.k1,
        k2=selection.sets.shape[1],
        rule=selection.rule,
        features_are_filters=plain.found.map is not None
        and parts_section is not None
        and parts_section.filters == plain.found.head.weight.shape[1]
        and filter_by_filter(plain.model, plain.found.map, parts_section.layer),
    )


def _append(model: ModelProto, fragment: str, bound: dict[str, str], row: str) -> None:
    """Append a fragment's nodes; its inputs become the `bound` tensors, its outputs `row.name`, the rest `row/name`."""
    source = onnx.parser.parse_model(fragment).graph
    names = bound | {output.name: f"{row}.{output.name}" for output in source.output}
    for node in source.node:
        copy = model.graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{row}/{node.op_type}_{node.output[0]}"
        for field in (copy.input, copy.output):
            field[:] = [names.get(name, f"{row}/{name}") if name else "" for name in field]
    for output in source.output:
        value = model.graph.output.add()
        value.CopyFrom(output)
        value.name = names[output.name]
        for dimension in value.type.tensor_type.shape.dim:  # fragments share no sizes but the batch
            if dimension.dim_param != "batch":
                dimension.dim_param = f"{row}.{dimension.dim_param}"


@dataclass(frozen=True, slots=True)
class Proof:
    """What `prove` found.

    Attributes:
        pictures: how many pictures were compared.
        logits_gap: largest absolute difference between the plain and the explained file's logits, the first picture
            also alone.
        completeness_gap: largest absolute difference between a logit and its ledger, over all classes.
        moved_peaks: peaks whose cell or value differs from the maps' own.
    """

    pictures: int
    logits_gap: float
    completeness_gap: float
    moved_peaks: int


def prove(plain: Plain, explained: ModelProto, layer: Layer, images: Float32Array) -> Proof:
    """Run the plain and the explained file on the same pictures.

    Raises:
        ModelError: the logits changed, the best classes are others, a ledger does not add up, or a peak moved.
    """
    described = Manifest.from_metadata({e.key: e.value for e in explained.metadata_props})
    section, scores = described.class_features, described.scores.tensor
    assert section is not None  # noqa: S101 (attach always writes it)
    probed, tensor = probe(plain, layer)
    truth = probed.run_images(plain.manifest, images)
    session = open_session(explained.SerializeToString())
    answer, alone = session.run_images(described, images), session.run_images(described, images[:1])
    logits, pooled = truth[plain.found.logits], truth[plain.found.pooled]
    head = plain.found.head
    # Over all classes: the file's own rest, and the chosen features' share computed here, independently.
    chosen = next(numpy_helper.to_array(t) for t in explained.graph.initializer if t.name == "class_features/index")
    own = class_features.membership(head, chosen[:, :, 0])
    total = pooled.astype(np.float64) @ np.where(own, head.weight, 0).T + answer[section.rest] + head.bias
    ledgers = answer[section.contributions].sum(-1) + answer[section.bias]
    ledgers += np.take_along_axis(answer[section.rest], answer[section.classes], 1)
    best = -np.sort(-logits, axis=1)[:, : section.max_classes]
    scale = max(1.0, float(abs(logits).max()))
    moved = 0
    if described.parts is not None and tensor is not None:
        flat = truth[tensor].reshape(len(images), described.parts.filters, -1)
        differ = abs(flat.max(-1) - answer[described.parts.score]) > TOLERANCE * max(1.0, float(abs(flat).max()))
        moved = int(((flat.argmax(-1) != answer[described.parts.cell]) | differ).sum())
    proof = Proof(
        pictures=len(images),
        logits_gap=float(max(abs(answer[scores] - logits).max(), abs(alone[scores] - logits[:1]).max())),
        completeness_gap=float(max(abs(total - logits).max(), abs(ledgers - best).max())),
        moved_peaks=moved,
    )
    if not (proof.logits_gap <= TOLERANCE * scale and proof.completeness_gap <= TOLERANCE * scale and not moved):
        raise ModelError(f"the explained file does not agree with the plain one and was not written: {proof}")
    return proof
