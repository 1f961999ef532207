"""One HTTP/1.1 connection that sends the same POST again and again, one at a time."""

from __future__ import annotations

import contextlib
import socket

END_OF_HEADERS = b"\r\n\r\n"
LENGTH = b"content-length:"
LAST_CHUNK = b"0\r\n\r\n"


class Http1:
    """A kept-alive connection with one call under way.

    Attributes:
        socket: to wait on.
        failed: calls that were answered by another status than 200.
        waiting: whether the socket took less than there was to send.
    """

    def __init__(self, address: str, path: str, body: bytes, content_type: str) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.failed = 0
        self.waiting = False
        head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {content_type}\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._outbox = memoryview(b"")
        self._inbox = bytearray()
        self._began = 0.0

    def start(self, now: float) -> None:
        """Begin a call; `flush` sends it."""
        self._began = now
        self._outbox = memoryview(self._request)

    def flush(self) -> None:
        """Send what the socket takes."""
        if self._outbox:
            with contextlib.suppress(BlockingIOError):
                self._outbox = self._outbox[self.socket.send(self._outbox) :]
        self.waiting = bool(self._outbox)

    def receive(self) -> list[float]:
        """Read what came and return when the call that ended by it had begun.

        Raises:
            ConnectionError: the server closed the connection.
        """
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._inbox += data
        if not _complete(self._inbox):
            return []
        self.failed += not self._inbox.startswith(b"HTTP/1.1 200")
        self._inbox.clear()
        return [self._began]


def _complete(inbox: bytearray) -> bool:
    """Say whether a whole answer is there."""
    end = inbox.find(END_OF_HEADERS)
    if end < 0:
        return False
    head = inbox[:end].lower()
    place = head.find(LENGTH)
    if place < 0:  # in chunks
        return inbox.endswith(LAST_CHUNK)
    return len(inbox) - end - len(END_OF_HEADERS) >= int(head[place + len(LENGTH) :].split(b"\r\n", 1)[0])
