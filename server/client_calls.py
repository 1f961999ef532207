"""What the clients ask: each call's request from Python values, and Python values from its answer."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from analyzers.errors import InvalidInputError
from analyzers.explanation import Explanation
from analyzers.what_if import Change
from pellucid.v1 import explain_pb2 as pb
from server.convert import from_message

Image = bytes | str | Path | npt.NDArray[Any]
Evidence = Literal["", "float32", "float16"]

EVIDENCE: dict[Evidence, pb.EvidenceType] = {
    "": pb.EVIDENCE_TYPE_UNSPECIFIED,
    "float32": pb.EVIDENCE_TYPE_FLOAT32,
    "float16": pb.EVIDENCE_TYPE_FLOAT16,
}

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Answer = TypeVar("Answer")


class Health(enum.Enum):
    """What a server says of itself, as grpc.health.v1 numbers it."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Call(Generic[Request, Response, Answer]):
    """One call of the protocol.

    Attributes:
        path: "/package.Service/Method".
        request: type of its message.
        response: type of its answer's message.
        read: returns the answer as the client gives it to its caller.
    """

    path: str
    request: type[Request]
    response: type[Response]
    read: Callable[[Response], Answer]


def _explanations(response: pb.ExplainResponse) -> list[Explanation]:
    return [from_message(message) for message in response.explanations]


def _models(response: pb.ListModelsResponse) -> list[pb.ModelStatus]:
    return list(response.models)


def _itself(response: Response) -> Response:
    return response


def _health(response: Int32Value) -> Health:
    return next((health for health in Health if health.value == response.value), Health.UNKNOWN)


_SERVICE = pb.DESCRIPTOR.services_by_name["ExplainService"].full_name
EXPLAIN = Call(f"/{_SERVICE}/Explain", pb.ExplainRequest, pb.ExplainResponse, _explanations)
WHAT_IF: Call[pb.WhatIfRequest, pb.WhatIfResponse, pb.WhatIfResponse] = Call(
    f"/{_SERVICE}/WhatIf", pb.WhatIfRequest, pb.WhatIfResponse, _itself
)
LIST_MODELS = Call(f"/{_SERVICE}/ListModels", pb.ListModelsRequest, pb.ListModelsResponse, _models)
GET_MODEL: Call[pb.GetModelRequest, pb.GetModelResponse, pb.GetModelResponse] = Call(
    f"/{_SERVICE}/GetModel", pb.GetModelRequest, pb.GetModelResponse, _itself
)
# HealthCheckRequest and HealthCheckResponse have one field each, a string and an enum; on the wire they are these.
HEALTH = Call("/grpc.health.v1.Health/Check", StringValue, Int32Value, _health)
CALLS: tuple[Call[Any, Any, Any], ...] = (EXPLAIN, WHAT_IF, LIST_MODELS, GET_MODEL, HEALTH)


class ExplainOptions(TypedDict, total=False):
    """What may be asked of an explanation; explained at `explain_request`."""

    model: str
    version: str
    rows: Sequence[str]
    top_k_classes: int
    top_k_reasons: int
    max_nodes: int
    min_percentile: float
    evidence: Evidence


def explain_request(
    images: Image | Sequence[Image],
    *,
    model: str = "",
    version: str = "",
    rows: Sequence[str] = (),
    top_k_classes: int = 0,
    top_k_reasons: int = 0,
    max_nodes: int = 0,
    min_percentile: float = 0.0,
    evidence: Evidence = "",
) -> pb.ExplainRequest:
    """Return a request for explanations, picture files read.

    Args:
        images: encoded pictures (bytes), paths of picture files, or arrays (height, width, 3), uint8 or float
            in 0..1, of the model's own size; one of them, a sequence of one kind, or an array
            (batch, height, width, 3).
        model: name of the model; may be left out where the server has only one.
        version: version of the model; the highest where left out.
        rows: which rows are wanted; all where left out.
        top_k_classes: how many classes, best first; 0 means 5.
        top_k_reasons: how many reasons per row and class, strongest first; 0 means 10.
        max_nodes: how many nodes of each layer of the explanatory graph; 0 means 20.
        min_percentile: nodes below it, 0..100, are left out.
        evidence: whether ledgers say where, by cell, and in which numbers they are sent.

    Raises:
        InvalidInputError: the pictures are of mixed or unknown kinds, or the evidence is.
        OSError: a picture file cannot be read.
    """
    if evidence not in EVIDENCE:
        raise InvalidInputError("evidence", f"is '{evidence}'; expected one of {', '.join(filter(None, EVIDENCE))}")
    request = pb.ExplainRequest(
        model=model,
        version=version,
        rows=rows,
        top_k_classes=top_k_classes,
        top_k_reasons=top_k_reasons,
        max_nodes=max_nodes,
        min_percentile=min_percentile,
        evidence=EVIDENCE[evidence],
    )
    _put_images(request, images)
    return request


