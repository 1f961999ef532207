"""`prove` refuses a file whose explanations are not those of the plain one, wherever the difference sits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from analyzers.attach import Selection, attach
from analyzers.errors import ModelError
from analyzers.manifest import Manifest
from analyzers.plain import Layer, Plain, probe, read_plain
from analyzers.prove import prove
from tests.conftest import NAMES, SIZE, explain_tiny, random_pictures, tiny_plain
from tests.oracles import index_sets


def images(count: int) -> np.ndarray:
    return np.random.default_rng(4).random((count, 3, SIZE, SIZE), np.float32)


def node(model: ModelProto, operation: str, row: str) -> onnx.NodeProto:
    """Return the node of a fragment."""
    return next(n for n in model.graph.node if n.op_type == operation and n.name.startswith(row))


def one_number(name: str) -> Callable[[ModelProto], None]:
    """Change one number of an initializer by a hundredth, or one index by one."""

    def change(model: ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor).copy()
        place = np.unravel_index(np.flatnonzero(array)[-1], array.shape)
        array[place] += np.array(-1 if array.dtype == np.int64 else 0.01, array.dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return change


def other_operation(operation: str, row: str, instead: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        node(model, operation, row).op_type = instead

    return change


def worst_classes_first(model: ModelProto) -> None:
    node(model, "TopK", "class_features").attribute.append(onnx.helper.make_attribute("largest", 0))


def last_of_equals(model: ModelProto) -> None:
    node(model, "ArgMax", "parts").attribute.append(onnx.helper.make_attribute("select_last_index", 1))


def other_map(model: ModelProto) -> None:
    node(model, "Reshape", "parts").input[0] = "conv"


def swapped_rows(model: ModelProto) -> None:
    """Give each class the next one's rest."""
    tensor = next(t for t in model.graph.initializer if t.name == "class_features/rest_weight")
    tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1, axis=0), tensor.name))


@pytest.mark.parametrize(
    "change",
    [
        one_number("class_features/rest_weight"),
        one_number("class_features/weight"),
        one_number("class_features/class_bias"),
        one_number("class_features/index"),
        one_number("conv_weight"),
        one_number("head_weight"),
        one_number("head_bias"),
        other_operation("ArgMax", "parts", "ArgMin"),
        other_operation("ReduceMax", "parts", "ReduceMin"),
        other_operation("ReduceMax", "parts", "ReduceSum"),
        other_operation("Mul", "class_features", "Add"),
        worst_classes_first,
        last_of_equals,
        other_map,
        swapped_rows,
    ],
)
def test_a_tampered_file_is_not_proved(change: Callable[[ModelProto], None]) -> None:
    plain, selection, _ = explain_tiny()
    explained = attach(plain, selection, max_classes=2)
    black = np.zeros((1, 3, SIZE, SIZE), np.float32)  # its maps are flat, so ties are looked at as well
    pictures = np.concatenate([images(6), black])
    prove(plain, explained, Layer(), pictures)
    change(explained)
    with pytest.raises(ModelError, match="does not agree with the plain one and was not written"):
        prove(plain, explained, Layer(), pictures)


def test_a_file_without_the_map_of_its_manifest_is_not_proved() -> None:
    plain, _, explained = explain_tiny()
    with pytest.raises(ModelError):
        prove(plain, explained, Layer(tensor="nowhere"), images(2))


def test_the_rest_of_a_class_that_is_never_among_the_best_is_proved_as_well() -> None:
    plain, selection, _ = explain_tiny()
    explained = attach(plain, selection, max_classes=1)
    logits = probe(plain)[0].run({"image": images(4)})["logits"]
    never = next(c for c in range(3) if c not in logits.argmax(1))
    tensor = next(t for t in explained.graph.initializer if t.name == "class_features/rest_weight")
    rest = numpy_helper.to_array(tensor).copy()
    rest[never] *= 1.1
    tensor.CopyFrom(numpy_helper.from_array(rest, tensor.name))
    with pytest.raises(ModelError, match="does not agree"):
        prove(plain, explained, Layer(), images(4))


def test_a_network_whose_answer_depends_on_the_other_pictures_is_not_proved() -> None:
    plain = deeper("m = ReduceMean (first, batch_axis) relu = Sub (first, m)")
    explained = attach(plain, Selection(np.array([[0], [1], [2]]), None, "given"))
    with pytest.raises(ModelError, match="does not agree"):
        prove(plain, explained, Layer(), images(3))


def test_a_network_that_answers_nan_is_not_proved() -> None:
    plain, selection, _ = explain_tiny()
    weight = next(t for t in plain.model.graph.initializer if t.name == "head_bias")
    weight.CopyFrom(numpy_helper.from_array(np.array([np.nan, 0, 0], np.float32), "head_bias"))
    with pytest.raises(ModelError, match="does not agree"):
        prove(plain, attach(plain, selection), Layer(), images(2))


def test_real_pictures_give_the_sets_of_the_algorithm() -> None:
    plain, selection, _ = explain_tiny(k=3)
    pictures = random_pictures()
    pixels = pictures.decoded(SIZE, SIZE).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    weights = {t.name: numpy_helper.to_array(t) for t in plain.model.graph.initializer}
    padded = np.pad(pixels, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]
    maps = np.einsum("bcyxij,fcij->bfyx", windows, weights["conv_weight"])
    pooled = np.maximum(maps + weights["conv_bias"][:, None, None], 0).mean((2, 3))
    expected = index_sets(pooled, pictures.label, weights["head_weight"], 3, 3, "contribution")
    assert selection.sets.tolist() == expected


def deeper(behind: str) -> Plain:
    """Return the tiny classifier with more layers of 8 filters between its map `first` and its pooled map `relu`."""
    model = onnx.load_model_from_string(tiny_plain())
    model.graph.node[1].output[0] = "first"
    inserted = onnx.parser.parse_graph(f"more (float[b, 8, 8, 8] first) => (float[b, 8, 8, 8] relu) {{ {behind} }}")
    for place, more in enumerate(inserted.node):
        model.graph.node.insert(2 + place, more)
    square = np.random.default_rng(0).normal(0, 1, (8, 8, 1, 1)).astype(np.float32)
    used = {name for n in inserted.node for name in n.input}
    arrays = {"square": square, "mask": np.ones((8, 1, 1), np.float32), "batch_axis": np.array([0])}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items() if name in used)
    return read_plain(model.SerializeToString(), names=NAMES)


@pytest.mark.parametrize(
    ("behind", "same"),
    [
        ("relu = Mul (first, mask)", True),
        ("relu = Conv (first, square)", False),
        ("c = Conv (first, square) relu = Add (c, first)", False),
    ],
)
def test_a_filter_is_named_behind_a_feature_only_where_it_is_that_feature(behind: str, same: bool) -> None:
    plain, layer = deeper(behind), Layer(tensor="first")
    explained = attach(plain, Selection(np.array([[0], [1], [2]]), None, "given"), layer=layer)
    prove(plain, explained, layer, images(3))
    described = Manifest.from_metadata({entry.key: entry.value for entry in explained.metadata_props})
    assert described.parts.layer == "first"
    assert described.class_features.features_are_filters == same
