"""Where ONNX Runtime places the nodes of explained graphs under its CUDA provider, by its own report.

    python -m benchmarks.placement --python DIR/bin/python

needs gcc and binutils here, and an environment with onnxruntime-gpu (numpy and pydantic beside it); no GPU: stub
libraries stand in for CUDA, since only placement is read and nothing is run. `--real` leaves them out, on a machine
with a GPU. Exits with 1 where a node of a graph is on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from analyzers.execution import CPU, CUDA
from benchmarks.placement.models import every_kind
from benchmarks.placement.stubs import build

ROOT = Path(__file__).resolve().parent.parent.parent
PROVIDER = "libonnxruntime_providers_cuda.so"
Placement = dict[str, dict[str, int]]


def run_there(python: Path, module: str, arguments: Sequence[str], *, real: bool = False) -> list[str]:
    """Run a module in an environment with onnxruntime-gpu, on stubs or on the GPU; return what it prints, by line.

    Raises:
        RuntimeError: it failed; says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
        if not real:
            build(Path(folder), next(python.absolute().parent.parent.rglob(PROVIDER)))
            environment |= {"LD_LIBRARY_PATH": folder}
        command = [str(python), "-P", "-m", module, *arguments]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr.strip().splitlines()[-1] if run.stderr.strip() else f"exit code {run.returncode}")
    return run.stdout.splitlines()


def place(python: Path, files: Sequence[Path], *, real: bool = False) -> list[Placement]:
    """Return for each file how many nodes of each operator are on each provider.

    Args:
        python: of an environment with onnxruntime-gpu.
        files: models.
        real: use the GPU of this machine, not stubs.
    """
    lines = run_there(python, "benchmarks.placement.place", [str(file) for file in files], real=real)
    return [json.loads(line) for line in lines]


def main() -> int:
    """Place every kind of model and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="of an environment with onnxruntime-gpu")
    parser.add_argument("--real", action="store_true", help="use this machine's GPU, not stubs")
    parser.add_argument("--only", help="only models whose name contains this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        for name, model in every_kind():
            if options.only and options.only not in name:
                continue
            files[name] = Path(folder) / f"{len(files)}.onnx"
            files[name].write_bytes(model.SerializeToString())
        found = place(options.python, list(files.values()), real=options.real)
    print("| model | nodes on CUDA | nodes on the CPU | which |")
    print("|---|---|---|---|")
    for name, placement in zip(files, found, strict=True):
        cpu = placement.get(CPU, {})
        which = ", ".join(f"{count} {operator}" for operator, count in sorted(cpu.items()))
        print(f"| {name} | {sum(placement.get(CUDA, {}).values())} | {sum(cpu.values())} | {which} |")
    return int(any(CPU in placement for placement in found))


if __name__ == "__main__":
    sys.exit(main())
