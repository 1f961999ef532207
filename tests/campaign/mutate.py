"""Damage: valid messages with odd values, broken protobuf, broken pictures; all from one seed."""

from __future__ import annotations

from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.campaign.requests import PICTURES, bytes_input, encoded

INTEGERS = (0, 1, -1, 2, 3, 7, 16, 64, 65, 255, 256, 2**15, 2**31 - 1, -(2**31), 2**53, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 255.0, 1e-45, 1e30, float("nan"), float("inf"), float("-inf"))
WORDS = (
    *("", "lion", "../tiny", "1", "01", "-1", "99999999999999999999", "image", "logits", "FP32", "UINT8", "BYTES"),
    *("INT64", "FP16", "parts", "class_features", "timeout", "classification"),
    *("\0", "%s%n", "'; --", "\u202e", "ü" * 40),
)
WHOLE = (*PICTURES[:2], *(encoded(kind) for kind in ("PNG", "JPEG", "WEBP")), encoded("JPEG", progressive=True))
BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def is_repeated(field: FieldDescriptor) -> bool:
    """Return whether a field holds many values."""
    return bool(field.is_repeated)


def is_map(field: FieldDescriptor) -> bool:
    """Return whether a field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def odd_message(random: Random, message: Message) -> bytes:
    """Give one to four fields anywhere in the message values that nobody expects."""
    copy = type(message)()
    copy.CopyFrom(message)
    for _ in range(random.randint(1, 4)):
        _change(random, random.choice(list(_within(copy))))
    return copy.SerializeToString()


def _within(message: Message) -> list[Message]:
    """Return a message and all those in it."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if is_map(field):
            values = [value[key] for key in value] if field.message_type.fields_by_name["value"].message_type else []
        else:
            values = list(value[:8]) if is_repeated(field) else [value]
        for one in values:
            found += _within(one)
    return found


def _change(random: Random, message: Message) -> None:
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = random.choice(fields)
    if is_map(field):
        value_field = field.message_type.fields_by_name["value"]
        if value_field.message_type is None:
            return
        _change(random, getattr(message, field.name)[random.choice(WORDS)])
    elif is_repeated(field):
        _change_list(random, getattr(message, field.name), field)
    elif random.random() < 0.2:
        message.ClearField(field.name)
    elif field.message_type is not None:
        _change(random, getattr(message, field.name))
    else:
        setattr(message, field.name, _value(random, field))


def _change_list(random: Random, values: Any, field: FieldDescriptor) -> None:  # noqa: ANN401
    kind = random.random()
    if kind < 0.25 and len(values):
        del values[random.randrange(len(values))]
    elif kind < 0.5 and len(values):
        values.extend([values[random.randrange(len(values))]] * random.choice((1, 2, 70)))
    elif field.message_type is not None:
        _change(random, values.add())
    elif kind < 0.75 and len(values):
        values[random.randrange(len(values))] = _value(random, field)
    else:
        values.append(_value(random, field))


def _value(random: Random, field: FieldDescriptor) -> Any:  # noqa: ANN401
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return random.random() < 0.5
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return random.choice(FLOATS)
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return random.choice((b"", random.randbytes(random.choice((1, 4, 768, 3072))), random.choice(WHOLE)))
        case FieldDescriptor.CPPTYPE_STRING:
            return random.choice(WORDS) if random.random() < 0.9 else "x" * random.choice((1025, 70_000))
    low, high = BOUNDS[field.cpp_type]
    return min(max(random.choice(INTEGERS), low), high)


def broken_bytes(random: Random, data: bytes) -> bytes:
    """Return a message's bytes damaged, or bytes that never were a message."""
    broken = bytearray(data)
    match random.randrange(7):
        case 0:
            for _ in range(random.randint(1, 8)):
                _flip(random, broken)
        case 1:
            del broken[random.randrange(len(broken) + 1) :]
        case 2:
            at = random.randrange(len(broken) + 1)
            broken[at:at] = random.randbytes(random.randint(1, 12))
        case 3:
            return random.randbytes(random.choice((1, 3, 17, 200, 5000)))
        case 4:
            tag = bytes([random.randint(1, 15) << 3 | 2])
            return bytes(broken) + tag + b"\xff" * random.randint(4, 12) + b"\x7f"
        case 5:
            return bytes([random.randint(1, 15) << 3 | 3]) * random.choice((1, 99, 101, 20_000))
        case _:
            start = random.randrange(len(broken) + 1)
            del broken[start : start + random.randint(1, 16)]
    return bytes(broken)


def broken_picture(random: Random) -> bytes:
    """Return a picture cut short, with bits flipped, or with a piece of another."""
    broken = bytearray(random.choice(WHOLE))
    match random.randrange(4):
        case 0:
            del broken[random.randrange(len(broken)) :]
        case 1:
            for _ in range(random.randint(1, 20)):
                _flip(random, broken)
        case 2:
            for _ in range(random.randint(1, 4)):
                broken[random.randrange(min(60, len(broken)))] = random.randrange(256)
        case _:
            other = random.choice(WHOLE)
            broken[random.randrange(len(broken)) :] = other[random.randrange(len(other)) :]
    return bytes(broken)


def broken_values(random: Random) -> bytes:
    """Return BYTES values whose lengths lie, or numbers of a wrong length."""
    whole = bytes_input(*[broken_picture(random) for _ in range(random.randint(1, 3))])
    cut = whole[: random.randrange(len(whole) + 1)]
    lie = random.choice(INTEGERS) % 2**32
    return random.choice((whole, cut, lie.to_bytes(4, "little") + cut, random.randbytes(random.choice((3071, 3072)))))


def _flip(random: Random, data: bytearray) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
