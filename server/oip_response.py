"""From a run's output tensors to the bytes of a ModelInferResponse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from server.oip_messages import oip
from server.oip_request import Question

if TYPE_CHECKING:
    from collections.abc import Mapping

    from analyzers.manifest import Manifest
    from server.model import ExplainedModel

_DATATYPES = {
    np.dtype(name): datatype
    for name, datatype in {
        "?": "BOOL",
        "i1": "INT8",
        "i2": "INT16",
        "i4": "INT32",
        "i8": "INT64",
        "u1": "UINT8",
        "u2": "UINT16",
        "u4": "UINT32",
        "u8": "UINT64",
        "f2": "FP16",
        "f4": "FP32",
        "f8": "FP64",
    }.items()
}


def answer(
    model: ExplainedModel,
    request_id: str,
    question: Question,
    outputs: Mapping[str, npt.NDArray[Any]],
    start: int,
) -> bytes:
    """Return a serialised ModelInferResponse with the rows from `start` on, as many as there are pictures.

    Every tensor is answered raw: the most used client reads nothing else.
    """
    response = oip.ModelInferResponse(model_name=model.name, model_version=model.version, id=request_id)
    if question.marked:
        response.parameters["triton_final_response"].bool_param = True
    scores = model.manifest.scores.tensor
    for name in question.outputs:
        rows = outputs[name][start : start + question.pictures]
        if question.best and name == scores:
            response.outputs.add(name=name, datatype="BYTES", shape=(question.pictures, question.best))
            response.raw_output_contents.append(_classification(model.manifest, rows, question.best))
        else:
            response.outputs.add(name=name, datatype=_DATATYPES[rows.dtype], shape=rows.shape)
            response.raw_output_contents.append(rows.tobytes())
    return response.SerializeToString()


def _classification(manifest: Manifest, scores: npt.NDArray[Any], count: int) -> bytes:
    """Return "score:class:name" of the best classes of each picture, best first, each behind its length."""
    pieces = []
    for row in scores:
        for best in np.argsort(-row, kind="stable")[:count].tolist():  # ties: lowest class first
            text = f"{row[best]:f}:{best}:{manifest.classes[best]}".encode()
            pieces += [len(text).to_bytes(4, "little"), text]
    return b"".join(pieces)


def in_stream(response: bytes) -> bytes:
    """Return a serialised ModelStreamInferResponse around a serialised ModelInferResponse, without parsing it."""
    length, size = bytearray(), len(response)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    return b"".join((b"\x12", length, response))  # field 2, length-delimited


def failed_in_stream(sentence: str, request_id: str) -> bytes:
    """Return a serialised ModelStreamInferResponse that says why a request was not answered, and which."""
    failed = oip.ModelInferResponse(id=request_id)
    return oip.ModelStreamInferResponse(error_message=sentence, infer_response=failed).SerializeToString()
