"""A real server process with a repository of its own, watched from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from analyzers.files import write_atomically
from tests.conftest import ROOT

MIB = 2**20
START_SECONDS = 120
# The first line behind a traceback that is not indented says what was raised.
RAISED = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*(\S.*)")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        address: "HOST:PORT".
        process: the server's own.
        folder: its repository.
        log: what it writes on stderr.
    """

    address: str
    process: subprocess.Popen
    folder: Path
    log: Path

    def rss_bytes(self) -> int:
        """Return how much memory the process holds now."""
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """Return the most memory that it has held since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """Let the peak begin again at what is held now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def cpu_seconds(self) -> float:
        """Return the processor time that it has taken, all threads together."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def faults(self) -> list[str]:
        """Return what the log and the process say that a healthy server does not."""
        text = self.log.read_text(errors="replace")
        raised = Counter(re.split(r"[\[(<]", one)[0][:120] for one in RAISED.findall(text))
        # gRPC itself logs this one when a client vanishes while it writes; the call is over by then.
        raised = {error: number for error, number in raised.items() if "ExecuteBatchError" not in error}
        found = [f"the log has {number} tracebacks of {error}" for error, number in raised.items()]
        code = self.process.poll()
        return found if code in (None, 0) else [*found, f"the server exited with {code}"]

    def stop(self) -> int:
        """End it as an operator would and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(10)

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def put(folder: Path, models: Mapping[str, bytes]) -> None:
    """Write models into a repository, "NAME" as version 1 or "NAME/VERSION"."""
    for name, data in models.items():
        where = name if "/" in name else f"{name}/1"
        write_atomically(folder / where / "model.onnx", data)


@contextmanager
def served(models: Mapping[str, bytes], *options: str, port: int = 0, folder: Path | None = None) -> Iterator[Served]:
    """Run a server of these models; ends it, by force if need be, when the body is through."""
    with TemporaryDirectory(prefix="campaign-") as temporary:
        folder = Path(temporary) / "models" if folder is None else folder
        folder.mkdir(exist_ok=True)
        put(folder, models)
        log = Path(temporary) / "log"
        server = start(folder, log, *options, port=port)
        try:
            yield server
        finally:
            server.stop()


def start(folder: Path, log: Path, *options: str, port: int = 0) -> Served:
    """Start a server and wait for its address.

    Raises:
        RuntimeError: it ended instead; the message has its log.
    """
    command = [sys.executable, "-m", "server", f"--port={port}", f"--repository={folder}", "--log-level=warning"]
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            cwd=ROOT,
            text=True,
            env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
        )
    with process.stdout as said:
        line = said.readline()
    if not line.startswith("listening on "):
        process.kill()
        process.wait(10)
        raise RuntimeError(f"the server said {line!r} and: {log.read_text(errors='replace')[-2000:]}")
    return Served(line.removeprefix("listening on ").strip(), process, folder, log)


def settle(server: Served, seconds: float = 0.3) -> int:
    """Wait until the server is idle, and return its memory."""
    before = server.cpu_seconds()
    for _ in range(40):
        time.sleep(seconds)
        now = server.cpu_seconds()
        if now - before < 0.1 * seconds:
            break
        before = now
    return server.rss_bytes()
