"""Whatever is wrong, `pellucid-analyze` ends with 1 and one sentence on stderr, and leaves what was there before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from analyzers.__main__ import main
from tests.conftest import ROOT, explain_tiny, random_pictures, tiny_plain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the plain and the explained tiny classifier, a pack and an old model."""
    (tmp_path / "plain.onnx").write_bytes(tiny_plain())
    (tmp_path / "explained.onnx").write_bytes(explain_tiny()[2].SerializeToString())
    random_pictures().save(tmp_path / "pack.npz")
    (tmp_path / "old.onnx").write_bytes(b"old")
    return tmp_path


def one_sentence(capfd: pytest.CaptureFixture[str]) -> str:
    """Return the one line on stderr, native libraries' output included."""
    errors = capfd.readouterr().err
    assert errors.startswith("pellucid-analyze: error: ")
    assert errors.count("\n") == 1, errors
    assert "Traceback" not in errors
    return errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-classes=0"], "max_classes: is 0; expected 1 or more"),
        (["--k1=9"], "k1: is 9; expected 1 to 8"),
        (["--k2=-1"], "k2: is -1; expected 1 to 8"),
        (["--std=1,0,1"], "std above 0"),
        (["--mean=nan,0,0"], "finite numbers"),
        (["--size=32,32"], "the input 'image' is 16 x 16, not 32 x 32"),
        (["--size=-5,-5"], "the input 'image' is 16 x 16, not -5 x -5"),
        (["--split=all", "--data={folder}/empty"], "holds no pictures"),
        (["--data={folder}/plain.onnx"], "is not a .npz pack"),
        (["--data={folder}/damaged.npz"], "picture 2 (owl): is not a picture of a known format"),
        (["--names={folder}/pack.npz"], "is not UTF-8 text; expected class names, one a line"),
        (["--names={folder}/two.txt"], "the model has 3 classes and there are 2 names"),
        (["--names={folder}/other.txt"], "only one of them has elk, owl"),
        (["--names={folder}/nowhere.txt"], "nowhere.txt"),
        (["--indices={folder}/other.txt"], "is not JSON; expected {class number: [feature numbers]}"),
        (["--indices={folder}/deep.json"], "is not JSON"),
        (["--indices={folder}/pack.npz"], "is not JSON"),
        (["--indices={folder}/missing.json"], "indices: must map each class number 0..2"),
        (["--indices={folder}/far.json"], "indices: of class 1 must be different feature numbers from 0 to 7"),
        (["--output={folder}/pack.npz/model.onnx"], "pack.npz"),
        (["--output={folder}/empty"], "empty"),
    ],
)
def test_an_attach_that_cannot_be_done_says_why(
    folder: Path, options: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty").mkdir()
    (folder / "two.txt").write_text("cat\ndog\n")
    (folder / "other.txt").write_text("cat\ndog\nelk\n")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "missing.json").write_text('{"0": [1], "1": [2]}')
    (folder / "far.json").write_text('{"0": [1], "1": [8], "2": [0]}')
    good = random_pictures()
    replace(good, encoded=(*good.encoded[:2], b"no picture", *good.encoded[3:])).save(folder / "damaged.npz")
    before = sorted(path.name for path in folder.rglob("*"))
    command = ["attach", f"{folder}/plain.onnx", f"--data={folder}/pack.npz", "--k1=3", "--k2=3"]
    command += [f"--output={folder}/old.onnx", *(option.format(folder=folder) for option in options)]
    assert main(command) == 1
    assert words in one_sentence(capfd)
    assert (folder / "old.onnx").read_bytes() == b"old"
    assert sorted(path.name for path in folder.rglob("*")) == before


def reshaped_to_one_row(model: onnx.ModelProto) -> None:
    flatten = model.graph.node[3]
    flatten.op_type = "Reshape"
    flatten.input.append("row")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, -1]), "row"))


