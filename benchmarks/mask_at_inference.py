"""What the mask of an interpretable layer costs at inference: the same network masked against unmasked.

Both plain files hold the same weights and run in ONNX Runtime on the CPU as in `benchmarks/latency.py`: in turns, one
thread each, loaded anew several times, medians of CPU time. The control is the unmasked file loaded a second time.
"""

from __future__ import annotations

import argparse
from dataclasses import astuple

import torch

from analyzers.runtime import ort
from benchmarks.latency import CLASSES, Case, measure, processor
from training.backbones import BACKBONES
from training.export import export
from training.network import Network

CASES = (
    Case("small + interpretable layer", "small", 128, 96, 900),
    Case("ResNet-18 + interpretable layer", "resnet18", 512, 128, 300),
    Case("ResNet-18 + interpretable layer", "resnet18", 512, 224, 150),
)


def files(case: Case) -> tuple[bytes, bytes, bytes]:
    """Return the unmasked file, the masked one and the unmasked one again."""
    torch.manual_seed(0)
    masked, unmasked = (
        Network(BACKBONES[case.backbone](), CLASSES, size=case.size, filters=case.filters, masked=mask)
        for mask in (True, False)
    )
    unmasked.load_state_dict(masked.state_dict())
    names = tuple(f"class {c}" for c in range(CLASSES))
    without, with_mask = (export(network, names, case.size).model.SerializeToString() for network in (unmasked, masked))
    return without, with_mask, without


def main() -> None:
    """Measure all cases and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="only networks whose name contains this")
    options = parser.parse_args()
    print(f"{processor()}, ONNX Runtime {ort.__version__}, CPU, one thread; medians of CPU time\n")
    columns = "network", "input", "batch", "unmasked ms", "masked ms", "masked / unmasked", "by wall clock", "control"
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        if options.only and options.only not in case.name:
            continue
        models = files(case)
        for batch in (1, 8):
            print("| " + " | ".join(map(str, astuple(measure(case, batch, models)))) + " |", flush=True)


if __name__ == "__main__":
    main()
