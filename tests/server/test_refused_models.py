"""Files that cannot be served are refused with one sentence; the others are served."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest

from analyzers.execution import CUDA
from analyzers.files import write_atomically
from analyzers.manifest import METADATA_KEY
from analyzers.runtime import ort
from server.client import Client, ServerError
from tests.conftest import NAMES, ROOT, random_pictures, running_server, tiny_plain


def edited(data: bytes, change: Callable[[dict], object]) -> bytes:
    """Change the manifest of a model file."""
    model = onnx.load_model_from_string(data)
    entry = next(e for e in model.metadata_props if e.key == METADATA_KEY)
    document = json.loads(entry.value)
    change(document)
    entry.value = json.dumps(document)
    return model.SerializeToString()


def with_manifest(data: bytes, text: str) -> bytes:
    """Put any text in the place of a model file's manifest."""
    model = onnx.load_model_from_string(data)
    next(e for e in model.metadata_props if e.key == METADATA_KEY).value = text
    return model.SerializeToString()


def with_weight(data: bytes, name: str, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """Change an initializer of a model file."""
    model = onnx.load_model_from_string(data)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(tensor)), name))
    return model.SerializeToString()


def with_free_height(data: bytes) -> bytes:
    """Let a model's graph take pictures of any height."""
    model = onnx.load_model_from_string(data)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    return model.SerializeToString()


