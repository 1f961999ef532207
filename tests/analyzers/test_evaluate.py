"""The report's figures, against numpy on the plain model, with labels that leave no room for luck."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest

from analyzers.attach import Selection, attach
from analyzers.class_features import membership
from analyzers.errors import DataError, ModelError
from analyzers.evaluate import evaluate
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.plain import Plain, probe, read_plain
from analyzers.runtime import open_session
from tests import oracles
from tests.conftest import NAMES, SIZE, random_pictures, tiny_plain

SETS = np.array([[0, 1, -1], [2, 3, 5], [6, -1, -1]])


@cache
def plain() -> Plain:
    """Return the tiny classifier with a bias under which noise is now of this class, now of that."""
    model = onnx.load_model_from_string(tiny_plain())
    weight, bias = (next(t for t in model.graph.initializer if t.name == name) for name in ("head_weight", "head_bias"))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("flat"))
    images = to_model_input(random_pictures(60).decoded(SIZE, SIZE))
    mean = open_session(model.SerializeToString()).run({"image": images})["flat"].mean(0)
    del model.graph.output[1]
    middle = -(onnx.numpy_helper.to_array(weight) @ mean)
    bias.CopyFrom(onnx.numpy_helper.from_array(middle.astype(np.float32), bias.name))
    return read_plain(model.SerializeToString(), names=NAMES)


def explained(sets: np.ndarray = SETS, rule: str = "given", k1: int | None = None) -> bytes:
    return attach(plain(), Selection(sets, k1, rule)).SerializeToString()


def answers(pictures: Pictures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the plain model's logits and features, and the logits of the class features alone."""
    found = plain().found
    answer = probe(plain())[0].run({"image": to_model_input(pictures.decoded(SIZE, SIZE))})
    pooled = answer[found.pooled].astype(np.float64)
    own = pooled @ np.where(membership(found.head, SETS), found.head.weight, 0).T + found.head.bias
    return answer[found.logits], pooled, own


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_accuracy_is_the_share_of_pictures_whose_highest_logit_is_their_label(batch_size: int) -> None:
    pictures = random_pictures(40)
    logits, _, own = answers(pictures)
    assert len(set(logits.argmax(1))) == 3
    for wrong in (0, 3, 40):
        label = logits.argmax(1)
        label[:wrong] = (label[:wrong] + 1) % 3
        report = evaluate(explained(), replace(pictures, label=label), split="all", batch_size=batch_size)
        share = 1 - wrong / 40
        assert report["accuracy"]["value"] == share
        assert report["accuracy"]["n"] == 40
        assert report["accuracy"]["standard_error"] == pytest.approx((share * (1 - share) / 40) ** 0.5)
        assert report["accuracy"]["controls"]["majority_class"] == np.bincount(label).max() / 40
        assert report["accuracy_class_features"]["value"] == (own.argmax(1) == label).mean()


def test_class_features_alone_are_measured_by_the_decomposed_logits() -> None:
    pictures = random_pictures(40)
    logits, _, own = answers(pictures)
    assert (own.argmax(1) != logits.argmax(1)).any()
    report = evaluate(explained(), replace(pictures, label=own.argmax(1)), split="all")
    assert report["accuracy_class_features"]["value"] == 1
    agreement = (own.argmax(1) == logits.argmax(1)).mean()
    assert report["accuracy"]["value"] == report["agreement_class_features"]["value"] == agreement


def test_the_curve_s_sets_are_found_on_the_train_split_by_the_algorithm() -> None:
    pictures = random_pictures(60)
    head = plain().found.head
    report = evaluate(explained(np.array([[0], [1], [2]]), "feature", 1), pictures)
    _, fitted, _ = answers(pictures.of_split("train"))
    test = pictures.of_split("test")
    _, pooled, _ = answers(test)
    assert [row["k"] for row in report["accuracy_by_k"]] == [1, 3, 5]
    for row in report["accuracy_by_k"]:
        k = row["k"]
        label = pictures.of_split("train").label
        sets = oracles.index_sets(fitted.astype(np.float32), label, head.weight, k, k, "feature")
        right = 0
        for features, truth in zip(pooled, test.label, strict=True):
            logit = [head.bias[c] + sum(head.weight[c, j] * features[j] for j in sets[c]) for c in range(3)]
            right += int(np.argmax(logit)) == truth
        assert row["value"] == right / len(test)


def test_there_is_no_curve_without_a_rule_or_without_train_pictures() -> None:
    pictures = random_pictures(30)
    assert "accuracy_by_k" not in evaluate(explained(), pictures)
    only_test = replace(pictures, split=np.ones(30, np.int64))
    assert "accuracy_by_k" not in evaluate(explained(rule="feature", k1=3), only_test)
    assert "accuracy_by_k" in evaluate(explained(rule="feature", k1=3), pictures)


def test_the_completeness_gap_is_that_of_the_file() -> None:
    assert evaluate(explained(), random_pictures(10), split="all")["completeness_gap"]["value"] < 1e-5
    model = onnx.load_model_from_string(explained())
    bias = next(t for t in model.graph.initializer if t.name == "class_features/class_bias")
    shifted = onnx.numpy_helper.to_array(bias) + np.float32(0.5)
    bias.CopyFrom(onnx.numpy_helper.from_array(shifted, bias.name))
    report = evaluate(model.SerializeToString(), random_pictures(10), split="all")
    assert report["completeness_gap"]["value"] == pytest.approx(0.5, abs=1e-4)


def test_labels_follow_the_names_and_not_the_numbers() -> None:
    pictures = random_pictures(40)
    logits, _, _ = answers(pictures)
    named = replace(pictures, label=logits.argmax(1)).relabelled(("owl", "cat", "dog"))
    assert evaluate(explained(), named, split="all")["accuracy"]["value"] == 1


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        evaluate(b"not ONNX", random_pictures())
    with pytest.raises(ModelError, match=r"no 'pellucid\.manifest' in its metadata"):
        evaluate(tiny_plain(), random_pictures())
    with pytest.raises(DataError, match="the data's classes are not the model's"):
        evaluate(explained(), replace(random_pictures(), names=("a", "b", "c")))
    with pytest.raises(DataError, match="no picture"):
        evaluate(explained(), random_pictures().take(np.array([], np.int64)), split="all")
