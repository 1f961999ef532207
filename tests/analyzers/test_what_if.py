"""What would be without a feature: exact for every class; the smallest set that flips is the smallest there is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import onnx
import pytest

from analyzers.attach import Selection, attach
from analyzers.errors import InvalidInputError
from analyzers.plain import manifest_of, read_plain
from analyzers.runtime import open_session
from analyzers.what_if import Change, scales, smallest_flip, what_if
from tests.conftest import NAMES, SIZE, explain_tiny, tiny_graph, tiny_plain

IMAGES = np.random.default_rng(3).random((6, 3, SIZE, SIZE), np.float32)


def outputs(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return open_session(model.SerializeToString()).run({"image": IMAGES})


@pytest.mark.parametrize("feature", range(8))
def test_logits_without_a_feature_are_those_of_a_file_whose_layer_does_not_read_it(feature: int) -> None:
    answer = outputs(explain_tiny()[2])
    without = onnx.load_model_from_string(tiny_plain())
    for tensor in without.graph.initializer:
        if tensor.name == "head_weight":
            weight = onnx.numpy_helper.to_array(tensor).copy()
            weight[:, feature] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    expected = outputs(without)["logits"]
    for row in range(len(IMAGES)):
        found = what_if(answer["logits"][row], answer["flat"][row], answer["class_features.head"], {feature: 0.0})
        np.testing.assert_allclose(found, expected[row], atol=1e-5)


def test_scaling_by_one_changes_nothing_and_changes_add_up() -> None:
    random = np.random.default_rng(0)
    logits, pooled, weight = random.normal(size=3), random.random(5), random.normal(size=(3, 5))
    np.testing.assert_allclose(what_if(logits, pooled, weight, {0: 1.0, 3: 1.0}), logits)
    np.testing.assert_allclose(what_if(logits, pooled, weight, {}), logits)
    both = what_if(logits, pooled, weight, {1: 2.0, 4: 0.5})
    np.testing.assert_allclose(both, logits + weight[:, 1] * pooled[1] - 0.5 * weight[:, 4] * pooled[4])


@pytest.mark.parametrize("seed", range(30))
def test_the_smallest_flip_is_the_smallest_of_all_sets(seed: int) -> None:
    random = np.random.default_rng(seed)
    weight, bias = random.normal(size=(4, 9)), random.normal(0, seed % 3, 4)
    pooled = random.random(9) * (random.random(9) < 0.8)
    logits = weight @ pooled + bias
    best = logits.argmax()
    flipping = [
        chosen
        for count in range(1, 10)
        for chosen in combinations(range(9), count)
        if what_if(logits, pooled, weight, dict.fromkeys(chosen, 0.0)).argmax() != best
    ]
    found = smallest_flip(logits, pooled, weight)
    if not flipping:
        assert found is None
        return
    assert len(found.features) == len(flipping[0])
    assert tuple(sorted(found.features)) in {chosen for chosen in flipping if len(chosen) == len(flipping[0])}
    assert found.logits.argmax() != best


def test_a_class_that_its_bias_decides_cannot_be_flipped() -> None:
    assert smallest_flip(np.array([9.0, 1.0]), np.array([1.0]), np.array([[0.0], [1.0]]) * 0) is None


def test_parts_and_nodes_stand_for_the_features_of_their_filters() -> None:
    from analyzers.attach_graph import attach_graph

    model = attach_graph(explain_tiny()[2], tiny_graph(explain_tiny()[2]))
    manifest, answer = manifest_of(model), outputs(model)
    layer = manifest.explanatory_graph.layers[0]
    place = next(place for place, number in enumerate(layer.node[0]) if number >= 0)
    changes = [Change("part", layer.filter[0][place] + 1 - 8 * (layer.filter[0][place] == 7), 0.5)]
    node = Change("node", layer.node[0][place], 0.25, 0)
    assert scales([node], manifest, answer, 0) == {layer.filter[0][place]: 0.25}
    assert scales(changes, manifest, answer, 0) == {changes[0].number: 0.5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([Change("feature", 8)], "changes[0]: names feature 8; there are 0 to 7"),
        ([Change("feature", 1), Change("part", -1)], "changes[1]: names part -1; there are 0 to 7"),
        (
            [Change("feature", 1), Change("part", 1)],
            "changes[1]: changes feature 1, which an earlier one changes already",
        ),
        ([Change("feature", 1, float("nan"))], "changes[0]: has scale nan; expected a finite number"),
        ([Change("node", 1)], "changes[0]: names layer 0 of the graph; the model has 0 of them"),
    ],
)
def test_what_is_not_there_cannot_change(changes: list[Change], words: str) -> None:
    model = explain_tiny()[2]
    with pytest.raises(InvalidInputError) as caught:
        scales(changes, manifest_of(model), outputs(model), 0)
    assert words in str(caught.value)


def test_parts_that_are_no_features_cannot_change_but_features_can() -> None:
    data = onnx.load_model_from_string(tiny_plain())
    pool = next(node for node in data.graph.node if node.op_type == "GlobalAveragePool")
    pool.op_type = "GlobalMaxPool"
    plain = read_plain(data.SerializeToString(), names=NAMES)
    model = attach(plain, Selection(np.array([[0], [1], [2]]), None, "given"))
    assert scales([Change("feature", 2)], manifest_of(model), outputs(model), 0) == {2: 0.0}
    with pytest.raises(InvalidInputError, match="parts of this model are no features: the final layer reads"):
        scales([Change("part", 2)], manifest_of(model), outputs(model), 0)