BAD: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "missing": (lambda good: None, "there is no model.onnx"),
    "empty": (lambda good: b"", "the file is empty"),
    "truncated": (lambda good: good[: len(good) // 2], "the file is not ONNX"),
    "noise": (lambda good: np.random.default_rng(0).bytes(5000), "the file is not ONNX"),
    "without-manifest": (lambda good: tiny_plain(), "'pellucid.manifest'"),
    "unknown-schema": (
        lambda good: edited(good, lambda d: d.update(schema=9)),
        "schema 9, this version reads schema 2",
    ),
    "broken-manifest": (lambda good: with_manifest(good, '{"schema": 1, "input": {'), "is not JSON with a 'schema'"),
    "bottomless-manifest": (lambda good: with_manifest(good, "[" * 200_000), "is not JSON with a 'schema'"),
    "list-as-manifest": (lambda good: with_manifest(good, "[1]"), "is not JSON with a 'schema'"),
    "no-text": (lambda good: good.replace(b"unnamed", b"unn\xffmed"), "not UTF-8 text; the file is damaged"),
    "no-schema": (lambda good: edited(good, lambda d: d.pop("schema")), "schema"),
    "unknown-key": (lambda good: edited(good, lambda d: d.update(colour="red")), "colour"),
    "no-classes": (lambda good: edited(good, lambda d: d.update(classes=[])), "classes"),
    "other-classes": (lambda good: edited(good, lambda d: d.update(classes=[*NAMES, "elk"])), "logits"),
    "other-output": (lambda good: edited(good, lambda d: d["parts"].update(cell="cell")), "'cell'"),
    "swapped-outputs": (
        lambda good: edited(good, lambda d: d["parts"].update(cell="parts.score", score="parts.cell")),
        "is float32, the manifest means integers",
    ),
    "other-filters": (lambda good: edited(good, lambda d: d["parts"].update(filters=9)), "parts.cell"),
    "other-size": (
        lambda good: edited(good, lambda d: d["input"].update(height=8)),
        "3, 8, 16]",
    ),
    "all-memory": (lambda good: edited(good, lambda d: d["input"].update(height=10**9)), "1000000000"),
    "more-than-memory": (
        lambda good: edited(with_free_height(good), lambda d: d["input"].update(height=10**18)),
        "at most 50000000 pixels",
    ),
    "other-input": (lambda good: edited(good, lambda d: d["input"].update(tensor="pixels")), "the input 'pixels'"),
    "long-name": (lambda good: edited(good, lambda d: d["parts"].update(cell="x\n" * 5000)), "names the output 'x x"),
    "small-grid": (lambda good: edited(good, lambda d: d["parts"]["grid"].update(cells=[2, 2])), "grid"),
    "false-rest": (lambda good: with_weight(good, "class_features/rest_weight", lambda w: w + 1), "do not add up"),
    "false-weight": (lambda good: with_weight(good, "class_features/weight", lambda w: w * 2), "do not add up"),
    "nan-bias": (lambda good: with_weight(good, "head_bias", lambda b: b * np.nan), "do not add up"),
    "foreign-index": (lambda good: with_weight(good, "class_features/index", lambda i: i + 99), "failed to run"),
    "false-index": (lambda good: with_weight(good, "class_features/index", lambda i: (i + 1) % 8), "do not add up"),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, tiny_model: bytes) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    for name, (make, _) in BAD.items():
        (root / name / "1").mkdir(parents=True)
        if (data := make(tiny_model)) is not None:
            (root / name / "1" / "model.onnx").write_bytes(data)
    for version in ("2", "9"):
        write_atomically(root / "good" / version / "model.onnx", tiny_model)
    write_atomically(root / "good" / "10" / "model.onnx", tiny_model[:100])
    (root / "good" / "latest").mkdir()
    (root / ".hidden" / "1").mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def client(mixed: Path) -> object:
    with running_server("--repository", str(mixed), "--versions", "all") as (address, _), Client(address) as opened:
        yield opened


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_one_sentence_and_the_good_one_is_served(client: Client, name: str) -> None:
    status = next(model for model in client.list_models() if model.model == name)
    assert not status.ready
    assert BAD[name][1] in status.problem, status.problem
    assert "\n" not in status.problem
    assert len(status.problem) < 400
    with pytest.raises(ServerError, match="was refused") as caught:
        client.explain(random_pictures(1).encoded, model=name)
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert len(client.explain(random_pictures(2).encoded, model="good")) == 2


def test_the_highest_version_that_is_ready_answers_by_number_not_by_letter(client: Client) -> None:
    assert client.get_model("good").version == "9"
    assert client.get_model("good", "2").version == "2"
    assert [m.version for m in client.list_models() if m.model == "good"] == ["2", "9", "10"]
    with pytest.raises(ServerError, match="version 10 was refused"):
        client.get_model("good", "10")


def test_a_model_without_a_name_is_only_taken_where_there_is_one(client: Client) -> None:
    with pytest.raises(ServerError, match="there is no model without a name; there are"):
        client.explain(random_pictures(1).encoded)


def test_a_model_says_what_it_is(address: str, tiny_model: bytes) -> None:
    with Client(address) as client:
        model = client.get_model()
    assert (model.model, model.version, model.execution_provider) == ("tiny", "1", "CPUExecutionProvider")
    assert (model.input.height, model.input.width, model.input.channels, model.input.resize) == (
        16,
        16,
        "RGB",
        "stretch",
    )
    assert tuple(model.classes) == NAMES
    assert list(model.rows) == ["parts", "class_features"]
    assert model.sha256 == hashlib.sha256(tiny_model).hexdigest()
    assert model.provenance.producer.startswith("pellucid ")


def fails(*arguments: str) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-m", "server", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    return run.returncode, run.stderr


def test_a_server_that_cannot_start_says_why_in_one_sentence(address: str, repository: Path) -> None:
    port = address.rsplit(":", 1)[1]
    for arguments, code, words in (
        (["--repository", "nowhere"], 1, "there is no folder nowhere"),
        (["--repository", str(repository), "--port", port], 1, f"cannot listen on 127.0.0.1:{port}"),
        ([], 2, "--repository is not set"),
        (["--repository", str(repository), "--port", "99999"], 2, "--port"),
    ):
        returned, errors = fails(*arguments)
        assert returned == code, errors
        assert words in errors
        assert len([line for line in errors.splitlines() if "error" in line]) == 1


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="there may be a GPU here")
def test_a_server_told_to_use_the_gpu_does_not_start_without_one(repository: Path) -> None:
    code, errors = fails("--repository", str(repository), "--device", "gpu")
    assert code == 1
    assert errors.startswith("pellucid-serve: error: the GPU was asked for")
    assert errors.count("\n") == 1


def test_a_misspelt_option_is_an_error(repository: Path) -> None:
    code, errors = fails("--repository", str(repository), "--prot", "1")
    assert code == 2
    assert "prot" in errors