def unknown_operation(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type, model.graph.node[1].domain = "Softening", "somewhere.else"
    model.opset_import.append(onnx.helper.make_opsetid("somewhere.else", 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [(reshaped_to_one_row, "the model failed to run"), (unknown_operation, "ONNX Runtime cannot load the file")],
)
def test_the_runtime_s_own_complaints_stay_within_the_sentence(
    folder: Path, change: object, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load_model_from_string(tiny_plain())
    change(model)
    onnx.save(model, folder / "plain.onnx")
    command = f"attach {folder}/plain.onnx --data {folder}/pack.npz --output {folder}/old.onnx"
    assert main(command.split()) == 1
    assert words in one_sentence(capfd)
    assert (folder / "old.onnx").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("attach {0}/explained.onnx --data {0}/pack.npz --output {0}/old.onnx", "explained already (parts, class_feat"),
        ("attach {0}/nowhere.onnx --data {0}/pack.npz --output {0}/old.onnx", "nowhere.onnx cannot be read"),
        ("attach {0} --data {0}/pack.npz --output {0}/old.onnx", "cannot be read"),
        ("inspect {0}/old.onnx", "ONNX Runtime cannot load the file"),
        ("evaluate {0}/plain.onnx --data {0}/pack.npz", "no 'pellucid.manifest' in its metadata"),
        ("evaluate {0}/old.onnx --data {0}/pack.npz", "not a valid ONNX model"),
        ("evaluate {0}/explained.onnx --data {0}/pack.npz --split day", "unknown split 'day'"),
        ("evaluate {0}/explained.onnx --data {0}/nowhere", "there is no data at"),
        ("evaluate {0}/explained.onnx --data {0}/pack.npz --report {0}", "{0}"),
    ],
)
def test_every_command_says_what_it_cannot_use(
    folder: Path, command: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command.format(folder).split()) == 1
    assert words.format(folder) in one_sentence(capfd)
    assert (folder / "old.onnx").read_bytes() == b"old"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "fly",
        "attach",
        "attach plain.onnx --data pack.npz",
        "attach plain.onnx --data pack.npz --output x --rule magic",
        "attach plain.onnx --data pack.npz --output x --size 5",
        "attach plain.onnx --data pack.npz --output x --size 5,6,7",
        "attach plain.onnx --data pack.npz --output x --mean red",
        "attach plain.onnx --data pack.npz --output x --k1 many",
        "evaluate model.onnx",
        "inspect model.onnx --yaml",
    ],
)
def test_a_wrong_command_line_ends_with_2_and_the_usage(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    assert "usage: pellucid-analyze" in capfd.readouterr().err


def test_the_program_s_exit_code_is_the_shell_s(folder: Path) -> None:
    for command, code in (("inspect explained.onnx", 0), ("inspect old.onnx", 1), ("inspect", 2)):
        run = subprocess.run(
            [sys.executable, "-m", "analyzers", *command.split()],
            capture_output=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert run.returncode == code, run.stderr


def test_a_report_without_a_path_is_json_on_stdout(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(f"evaluate {folder}/explained.onnx --data {folder}/pack.npz --split all".split()) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["data"]["pictures"] == 30
    assert printed.err == ""


def test_the_rule_that_ranks_features_is_the_one_asked_for(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chosen = {}
    for rule in ("feature", "contribution"):
        command = f"attach {folder}/plain.onnx --data {folder}/pack.npz --k1 2 --k2 2 --rule {rule}"
        assert main([*command.split(), f"--output={folder}/{rule}.onnx"]) == 0
        model = onnx.load(folder / f"{rule}.onnx")
        index = next(t for t in model.graph.initializer if t.name == "class_features/index")
        chosen[rule] = onnx.numpy_helper.to_array(index).tolist()
        assert main(["inspect", f"{folder}/{rule}.onnx"]) == 0
        assert f"rule {rule}" in capfd.readouterr().out
    assert chosen["feature"] != chosen["contribution"]
