"""What a classifier without a manifest is: its input, its head, its features and the map behind them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from analyzers.conv_maps import ConvMap, find_conv_maps
from analyzers.errors import ModelError
from analyzers.find_head import Classifier, find_classifier
from analyzers.manifest import ModelInput
from analyzers.plain import load_onnx, refuse_unfit
from analyzers.preprocessing import Preprocessing, picture_input


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in a plain file.

    Attributes:
        producer: what the file says of its exporter.
        opset: its operator set, once converted.
        picture: its input.
        classifier: its head.
        maps: its conv maps that lie on a grid over the picture.
    """

    producer: str
    opset: int
    picture: ModelInput
    classifier: Classifier
    maps: tuple[ConvMap, ...]


def look(data: bytes, preprocessing: Preprocessing, scores: str | None = None) -> Found:
    """Find what `attach` would find, without pictures and without writing anything.

    Raises:
        ModelError: it cannot be explained; the message says at which place of the graph.
    """
    model = load_onnx(data)
    refuse_unfit(model)
    producer = " ".join(part for part in (model.producer_name, model.producer_version) if part)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    picture = picture_input(model, preprocessing)
    classifier = find_classifier(model, picture, scores)
    try:
        maps = find_conv_maps(model, picture)
    except ModelError:  # a network without convolutions has a head all the same
        maps = ()
    return Found(producer or "an unnamed exporter", opset, picture, classifier, maps)


def as_json(found: Found) -> dict[str, Any]:
    """Return what was found as plain values."""
    head, classifier = found.classifier.head, found.classifier
    grid = None if classifier.grid is None else classifier.grid.model_dump(mode="json")
    return {
        "producer": found.producer,
        "opset": found.opset,
        "input": found.picture.model_dump(mode="json"),
        "scores": {"tensor": classifier.logits, "activation": classifier.activation},
        "classes": len(head.bias),
        "features": {"tensor": classifier.pooled, "count": head.weight.shape[1]},
        "map": None if classifier.map is None else {"tensor": classifier.map, "flat": classifier.flat, "grid": grid},
        "exact": not classifier.inexact,
        "inexact": classifier.inexact,
        "conv_maps": [asdict(one) | {"grid": one.grid.model_dump(mode="json")} for one in found.maps],
    }


def lines(found: Found) -> list[str]:
    """Return what was found as text."""
    classifier, size = found.classifier, found.picture
    features = classifier.head.weight.shape[1]
    behind = {None: "none behind them", "softmax": "softmax behind them", "sigmoid": "sigmoid behind them"}
    where = f"exact: false, {classifier.inexact}"
    if classifier.grid is not None:
        what = "a weight for each cell" if classifier.flat else "their means are the features"
        where = f"'{classifier.map}', {classifier.grid.cells} cells, stride {classifier.grid.stride}; {what}"
    return [
        f"written by      {found.producer}, operator set {found.opset}; no manifest: `attach` adds one",
        f"input           {size.tensor}: RGB {size.height} x {size.width}",
        f"scores          '{classifier.logits}', {len(classifier.head.bias)} classes, {behind[classifier.activation]}",
        f"final layer     {features} features in '{classifier.pooled}'",
        f"map             {where}",
        "conv maps       " + ("\n                ".join(map(str, found.maps)) or "none on a grid over the picture"),
    ]
