"""Smaller copies: how alike they explain, and how long they take, on networks that were trained and real pictures.

    python -m benchmarks.portable --data animal-parts-20.npz --checkpoints DIR

learns a ResNet-18 with an interpretable layer (`portable.toml`; a quarter of an hour on two idle cores), makes int8 and
fp16 copies of it, and of the ResNet-20 and -32 in DIR if one is given (with `cifar10-lossless.npz` beside them), and
certifies each; then it times copies of a ResNet-18 of random weights, on which time does not depend, at 128 and 224
pixels, in turns with the model, one thread. `--choices` compares the ways to make eight bits. Every stage leaves files
in `--output` and is not done again, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from analyzers.certificate import Certificate
from analyzers.certify import CALIBRATION_PICTURES, certify
from analyzers.eight_bits import Scheme, to_eight_bits
from analyzers.half import to_half
from analyzers.pictures import Pictures
from analyzers.plain import load_onnx
from analyzers.progress import track
from analyzers.read_pictures import read_pictures
from analyzers.runtime import RUNTIME, open_session
from analyzers.smaller import named
from benchmarks.latency import Case, files, processor
from benchmarks.record import Line, Record

JOB = Path(__file__).parent / "portable.toml"
LEARNED = "ResNet-18 + interpretable layer, animals"
CHECKPOINTS = {"ResNet-20, CIFAR-10": "resnet20-12fca82f", "ResNet-32, CIFAR-10": "resnet32-d509ac18"}
FIGURES = (
    "accuracy",
    "accuracy_of_copy",
    "same_class",
    "top_features_kept",
    "map_correlation",
    "completeness_gap",
    "logit_difference",
    "peaks_moved",
    "peaks_moved_far",
)
CHOICES = {
    "as it is": (Scheme(), CALIBRATION_PICTURES),
    "64 pictures": (Scheme(), 64),
    "256 pictures": (Scheme(), 256),
    "1024 pictures": (Scheme(), 1024),
    "percentile": (Scheme(method="percentile"), CALIBRATION_PICTURES),
    "entropy": (Scheme(method="entropy"), CALIBRATION_PICTURES),
    "convolutions alone": (Scheme(joined=False), CALIBRATION_PICTURES),
    "first kept": (Scheme(keep=("first",)), CALIBRATION_PICTURES),
    "last kept": (Scheme(keep=("last",)), CALIBRATION_PICTURES),
    "first and last kept": (Scheme(keep=("first", "last")), CALIBRATION_PICTURES),
    "one scale a layer": (Scheme(per_channel=False), CALIBRATION_PICTURES),
    "weights of 7 bits": (Scheme(reduced=True), CALIBRATION_PICTURES),
    "symmetric": (Scheme(symmetric=True), CALIBRATION_PICTURES),
}
LOADS, NOISE = 5, 8


def once(path: Path, command: Iterable[object]) -> Path:
    """Run one of our programs unless the file that it makes is there, and return that file."""
    if not path.exists():
        environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "OMP_WAIT_POLICY": "passive"}
        subprocess.run([sys.executable, "-m", *map(str, command)], env=environment, check=True, stdout=sys.stderr)
    return path


def learned(folder: Path, data: Path, epochs: int | None) -> Path:
    """Return the ResNet-18 that was learned, explained; an interrupted run goes on after its last epoch."""
    more = [] if epochs is None else ["--train.epochs", epochs]
    path = folder / "resnet18-animals" / "1" / "model.onnx"
    return once(path, ["training", "run", JOB, "--data.path", data, "--output", folder, "--resume", *more])


def from_checkpoint(folder: Path, checkpoints: Path, name: str) -> tuple[Path, Path]:
    """Return a network that others trained, explained, and its pictures."""
    pack, backbone = checkpoints / "cifar10-lossless.npz", name.split("-")[0]
    plain, weights = folder / f"{backbone}-plain.onnx", checkpoints / f"{name}.safetensors"
    export = ["training", "export", "--backbone", backbone, "--weights", weights, "--data", pack, "--output", plain]
    once(plain, export)
    explained = folder / f"{backbone}.onnx"
    attach = ["analyzers", "attach", plain, "--data", pack, "--k1", 10, "--k2", 10, "--output", explained]
    return once(explained, attach), pack


def certificates(model: Path, data: Path) -> dict[str, Certificate]:
    """Return the certificates of both copies, which lie beside the model afterwards, whatever they say."""
    found = {}
    for form in ("int8", "fp16"):
        path = model.with_suffix(f".{form}.json")
        command = ["analyzers", "optimise", model, "--to", form, "--data", data, "--certificate", path, "--force"]
        once(model.with_suffix(f".{form}.onnx"), command)  # the certificate is written before the copy
        found[form] = Certificate.model_validate_json(path.read_text(encoding="utf-8"))
    return found


def parity_line(title: str, model: Path, form: str, certificate: Certificate) -> Line:
    """Return what a copy's certificate says, as a line of a table."""
    values = {name: figure.value for name, figure in certificate.figures.items()}
    size = model.with_suffix(f".{form}.onnx").stat().st_size / model.stat().st_size
    shown: Line = {name: float(values[name]) for name in FIGURES if values.get(name) is not None}
    return {"network": title, "copy": form, "n": certificate.data.pictures, "size": round(size, 3), **shown}


