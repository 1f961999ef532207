"""Classifiers of paddle.vision with random weights, through paddle2onnx.

    python export_paddle.py FOLDER

Needs paddlepaddle and paddle2onnx in an environment of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import paddle
from paddle.vision import models

SIZE, CLASSES = 96, 10
NETWORKS = (
    "resnet18",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_25",
    "squeezenet1_1",
    "densenet121",
    "googlenet",
)


def main(folder: Path) -> None:
    """Write `paddle-NETWORK.onnx` files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        paddle.seed(0)
        try:
            network = getattr(models, name)(num_classes=CLASSES)
            network.eval()
            spec = [paddle.static.InputSpec([None, 3, SIZE, SIZE], "float32", "image")]
            paddle.onnx.export(network, str(folder / f"paddle-{name}"), input_spec=spec, opset_version=16)
            print(f"paddle-{name}.onnx: written", flush=True)
        except Exception as error:
            print(f"paddle-{name}.onnx: not exported: {' '.join(str(error).split())[:160]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
