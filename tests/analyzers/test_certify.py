"""A smaller copy passes where it explains alike, and fails where it does not."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest

from analyzers.__main__ import main
from analyzers.certify import certify
from analyzers.parity import correlation
from analyzers.plain import manifest_of
from analyzers.runtime import open_session
from tests.conftest import explain_tiny, random_pictures


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return explain_tiny(seed=1)[2]


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_a_copy_is_smaller_runs_and_is_compared_on_every_picture(model: onnx.ModelProto, form: str) -> None:
    data = model.SerializeToString()
    certificate, copy = certify(data, random_pictures(60), form)
    figures = certificate.figures
    assert figures["same_class"].n == 20
    assert figures["logit_difference"].value > 0
    assert figures["completeness_gap"].value < 1e-5
    assert manifest_of(copy).rows == manifest_of(model).rows
    weights = {tensor.name: tensor.data_type for tensor in copy.graph.initializer}
    small = {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[form]
    assert small in weights.values()
    assert certificate.model_sha256 == sha256(data).hexdigest()
    session = open_session(copy.SerializeToString())
    assert set(session.outputs) == {output.name for output in model.graph.output}


def test_a_copy_that_explains_otherwise_fails_and_is_not_written(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(model: onnx.ModelProto) -> onnx.ModelProto:
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        for tensor in copy.graph.initializer:
            if tensor.name == "class_features/weight":
                tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
        return copy

    monkeypatch.setattr("analyzers.certify.to_half", broken)
    random_pictures(60).save(tmp_path / "pack.npz")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    command = f"certify {tmp_path}/model.onnx --data {tmp_path}/pack.npz --against fp16"
    assert main([*command.split(), "--output", f"{tmp_path}/c.json", "--copy", f"{tmp_path}/copy.onnx"]) == 1
    assert "does not explain as the model does: completeness_gap" in capsys.readouterr().err
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["passed"]["completeness_gap"] is False
    assert not (tmp_path / "copy.onnx").exists()


def test_openvino_is_asked_for_where_it_is_not(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    random_pictures().save(tmp_path / "pack.npz")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    command = f"certify {tmp_path}/model.onnx --data {tmp_path}/pack.npz --against openvino"
    assert main(command.split()) == 1
    assert "pip install openvino" in capsys.readouterr().err


def test_correlation_by_hand() -> None:
    one = np.array([[1.0, 2, 3], [1, 2, 3], [1, 1, 1], [1, 1, 1]])
    other = np.array([[2.0, 4, 6], [3, 2, 1], [2, 2, 2], [1, 2, 3]])
    assert correlation(one, other).tolist() == pytest.approx([1, -1, 1, 0])
