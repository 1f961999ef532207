"""Measure a built image: what it adds to its base, and how it starts, serves and stops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.container.box import Box, Limits, running
from tests.container.build import Image, build, make_base

MB = 1_000_000
NETWORK = "resnet18-224"
PICTURE = "/dev/shm/picture.png"  # noqa: S108 (the one place in the container that can be written)
DRAW = f"from PIL import Image; Image.linear_gradient('L').convert('RGB').save('{PICTURE}')"


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the container, from its first process to the line that says where it listens; then one stop."""

    seconds: float
    cpu_seconds: float
    health: int
    answer: dict[str, object]
    stopped: int
    log: str


@contextmanager
def built(context: Path, target: str) -> Iterator[Image]:
    """Build a target upon a fresh base tree, in a folder that is gone afterwards.

    Raises:
        ContainerError: a step failed.
    """
    with TemporaryDirectory(prefix="container-") as folder, ExitStack() as stack:
        base = Path(folder) / "base"
        make_base(base)
        yield build(context, target, base, Path(folder) / "stages", stack)


def added(image: Image) -> dict[str, int]:
    """Return the size in bytes of every file that the image adds to its base, by path."""
    sizes: dict[str, int] = {}
    for layer in image.layers:
        for path in layer.rglob("*"):
            if path.is_file() and not path.is_symlink():
                sizes["/" + str(path.relative_to(layer))] = path.stat().st_size
    return sizes


def packages(sizes: dict[str, int]) -> dict[str, int]:
    """Return what each folder of site-packages takes in bytes, the largest first."""
    found: dict[str, int] = {}
    for path, size in sizes.items():
        _, here, rest = path.partition("/site-packages/")
        if here:
            name = rest.split("/")[0]
            found[name] = found.get(name, 0) + size
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def start(image: Image, models: Path) -> Start:
    """Start, ask for health and for one explained prediction, and stop.

    Raises:
        ContainerError: it did not come up.
    """
    with running(image, Limits(models)) as box:
        health = box.run(*image.health).returncode
        answer = _explain(box)
        stopped = box.stop()
        log = box.process.stderr.read()
    return Start(box.seconds_to_listen, box.cpu_seconds_to_listen, health, answer, stopped, log)


def _explain(box: Box) -> dict[str, object]:
    """Return the answer to a picture, asked by the image's own client within."""
    drawn = box.run("python", "-c", DRAW)
    asked = box.run("pellucid", "explain", PICTURE, "--json")
    return dict(json.loads(asked.stdout)[0]) if asked.returncode == 0 else {"error": drawn.stderr + asked.stderr}


def report(image: Image, starts: list[Start]) -> str:
    """Return the figures as a table."""
    sizes = added(image)
    inside = packages(sizes)
    largest = ", ".join(f"{name} {size / MB:.0f}" for name, size in list(inside.items())[:5])
    lines = [
        "| what | figure |",
        "|---|---|",
        f"| files that the image adds to its base | {len(sizes)}, {sum(sizes.values()) / MB:.0f} MB |",
        f"| of these site-packages | {sum(inside.values()) / MB:.0f} MB (largest: {largest}) |",
    ]
    if starts:
        each = ", ".join(f"{one.seconds:.1f}" for one in starts)
        lines += [
            f"| start to listening, {NETWORK}, median of {len(starts)} | {median(one.seconds for one in starts):.1f} s"
            f" ({each}) |",
            f"| processor time until then, median | {median(one.cpu_seconds for one in starts):.1f} s |",
            f"| exit codes of the health check | {', '.join(str(one.health) for one in starts)} |",
            f"| exit codes after SIGTERM | {', '.join(str(one.stopped) for one in starts)} |",
        ]
    return "\n".join(lines)
