"""Run a built image as an engine would: namespaces of its own, its user, no capabilities, a read-only root."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.container.build import ContainerError, Image

UP = 1  # IFF_UP
SET_FLAGS = 0x8914  # SIOCSIFFLAGS
DEVICES = ("null", "zero", "full", "random", "urandom")


@dataclass(frozen=True, slots=True)
class Limits:
    """How the container is run.

    Attributes:
        models: what is mounted, read-only, at /models.
        temporary: whether there is a /tmp that can be written; nothing else can, shared memory apart.
        environment: what is set beside what the image sets.
    """

    models: Path
    temporary: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Box:
    """A running container.

    Attributes:
        image: what runs.
        process: the entry point's parent, which ends with its exit code.
        pid: the entry point, outside; inside it is process 1.
        seconds_to_listen: from the start to the line that says where it listens.
        cpu_seconds_to_listen: of all its processes until then; unlike the former it hardly depends on what else runs.
    """

    image: Image
    process: subprocess.Popen[str]
    pid: int
    environment: Mapping[str, str]
    seconds_to_listen: float
    cpu_seconds_to_listen: float

    def run(self, *command: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as the image's user; what `docker exec` and a health check do."""
        entered = ["nsenter", f"--target={self.pid}", "--all", "--root", "--wd", *_as_user(self.image), *command]
        return subprocess.run(entered, capture_output=True, text=True, env=dict(self.environment), timeout=seconds)

    def stop(self, seconds: float = 300) -> int:
        """Send SIGTERM to process 1 and return its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def running(image: Image, limits: Limits) -> Iterator[Box]:
    """Start an image's entry point, wait until it listens, and end it at last.

    Raises:
        ContainerError: it ended before it listened; what it logged stands in the message.
    """
    known = dict(image.environment) | {"HOSTNAME": "box"} | dict(limits.environment)
    started = time.monotonic()
    process = subprocess.Popen(
        [
            *("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork"),
            *(sys.executable, str(Path(__file__).resolve())),
            *(str(image.root), str(limits.models), str(int(limits.temporary)), image.folder),
            *_as_user(image),
            *image.entry_point,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=known,
    )
    try:
        line = process.stdout.readline()
        seconds = time.monotonic() - started
        if not line.startswith("listening on "):
            for pid in _children(process.pid):
                os.kill(pid, signal.SIGKILL)
            raise ContainerError(f"no address but {line!r}; {process.stderr.read()[-3000:]}")
        (pid,) = _children(process.pid)
        yield Box(image, process, pid, known, seconds, _cpu_seconds(pid))
    finally:
        for pid in _children(process.pid):  # --kill-child is forgotten when setpriv changes the user
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait(30)
        process.stdout.close()
        process.stderr.close()


def _children(pid: int) -> list[int]:
    """Return a process's children; none where it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _as_user(image: Image) -> tuple[str, ...]:
    user, group = image.user.split(":")
    ids = (f"--reuid={user}", f"--regid={group}", "--clear-groups")
    return ("setpriv", *ids, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")


def enter(root: Path, models: Path, temporary: bool, folder: str, command: Sequence[str]) -> None:
    """Make this process's namespaces a container's and become the command; never returns."""
    _mount("--make-rprivate", "/")
    _mount("--rbind", str(root), str(root))
    _mount("-t", "proc", "proc", f"{root}/proc")
    _mount("-t", "sysfs", "-o", "ro", "sysfs", f"{root}/sys")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", f"{root}/dev")
    for name in DEVICES:
        (root / "dev" / name).touch()
        _mount("--bind", f"/dev/{name}", f"{root}/dev/{name}")
    shared = root / "dev" / "shm"
    shared.mkdir()
    _mount("-t", "tmpfs", "-o", "size=64m,mode=1777", "tmpfs", str(shared))  # as large as an engine makes it
    _mount("--bind", str(models), f"{root}/models")
    _mount("-o", "remount,bind,ro", f"{root}/models")
    if temporary:
        _mount("-t", "tmpfs", "tmpfs", str(root / "tmp"))
    _mount("-o", "remount,bind,ro", str(root))
    _raise_loopback()
    os.chroot(root)
    os.chdir(folder)
    os.execvp(command[0], command)  # noqa: S606 (an image's own program)


def _mount(*arguments: str) -> None:
    subprocess.run(["/usr/bin/mount", *arguments], check=True)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh", b"lo", UP))


if __name__ == "__main__":
    enter(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "1", sys.argv[4], sys.argv[5:])
