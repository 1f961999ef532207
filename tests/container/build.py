"""Build an image's tree by executing its Dockerfile's steps in layers over a stand-in for the base image."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tests.container.dockerfile import Ignore, Instruction, Stage, chain, environment, fill, last, read_stages

# What the base image python:3.11-slim-bookworm brings: the same Debian, its own Python 3.11 with pip.
SUITE = "bookworm"
PACKAGES = ("python3.11", "python3.11-venv", "python3-pip", "python-is-python3", "ca-certificates")
NEEDED = ("mmdebstrap", "unshare", "nsenter", "setpriv", "mount")
SHELL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ContainerError(Exception):
    """A step failed; what it printed stands in the message."""


@dataclass(frozen=True, slots=True)
class Image:
    """A built image.

    Attributes:
        root: its whole tree, mounted as long as the build's stack is open.
        layers: what each of its stages adds to the base image.
        environment: what ENV sets.
        entry_point, health, user, folder: ENTRYPOINT, HEALTHCHECK's command, USER, WORKDIR.
    """

    root: Path
    layers: tuple[Path, ...]
    environment: Mapping[str, str]
    entry_point: tuple[str, ...]
    health: tuple[str, ...]
    user: str
    folder: str


def missing() -> str:
    """Return what this machine lacks for a build, nothing if it can be tried."""
    absent = [program for program in NEEDED if shutil.which(program) is None]
    if os.geteuid() != 0:
        absent.append("root's rights")
    return ", ".join(absent)


def make_base(folder: Path) -> None:
    """Install a fresh Debian into a folder; it takes half a minute."""
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(folder)]
    _run(command, "the base tree")


def build(context: Path, target: str, base: Path, work: Path, stack: ExitStack) -> Image:
    """Build a target of the context's Dockerfile.

    Args:
        context: the folder with the Dockerfile.
        target: the stage to build; those it does not need are left out.
        base: the tree that stands in for the base image; it is not changed.
        work: an empty folder for layers.
        stack: unmounts what was mounted when it closes.

    Raises:
        ContainerError: a step failed.
    """
    builder = _Builder(context, base, work, stack, read_stages((context / "Dockerfile").read_text()))
    stages = chain(builder.stages, target)
    root, layers = builder.build(stages[-1])
    health = last(stages, "HEALTHCHECK").value.partition("CMD ")[2]
    return Image(
        root=root,
        layers=layers,
        environment=environment(stages),
        entry_point=tuple(last(stages, "ENTRYPOINT").words()),
        health=tuple(Instruction("CMD", health.strip()).words()),
        user=last(stages, "USER").value,
        folder=last(stages, "WORKDIR").value,
    )


class _Builder:
    def __init__(self, context: Path, base: Path, work: Path, stack: ExitStack, stages: list[Stage]) -> None:
        self._context, self._base, self._work, self._stack = context, base, work, stack
        self._ignored = Ignore((context / ".dockerignore").read_text())
        self._built: dict[str, tuple[Path, tuple[Path, ...]]] = {}
        self.stages = stages

    def build(self, stage: Stage) -> tuple[Path, tuple[Path, ...]]:
        """Return a stage's tree and the layers it is made of, the lowest first."""
        if stage.name in self._built:
            return self._built[stage.name]
        below: tuple[Path, ...] = ()
        if any(other.name == stage.base for other in self.stages):
            below = self.build(self._stage(stage.base))[1]
        upper, root, aside = (self._work / stage.name / kind for kind in ("layer", "root", "aside"))
        for folder in (upper, root, aside):
            folder.mkdir(parents=True)
        lower = ":".join(map(str, (*reversed(below), self._base)))
        options = f"lowerdir={lower},upperdir={upper},workdir={aside}"
        _run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], f"stage {stage.name}")
        self._stack.callback(subprocess.run, ["umount", "--lazy", str(root)], check=True)
        self._execute(stage, root)
        self._built[stage.name] = root, (*below, upper)
        return self._built[stage.name]

    def _stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def _execute(self, stage: Stage, root: Path) -> None:
        own = chain(self.stages, stage.name)
        folder = "/"
        for above in own[:-1]:
            folder = next((one.value for one in reversed(above.instructions) if one.keyword == "WORKDIR"), folder)
        done: list[Instruction] = []
        for step in stage.instructions:
            done.append(step)
            known = environment([*own[:-1], replace(stage, instructions=tuple(done))])
            match step.keyword:
                case "WORKDIR":
                    folder = step.value
                    (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
                case "RUN":
                    self._shell(step.value, root, folder, known)
                case "COPY":
                    self._copy(step, root, folder, known)
                case "ENV" | "ARG" | "USER" | "EXPOSE" | "STOPSIGNAL" | "HEALTHCHECK" | "ENTRYPOINT" | "LABEL":
                    pass
                case other:
                    raise ContainerError(f"{other} is not understood here")

    def _shell(self, line: str, root: Path, folder: str, known: Mapping[str, str]) -> None:
        """Run a line in a stage's tree, with this machine's way to packages: its certificates, its index, its proxy."""
        certificates = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
        setup = (
            "mount -t proc proc $1/proc; mount --rbind /dev $1/dev; mount -t tmpfs tmpfs $1/run;"
            " cat $3 > $1/run/certificates; cat /etc/resolv.conf > $1/run/resolv.conf;"
            " mount --bind $1/run/resolv.conf $1/etc/resolv.conf;"
            ' exec chroot $1 /bin/sh -ec "cd $2; $4"'
        )
        (root / "etc/resolv.conf").touch()
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", setup, "sh"]
        _run(
            [*command, str(root), folder, certificates, line],
            line,
            {"PATH": SHELL_PATH, "PIP_CERT": "/run/certificates", "HOME": "/root"} | _way_to_packages() | dict(known),
        )

    def _copy(self, step: Instruction, root: Path, folder: str, known: Mapping[str, str]) -> None:
        *sources, target = (fill(word, known) for word in step.words())
        goal = root / os.path.normpath(f"{folder}/{target}" if not target.startswith("/") else target).lstrip("/")
        if unknown := set(step.flags) - {"from"}:
            raise ContainerError(f"COPY --{unknown.pop()} is not understood here")
        for source in sources:
            if "from" in step.flags:
                whole = self.build(self._stage(step.flags["from"]))[0] / source.lstrip("/")
                _run(["cp", "--archive", f"{whole}/.", str(_made(goal))], f"COPY {step.value}")
            else:
                self._copy_from_context(self._context / source, goal)

    def _copy_from_context(self, source: Path, goal: Path) -> None:
        """Copy a file into a folder, or what is in a folder, but for what .dockerignore leaves out."""
        for path in [source] if source.is_file() else sorted(source.iterdir()):
            relative = path.relative_to(self._context)
            if path.is_dir() and self._ignored.looks_into(relative):
                self._copy_from_context(path, goal / path.name)
            elif path.is_file() and not self._ignored(relative):
                shutil.copy2(path, _made(goal) / path.name)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _way_to_packages() -> dict[str, str]:
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "get", "global.index-url"], **_TEXT)
    index = {"PIP_INDEX_URL": listed.stdout.strip()} if listed.returncode == 0 else {}
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return index | proxies | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}


_TEXT: dict[str, bool] = {"capture_output": True, "text": True}


def _run(command: Sequence[str], what: str, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, env=dict(environment) if environment else None, **_TEXT)
    if done.returncode:
        raise ContainerError(f"{what}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
