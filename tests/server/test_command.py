"""`pellucid`: what it prints is what the server answered, and it says in one sentence what went wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analyzers.files import write_atomically
from server.client import Client
from server.command import main
from tests.conftest import NAMES, ROOT, random_pictures, running_server

AMOUNT = re.compile(r"^ +([+-]\d+\.\d{3})  (.+)$", re.MULTILINE)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Two picture files."""
    for name, encoded in zip(("first.png", "second.png"), random_pictures(2).encoded, strict=True):
        (tmp_path / name).write_bytes(encoded)
    return sorted(map(str, tmp_path.iterdir()))


def test_explain_prints_a_ledger_that_adds_up(
    address: str, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *pictures, "--server", address]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    first, second = re.split(r"^(?=second\.png: )", captured.out, flags=re.MULTILINE)
    with Client(address) as client:
        answers = client.explain(pictures)
    for text, name, answer in zip((first, second), ("first.png", "second.png"), answers, strict=True):
        best = answer.predictions[0]
        assert text.startswith(f"{name}: {best.class_name}  {best.probability:.1%}\n")
        *entries, (total, said) = AMOUNT.findall(text)
        assert said == f"= logit of {best.class_name} ({best.logit:+.3f})"
        assert float(total) == pytest.approx(best.logit, abs=0.001)
        assert sum(float(amount) for amount, _ in entries) == pytest.approx(best.logit, abs=0.0005 * (len(entries) + 1))
        assert [what for _, what in entries][-2:] == ["rest (all other features)", "bias"]
        assert all(name in text for name in NAMES)


def test_a_ledger_cut_short_says_what_it_left_out_and_still_adds_up(
    address: str, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", pictures[0], "--server", address, "--reasons", "1", "--classes", "1"]) == 0
    printed = capsys.readouterr().out
    *entries, (total, _) = AMOUNT.findall(printed)
    assert [what for _, what in entries][1:] == ["class features not listed", "rest (all other features)", "bias"]
    assert sum(float(amount) for amount, _ in entries) == pytest.approx(float(total), abs=0.003)
    assert "not:" not in printed


def test_explain_prints_json_with_all_of_the_answer(
    address: str, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *pictures, "--server", address, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [answer["picture"] for answer in document] == pictures
    with Client(address) as client:
        for answer, expected in zip(document, client.explain(pictures), strict=True):
            assert answer["predictions"][0]["logit"] == expected.predictions[0].logit
            assert [part["x"] for part in answer["parts"]["parts"]] == [part.x for part in expected.parts.parts]
            for ledger in answer["class_features"]:
                amounts = [entry["contribution"] for entry in ledger["contributions"]]
                total = sum([*amounts, ledger["omitted"], ledger["rest"], ledger["bias"]])
                assert total == pytest.approx(ledger["logit"], abs=1e-5)


def test_only_the_row_that_was_asked_for_is_printed(
    address: str, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["explain", pictures[0], "--server", address, "--model", "tiny", "--version", "1", "--row", "parts"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^  filter \d fired at \(\d+, \d+\), score \d+\.\d\d$", printed, re.MULTILINE)
    assert "bias" not in printed


def test_explain_draws_a_figure(address: str, pictures: list[str], tmp_path: Path) -> None:
    assert main(["explain", pictures[0], "--server", address, "--figure", str(tmp_path / "figure.png")]) == 0
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_models_lists_each_version_and_why_it_was_refused(
    tmp_path: Path, tiny_model: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    write_atomically(tmp_path / "tiny" / "1" / "model.onnx", tiny_model)
    write_atomically(tmp_path / "tiny" / "2" / "model.onnx", b"")
    with running_server("--repository", str(tmp_path)) as (address, _):
        assert main(["models", "--server", address]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert main(["models", "--server", address, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
    assert lines[0] == "tiny/1  parts, class_features"
    assert lines[1].startswith("tiny/2  refused: the file is empty")
    assert document[0] == {
        "model": "tiny",
        "version": "1",
        "ready": True,
        "problem": "",
        "rows": ["parts", "class_features"],
    }
    assert (document[1]["ready"], document[1]["rows"]) == (False, [])
    assert document[1]["problem"] in lines[1]


def test_what_went_wrong_is_one_sentence_and_exit_code_1(
    address: str, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("not a picture")
    for arguments, words in (
        (["nowhere.png"], "No such file or directory: 'nowhere.png'"),
        ([str(notes)], "INVALID_ARGUMENT: encoded_images[0]: is not a picture"),
        ([pictures[0], "--model", "lion"], "NOT_FOUND: model: there is no model 'lion'"),
        ([pictures[0], "--row", "part"], "INVALID_ARGUMENT: rows: has the unknown row 'part'"),
        ([pictures[0], "--classes", "-1"], "INVALID_ARGUMENT: top_k_classes: is -1"),
    ):
        assert main(["explain", *arguments, "--server", address]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("pellucid: error: ")
        assert words in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""


def test_a_server_that_is_not_there_is_one_sentence_and_exit_code_1() -> None:
    command = [sys.executable, "-m", "server.command", "models", "--server", "127.0.0.1:1", "--timeout", "5"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert run.returncode == 1
    assert run.stderr.startswith("pellucid: error: UNAVAILABLE: ")
    assert run.stderr.count("\n") == 1
    assert run.stdout == ""


@pytest.mark.parametrize("arguments", [[], ["explain"], ["models", "--sever", "x"], ["explain", "x", "--classes", "a"]])
def test_a_misspelt_command_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err
