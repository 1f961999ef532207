"""Requests as bytes, made once: what is measured is the server, not how a client makes messages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from pellucid.v1 import explain_pb2 as pb
from server.oip_messages import oip

EXPLAIN = "/pellucid.v1.ExplainService/Explain"
INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Request:
    """A call that can be sent again and again.

    Attributes:
        path: of the method.
        body: file with the serialised message.
    """

    path: str
    body: Path


def explain_uint8(model: str, size: int) -> tuple[str, bytes]:
    """Ask for a typed explanation of one picture of bytes."""
    tensor = pb.ImageTensor(
        shape=[1, size, size, 3], data_type=pb.ImageTensor.DATA_TYPE_UINT8, data=_bytes(size).tobytes()
    )
    return EXPLAIN, pb.ExplainRequest(model=model, tensor=tensor).SerializeToString()


def infer_uint8(model: str, size: int) -> tuple[str, bytes]:
    """Ask for all output tensors of one picture of bytes."""
    return INFER, infer(model, "UINT8", _bytes(size))


def infer_float32(model: str, size: int) -> tuple[str, bytes]:
    """Ask for all output tensors of one picture of floats, as every server of the protocol takes it."""
    return INFER, infer(model, "FP32", floats(size))


def infer(model: str, datatype: str, images: np.ndarray) -> bytes:
    """Return a ModelInferRequest for all outputs, in raw bytes."""
    given = oip.ModelInferRequest.InferInputTensor(name="image", datatype=datatype, shape=images.shape)
    request = oip.ModelInferRequest(model_name=model, inputs=[given], raw_input_contents=[images.tobytes()])
    content: bytes = request.SerializeToString()
    return content


def floats(size: int) -> np.ndarray:
    """Return one picture, float32 (1, 3, size, size) in 0..1."""
    return np.random.default_rng(0).random((1, 3, size, size), np.float32)


def _bytes(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)


KINDS = {"explain uint8": explain_uint8, "infer uint8": infer_uint8, "infer float32": infer_float32}


def write_request(folder: Path, kind: str, model: str, size: int) -> Request:
    """Write the bytes of a request of a kind of `KINDS` to a file."""
    path, content = KINDS[kind](model, size)
    body = folder / f"{model}-{kind.replace(' ', '-')}.bin"
    body.write_bytes(content)
    return Request(path, body)


def call_once(address: str, request: Request, seconds: float = 60.0) -> bytes:
    """Send a request by gRPC's own client and return the answer, which the closed loop does not look at."""
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        answer: bytes = channel.unary_unary(request.path)(request.body.read_bytes(), timeout=seconds)
    return answer
