"""What OpenVINO's provider does for explained files on a CPU: how much faster, and how far its answers are.

    python3.11 -m venv DIR && DIR/bin/pip install "onnxruntime-openvino>=1.24,<1.25" numpy pydantic
    python -m benchmarks.openvino --python DIR/bin/python --json openvino.json

The same file in four processes that run in turns, one thread each: ONNX Runtime's CPU provider as it is installed
here, the CPU provider of OpenVINO's wheel, which is older, OpenVINO, and OpenVINO in bf16. Lines hold medians of the
wall clock and of CPU time, and their ratio to the first. Repeat on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from analyzers.execution import Execution, OpenvinoOptions
from analyzers.manifest import Manifest
from analyzers.runtime import RUNTIME, open_session
from benchmarks.record import Line, Record

ROOT = Path(__file__).resolve().parent.parent
PICTURES = 64
OTHERS = ("explanatory_graph.", "class_features.", "parts.")


def work(file: Path, execution: Execution, batch: int, answers: Path) -> None:
    """Write the answers to some pictures, then run once for every line on stdin and say how long it took."""
    session = open_session(file, threads=1, execution=execution)
    manifest = Manifest.from_metadata(session.metadata)
    size = manifest.input
    images = np.random.default_rng(0).random((PICTURES, 3, size.height, size.width), np.float32)
    blocks = [session.run_images(manifest, block) for block in images.reshape(-1, batch, *images.shape[1:])]
    np.savez(answers, **{name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]})
    on_cpu = f", on the CPU provider: {session.on_cpu}" if session.on_cpu else ""
    print(f"{RUNTIME}, {session.provider}{on_cpu}", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        session.run_images(manifest, images[:batch])
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


class Worker:
    """A process that runs a file when it is told to."""

    def __init__(self, python: Path, file: Path, execution: Execution, batch: int, answers: Path) -> None:
        command = [str(python), "-P", "-m", "benchmarks.openvino", "--work", str(file)]
        command += [execution.model_dump_json(), str(batch), str(answers)]
        environment = {"ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT), "HOME": str(answers.parent)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.name = self._line()

    def run(self) -> tuple[float, float]:
        """Return the seconds by the wall clock and of CPU time that one run takes."""
        if self.process.stdin is None:
            raise RuntimeError("the process has no input")
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        wall, cpu = map(float, self._line().split())
        return wall, cpu

    def end(self) -> None:
        """Let it go."""
        self.process.communicate()

    def _line(self) -> str:
        line = self.process.stdout.readline().strip() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"{self.process.args} ended; what it said is above")
        return line


def measure(name: str, file: Path, python: Path, batch: int, rounds: int, folder: Path) -> list[Line]:
    """Return a line for each of the four processes."""
    half = Execution(provider="openvino", openvino=OpenvinoOptions(precision="bf16"))
    how = {
        "cpu": (Path(sys.executable), Execution(provider="cpu")),
        "cpu of its wheel": (python, Execution(provider="cpu")),
        "f32": (python, Execution(provider="openvino")),
        "bf16": (python, half),
    }
    workers = [Worker(own, file, one, batch, folder / f"{n}.npz") for n, (own, one) in enumerate(how.values())]
    taken = np.zeros((rounds, len(workers), 2))
    for number in range(rounds):
        for turn in range(len(workers)):
            which = (number + turn) % len(workers)
            taken[number, which] = workers[which].run()
    medians = np.median(taken, axis=0)
    lines = []
    for which, (kind, worker) in enumerate(zip(how, workers, strict=True)):
        worker.end()
        line: Line = {"network": name, "batch": batch, "kind": kind, "what": worker.name}
        line |= {"wall_ms": 1e3 * medians[which, 0], "cpu_ms": 1e3 * medians[which, 1]}
        line |= {"wall_ratio": medians[which, 0] / medians[0, 0], "cpu_ratio": medians[which, 1] / medians[0, 1]}
        lines.append(line | difference(folder / "0.npz", folder / f"{which}.npz"))
    return lines


def difference(exact: Path, other: Path) -> Line:
    """Return how far floats are apart, and which share of the integers and booleans differ, by row."""
    line: Line = {}
    with np.load(exact) as first, np.load(other) as second:
        for group in ("logits", *OTHERS):
            names = [name for name in first.files if name.startswith(group)]
            floats = [float(abs(first[n] - second[n]).max()) for n in names if first[n].dtype.kind == "f"]
            whole = [(first[n] != second[n]).ravel() for n in names if first[n].dtype.kind != "f"]
            if floats:
                line[f"{group.strip('.')}_off"] = max(floats)
            if whole:
                line[f"{group.strip('.')}_moved"] = float(np.concatenate(whole).mean())
    return line


def main() -> None:
    """Measure, and print what was measured."""
    if sys.argv[1:2] == ["--work"]:
        file, execution, batch, answers = sys.argv[2:]
        work(Path(file), Execution.model_validate_json(execution), int(batch), Path(answers))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="of an environment with onnxruntime-openvino")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batches", default="1,8", help="pictures in a run; they divide 64")
    parser.add_argument("--only", default="", help="only networks whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    record = Record(" ".join(["python -m benchmarks.openvino", *sys.argv[1:]]), [])
    with tempfile.TemporaryDirectory() as folder:
        for name, file in files(Path(folder), options.only):
            for batch in map(int, options.batches.split(",")):
                for line in measure(name, file, options.python, batch, options.rounds, Path(folder)):
                    record.lines.append(line)
                    said = (
                        f"{key} {value:.3g}" if isinstance(value, float) else str(value) for key, value in line.items()
                    )
                    print(", ".join(said), flush=True)
    if options.json:
        record.write(options.json)


def _short(value: str | float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def files(folder: Path, only: str) -> list[tuple[str, Path]]:
    """Write explained files of random weights: needs torch, which the workers do without."""
    from analyzers.plain import Layer
    from benchmarks.placement.models import explained, trained, with_graph
    from training.export import MAP

    found = []
    for name, backbone, size, filters in (("resnet20-32", "resnet20", 32, 64), ("resnet18-224", "resnet18", 224, 512)):
        if only in name:
            model = explained(trained(backbone, size, filters), Layer(tensor=MAP))
            for kind, one in (("", model), (" with graph", with_graph(model, form="hard", rooted=True))):
                path = folder / f"{name}{kind}.onnx"
                path.write_bytes(one.SerializeToString())
                found.append((f"{name}{kind}", path))
    return found


if __name__ == "__main__":
    main()