def times(size: int, batch: int, rounds: int) -> list[Line]:
    """Run model, copies and the model once more in turns; loaded anew several times, as places in memory matter."""
    data = files(Case("ResNet-18", "resnet18", 512, size, rounds))[1]
    model = named(load_onnx(data))
    noise = np.random.default_rng(0).random((NOISE, 3, size, size), np.float32)
    kinds = {
        "float32": data,
        "int8": to_eight_bits(model, noise).SerializeToString(),
        "fp16": to_half(model).SerializeToString(),
        "float32 again": data,
    }
    wall, cpu = (np.zeros((len(kinds), LOADS, rounds)) for _ in range(2))
    images = {"image": np.random.default_rng(1).random((batch, 3, size, size), np.float32)}
    for load in track(range(LOADS), f"timing at {size}, batch {batch}", LOADS):
        sessions = [open_session(content, threads=1) for content in kinds.values()]
        wanted = [name for name in sessions[0].outputs if name != "class_features.head"]
        for session in sessions:
            session.run(images, wanted)
        for number in range(rounds):
            for turn in range(len(sessions)):
                which = (number + turn) % len(sessions)
                one, other = _time(lambda s=sessions[which], w=wanted: s.run(images, w))
                wall[which, load, number], cpu[which, load, number] = one, other
    middle, busy = (np.median(found.reshape(len(kinds), -1), axis=1) for found in (wall, cpu))
    return [
        {
            "pixels": size,
            "batch": batch,
            "copy": name,
            "wall ms": round(1e3 * middle[place], 2),
            "CPU ms": round(1e3 * busy[place], 2),
            "wall / float32": round(middle[place] / middle[0], 3),
            "CPU / float32": round(busy[place] / busy[0], 3),
        }
        for place, name in enumerate(kinds)
    ]


def choices(model: Path, pictures: Pictures) -> list[Line]:
    """Compare ways to make eight bits: how alike they explain."""
    lines, data = [], model.read_bytes()
    for title, (scheme, count) in CHOICES.items():
        certificate, _ = certify(data, pictures, "int8", scheme=scheme, calibrate=count)
        figures: Line = {name: float(certificate.figures[name].value or 0) for name in FIGURES[1:]}
        lines.append({"choice": title, **figures})
    return lines


def choice_times(size: int, rounds: int) -> list[Line]:
    """Compare ways to make eight bits of a ResNet-18: CPU time of a run, in turns with the model."""
    data, lines = files(Case("ResNet-18", "resnet18", 512, size, rounds))[1], []
    model = named(load_onnx(data))
    noise = np.random.default_rng(0).random((NOISE, 3, size, size), np.float32)
    images = {"image": noise[:1]}
    for title, (scheme, count) in CHOICES.items():
        if count != CALIBRATION_PICTURES:
            continue
        copy = to_eight_bits(model, noise, scheme)
        sessions = [open_session(content, threads=1) for content in (data, copy.SerializeToString())]
        taken = np.zeros((2, rounds))
        for number in range(rounds):
            for which in (number % 2, 1 - number % 2):
                taken[which, number] = _time(lambda s=sessions[which]: s.run(images))[1]
        before, after = np.median(taken, axis=1)
        lines.append({"choice": title, "pixels": size, "CPU / float32": round(after / before, 3)})
    return lines


def _time(run: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a call takes: by the clock, and of the processor."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def kept(path: Path, command: str, measure: Callable[[], list[Line]]) -> list[Line]:
    """Return what is measured, from the file of an earlier run where there is one."""
    if not path.exists():
        Record(command, measure()).write(path)
    return Record.read(path).lines


def table(lines: list[Line]) -> str:
    """Return lines as a Markdown table."""
    names = list(lines[0])
    rows = [[_shown(line.get(name, "")) for name in names] for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in [names, ["---"] * len(names), *rows])


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"


def main() -> None:
    """Do what has not been done, and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the pack of animals; without it no ResNet-18 is learned")
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="with ResNet-20, -32 and the CIFAR-10 pack")
    parser.add_argument("--output", type=Path, default=Path("runs/portable"), help="where all stages are kept")
    parser.add_argument("--epochs", type=int, help="fewer than portable.toml says, for a trial")
    parser.add_argument("--rounds", type=int, default=40, help="runs of each file after each loading (default 40)")
    parser.add_argument("--sizes", type=int, nargs="*", default=[128, 224], help="pixels (default 128 224)")
    parser.add_argument("--choices", action="store_true", help="also compare ways to make eight bits")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m benchmarks.portable", *(Path(word).name for word in sys.argv[1:])])
    print(f"{processor()}, {RUNTIME}, CPU, one thread\n")
    models: dict[str, tuple[Path, Path]] = {}
    if options.checkpoints is not None:
        for title, name in CHECKPOINTS.items():
            models[title] = from_checkpoint(options.output, options.checkpoints, name)
    if options.data is not None:
        models[LEARNED] = learned(options.output, options.data, options.epochs), options.data
    lines = [
        parity_line(title, model, form, certificate)
        for title, (model, data) in models.items()
        for form, certificate in certificates(model, data).items()
    ]
    if lines:
        print(table(lines) + "\n", flush=True)
    for size in options.sizes:
        for batch in (1, 8):
            path = options.output / f"times-{size}-{batch}.json"
            rounds = options.rounds if batch == 1 else max(1, options.rounds // 4)
            found = kept(path, command, partial(times, size, batch, rounds))
            print(table(found) + "\n", flush=True)
    for title, (model, data) in models.items() if options.choices else ():
        path, pictures = options.output / f"choices-{title.split()[0].strip(',').lower()}.json", read_pictures(data)
        print(f"{title}:\n\n{table(kept(path, command, partial(choices, model, pictures)))}\n", flush=True)
    if options.choices and options.sizes:
        path = options.output / f"choices-time-{options.sizes[0]}.json"
        print(table(kept(path, command, partial(choice_times, options.sizes[0], options.rounds))))


if __name__ == "__main__":
    main()
