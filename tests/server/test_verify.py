"""An answer can be replayed offline, and one that was tampered with is found out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.command import main
from tests.conftest import SIZE, png

PIXELS = np.random.default_rng(21).integers(0, 256, (SIZE * 2, SIZE * 3, 3), np.uint8)


@pytest.fixture(scope="module")
def files(address: str, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("answers")
    model = next(path for path in repository.rglob("model.onnx"))
    paths = {"image": folder / "noise.png", "answer": folder / "answer.json", "model": model}
    paths["image"].write_bytes(png(PIXELS))
    (folder / "other.png").write_bytes(png(PIXELS[::-1]))
    paths["other"] = folder / "other.png"
    paths["address"] = Path(address)
    return paths


def ask(files: dict[str, Path], capsys: pytest.CaptureFixture[str], *options: str) -> None:
    pictures = [str(files["other"]), str(files["image"])]
    assert main(["explain", *pictures, "--server", str(files["address"]), "--json", *options]) == 0
    files["answer"].write_text(capsys.readouterr().out)


def replay(files: dict[str, Path], **changed: Path) -> int:
    paths = files | changed
    return main(["verify", str(paths["answer"]), "--model", str(paths["model"]), "--image", str(paths["image"])])


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--row", "class_features", "--classes", "2", "--reasons", "1"),
        ("--evidence", "float32"),
        ("--evidence", "float16"),
    ],
)
def test_an_answer_is_verified_to_the_bit(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    ask(files, capsys, *options)
    assert replay(files) == 0
    assert "every number is the same to the bit" in capsys.readouterr().out


def other_logit(answer: dict[str, Any]) -> None:
    answer["predictions"][0]["logit"] += 1e-6


def other_class(answer: dict[str, Any]) -> None:
    answer["predictions"][0]["class_name"] = "nobody"


def other_contribution(answer: dict[str, Any]) -> None:
    answer["class_features"][0]["contributions"][0]["contribution"] *= -1


def fewer_parts(answer: dict[str, Any]) -> None:
    answer["parts"]["parts"].pop()


def other_model(answer: dict[str, Any]) -> None:
    answer["proof"]["model_sha256"] = "0" * 64


def other_picture(answer: dict[str, Any]) -> None:
    answer["proof"]["image_sha256"] = "1" * 64


def no_proof(answer: dict[str, Any]) -> None:
    del answer["proof"]


def unknown_request(answer: dict[str, Any]) -> None:
    answer["request"]["colour"] = 3


def nan_logit(answer: dict[str, Any]) -> None:
    answer["predictions"][0]["logit"] = float("nan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_logit, "differs from the model's by"),
        (nan_logit, "differs from the model's by nan"),
        (other_class, "says nobody at predictions[0].class_name"),
        (other_contribution, "at class_features[0].contributions[0].contribution"),
        (fewer_parts, "at parts.parts"),
        (other_model, "the answer is of 000000000000..."),
        (other_picture, "the answer is about"),
        (no_proof, "is not an answer"),
        (unknown_request, "the answer's request is damaged"),
    ],
)
def test_a_changed_answer_is_found_out(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], None], words: str
) -> None:
    ask(files, capsys)
    answers = json.loads(files["answer"].read_text())
    change(answers[1])
    files["answer"].write_text(json.dumps(answers[1:]))
    assert replay(files) == 1
    sentence = capsys.readouterr().err
    assert words in sentence
    assert sentence.count("\n") == 1


def test_another_runtime_gets_a_bound_instead_of_bits(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ask(files, capsys)
    answers = json.loads(files["answer"].read_text())
    for answer in answers:
        answer["proof"]["execution_provider"] = "CUDAExecutionProvider"
        answer["predictions"][0]["logit"] += 1e-5
    files["answer"].write_text(json.dumps(answers))
    assert replay(files) == 0
    assert "on another runtime, numbers differ by" in capsys.readouterr().out
    for answer in answers:
        answer["predictions"][0]["logit"] += 1.0
    files["answer"].write_text(json.dumps(answers))
    assert replay(files) == 1


def test_what_is_not_there_is_said(files: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ask(files, capsys)
    for name in ("answer", "model", "image"):
        assert replay(files, **{name: tmp_path / "nowhere"}) == 1
        assert "nowhere" in capsys.readouterr().err


def test_what_if_on_the_command_line(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["what-if", str(files["image"]), "--server", str(files["address"])]
    assert main([*command, "--feature", "3", "--part", "5=0.5", "--smallest-flip", "--occlude"]) == 0
    text = capsys.readouterr().out
    assert "with the changes" in text
    assert "smallest set that flips it" in text
    assert "draws)" in text
    assert main([*command, "--feature", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["logits_after"]) == 3
    for wrong in (["--feature", "x"], ["--node", "3"], ["--part", "1:2"]):
        with pytest.raises(SystemExit):
            main([*command, *wrong])
    assert "is not LAYER:N or LAYER:N=SCALE" in capsys.readouterr().err


def test_json_lines_are_answers_too(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    ask(files, capsys)
    answers = json.loads(files["answer"].read_text())
    assert len(answers) > 1
    files["answer"].write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    assert replay(files) == 0
