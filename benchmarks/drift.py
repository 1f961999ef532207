"""How far drift gauges go on real pictures: as they are, and changed in ways that they should tell.

    python -m benchmarks.drift MODEL.onnx --data cifar10-lossless.npz --split test --json drift.json

Every second picture makes the baseline, the others are the window; only those are changed. Each figure is the
divergence in bits over what chance alone would show, so 1 is nothing. `as they are` is the control. With --file the
baseline that the file carries is taken instead, and every picture is in the window.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table

from analyzers.baseline import Baseline, Shift, shift
from analyzers.manifest import Manifest
from analyzers.pixels import to_model_input
from analyzers.read_pictures import read_pictures
from analyzers.runtime import Session, open_session
from benchmarks.record import Line, Record
from server.drift import Drift

UInt8Array = npt.NDArray[np.uint8]
Change = Callable[[UInt8Array], UInt8Array]
BATCH = 32


def blurred(pixels: UInt8Array, radius: float) -> UInt8Array:
    """Return the pictures with a Gaussian blur of so many pixels."""
    return np.stack([np.asarray(Image.fromarray(each).filter(ImageFilter.GaussianBlur(radius))) for each in pixels])


def noisy(pixels: UInt8Array) -> UInt8Array:
    """Return the pictures with Gaussian noise of a standard deviation of 10 of 255."""
    noise = np.random.default_rng(0).normal(0, 10, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


CHANGES: dict[str, Change] = {
    "as they are": lambda pixels: pixels,
    "mirrored": lambda pixels: pixels[:, :, ::-1],
    "darker by a quarter": lambda pixels: (pixels * 0.75).astype(np.uint8),
    "noise of 10 of 255": noisy,
    "blurred by 1 pixel": lambda pixels: blurred(pixels, 1.0),
    "inverted": lambda pixels: 255 - pixels,
    "red and blue exchanged": lambda pixels: pixels[..., ::-1],
}


def answers(session: Session, manifest: Manifest, pixels: UInt8Array) -> list[dict[str, npt.NDArray[np.float32]]]:
    """Return the model's outputs, batch by batch."""
    starts = range(0, len(pixels), BATCH)
    return [session.run_images(manifest, to_model_input(pixels[start : start + BATCH])) for start in starts]


def shifts(session: Session, manifest: Manifest, baseline: Baseline, pixels: UInt8Array) -> dict[str, Shift]:
    """Show a server's drift some pictures and return what its gauges then say."""
    drift = Drift(baseline, manifest)
    for outputs in answers(session, manifest, pixels):
        drift.watch(outputs)
    window = drift.window()
    return {what: shift(window.baseline[what], recent) for what, recent in window.recent.items()}


def cases(pixels: UInt8Array, label: npt.NDArray[np.int64]) -> dict[str, UInt8Array]:
    """Return every window, with the classes cut in half as well."""
    half = np.unique(label)[: len(np.unique(label)) // 2]
    return {name: change(pixels) for name, change in CHANGES.items()} | {
        "half of the classes": pixels[np.isin(label, half)]
    }


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR|PACK")
    parser.add_argument("--split", default="test")
    parser.add_argument("--file", action="store_true", help="take the baseline that is in the file")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    session = open_session(options.model)
    manifest = Manifest.from_metadata(session.metadata)
    pictures = read_pictures(options.data).of_split(options.split)
    pixels, label = pictures.decoded(manifest.input.height, manifest.input.width), pictures.label
    if options.file:
        baseline = Baseline.from_metadata(session.metadata)
        if baseline is None:
            parser.error(f"{options.model} has no baseline")
    else:
        baseline = Baseline.of(manifest, answers(session, manifest, pixels[::2]))
        pixels, label = pixels[1::2], label[1::2]
    lines: list[Line] = []
    for name, window in cases(pixels, label).items():
        found = shifts(session, manifest, baseline, window)
        times: Line = {what: each.found / each.by_chance for what, each in found.items()}
        bits: Line = {f"{what}_bits": each.found for what, each in found.items()}
        lines.append({"pictures": len(window), "window": name, **times, **bits})
    whats = list(baseline.histograms())
    table = Table(title=f"times chance; baseline of {baseline.pictures} pictures")
    for title in ("window", "pictures", *whats):
        table.add_column(title, justify="left" if title == "window" else "right")
    for line in lines:
        table.add_row(str(line["window"]), str(line["pictures"]), *(f"{line[what]:.2f}" for what in whats))
    Console(width=100).print(table)
    if options.json:
        command = f"python -m benchmarks.drift MODEL.onnx --data {options.data.name} --split {options.split}"
        Record(command + (" --file" if options.file else ""), lines).write(options.json)


if __name__ == "__main__":
    main()
