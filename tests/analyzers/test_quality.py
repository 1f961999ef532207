"""The board on a model whose evidence is right: it beats what knows nothing, and what knows nothing fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from analyzers.__main__ import main
from analyzers.attach import Selection, attach
from analyzers.pictures import PartMarks, Pictures
from analyzers.plain import explained_plain, read_plain
from analyzers.quality import board, compared
from analyzers.quality_table import quality_lines
from tests.conftest import explain_tiny, png, random_pictures

SIZE, NAMES = 32, ("red", "green", "blue")


def spots() -> tuple[onnx.ModelProto, Pictures]:
    """Return a model that counts red, green and blue cells, and pictures of two spots, the larger one of the class."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        colours (float[batch, 3, 32, 32] image) => (float[batch, 3] y) {
            c = Conv <strides: ints = [4, 4], kernel_shape: ints = [4, 4]> (image, k, b) r = Relu (c)
            p = GlobalAveragePool (r) f = Flatten (p) y = Gemm <transB: int = 1> (f, w, z)
        }
    """)
    kernel = np.full((3, 3, 4, 4), -1 / 16, np.float32)
    kernel[range(3), range(3)] = 1.0 / 16
    arrays = {"k": kernel, "b": np.full(3, -0.1), "w": 60 * (np.eye(3) - 0.3), "z": np.zeros(3)}
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    random = np.random.default_rng(0)
    drawn, boxes, without = [], [], []
    label = np.arange(24) % 3
    for number in label:
        other = (number + 1 + random.integers(2)) % 3
        grey = np.full((SIZE, SIZE, 3), 90, np.uint8)
        grey[..., :] = random.integers(60, 120)
        one, two = (random.permutation(2) * 4)[:, None] + random.integers(0, 2, (2, 2))
        picture, copies = grey.copy(), [grey.copy() for _ in range(3)]
        places = [(one, 3, number, 255), (two, 2, other, 200), ((6, 3), 1, number, 160)]
        for part, (place, extent, colour, light) in enumerate(places):
            area = tuple(slice(4 * place[axis], 4 * (place[axis] + extent)) for axis in (0, 1))
            for canvas in (picture, *(copy for place_, copy in enumerate(copies) if place_ != part)):
                canvas[area] = 0
                canvas[(*area, colour)] = light
        drawn.append(png(picture))
        without.append(tuple(map(png, copies)))
        y, x = one[0] / 8, one[1] / 8
        boxes.append([[x, y, x + 3 / 8, y + 3 / 8]])
    box = np.array(boxes, np.float32)
    pictures = Pictures(
        names=NAMES,
        encoded=tuple(drawn),
        label=label.astype(np.int64),
        split=np.ones(24, np.int64),
        group=np.arange(24),
        parts=PartMarks(("spot",), box[:, :, :2], box),
        without=tuple(without),
    )
    plain = read_plain(model.SerializeToString(), names=NAMES)
    return attach(plain, Selection(np.array([[0], [1], [2]]), None, "given")), pictures


@pytest.fixture(scope="module")
def report() -> dict:
    model, pictures = spots()
    return board(explained_plain(model), pictures, most=24)


@pytest.mark.parametrize(
    "metric",
    ["insertion_minus_deletion_mean", "insertion_minus_deletion_blur", "road", "relevance_mass", "part_removal"],
)
def test_evidence_that_is_right_beats_every_control_by_far(report: dict, metric: str) -> None:
    figure = report[metric]
    assert figure["n"] > 10
    assert set(figure["controls"]) == {"centre", "edges", "random"}
    for control, margin in figure["margin"].items():
        assert margin["value"] > 2 * margin["standard_error"], control
        assert figure["skill"][control] > 0


def test_deletion_is_better_when_lower(report: dict) -> None:
    figure = report["deletion_mean"]
    assert figure["value"] < figure["controls"]["random"]
    assert figure["margin"]["random"]["value"] > 0


def test_evidence_changes_with_the_weights_and_what_knows_nothing_fails_the_test(report: dict) -> None:
    for metric in ("spearman_randomised_head", "spearman_randomised_all"):
        figure = report[metric]
        assert figure["controls_pass"]["centre"] is False
        assert figure["controls_pass"]["edges"] is False
        assert figure["controls_pass"]["random"] is True
    assert report["spearman_randomised_all"]["passes"]
    assert report["spearman_other_class"]["value"] < 0


def test_threads_do_not_change_evidence(report: dict) -> None:
    assert report["concurrency_difference"] == {"value": 0.0, "n": 240}


def test_evidence_of_another_picture_is_no_better_than_chance() -> None:
    """The negative control of the board itself: maps that belong to other pictures have no skill."""
    model, pictures = spots()
    turned = replace(pictures, without=(*pictures.without[7:], *pictures.without[:7]))
    figure = board(explained_plain(model), turned, most=24)["part_removal"]
    assert figure["value"] is None or abs(figure["value"]) < 0.8


def test_values_that_do_not_tell_are_left_out_for_all() -> None:
    nan = float("nan")
    values = {
        "evidence": np.array([1.0, nan, 0.5]),
        "centre": np.array([0.5, 0.5, 0.5]),
        "edges": np.array([0, 1, nan]),
    }
    figure = compared(values, higher=True)
    assert (figure["n"], figure["value"], figure["skill"]["centre"]) == (1, 1.0, 1.0)
    assert compared({"evidence": np.array([nan])}, higher=True)["value"] is None
    lower = compared({"evidence": np.array([0.1, 0.3]), "random": np.array([0.4, 0.4])}, higher=False)
    assert lower["skill"]["random"] == pytest.approx(0.5)
    assert lower["margin"]["random"]["value"] == pytest.approx(0.2)


def test_the_table_of_a_model_and_of_one_without_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], report: dict
) -> None:
    text = "\n".join(quality_lines(report))
    assert "relevance_mass ↑" in text
    assert "s.e. from centre" in text
    random_pictures(60).save(tmp_path / "pack.npz")
    (tmp_path / "m.onnx").write_bytes(explain_tiny()[2].SerializeToString())
    command = f"evaluate {tmp_path}/m.onnx --data {tmp_path}/pack.npz --quality 4 --report {tmp_path}/r.json"
    assert main(command.split()) == 0
    assert "insertion_minus_deletion_mean" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["quality"]["n"] == 4
    assert "no class features" in quality_lines({"absent": "the model has no class features"})[0]
