"""Decomposed layers in numpy: against literal sums, against a solver, and put into files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from analyzers.__main__ import main
from analyzers.class_features import Head
from analyzers.decompose import Moments, Tuning, decompose, tune
from analyzers.errors import InvalidInputError, ModelError
from analyzers.plain import explained_plain, manifest_of, read_plain
from analyzers.replace_head import replace_head
from analyzers.runtime import open_session
from tests.conftest import NAMES, SIZE, random_pictures, tiny_plain

RANDOM = np.random.default_rng(0)
POOLED = RANDOM.gamma(0.5, 1, (300, 12)).astype(np.float32)
FULL = Head(RANDOM.normal(0, 1, (4, 12)).astype(np.float32), RANDOM.normal(0, 1, 4).astype(np.float32))
LABEL = (POOLED @ FULL.weight.T + FULL.bias).argmax(1)
SETS = np.array([[0, 3, 5], [1, 2, 7], [4, 6, -1], [11, 0, 9]])


def test_a_decomposed_layer_sums_over_its_own_features_and_nothing_else() -> None:
    """z'_c = b_c + sum_{j in I_c} W_cj f_j, arXiv 2112.07719, literally."""
    smaller = decompose(FULL, SETS)
    logits = POOLED @ smaller.weight.T + smaller.bias
    assert logits.shape == (300, 4)
    for row in range(0, 300, 30):
        for c in range(4):
            literal = FULL.bias[c] + sum(FULL.weight[c, j] * POOLED[row, j] for j in SETS[c] if j >= 0)
            assert logits[row, c] == pytest.approx(literal, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 300])
def test_a_refit_is_the_least_squares_of_the_full_logits_however_pictures_are_batched(batch: int) -> None:
    moments = Moments(FULL)
    for start in range(0, 300, batch):
        moments.add(POOLED[start : start + batch])
    refitted = moments.refit(SETS, ridge=0.0)
    target = POOLED.astype(np.float64) @ FULL.weight.T + FULL.bias
    for c, row in enumerate(SETS):
        own = row[row >= 0]
        design = np.concatenate([POOLED[:, own], np.ones((300, 1))], axis=1)
        solution, *_ = np.linalg.lstsq(design, target[:, c], rcond=None)
        np.testing.assert_allclose(refitted.weight[c, own], solution[:-1], rtol=1e-3, atol=1e-4)
        assert refitted.bias[c] == pytest.approx(solution[-1], abs=1e-3)
        assert np.count_nonzero(refitted.weight[c]) == len(own)


def test_a_refit_on_every_feature_is_the_full_layer() -> None:
    moments = Moments(FULL)
    moments.add(POOLED)
    everything = np.tile(np.arange(12), (4, 1))
    np.testing.assert_allclose(moments.refit(everything, ridge=0.0).weight, FULL.weight, atol=1e-3)


def test_features_that_never_fire_do_not_break_a_refit() -> None:
    dead = POOLED.copy()
    dead[:, [0, 3, 5]] = 0
    moments = Moments(FULL)
    moments.add(dead)
    assert np.isfinite(moments.refit(SETS).weight).all()


def test_a_refit_needs_pictures() -> None:
    with pytest.raises(InvalidInputError, match="data: holds no picture"):
        Moments(FULL).refit(SETS)


@pytest.mark.parametrize("distil", [0.0, 0.5, 1.0])
def test_tuning_lowers_the_loss_and_keeps_the_zeros(distil: float) -> None:
    start = decompose(FULL, SETS)
    tuned = tune(FULL, start, SETS, POOLED, LABEL, Tuning(epochs=30, learning_rate=1e-2, distil=distil))

    def accuracy(head: Head) -> float:
        return float(((POOLED @ head.weight.T + head.bias).argmax(1) == LABEL).mean())

    assert accuracy(tuned) > accuracy(start) + 0.05
    assert not tuned.weight[start.weight == 0].any()
    again = tune(FULL, start, SETS, POOLED, LABEL, Tuning(epochs=30, learning_rate=1e-2, distil=distil))
    assert np.array_equal(tuned.weight, again.weight)


@pytest.mark.parametrize("how", [Tuning(epochs=0), Tuning(distil=1.5), Tuning(learning_rate=0), Tuning(batch_size=0)])
def test_a_tuning_that_cannot_be_meant_is_refused(how: Tuning) -> None:
    with pytest.raises(InvalidInputError, match="tuning"):
        tune(FULL, decompose(FULL, SETS), SETS, POOLED, LABEL, how)


@pytest.mark.parametrize("end", ["", "Softmax"])
def test_another_layer_takes_the_place_of_the_old_one(end: str) -> None:
    model = onnx.load_model_from_string(tiny_plain())
    if end:
        model.graph.node[-1].output[0] = "z"
        model.graph.node.append(onnx.helper.make_node(end, ["z"], ["logits"]))
    plain = read_plain(model.SerializeToString(), names=NAMES)
    head = decompose(plain.found.head, np.array([[0], [1], [2]]))
    changed = replace_head(plain, head)
    images = np.random.default_rng(1).random((5, 3, SIZE, SIZE), np.float32)
    answer = open_session(changed.model.SerializeToString()).run({"image": images})["logits"]
    changed.model.graph.output.append(onnx.helper.make_empty_tensor_value_info("flat"))
    pooled = open_session(changed.model.SerializeToString()).run({"image": images})["flat"]
    expected = pooled @ head.weight.T + head.bias
    if end:
        raised = np.exp(expected - expected.max(1, keepdims=True))
        expected = raised / raised.sum(1, keepdims=True)
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert "head_weight" not in {tensor.name for tensor in changed.model.graph.initializer}


def test_a_layer_of_another_size_does_not_fit() -> None:
    plain = read_plain(tiny_plain(), names=NAMES)
    with pytest.raises(ModelError, match=r"a layer of \[4, 12\] does not fit one of \[3, 8\]"):
        replace_head(plain, FULL)


@pytest.mark.parametrize("how", ["kept", "refitted", "tuned"])
def test_a_decomposed_file_has_no_rest_and_says_how_it_was_made(tmp_path: Path, how: str) -> None:
    random_pictures(60).save(tmp_path / "pack.npz")
    (tmp_path / "plain.onnx").write_bytes(tiny_plain())
    command = f"attach {tmp_path}/plain.onnx --data {tmp_path}/pack.npz --k1 2 --k2 2 --decompose {how}"
    assert main([*command.split(), "--output", f"{tmp_path}/m.onnx"]) == 0
    model = onnx.load(tmp_path / "m.onnx")
    assert manifest_of(model).class_features.decomposed == how
    images = np.random.default_rng(1).random((5, 3, SIZE, SIZE), np.float32)
    answer = open_session(model.SerializeToString()).run({"image": images})
    assert not answer["class_features.rest"].any()
    assert np.count_nonzero(explained_plain(model).found.head.weight) == 6
    kept = open_session(tiny_plain()).run({"image": images})["logits"]
    assert not np.allclose(answer["logits"], kept)
