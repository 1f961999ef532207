"""Read an ONNX file's structure before ONNX Runtime does: one self-contained, straight graph of a sane size.

ONNX Runtime 1.31, given a model's bytes, reads weights from files of the current working directory if the model says
so, hard links included, and runs a loop for as long as it says. An explained model needs neither, so both are refused
by their field numbers in onnx.proto, wherever they stand: initializers, attributes, functions, training graphs.
"""

from __future__ import annotations

from enum import IntEnum

from analyzers.errors import ModelError

MAX_FIELDS = 1_000_000  # a ResNet-152 with explanations has some ten thousand
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MALFORMED = "the file is not ONNX: it is damaged, truncated or of another kind"


class _Kind(IntEnum):
    """The messages of onnx.proto that are looked into."""

    MODEL = 0
    GRAPH = 1
    NODE = 2
    ATTRIBUTE = 3
    TENSOR = 4
    SPARSE = 5


# Which field of which message holds another message that may hold tensors.
_INSIDE = {
    (_Kind.MODEL, 7): _Kind.GRAPH,
    (_Kind.GRAPH, 1): _Kind.NODE,
    (_Kind.GRAPH, 5): _Kind.TENSOR,
    (_Kind.GRAPH, 15): _Kind.SPARSE,
    (_Kind.NODE, 5): _Kind.ATTRIBUTE,
    (_Kind.ATTRIBUTE, 5): _Kind.TENSOR,
    (_Kind.ATTRIBUTE, 10): _Kind.TENSOR,
    (_Kind.ATTRIBUTE, 22): _Kind.SPARSE,
    (_Kind.ATTRIBUTE, 23): _Kind.SPARSE,
    (_Kind.SPARSE, 1): _Kind.TENSOR,
    (_Kind.SPARSE, 2): _Kind.TENSOR,
}
_EXTERNAL = "the file keeps weights in other files; an explained model is one ONNX file, save it without external data"
_CONTROL = "the graph has inner graphs (If, Loop, Scan); an explained model is one straight graph"
_FUNCTIONS = "the file has functions of its own; inline them before explanations are attached"
_TRAINING = "the file has a training graph; export the model for inference"
# Which field of which message is refused wherever it stands.
_REFUSED = {
    (_Kind.MODEL, 20): _TRAINING,
    (_Kind.MODEL, 25): _FUNCTIONS,
    (_Kind.ATTRIBUTE, 6): _CONTROL,
    (_Kind.ATTRIBUTE, 11): _CONTROL,
    (_Kind.TENSOR, 13): _EXTERNAL,
}
_DATA_LOCATION = (_Kind.TENSOR, 14)
_OPERATOR = (_Kind.NODE, 4)
_CONTEXT = b"EPContext"  # names a compiled model, in another file or in itself, that nobody has looked into


def scan(data: bytes) -> None:
    """Refuse a file that is more, or less, than one straight graph with its weights; linear in its number of fields.

    Raises:
        ModelError: naming what is in it, or that it is no ONNX file at all.
    """
    if not data:
        raise ModelError("the file is empty")
    if data[4:8] == b"ORTM":
        raise ModelError("the file is in ONNX Runtime's own format; expected ONNX")
    waiting = [(_Kind.MODEL, 0, len(data))]
    fields = 0
    graphs = 0
    while waiting:
        kind, at, end = waiting.pop()
        while at < end:
            fields += 1
            if fields > MAX_FIELDS:
                raise ModelError(f"the graph has more than {MAX_FIELDS} fields; expected an image classifier")
            tag, at = _varint(data, at, end)
            if tag >= 1 << 32:
                raise ModelError(_MALFORMED)
            field, wire = (kind, tag >> 3), tag & 7
            start, at = _value(data, at, end, wire)
            if wire == _BYTES and field in _INSIDE:
                graphs += field == (_Kind.MODEL, 7)
                waiting.append((_INSIDE[field], start, at))
            elif field in _REFUSED:
                raise ModelError(_REFUSED[field])
            elif field == _DATA_LOCATION and _varint(data, start, end)[0] != 0:
                raise ModelError(_EXTERNAL)
            elif field == _OPERATOR and data[start:at] == _CONTEXT:
                raise ModelError("the graph holds a part that is compiled already; expected operators only")
    if graphs != 1:
        raise ModelError(_MALFORMED)


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ModelError(_MALFORMED)


def _value(data: bytes, at: int, end: int, wire: int) -> tuple[int, int]:
    """Return where a field's value begins and ends; groups, which ONNX has none of, are refused."""
    if wire == _VARINT:
        return at, _varint(data, at, end)[1]
    if wire == _BYTES:
        size, at = _varint(data, at, end)
    elif wire in (_FIXED32, _FIXED64):
        size = 4 if wire == _FIXED32 else 8
    else:
        raise ModelError(_MALFORMED)
    if at + size > end:
        raise ModelError(_MALFORMED)
    return at, at + size
