"""What an explanation costs on a GPU: explained against plain, in fp32 and fp16, plainly, bound and captured.

    python -m benchmarks.gpu_models DIR                    # where torch is
    python -m benchmarks.gpu --models DIR --device gpu --json gpu.json --peak-tflops fp32=N,fp16=N

One call does everything, in about `--minutes`. For each network, precision and batch size all six sessions (plain and
explained file, each plainly, with IO binding, and as a captured CUDA graph) are run in turns within one process; the
lines hold medians of the wall clock, ratios to the plain file on the same path, pictures per second, and the share of
the peak that is given. Before anything is measured every path's answers are held against the CPU's in fp32.
`--device cpu` goes the same ways on the CPU, where they gain nothing: it tests this program.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.execution import Device, Execution
from analyzers.manifest import Manifest
from analyzers.run_paths import Bound, Captured
from analyzers.runtime import Session, open_session
from benchmarks.record import Line, Record, processor

INDEX = "models.json"
PATHS = ("plain run", "bound", "captured")
KINDS = ("plain", "explained")
BATCHES = (1, 8, 64)
LEAST, MOST = 5, 400  # rounds
CHECKED = 4  # pictures whose answers are compared

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, and how long.

    Attributes:
        device: where.
        batches: pictures in a run.
        seconds: for one network, precision and batch size.
        peaks: the device's operations per second, by precision.
    """

    device: Device
    batches: tuple[int, ...]
    seconds: float
    peaks: Mapping[str, float]


def open_path(data: bytes, path: str, plan: Plan) -> Session:
    """Load a file so that it is run on one of the paths."""
    how = Execution(io_binding=path != "plain run", cuda_graphs=plan.batches if path == "captured" else ())
    if plan.device == "gpu":
        return open_session(data, device="gpu", threads=1, execution=how)
    session = open_session(data, device="cpu", threads=1)
    if path == "bound":
        return replace(session, path=Bound(session.session, ("cpu", 0)))
    if path == "captured":
        rows = [output.name for output in session.session.get_outputs() if not isinstance(output.shape[0], int)]
        return replace(session, path=Captured(session.session, ("cpu", 0), plan.batches, rows))
    return session


def timed(runs: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Run in turns, starting with another one each round; return each one's seconds."""
    for run in runs.values():
        run()
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    names, end = list(runs), time.perf_counter() + seconds
    for number in range(MOST):
        for turn in range(len(names)):
            name = names[(number + turn) % len(names)]
            began = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - began)
        if number + 1 >= LEAST and time.perf_counter() > end:
            break
    return taken


def agreement(manifest: Manifest, exact: Arrays, found: Arrays) -> Line:
    """Say how far answers are from the CPU's in fp32."""
    scores = manifest.scores.tensor
    line: Line = {
        "logits_off": float(abs(exact[scores] - found[scores]).max()),
        "largest_logit": float(abs(exact[scores]).max()),
        "same_class": float((exact[scores].argmax(1) == found[scores].argmax(1)).mean()),
    }
    if (parts := manifest.parts) is not None:
        fired = exact[parts.score] > 0
        line["peaks_moved"] = float((exact[parts.cell] != found[parts.cell])[fired].mean()) if fired.any() else 0.0
    return line


def measure(name: str, precision: str, folder: Path, plan: Plan, index: Mapping[str, float]) -> list[Line]:
    """Return the lines of one network in one precision."""
    files = {kind: f"{name}.{kind}.{precision}.onnx.gz" for kind in KINDS}
    data = {kind: gzip.decompress((folder / file).read_bytes()) for kind, file in files.items()}
    manifest = Manifest.from_metadata(open_session(data["explained"], threads=1).metadata)
    size = manifest.input
    sessions = {(kind, path): open_path(data[kind], path, plan) for kind in KINDS for path in PATHS}
    random = np.random.default_rng(0)
    some = random.random((CHECKED, 3, size.height, size.width), np.float32)
    exact = open_session(gzip.decompress((folder / f"{name}.explained.fp32.onnx.gz").read_bytes())).run_images(
        manifest, some
    )
    common: Line = {"network": name, "precision": precision, "provider": sessions["plain", "bound"].provider}
    lines: list[Line] = []
    for path in PATHS:
        answers = sessions["explained", path].run_images(manifest, some)
        lines.append(common | {"what": "agreement", "path": path} | agreement(manifest, exact, answers))
    for batch in plan.batches:
        images = random.random((batch, 3, size.height, size.width), np.float32)
        runs = {
            f"{kind}, {path}": _run(session, manifest, images, explained=kind == "explained")
            for (kind, path), session in sessions.items()
        }
        taken = {key: float(np.median(seconds)) for key, seconds in timed(runs, plan.seconds).items()}
        for kind, path in sessions:
            median = taken[f"{kind}, {path}"]
            line = common | {"what": "time", "path": path, "file": kind, "batch": batch}
            line |= {"median_ms": 1e3 * median, "pictures_per_second": batch / median}
            line["to_plain_file"] = median / taken[f"plain, {path}"]
            line["to_plain_run"] = median / taken[f"{kind}, plain run"]
            operations = index[files[kind]] * batch / median
            line["tflops"] = operations / 1e12
            if precision in plan.peaks:
                line["share_of_peak"] = operations / plan.peaks[precision]
            lines.append(line)
    return lines


def _run(session: Session, manifest: Manifest, images: Any, *, explained: bool) -> Callable[[], object]:  # noqa: ANN401
    """Return a run that asks for what a server asks for: of a plain file the logits, of an explained one all of it."""
    if explained:
        return lambda: session.run_images(manifest, images)
    return lambda: session.run({manifest.input.tensor: images}, [manifest.scores.tensor])


def device_name(device: Device) -> str:
    """Return what the figures belong to."""
    if device == "cpu":
        return processor()
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "a GPU that nvidia-smi does not name"


def main(arguments: list[str] | None = None) -> None:
    """Measure everything there is and print it as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="what benchmarks.gpu_models wrote")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it, without loading (default 8)")
    parser.add_argument("--only", default="", help="only networks whose name contains this")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--peak-tflops", default="", metavar="fp32=N,fp16=N", help="the device's, for the share of it")
    parser.add_argument("--json", type=Path, help="also write the figures here, after every network")
    options = parser.parse_args(arguments)
    index: dict[str, float] = json.loads((options.models / INDEX).read_text())
    cases = sorted({tuple(file.split(".")[::2][:2]) for file in index if options.only in file})
    batches = tuple(int(batch) for batch in options.batches.split(","))
    peaks = {p: 1e12 * float(v) for p, _, v in (one.partition("=") for one in options.peak_tflops.split(",") if one)}
    plan = Plan(options.device, batches, 60 * options.minutes / (len(cases) * len(batches)), peaks)
    record = Record(" ".join(["python -m benchmarks.gpu", *(arguments or sys.argv[1:])]), [])
    device = device_name(options.device)
    for name, precision in cases:
        for line in measure(name, precision, options.models, plan, index):
            record.lines.append(line | {"device": device})
            print(", ".join(f"{key} {_short(value)}" for key, value in record.lines[-1].items()), flush=True)
        if options.json:
            record.write(options.json)


def _short(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
