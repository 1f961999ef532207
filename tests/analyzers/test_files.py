from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analyzers.files import write_atomically
from tests.conftest import ROOT

ENDLESS = """
import sys
from pathlib import Path
from analyzers.files import write_atomically
path, number = Path(sys.argv[1]), 0
print("started", flush=True)
while True:
    number = (number + 1) % 250
    write_atomically(path, bytes([number]) * 3_000_000)
"""


def test_a_new_file_appears_whole_in_a_folder_that_was_not_there(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "file", b"new")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"


def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old" * 1000)
    with (tmp_path / "file").open("rb") as file:
        start = file.read(100)
        write_atomically(tmp_path / "file", b"new")
        assert start + file.read() == b"old" * 1000
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "file", "not bytes")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("after", [0.05, 0.11, 0.17])
def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path, after: float) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"\0" * 3_000_000)
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
    process.stdout.readline()
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    data = path.read_bytes()
    assert len(data) == 3_000_000
    assert data == data[:1] * 3_000_000
