"""What is checked inside an environment with onnxruntime-gpu: `python -m tests.gpu_checks`, on stubs or on a GPU.

Prints one line of JSON. It needs no pytest there, only what the server's core needs.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx

from analyzers.errors import PellucidError
from analyzers.execution import CUDA, CudaOptions, Device, Execution
from analyzers.runtime import Run, Session, open_session

PRODUCT = """
<ir_version: 10, opset_import: ["" : 20]>
product (float[batch, 8] x) => (float[batch, 8] y, int64[batch] best, float[8, 8] fixed)
{ z = MatMul (x, w)  y = Relu (z)  best = ArgMax <axis = 1, keepdims = 0> (y)  fixed = Identity (w) }
"""
BRANCH = """
<ir_version: 10, opset_import: ["" : 20]>
branch (float[batch, 8] x) => (float[batch, 8] y)
{
    sum = ReduceSum <keepdims = 0> (x)
    whether = Cast <to = 9> (sum)
    y = If (whether) <then_branch = t () => (float[batch, 8] a) { a = Mul (x, x) },
                      else_branch = e () => (float[batch, 8] b) { b = Add (x, x) }>
}
"""
ON_CPU = """
<ir_version: 10, opset_import: ["" : 20]>
cpu (float[batch, 8] x) => (float[batch, 8] y) { z = Mul (x, x)  y = Celu (z) }
"""
ALL = CudaOptions(
    memory_limit_bytes=2**30,
    arena_extend="same_as_requested",
    tf32=True,
    conv_search="exhaustive",
    conv_workspace=False,
    prefer_nhwc=True,
    fuse_conv_bias=True,
)


def model(text: str) -> bytes:
    parsed = onnx.parser.parse_model(text)
    if "w)" in text:
        weight = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
        parsed.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    content: bytes = parsed.SerializeToString()
    return content


def refusal(content: bytes, device: Device = "gpu", captured: tuple[int, ...] = ()) -> str:
    """Return the sentence with which a model is refused."""
    try:
        open_session(content, device=device, execution=Execution(cuda_graphs=captured))
    except PellucidError as error:
        return str(error)
    return "not refused"


def run(session: Session, pictures: int, names: tuple[str, ...] = ("y", "best")) -> dict[str, Any]:
    images = np.random.default_rng(pictures).random((pictures, 8), np.float32)
    return session.run({"x": images}, names)


def counts() -> dict[str, int]:
    """Return what the stubs counted; zeros on a GPU."""
    library = ctypes.CDLL("libcudart.so.13")
    names = ("captures", "replays", "kernels")
    return {name: ctypes.c_int.in_dll(library, f"stub_{name}").value for name in names}


def captured(real: bool) -> dict[str, Any]:
    """Run a session that captures; say what each run cost the device."""
    session = open_session(model(PRODUCT), device="gpu", execution=Execution(cuda_graphs=(1, 4)))
    exact = open_session(model(PRODUCT))
    steps, shapes, gaps = [], [], []
    for pictures in (3, 3, 4, 1, 2, 5):
        before = {} if real else counts()
        answer = run(session, pictures)
        after = {} if real else counts()
        steps.append({name: after[name] - before[name] for name in after})
        shapes.append([list(answer["y"].shape), list(answer["best"].shape)])
        gaps.append(float(abs(answer["y"] - run(exact, pictures)["y"]).max()))
    ended = Run()
    ended.end()
    try:
        session.run({"x": np.zeros((1, 8), np.float32)}, ["y"], ended)
        said = ""
    except PellucidError as error:
        said = str(error)
    threads = [Thread(target=run, args=(session, number)) for number in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fixed = float(abs(run(session, 2, ("fixed",))["fixed"] - run(exact, 2, ("fixed",))["fixed"]).max())
    return {"steps": steps, "shapes": shapes, "gaps": gaps, "ended": said, "fixed": fixed, "sizes": session.captured}


def main() -> None:
    """Print everything."""
    real = "--real" in sys.argv
    told = open_session(model(PRODUCT), device="gpu", execution=Execution(cuda=ALL, shrink_arena=True))
    run(told, 2)
    run(told, 3)
    reported = told.session.get_provider_options()[CUDA]
    tensorrt = next(Path(sys.prefix).rglob("libonnxruntime_providers_tensorrt.so")).read_bytes()
    print(
        json.dumps(
            {
                "told": dict(told.options),
                "reported": {name: reported.get(name) for name in told.options},
                "tensorrt": {name: f"\0{name}\0".encode() in tensorrt for name in sys.argv[1:] if name[0] != "-"},
                "path": type(told.path).__name__,
                "default": type(open_session(model(PRODUCT), device="auto").path).__name__,
                "branch": refusal(model(BRANCH), captured=(1,)),
                "on_cpu": refusal(model(ON_CPU), "auto", captured=(1,)),
                "strict": refusal(model(ON_CPU)),
                "allowed": open_session(model(ON_CPU), device="auto").on_cpu,
                "junk": refusal(b"no model"),
                "captured": captured(real),
            }
        )
    )


if __name__ == "__main__":
    main()
