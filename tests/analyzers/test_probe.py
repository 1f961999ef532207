"""A file remembers what it answered, and is found out when it answers otherwise."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from analyzers.attach import attach
from analyzers.attach_graph import attach_graph
from analyzers.errors import ModelError
from analyzers.manifest import ModelInput
from analyzers.plain import manifest_of
from analyzers.probe import PROBE_KEY, Probe, pictures, record
from analyzers.runtime import open_session
from tests.conftest import explain_tiny, tiny_graph


def stored(model: onnx.ModelProto) -> Probe:
    probe = Probe.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    assert probe is not None
    return probe


def found(model: onnx.ModelProto) -> Probe:
    session, manifest = open_session(model.SerializeToString()), manifest_of(model)
    return Probe.of(manifest, session.run_images(manifest, pictures(manifest.input)))


def test_the_pictures_are_the_same_for_ever() -> None:
    made = pictures(ModelInput(tensor="image", height=5, width=9))
    assert made.shape == (2, 3, 5, 9)
    assert made.dtype == np.float32
    assert hashlib.sha256(made.tobytes()).hexdigest() == (
        "b8046afc93c5f1b83b4d401d524d2dc99a045349ddf42ce8ac9401752a4dcdb3"
    )
    assert made.min() >= 0
    assert made.max() < 1
    assert made.std(axis=(1, 2, 3)).min() > 0.2
    assert abs(made - pictures(ModelInput(tensor="image", height=5, width=9), 1)).max() > 0.5


def test_attaching_writes_down_what_the_file_answers() -> None:
    _, _, model = explain_tiny()
    probe = stored(model)
    assert probe == found(model)
    session, manifest = open_session(model.SerializeToString()), manifest_of(model)
    outputs = session.run_images(manifest, pictures(manifest.input))
    assert np.allclose(probe.logits, outputs["logits"], rtol=1e-4)
    assert np.allclose(probe.parts, outputs["parts.score"].sum(1), rtol=1e-4)
    assert np.allclose(probe.rest, outputs["class_features.rest"].sum(1), rtol=1e-4, atol=1e-4)


def test_the_same_model_gives_the_same_bytes_with_its_probe() -> None:
    first, second = (explain_tiny()[2].SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert PROBE_KEY.encode() in first


def test_whatever_is_attached_later_is_in_the_probe_and_there_is_only_one() -> None:
    plain, selection, model = explain_tiny()
    again = attach(plain, selection, max_classes=2)
    for explained in (attach_graph(model, tiny_graph(model)), again):
        assert [entry.key for entry in explained.metadata_props].count(PROBE_KEY) == 1
        assert stored(explained) == found(explained)


@pytest.mark.parametrize("name", ["conv_weight", "conv_bias", "head_weight", "head_bias"])
def test_a_weight_that_changed_is_found_out(name: str) -> None:
    _, _, model = explain_tiny()
    probe = stored(model)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.05), name))
    with pytest.raises(ModelError, match="its answers are not those it was written with: its logits are off by"):
        probe.compare(found(model))


def test_a_difference_within_the_tolerance_passes_and_one_beyond_does_not() -> None:
    probe = Probe(logits=((100.0, 0.0), (0.0, 0.0)), parts=(5, 5))
    probe.compare(Probe(logits=((100.09, 0.0), (0.0, -0.09)), parts=(5, 5)))
    probe.compare(Probe(logits=((101.9, 0.0), (0.0, 0.0)), parts=(5, 5)), tolerance=2e-2)
    for other in (
        Probe(logits=((100.11, 0.0), (0.0, 0.0)), parts=(5, 5)),
        Probe(logits=((100.0, 0.0), (0.0, 0.0)), parts=(5, 5.01)),
        Probe(logits=((100.0, 0.0), (0.0, 0.0))),
        Probe(logits=((100.0,), (0.0,)), parts=(5, 5)),
    ):
        with pytest.raises(ModelError, match="not those it was written with"):
            probe.compare(other)


def test_a_model_that_answers_no_numbers_gets_no_probe() -> None:
    _, _, model = explain_tiny()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head_bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(3, np.nan, np.float32), "head_bias"))
    record(model, open_session(model.SerializeToString()), manifest_of(model))
    assert PROBE_KEY not in {entry.key for entry in model.metadata_props}


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema": 2, "logits": [[1], [1]]}', '{"logits": [[1]]}'])
def test_a_damaged_probe_is_refused_and_a_missing_one_is_not(text: str) -> None:
    with pytest.raises(ModelError, match="the probe is wrong at"):
        Probe.from_metadata({PROBE_KEY: text})
    assert Probe.from_metadata({"other": json.dumps(text)}) is None
