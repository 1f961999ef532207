"""Attach to every ONNX file of a folder and say of each what was proved, or why it was refused.

    python -m benchmarks.exporters.board FOLDER

The files come from the `export_*.py` scripts beside this one, which run in environments of their own.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

import numpy as np

from analyzers.attach import Selection, attach
from analyzers.errors import ModelError
from analyzers.plain import Layer, manifest_of, read_onnx, read_plain
from analyzers.prove import prove

CLASSES, K = 10, 5


def line(path: Path) -> str:
    """Return the table's line of one file."""
    try:
        plain = read_plain(read_onnx(path), names=tuple(f"class {c}" for c in range(CLASSES)))
        features = plain.found.head.weight.shape[1]
        sets = np.stack([np.random.default_rng(c).permutation(features)[: min(K, features)] for c in range(CLASSES)])
        explained = attach(plain, Selection(sets, None, "given"))
        size = plain.manifest.input
        pictures = np.random.default_rng(7).random((4, 3, size.height, size.width), np.float32)
        proof = prove(plain, explained, Layer(), pictures)
    except ModelError as error:
        return f"| {path.stem} | refused | | | {error} |"
    section = manifest_of(explained).class_features
    assert section is not None
    where = (
        f"'{section.map}'" + (", a weight for each cell" if section.flat else "") if section.exact else section.inexact
    )
    located = "" if proof.location_gap is None else f"{proof.location_gap:.1e}"
    exact = "exact" if section.exact else "exact: false"
    return f"| {path.stem} | {exact} | {proof.completeness_gap:.1e} | {located} | {features} features; {where} |"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    print("| file | | ledger | by cell | what was found |\n|---|---|---|---|---|")
    for path in sorted(options.folder.glob("*.onnx")):
        print(line(path), flush=True)
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
