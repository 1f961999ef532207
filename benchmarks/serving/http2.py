"""One HTTP/2 connection that sends the same gRPC call again and again, for as little CPU time as Python allows.

The client of a benchmark shares the cores with what it measures. This one sends bytes that were made beforehand and
looks at nothing of an answer but its frames; a call is good if it was answered by a message, since gRPC answers errors
by trailers alone.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GO_AWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACKNOWLEDGE = 1, 4, 1
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW, MAX_FRAME = 1, 2, 4, 5
LARGEST_WINDOW, FIRST_WINDOW = 2**31 - 1, 65_535


@dataclass(slots=True)
class _Call:
    """A call under way.

    Attributes:
        began: when its first byte was handed over, time.perf_counter().
        place: bytes of the request that are sent.
        window: bytes that the server takes yet.
        answered: whether a message came.
    """

    began: float
    place: int
    window: int
    answered: bool = False


class Http2:
    """A connection with any number of calls under way.

    Attributes:
        socket: to wait on.
        failed: calls that were not answered by a message.
        waiting: whether the socket took less than there was to send.
    """

    def __init__(self, address: str, path: str, message: bytes) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.failed = 0
        self.waiting = False
        self._block = _headers(address, path)
        self._body = memoryview(b"\0" + len(message).to_bytes(4) + message)
        self._calls: dict[int, _Call] = {}
        self._stuck: list[int] = []  # calls whose request waits for the server's window
        self._next = 1
        self._window = self._first = FIRST_WINDOW
        self._frame = 16_384
        self._received = 0
        self._inbox = bytearray()
        settings = struct.pack(">HIHIHI", HEADER_TABLE_SIZE, 0, ENABLE_PUSH, 0, INITIAL_WINDOW, LARGEST_WINDOW)
        self._outbox = bytearray(PREFACE + _frame(SETTINGS, 0, 0, settings))
        self._outbox += _frame(WINDOW, 0, 0, struct.pack(">I", LARGEST_WINDOW - FIRST_WINDOW))

    def start(self, now: float) -> None:
        """Begin a call; `flush` sends it."""
        stream, self._next = self._next, self._next + 2
        self._outbox += _frame(HEADERS, END_HEADERS, stream, self._block)
        self._calls[stream] = call = _Call(now, 0, self._first)
        if not self._send(stream, call):
            self._stuck.append(stream)

    def flush(self) -> None:
        """Send what the socket takes."""
        if self._outbox:
            with contextlib.suppress(BlockingIOError):
                del self._outbox[: self.socket.send(self._outbox)]
        self.waiting = bool(self._outbox)

    def receive(self) -> list[float]:
        """Read what came and return when the calls that ended by it had begun.

        Raises:
            ConnectionError: the server closed the connection.
        """
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server closed the connection")
        inbox = self._inbox
        inbox += data
        ended: list[float] = []
        place, size = 0, len(inbox)
        while size - place >= 9:
            length = int.from_bytes(inbox[place : place + 3])
            if size - place < 9 + length:
                break
            kind, flags = inbox[place + 3], inbox[place + 4]
            stream = int.from_bytes(inbox[place + 5 : place + 9])
            if kind == DATA:
                self._received += length
                if length > 5:  # a message, beyond its length
                    self._calls[stream].answered = True
            if kind in (DATA, HEADERS):
                if flags & END_STREAM:
                    self._end(stream, ended)
            else:
                self._control(kind, flags, stream, bytes(inbox[place + 9 : place + 9 + length]), ended)
            place += 9 + length
        del inbox[:place]
        if self._received > 1 << 28:
            self._outbox += _frame(WINDOW, 0, 0, struct.pack(">I", self._received))
            self._received = 0
        return ended

    def _end(self, stream: int, ended: list[float]) -> None:
        call = self._calls.pop(stream)
        self.failed += not call.answered
        ended.append(call.began)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes, ended: list[float]) -> None:
        if kind == SETTINGS and not flags & ACKNOWLEDGE:
            self._outbox += _frame(SETTINGS, ACKNOWLEDGE, 0, b"")
            for place in range(0, len(payload), 6):
                self._set(*struct.unpack_from(">HI", payload, place))
        elif kind == PING and not flags & ACKNOWLEDGE:
            self._outbox += _frame(PING, ACKNOWLEDGE, 0, payload)
        elif kind == WINDOW:
            more = int.from_bytes(payload)
            if stream == 0:
                self._window += more
            elif stream in self._calls:
                self._calls[stream].window += more
        elif kind == RESET and stream in self._calls:
            self._calls[stream].answered = False
            self._end(stream, ended)
        elif kind == GO_AWAY:
            raise ConnectionError(f"the server sent the client away: {payload[8:208]!r}")
        if self._stuck:
            self._stuck = [one for one in self._stuck if one in self._calls and not self._send(one, self._calls[one])]

    def _set(self, name: int, value: int) -> None:
        if name == INITIAL_WINDOW:
            for call in self._calls.values():
                call.window += value - self._first
            self._first = value
        elif name == MAX_FRAME:
            self._frame = value

    def _send(self, stream: int, call: _Call) -> bool:
        """Put as much of the request into the outbox as the windows allow; return whether that was all."""
        body = self._body
        while call.place < len(body):
            length = min(len(body) - call.place, self._frame, self._window, call.window)
            if length <= 0:
                return False
            last = call.place + length == len(body)
            self._outbox += length.to_bytes(3) + bytes((DATA, END_STREAM if last else 0)) + stream.to_bytes(4)
            self._outbox += body[call.place : call.place + length]
            call.place += length
            call.window -= length
            self._window -= length
        return True


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _headers(address: str, path: str) -> bytes:
    """Return a header block of literals that enter no table, so that it serves every call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": address,
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "benchmark",
    }
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


def _text(text: str) -> bytes:
    if len(text) > 126:
        raise ValueError(f"{text} is too long for a header here")
    return bytes((len(text),)) + text.encode()
