"""What a benchmark measured, as a file: `benchmarks/results/NAME.json`, from which `benchmarks.page` makes the page."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

from analyzers.runtime import RUNTIME


def processor() -> str:
    """Return the processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


Line = dict[str, str | float]


@dataclass(frozen=True, slots=True)
class Record:
    """The lines of one run.

    Attributes:
        command: what was called.
        lines: what it measured, a figure by name.
        left_out: who could not be measured, and why.
        machine: what it ran on.
        software: which Python and ONNX Runtime.
    """

    command: str
    lines: list[Line]
    left_out: dict[str, str] = field(default_factory=dict)
    machine: str = field(default_factory=lambda: f"{processor()}, {os.cpu_count()} cores")
    software: str = f"Python {platform.python_version()}, {RUNTIME}"

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
