"""A client for `pellucid.v1`: pictures in, Explanations out. Loads neither ONNX Runtime nor an image decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import grpc
import numpy as np
import numpy.typing as npt

from analyzers.errors import InvalidInputError, PellucidError
from analyzers.explanation import Explanation
from analyzers.what_if import Change
from pellucid.v1 import explain_pb2 as pb
from pellucid.v1 import explain_pb2_grpc as pb_grpc
from server.convert import from_message

Image = bytes | str | Path | npt.NDArray[Any]

EVIDENCE = {
    "": pb.EVIDENCE_TYPE_UNSPECIFIED,
    "float32": pb.EVIDENCE_TYPE_FLOAT32,
    "float16": pb.EVIDENCE_TYPE_FLOAT16,
}

DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class ServerError(PellucidError):
    """The server answered with an error, or could not be reached.

    Attributes:
        code: the gRPC status.
    """

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(f"{code.name}: {sentence}")
        self.code = code


class Client:
    """Asks one server; thread-safe, and a context manager that closes its channel.

    Args:
        target: "HOST:PORT".
        timeout_seconds: how long a call may take.
    """

    def __init__(self, target: str, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        self._channel = grpc.insecure_channel(
            target,
            options=[
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ],
        )
        self._stub = pb_grpc.ExplainServiceStub(self._channel)
        self._timeout = timeout_seconds

    def explain(
        self,
        images: Image | Sequence[Image],
        *,
        model: str = "",
        version: str = "",
        rows: Sequence[str] = (),
        top_k_classes: int = 0,
        top_k_reasons: int = 0,
        max_nodes: int = 0,
        min_percentile: float = 0.0,
        evidence: Literal["", "float32", "float16"] = "",
    ) -> list[Explanation]:
        """Predict and explain pictures, all in one run of the model.

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
            ServerError: the server refused or could not be reached; `code` says how.
            InvalidInputError: the pictures are of mixed or unknown kinds.
            OSError: a picture file cannot be read.
        """
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
        response: pb.ExplainResponse = self._call(self._stub.Explain, request)
        return [from_message(message) for message in response.explanations]

    def what_if(
        self,
        image: Image,
        *changes: Change,
        model: str = "",
        version: str = "",
        smallest_flip: bool = False,
        occlude: bool = False,
        top_k_classes: int = 0,
    ) -> pb.WhatIfResponse:
        """Predict one picture and ask what the answer would be if things counted for less or more.

        Exact for every class, and without another run of the model, but for `occlude`.

        Args:
            image: an encoded picture (bytes), the path of one, or an array as in `explain`.
            changes: what counts for less or more, such as `Change("feature", 12)` without feature 12.
            model: name of the model; may be left out where the server has only one.
            version: version of the model; the highest where left out.
            smallest_flip: whether to look for the smallest set of features without which another class wins.
            occlude: whether to paint over the places of what changes, and as much elsewhere.
            top_k_classes: how many classes, best first; 0 means 5.

        Raises:
            ServerError: the server refused or could not be reached.
            InvalidInputError: the picture is of an unknown kind.
            OSError: a picture file cannot be read.
        """
        pictures = pb.ExplainRequest()
        _put_images(pictures, image)
        request = pb.WhatIfRequest(
            model=model,
            version=version,
            encoded_image=pictures.encoded_images[0] if pictures.encoded_images else b"",
            changes=map(_change_message, changes),
            smallest_flip=smallest_flip,
            occlude=occlude,
            top_k_classes=top_k_classes,
        )
        if pictures.HasField("tensor"):
            request.tensor.CopyFrom(pictures.tensor)
        response: pb.WhatIfResponse = self._call(self._stub.WhatIf, request)
        return response

    def list_models(self) -> list[pb.ModelStatus]:
        """Return the status of every model version."""
        response: pb.ListModelsResponse = self._call(self._stub.ListModels, pb.ListModelsRequest())
        return list(response.models)

    def get_model(self, model: str = "", version: str = "") -> pb.GetModelResponse:
        """Return what one model takes, knows and can explain."""
        response: pb.GetModelResponse = self._call(
            self._stub.GetModel, pb.GetModelRequest(model=model, version=version)
        )
        return response

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Callable[..., Any], request: Any) -> Any:  # noqa: ANN401 (each stub has its own types)
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise ServerError(error.code(), error.details() or "no details") from None


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
