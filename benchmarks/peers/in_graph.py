"""What explanations cost where another library also puts them into the graph: OpenVINO XAI, run by OpenVINO.

    python benchmarks/peers/in_graph.py plain.onnx 32

Needs openvino and openvino-xai, which want numpy 1, in an environment of their own; nothing of ours is imported.
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import version

import numpy as np
import openvino
import openvino_xai
from openvino_xai.common.parameters import Method, Task

ROUNDS = 400


def main(path: str, size: int) -> None:
    """Print medians of CPU time of one picture, in turns, one thread, and their ratio to the plain model's."""
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    models = {"plain": core.read_model(path), "plain again": core.read_model(path)}
    for name, method in (("ActivationMap", Method.ACTIVATIONMAP), ("ReciproCAM", Method.RECIPROCAM)):
        models[name] = openvino_xai.insert_xai(core.read_model(path), task=Task.CLASSIFICATION, explain_method=method)
    requests = {name: core.compile_model(model, "CPU").create_infer_request() for name, model in models.items()}
    image = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    times: dict[str, list[float]] = {name: [] for name in requests}
    for turn in range(ROUNDS + 20):
        for name, request in requests.items():
            began = time.process_time()
            request.infer([image])
            if turn >= 20:
                times[name].append(time.process_time() - began)
    base = float(np.median(times["plain"]))
    print(f"OpenVINO {openvino.__version__}, OpenVINO XAI {version('openvino-xai')}, one thread, {path}")
    for name, values in times.items():
        shapes = [tuple(output.get_partial_shape().to_string() for output in models[name].outputs)]
        print(f"{name:<14} {1e3 * np.median(values):.3f} ms  {np.median(values) / base:.3f}  outputs {shapes[0]}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
