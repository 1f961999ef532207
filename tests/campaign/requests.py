"""Requests that a healthy server answers, and the pictures in them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from tritonclient.grpc import service_pb2 as oip

from pellucid.v1 import explain_pb2 as pb
from tests.conftest import SIZE, random_pictures

MODEL = "tiny"
INPUT = "image"
SCORES = "logits"
PICTURES = random_pictures(8, seed=7).encoded
PIXELS = np.random.default_rng(5).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
FLOATS = np.ascontiguousarray((PIXELS / 255).astype(np.float32).transpose(0, 3, 1, 2))


def encoded(kind: str, height: int = 48, width: int = 64, **options: Any) -> bytes:  # noqa: ANN401
    """Return a picture of noise as a file of that kind."""
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def tensor(
    datatype: str, shape: tuple[int, ...], name: str = INPUT, **typed: list[Any]
) -> oip.ModelInferRequest.InferInputTensor:
    """Return the description of an input, with its values only if they are typed."""
    contents = oip.InferTensorContents(**typed) if typed else None
    return oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, contents=contents)


def infer(
    *inputs: oip.ModelInferRequest.InferInputTensor,
    raw: tuple[bytes, ...] = (),
    outputs: tuple[str, ...] = (),
    model: str = MODEL,
    version: str = "",
    id: str = "",  # noqa: A002 - the protocol's word
) -> oip.ModelInferRequest:
    """Return an inference request."""
    return oip.ModelInferRequest(
        model_name=model,
        model_version=version,
        id=id,
        inputs=inputs,
        raw_input_contents=raw,
        outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
    )


def floats(count: int = 1, **more: Any) -> oip.ModelInferRequest:  # noqa: ANN401
    """Return a valid request of raw FP32 pictures."""
    return infer(tensor("FP32", (count, 3, SIZE, SIZE)), raw=(FLOATS[:count].tobytes(),), **more)


def bytes_input(*values: bytes) -> bytes:
    """Return BYTES values as they travel raw: each after its length in 4 bytes."""
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def pictures(*values: bytes, **more: Any) -> oip.ModelInferRequest:  # noqa: ANN401
    """Return a valid request of encoded pictures."""
    return infer(tensor("BYTES", (len(values),)), raw=(bytes_input(*values),), **more)


def explain(**more: Any) -> pb.ExplainRequest:  # noqa: ANN401
    """Return a valid request for explanations of one picture."""
    return pb.ExplainRequest(**{"model": MODEL, "encoded_images": PICTURES[:1]} | more)


def picture_tensor(shape: list[int], data: bytes, kind: int = 1) -> pb.ImageTensor:
    """Return pictures as numbers, uint8 unless said otherwise."""
    return pb.ImageTensor(shape=shape, data_type=kind, data=data)