class WhatIfOptions(TypedDict, total=False):
    """What may be asked of a what-if; explained at `what_if_request`."""

    model: str
    version: str
    smallest_flip: bool
    occlude: bool
    top_k_classes: int


def what_if_request(
    image: Image,
    changes: Sequence[Change],
    *,
    model: str = "",
    version: str = "",
    smallest_flip: bool = False,
    occlude: bool = False,
    top_k_classes: int = 0,
) -> pb.WhatIfRequest:
    """Return a request for what the answer would be if things counted for less or more.

    Args:
        image: an encoded picture (bytes), the path of one, or an array as in `explain_request`.
        changes: what counts for less or more, such as `Change("feature", 12)` without feature 12.
        model: name of the model; may be left out where the server has only one.
        version: version of the model; the highest where left out.
        smallest_flip: whether to look for the smallest set of features without which another class wins.
        occlude: whether to paint over the places of what changes, and as much elsewhere.
        top_k_classes: how many classes, best first; 0 means 5.

    Raises:
        InvalidInputError: the picture is of an unknown kind.
        OSError: a picture file cannot be read.
    """
    pictures = pb.ExplainRequest()
    _put_images(pictures, image)
    return pb.WhatIfRequest(
        model=model,
        version=version,
        encoded_image=pictures.encoded_images[0] if pictures.encoded_images else b"",
        tensor=pictures.tensor if pictures.HasField("tensor") else None,
        changes=map(_change_message, changes),
        smallest_flip=smallest_flip,
        occlude=occlude,
        top_k_classes=top_k_classes,
    )


def _change_message(change: Change) -> pb.Change:
    if change.kind == "node":
        return pb.Change(node=pb.NodeName(layer=change.layer, node=change.number), scale=change.scale)
    if change.kind == "part":
        return pb.Change(part=change.number, scale=change.scale)
    return pb.Change(feature=change.number, scale=change.scale)


def _put_images(request: pb.ExplainRequest, images: Image | Sequence[Image]) -> None:
    """Put encoded pictures or a tensor into the request."""
    if isinstance(images, np.ndarray):
        _put_tensor(request, images if images.ndim == 4 else images[None])
        return
    items = [images] if isinstance(images, bytes | str | Path) else list(images)
    arrays = [item for item in items if isinstance(item, np.ndarray)]
    if arrays and len(arrays) == len(items):
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise InvalidInputError("images", f"have different shapes {sorted(shapes)[:3]}; expected one shape")
        _put_tensor(request, np.stack(arrays))
        return
    for item in items:
        if isinstance(item, str | Path):
            request.encoded_images.append(Path(item).read_bytes())
        elif isinstance(item, bytes):
            request.encoded_images.append(item)
        else:
            raise InvalidInputError(
                "images", f"hold a {type(item).__name__}; expected bytes, paths or arrays, not mixed"
            )


def _put_tensor(request: pb.ExplainRequest, array: npt.NDArray[Any]) -> None:
    if array.dtype == np.uint8:
        request.tensor.data_type = pb.ImageTensor.DATA_TYPE_UINT8
    elif np.issubdtype(array.dtype, np.floating):
        request.tensor.data_type = pb.ImageTensor.DATA_TYPE_FLOAT32
        array = array.astype("<f4")
    else:
        raise InvalidInputError("images", f"are arrays of {array.dtype}; expected uint8, or floats in 0..1")
    request.tensor.shape.extend(array.shape)
    request.tensor.data = np.ascontiguousarray(array).tobytes()
