"""Which servers there are, how they are started, and how one knows that they answer what they should."""

from __future__ import annotations

import base64
import json
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from grpc_tools import protoc

from analyzers.runtime import open_session
from benchmarks.serving.requests import INFER, floats, infer
from server.oip_messages import oip

HERE = Path(__file__).resolve().parent
PROTO = HERE.parents[2] / "proto"
TOLERANCE = 1e-4
TYPES = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8"), "BOOL": np.dtype("?"), "INT32": np.dtype("<i4")}

Logits = Callable[[bytes], np.ndarray]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to measure against.

    Attributes:
        name: of its environment and its script.
        title: what it is, with its version and how it is set up where there are several ways.
        path: of the call.
        content_type: of its requests; empty for gRPC.
        body: from a model's name and a picture's size to a request.
        logits: from an answer to the logits in it.
        options: further arguments of its script.
    """

    name: str
    title: str
    path: str
    content_type: str
    body: Callable[[str, int], bytes]
    logits: Logits
    options: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """A name for files."""
        return "-".join((self.name, *self.options))


def _infer(model: str, size: int) -> bytes:
    return infer(model, "FP32", floats(size))


def _base64(_: str, size: int) -> bytes:
    return json.dumps({"image": base64.b64encode(floats(size).tobytes()).decode()}).encode()


def _lists(_: str, size: int) -> bytes:
    return json.dumps({"image": floats(size).tolist()}).encode()


def _infer_logits(answer: bytes) -> np.ndarray:
    message = oip.ModelInferResponse.FromString(answer)
    place = [output.name for output in message.outputs].index("logits")
    if message.raw_output_contents:
        return np.frombuffer(message.raw_output_contents[place], TYPES[message.outputs[place].datatype])
    return np.array(message.outputs[place].contents.fp32_contents)


def _base64_logits(answer: bytes) -> np.ndarray:
    return np.frombuffer(base64.b64decode(json.loads(answer)["logits"]), np.float32)


def _list_logits(answer: bytes) -> np.ndarray:
    return np.array(json.loads(answer)[0]["logits"])


PEERS = (
    Peer("mlserver", "MLServer 1.7.1, 2 workers", INFER, "", _infer, _infer_logits),
    Peer("mlserver", "MLServer 1.7.1, in process", INFER, "", _infer, _infer_logits, ("in-process",)),
    Peer("pytriton", "Triton (PyTriton 0.7.0)", INFER, "", _infer, _infer_logits),
    Peer("kserve", "KServe 0.21.0", INFER, "", _infer, _infer_logits),
    Peer("ray", "Ray Serve 2.60.0", INFER, "", _infer, _infer_logits),
    Peer("litserve", "LitServe 0.2.19", "/predict", "application/json", _base64, _base64_logits),
    Peer("bento", "BentoML 1.4.39", "/predict", "application/json", _lists, _list_logits),
)


def command(peer: Peer, environments: Path, file: Path, model: str, port: int) -> list[str]:
    """Return the command that serves a file."""
    script = HERE / "servers" / f"serve_{peer.name}.py"
    return [str(environments / peer.name / "bin" / "python"), str(script), str(file), model, str(port), *peer.options]


def environment(generated: Path) -> dict[str, str]:
    """Return what all of them get: nothing reported home, the protocol's code, Python's own library for Triton."""
    return {
        "PYTHONPATH": f"{HERE / 'servers'}:{generated}",
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
        "ORT_DISABLE_TELEMETRY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_DO_NOT_TRACK": "True",
        "DO_NOT_TRACK": "1",
    }


def generate(folder: Path) -> None:
    """Write the protocol's Python code, as users of Ray Serve would."""
    folder.mkdir(parents=True, exist_ok=True)
    source = str(PROTO / "inference" / "open_inference.proto")
    if protoc.main(["protoc", f"-I{PROTO}", f"--python_out={folder}", f"--grpc_python_out={folder}", source]):
        raise RuntimeError("protoc refused the protocol's file; its message stands above")


def expected_logits(file: Path, size: int) -> np.ndarray:
    """Return what every server should answer."""
    return open_session(file, threads=1).run({"image": floats(size)}, ["logits"])["logits"]


def check(peer: Peer, answer: bytes, expected: np.ndarray) -> None:
    """Refuse a server that answers something else.

    Raises:
        ValueError: it does.
    """
    logits = peer.logits(answer).reshape(expected.shape)
    gap = float(abs(logits - expected).max())
    if gap > TOLERANCE * max(1.0, float(abs(expected).max())):
        raise ValueError(f"its logits are off by {gap:.1e}")
