"""Attach explanations to a plain ONNX classifier: the same file, more outputs, unchanged logits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from analyzers import class_features, manifest, parts
from analyzers.class_features import Histogram, Int64Array, split_head
from analyzers.errors import InvalidInputError, ModelError
from analyzers.graph import filter_by_filter, grid_of
from analyzers.manifest import Provenance
from analyzers.plain import POOLED, Layer, Plain, probe, set_manifest

DEFAULT_MAX_CLASSES = 20

Float32Array = npt.NDArray[np.float32]


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
    layer: Layer = POOLED,
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
    _append(model, parts.FRAGMENTS[layer.peak], {"map": tensor}, "parts")
    return manifest.Parts(
        layer=tensor,
        cell="parts.cell",
        score="parts.score",
        grid=grid,
        filters=shape[1],
        interpretable=layer.interpretable,
        learned_for=layer.learned_for,
        peak=layer.peak,
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
