"""Attach explanations to a plain ONNX classifier: the same file, more outputs, unchanged logits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from analyzers import class_features, manifest, parts
from analyzers.baseline import forget
from analyzers.class_features import Head, Histogram, Int64Array, split_head
from analyzers.decompose import Moments, Tuning, tune
from analyzers.decompose import decompose as class_features_only
from analyzers.errors import InvalidInputError, ModelError
from analyzers.graph import filter_by_filter, grid_of
from analyzers.manifest import Provenance
from analyzers.plain import POOLED, Layer, Plain, probe, set_manifest
from analyzers.probe import record
from analyzers.runtime import open_session

DEFAULT_MAX_CLASSES = 20
DEFAULT_MAX_REASONS = 10

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


@dataclass(frozen=True, slots=True)
class Fit:
    """What was found on labelled pictures.

    Attributes:
        selection: the class features.
        head: the decomposed final layer; None where the full one stays.
        accuracy: share of those pictures that the model gets right, with its full layer.
    """

    selection: Selection
    head: Head | None
    accuracy: float


def fit(
    plain: Plain,
    batches: Iterable[tuple[Float32Array, Int64Array]],
    selection: Selection | None = None,
    *,
    k1: int = 5,
    k2: int = 5,
    rule: manifest.Rule = "contribution",
    decomposed: Literal["kept", "refitted", "tuned"] | None = None,
    tuning: Tuning | None = None,
) -> Fit:
    """Find class features on pictures, and the decomposed layer on them; one pass, in memory that stays bounded.

    Only "tuned" keeps every picture's features, 4 bytes each.

    Args:
        plain: the classifier.
        batches: pictures (batch, 3, height, width) and their true classes (batch,).
        selection: the class features, where they are known.
        k1: features counted per picture.
        k2: class features of each class.
        rule: what ranks a feature.
        decomposed: None leaves the layer; "kept" keeps the class features' weights, "refitted" fits them to the full
            layer's logits in closed form, "tuned" goes on from there to the labels.
        tuning: how.

    Raises:
        InvalidInputError: a class has no picture, or k1 or k2 do not fit.
    """
    session, _ = probe(plain)
    head, found = plain.found.head, plain.found
    histogram = None if selection is not None else Histogram(head, k1, rule)
    moments = Moments(head) if decomposed in ("refitted", "tuned") else None
    kept: list[tuple[Float32Array, Int64Array]] = []
    right = seen = 0
    for images, label in batches:
        answer = session.run_images(plain.manifest, images)
        pooled = answer[found.pooled]
        right += int((answer[found.logits].argmax(1) == label).sum())
        seen += len(label)
        if histogram is not None:
            histogram.add(pooled, label)
        if moments is not None:
            moments.add(pooled)
        if decomposed == "tuned":
            kept.append((pooled, label))
    chosen = selection
    if histogram is not None:
        _refuse_few(histogram, plain.manifest.classes, k2)
        chosen = Selection(histogram.index_sets(k2), k1, rule)
    if chosen is None or not seen:
        raise InvalidInputError("data", "holds no picture")
    smaller = None
    if decomposed is not None:
        smaller = class_features_only(head, chosen.sets) if moments is None else moments.refit(chosen.sets)
    if decomposed == "tuned" and smaller is not None:
        pooled, label = (np.concatenate(column) for column in zip(*kept, strict=True))
        smaller = tune(head, smaller, chosen.sets, pooled, label, tuning or Tuning())
    return Fit(chosen, smaller, right / seen)


def _refuse_few(histogram: Histogram, classes: tuple[str, ...], k2: int) -> None:
    """Refuse to find a class's features on fewer pictures than it is to have features.

    Raises:
        InvalidInputError: naming the class.
    """
    wanted = 1 if histogram.rule in ("weight", "absolute_weight", "random") else min(histogram.k1, k2)
    few = np.flatnonzero(histogram.pictures < wanted)
    if len(few) and histogram.pictures[few[0]]:
        number, count = int(few[0]), int(histogram.pictures[few[0]])
        more = f", and so have {len(few) - 1} other classes" if len(few) > 1 else ""
        raise InvalidInputError(
            "data",
            f"has {count} pictures of class {number} ('{classes[number]}'), too few to find {wanted} features on{more};"
            " give more pictures, or lower k1 and k2",
        )


def attach(
    plain: Plain,
    selection: Selection,
    *,
    layer: Layer = POOLED,
    max_classes: int = DEFAULT_MAX_CLASSES,
    max_reasons: int = DEFAULT_MAX_REASONS,
    decomposed: Literal["kept", "refitted", "tuned"] | None = None,
    provenance: Provenance | None = None,
) -> ModelProto:
    """Return the classifier with its explanation outputs and manifest; logits are untouched.

    Args:
        plain: the classifier.
        selection: its class-specific features.
        layer: which conv map to report as parts.
        max_classes: for how many of the best classes a ledger is computed.
        max_reasons: how many features each of them names, those with the largest contributions.
        decomposed: how its final layer was decomposed, if it was.
        provenance: where the explanations came from.

    Raises:
        ModelError: the layer is unknown, or the edited graph is inconsistent.
        InvalidInputError: no class is to have a ledger.
    """
    model = ModelProto()
    model.CopyFrom(plain.model)
    forget(model)
    known = plain.manifest
    for name, value in (("max_classes", max_classes), ("max_reasons", max_reasons)):
        if value < 1:
            raise InvalidInputError(name, f"is {value}; expected 1 or more")
    shown = {plain.found.logits: len(known.classes), plain.found.pooled: plain.found.head.weight.shape[1]}
    for tensor in sorted(shown.keys() - {output.name for output in model.graph.output}):
        model.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["batch", shown[tensor]]))
    top = min(max_classes, len(known.classes))
    parts_section = _attach_parts(model, plain, layer)
    features = _attach_class_features(model, plain, selection, (top, max_reasons), parts_section)
    explained = known.model_copy(
        update={
            "provenance": provenance or known.provenance,
            "parts": parts_section,
            "class_features": features.model_copy(update={"decomposed": decomposed}),
        }
    )
    set_manifest(model, explained)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx raises unrelated classes
        raise ModelError(f"the explained graph is inconsistent: {str(error)[:300]}") from None
    record(model, open_session(model.SerializeToString()), explained)
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
    model: ModelProto,
    plain: Plain,
    selection: Selection,
    most: tuple[int, int],
    parts_section: manifest.Parts | None,
) -> manifest.ClassFeatures:
    """Append ledgers of the `most` (classes, reasons), their contrast and their evidence by cell."""
    top, found, row = most[0], plain.found, "class_features"
    classes, features = found.head.weight.shape
    k2 = selection.sets.shape[1]
    reasons = min(most[1], k2)
    weight, rest_weight = split_head(found.head, selection.sets)
    bound = _constants(
        model,
        {
            "max_classes": np.array([top], np.int64),
            "index": selection.sets[:, :, None],
            "weight": weight,
            "rest_weight": rest_weight,
            "class_bias": found.head.bias,
            "head_weight": found.head.weight,
        },
    ) | {"pooled": found.pooled, "logits": found.logits}
    if reasons == k2:
        _append(model, class_features.LEDGER, bound, row)
    else:
        every = {name: f"{row}/every_{name}" for name in ("features", "activations", "contributions")}
        _append(model, class_features.LEDGER, bound, row, hidden=every)
        bound |= _constants(model, {"max_reasons": np.array([reasons], np.int64)})
        bound |= {f"every_{name[:-1]}": tensor for name, tensor in every.items()}
        _append(model, class_features.REASONS, bound, row)
    bound |= {"classes": f"{row}.classes", "top_weight": f"{row}/top_weight"}
    contrast, grid = None, found.grid
    if top > 1 or (grid is not None and not found.flat):
        _append(model, class_features.TOP_WEIGHT, bound, row, hidden={"top_weight": bound["top_weight"]})
    if top > 1:
        sign = np.zeros((1, top), np.float32)
        sign[0, :2] = 1, -1
        few: dict[str, npt.NDArray[Any]] = {
            "sign": sign,
            "contrast_reasons": np.array([min(most[1], features)], np.int64),
        }
        bound |= _constants(model, few)
        bound |= {"max_reasons": bound["contrast_reasons"]}
        every = {"every": f"{row}/contrast/every"}
        _append(model, class_features.CONTRAST, bound, f"{row}.contrast", hidden=every)
        if grid is None:
            _append(model, class_features.TOTAL, every, f"{row}.contrast")
        contrast = manifest.Contrast(
            features=f"{row}.contrast.features",
            contributions=f"{row}.contrast.contributions",
            total=f"{row}.contrast.total" if grid is None else None,
        )
    if grid is not None:
        bound |= _constants(model, {"shape": np.array([0, 0, *grid.cells], np.int64)}) | {"map": found.map or ""}
        cells = grid.cells[0] * grid.cells[1]
        if found.flat:
            by_cell = found.head.weight.reshape(classes, -1, cells)
            _append(model, class_features.FLAT_EVIDENCE, bound | _constants(model, {"cell_weight": by_cell}), row)
        else:
            bound |= _constants(model, {"cells": np.array([cells], np.float32)})
            if parts_section is not None and parts_section.layer == found.map and parts_section.peak == "argmax":
                bound["by_cell"] = "parts/flat"  # parts look at the same rows of cells
            else:
                bound["by_cell"] = f"{row}/by_cell"
                _append(model, class_features.BY_CELL, bound, row, hidden={"by_cell": bound["by_cell"]})
            _append(model, class_features.EVIDENCE, bound, row)
    return manifest.ClassFeatures(
        classes=f"{row}.classes",
        features=f"{row}.features",
        activations=f"{row}.activations",
        contributions=f"{row}.contributions",
        omitted=None if reasons == k2 else f"{row}.omitted",
        rest=f"{row}.rest",
        bias=f"{row}.bias",
        contrast=contrast,
        evidence=None if grid is None else f"{row}.evidence",
        grid=grid,
        pooled=found.pooled,
        head=f"{row}.head",
        map=found.map,
        flat=found.flat,
        inexact=found.inexact,
        max_classes=top,
        reasons=reasons,
        k1=selection.k1,
        k2=k2,
        rule=selection.rule,
        features_are_filters=found.map is not None
        and not found.flat
        and parts_section is not None
        and parts_section.filters == features
        and filter_by_filter(plain.model, found.map, parts_section.layer),
    )


def _constants(model: ModelProto, numbers: dict[str, npt.NDArray[Any]]) -> dict[str, str]:
    """Put numbers of the row into the file; return their tensors by name."""
    for name, array in numbers.items():
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), f"class_features/{name}")
        model.graph.initializer.append(tensor)
    return {name: f"class_features/{name}" for name in numbers}


def _append(
    model: ModelProto, fragment: str, bound: dict[str, str], row: str, hidden: dict[str, str] | None = None
) -> None:
    """Append a fragment's nodes.

    Its inputs become the `bound` tensors, its outputs `row.name` unless `hidden`, the rest `row/fragment/name`.
    """
    source = onnx.parser.parse_model(fragment).graph
    inner = row if row == source.name else f"{row.split('.')[0]}/{source.name}"
    hidden = hidden or {}
    own = {value.name: bound[value.name] for value in source.input}
    names = own | {output.name: f"{row}.{output.name}" for output in source.output} | hidden
    for node in source.node:
        copy = model.graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{inner}/{node.op_type}_{node.output[0]}"
        for field in (copy.input, copy.output):
            field[:] = [names.get(name, f"{inner}/{name}") if name else "" for name in field]
    for output in (output for output in source.output if output.name not in hidden):
        value = model.graph.output.add()
        value.CopyFrom(output)
        value.name = names[output.name]
        for dimension in value.type.tensor_type.shape.dim:  # fragments share no sizes but the batch
            if dimension.dim_param != "batch":
                dimension.dim_param = f"{row}.{dimension.dim_param}"
