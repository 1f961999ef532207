"""`pellucid explain` of many pictures: folders and patterns, lines as they come, one bad picture, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest

from analyzers import pictures as kernel
from analyzers.errors import DataError
from pellucid.v1 import explain_pb2 as pb
from server import picture_files
from server.client import Client
from server.command import main
from server.picture_files import find_pictures
from tests.conftest import ROOT, random_pictures
from tests.server.client_fakes import fake_server

COUNT = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 20 pictures, ten of them in a folder below, and what is no picture."""
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    for number, encoded in enumerate(random_pictures(COUNT).encoded):
        (tmp_path / ("b" if number >= 10 else ".") / f"{number:02}.PNG").write_bytes(encoded)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".cache" / "thumbnail.png").write_text("not a picture either")
    return tmp_path


def test_a_folder_stands_for_the_pictures_below_it(folder: Path) -> None:
    found = find_pictures([str(folder)])
    assert [path.name for path in found] == [f"{number:02}.PNG" for number in range(COUNT)]


def test_a_pattern_stands_for_the_pictures_it_matches(folder: Path) -> None:
    assert len(find_pictures([f"{folder}/**/*.PNG"])) == COUNT
    assert [path.name for path in find_pictures([f"{folder}/*/1[2-4].*"])] == ["12.PNG", "13.PNG", "14.PNG"]
    odd = folder / "odd [1].png"
    odd.write_bytes(b"")
    assert find_pictures([str(odd)]) == [odd]  # a file's own name is no pattern


def test_files_keep_the_order_in_which_they_are_named(folder: Path) -> None:
    found = find_pictures(["gone.png", str(folder / "b"), "also gone.png"])
    assert [path.name for path in found] == [
        "gone.png",
        *(f"{number}.PNG" for number in range(10, 20)),
        "also gone.png",
    ]


@pytest.mark.parametrize("name", ["empty", "empty/*.png"])
def test_a_folder_or_pattern_without_pictures_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected files that end in \.jpg"):
        find_pictures([str(tmp_path / name)])


def test_the_suffixes_are_the_kernel_s() -> None:
    assert picture_files.SUFFIXES == kernel.SUFFIXES


def test_jsonl_is_a_line_for_each_picture_as_in_json(
    address: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["explain", str(folder), "--server", address, "--batch", "3", "--evidence", "float16"]
    assert main([*arguments, "--jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main([*arguments, "--json"]) == 0
    assert lines == json.loads(capsys.readouterr().out)
    assert [line["picture"] for line in lines] == list(map(str, find_pictures([str(folder)])))
    with Client(address) as client:
        expected = client.explain(find_pictures([str(folder)]))
    assert [line["predictions"][0]["logit"] for line in lines] == [e.predictions[0].logit for e in expected]


def test_text_names_each_picture_of_a_folder_by_its_path(
    address: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(folder), "--server", address]) == 0
    printed = capsys.readouterr().out
    assert all(f"{path}: " in printed for path in find_pictures([str(folder)]))


def test_a_bad_picture_is_named_on_stderr_and_the_others_are_answered(
    address: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "05.PNG").write_bytes(b"not a picture")
    assert main(["explain", str(folder), "gone.png", "--server", address, "--jsonl"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == COUNT - 1
    first, second, last = captured.err.splitlines()
    assert first.startswith(f"pellucid: {folder}/05.PNG: INVALID_ARGUMENT: encoded_images[0]: is not a picture")
    assert second.startswith("pellucid: gone.png: [Errno 2]")
    assert last == "pellucid: error: 2 of 21 pictures have no answer; the lines above say why"


def test_ctrl_c_ends_at_once_with_what_was_answered(folder: Path) -> None:
    ended, first = threading.Event(), (folder / "00.PNG").read_bytes()

    def one_then_none(request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        if request.encoded_images[0] != first:  # by the picture, for the second may come before the first
            ended.wait(30)
        return pb.ExplainResponse(explanations=[pb.Explanation(width=1)])

    with fake_server(one_then_none) as fake:
        command = ["explain", str(folder), "--server", fake.address, "--jsonl", "--batch", "1", "--concurrency", "2"]
        asking = subprocess.Popen(
            [sys.executable, "-m", "server.command", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        line = asking.stdout.readline()
        start = time.monotonic()
        asking.send_signal(signal.SIGINT)
        rest, said = asking.communicate(timeout=20)
        took = time.monotonic() - start
        ended.set()
    assert took < 3
    assert json.loads(line)["width"] == 1
    assert rest == ""
    assert said == "pellucid: interrupted; every answer that was printed is whole\n"
    assert asking.returncode == 130


def test_a_reader_that_has_enough_ends_it_without_a_word(address: str, folder: Path) -> None:
    command = f"{sys.executable} -m server.command explain {folder} --server {address} --jsonl --batch 1 | head -n 1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=30)  # noqa: S602
    assert len(run.stdout.splitlines()) == 1
    assert run.stderr == ""


def test_several_servers_may_be_named_with_commas(address: str, folder: Path) -> None:
    assert main(["explain", str(folder / "00.PNG"), "--server", f"{address},{address}", "--retries", "0"]) == 0
