"""Plain and explained files to measure on another machine: random weights, files that travel small.

    python -m benchmarks.gpu_models DIR

needs torch; `benchmarks.gpu --models DIR` does not. The weights of a layer repeat one block of noise: a run takes as
long as with any others, and a file packs to a twentieth.
"""

from __future__ import annotations

import argparse
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto

from analyzers.attach import Selection, attach
from analyzers.plain import Layer, Plain
from analyzers.smaller import named, to_half
from training.backbones import BACKBONES
from training.export import MAP, export
from training.network import Network

CLASSES, K = 1000, 5
BLOCK = 3989  # a prime, so that no two rows of a layer are alike
INDEX = "models.json"


@dataclass(frozen=True, slots=True)
class Case:
    """A network."""

    name: str
    backbone: str
    filters: int
    size: int


CASES = (
    Case("resnet20-32", "resnet20", 64, 32),
    Case("resnet18-224", "resnet18", 512, 224),
    Case("vgg16-224", "vgg16", 0, 224),
)


def plain_of(case: Case) -> Plain:
    """Return the network with weights that repeat."""
    torch.manual_seed(0)
    network = Network(BACKBONES[case.backbone](), CLASSES, size=case.size, filters=case.filters)
    noise = torch.randn(BLOCK)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 4:
                spread = (2 / weight[0].numel()) ** 0.5
                repeated = noise.repeat(-(-weight.numel() // BLOCK))[: weight.numel()]
                weight.copy_(spread * repeated.reshape(weight.shape))
    return export(network, tuple(f"class {c}" for c in range(CLASSES)), case.size)


def flops(model: ModelProto, size: int) -> float:
    """Return what the convolutions and products with weights of one picture take, two for each multiplication."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(copy).graph.value_info
    }
    weights = {tensor.name: list(tensor.dims) for tensor in copy.graph.initializer}
    total = 0.0
    for node in copy.graph.node:
        kernel = weights.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Conv" and kernel is not None:
            total += 2.0 * np.prod(kernel) * np.prod(shapes[node.output[0]][2:])
        elif node.op_type in ("Gemm", "MatMul") and kernel is not None:
            total += 2.0 * np.prod(kernel)
    return float(total)


def write(case: Case, folder: Path) -> dict[str, float]:
    """Write a network's four files; returns what a picture takes in each."""
    plain = plain_of(case)
    features = plain.found.head.weight.shape[1]
    sets = np.stack([np.random.default_rng(c).permutation(features)[:K] for c in range(CLASSES)])
    layer = Layer(tensor=MAP, interpretable=case.filters > 0)
    explained = attach(plain, Selection(sets, K, "contribution"), layer=layer)
    found = {}
    for kind, model in (("plain", plain.model), ("explained", explained)):
        for precision, copy in (("fp32", model), ("fp16", to_half(named(model)))):
            name = f"{case.name}.{kind}.{precision}.onnx.gz"
            (folder / name).write_bytes(gzip.compress(copy.SerializeToString(), 6))
            found[name] = flops(model, case.size)
    return found


def main() -> None:
    """Write all files, and an index that says how many operations a picture takes in each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--only", help="only networks whose name contains this")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, float] = {}
    for case in CASES:
        if not options.only or options.only in case.name:
            index |= write(case, options.folder)
            print(case.name, flush=True)
    (options.folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
