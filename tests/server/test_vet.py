"""A file's trial: what passes, what it may take, and that only a clean report counts."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from analyzers.errors import ModelError
from analyzers.runtime import ort
from server.onnx_scan import scan
from server.vet import TrialLimits, Vetting, vet
from tests.hostile import CONTENTS, SLOW, bomb, field, varint

LIMITS = TrialLimits(30, 2 << 30, 8)


def program(text: str) -> tuple[str, ...]:
    """Return a command that runs some Python instead of a trial."""
    return sys.executable, "-c", f"import json, os, signal, sys, time\n{text}"


def test_a_good_file_passes_once_and_is_not_tried_again(tiny_model: bytes) -> None:
    vetting = Vetting(LIMITS)
    vetting(tiny_model)
    started = time.monotonic()
    vetting(bytes(bytearray(tiny_model)))
    assert time.monotonic() - started < 0.05  # a process alone takes longer to start
    for _ in range(2):
        with pytest.raises(ModelError, match="is not ONNX"):
            vetting(tiny_model[:-1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"crashed in its trial \(SIGSEGV\)"),
        ("os.abort()", r"crashed in its trial \(SIGABRT\)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed in its trial; it may want more memory"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "longer than 30 s"),
        ("pass", "without a report"),
        ("print('all is well')", "without a report"),
        ("print(json.dumps({'problem': 0, 'peak_bytes': 1}))", "without a report"),
        ("print(json.dumps({'problem': ''}))", "without a report"),
        ("print('[' * 4000)", "without a report"),
        ("os.write(1, bytes([255]) * 4000)", "without a report"),
        ("print(json.dumps({'problem': '', 'peak_bytes': 1}) + 'x' * 9000)", "without a report"),
        ("print(json.dumps({'problem': '', 'peak_bytes': 1})); sys.stdout.flush(); sys.exit(3)", "without a report"),
        ("print(json.dumps({'problem': 'is blue', 'peak_bytes': 1}))", "is blue"),
    ],
)
def test_only_a_clean_report_is_a_pass(text: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        vet(b"", LIMITS, program(text))
    vet(b"", LIMITS, program("print(json.dumps({'problem': '', 'peak_bytes': 1}))"))


@pytest.mark.parametrize("text", ["time.sleep(60)", "while True: print('x' * 1000)", "while True: pass"])
def test_a_trial_that_does_not_end_is_ended(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"longer than 0\.5 s and was ended"):
        vet(b"", TrialLimits(0.5, 1 << 30), program(text))
    assert time.monotonic() - started < 5


def test_the_child_gets_the_bytes_and_a_place_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    report = "print(json.dumps({'problem': '', 'peak_bytes': 1}))"
    look = f"""
found = [sys.stdin.read(), os.listdir('.'), sorted(os.listdir('/proc/self/fd')), sys.argv[1:], sorted(os.environ)]
open({str(seen)!r}, 'w').write(json.dumps(found))
"""
    monkeypatch.setenv("PELLUCID_SECRET", "nobody else's business")
    vet(b"content", LIMITS, program(look + report))
    content, folder, descriptors, arguments, environment = json.loads(seen.read_text())
    assert (content, folder, arguments) == ("content", [], ["30", str(2 << 30), "8"])
    assert len(descriptors) == 4  # three streams and the listing itself
    assert "PELLUCID_SECRET" not in environment


def test_a_file_that_works_too_long_is_ended(tiny_model: bytes) -> None:
    with pytest.raises(ModelError, match=r"longer than 2 s and was ended"):
        vet(SLOW["slow-sums"](tiny_model), TrialLimits(2, 4 << 30))


def test_a_file_that_wants_too_much_memory_says_so(tiny_model: bytes) -> None:
    with pytest.raises(ModelError, match="more than 1024 MiB of memory"):
        vet(CONTENTS["expand-at-run-time"](tiny_model), TrialLimits(30, 1 << 30))


def test_the_largest_batch_is_tried_as_well(tiny_model: bytes) -> None:
    """What grows with the batch may fit for one picture and not for many."""
    nodes = [
        helper.make_node("Shape", ["image"], ["bomb/b"], start=0, end=1),
        helper.make_node("Concat", ["bomb/b", "bomb/per_picture"], ["bomb/s"], axis=0),
        helper.make_node("Expand", ["bomb/x", "bomb/s"], ["bomb/all"]),
        helper.make_node("ReduceSum", ["bomb/all", "bomb/axis"], ["bomb"]),
    ]
    large = bomb(
        *nodes,
        **{
            "bomb/per_picture": np.array([1 << 24]),
            "bomb/x": np.zeros((1, 1), np.float32),
            "bomb/axis": np.array([1]),
        },
    )(tiny_model)
    vet(large, TrialLimits(30, 1 << 30, 2))
    with pytest.raises(ModelError, match="memory"):
        vet(large, TrialLimits(30, 1 << 30, 64))


def beside(location: str) -> bytes:
    """Return a model of one sum, whose weights lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [tensor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("how", ["file", "hard link"])
def test_weights_in_the_working_folder_are_refused_which_the_runtime_would_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    secret = tmp_path / "secret.bin"
    np.full(16, 7, np.float32).tofile(secret)
    folder = tmp_path / "here"
    folder.mkdir()
    secret.rename(folder / "w.bin") if how == "file" else (folder / "w.bin").hardlink_to(secret)
    monkeypatch.chdir(folder)
    session = ort.InferenceSession(beside("w.bin"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((4, 4), np.float32)})[0].max() == 7
    with pytest.raises(ModelError, match="keeps weights in other files"):
        scan(beside("w.bin"))


def test_the_scan_skips_what_it_does_not_know(tiny_model: bytes) -> None:
    scan(tiny_model)
    scan(tiny_model + field(12, b"a field of a later format") + varint(99 << 3) + varint(7))


@pytest.mark.parametrize("seed", range(4))
def test_the_scan_raises_nothing_but_a_model_error_whatever_the_bytes(tiny_model: bytes, seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(150):
        damaged = bytearray(tiny_model)
        for place in random.integers(0, len(damaged), random.integers(1, 20)):
            damaged[place] = random.integers(256)
        with contextlib.suppress(ModelError):  # anything else is a failure
            scan(bytes(damaged))
