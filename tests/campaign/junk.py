"""Clients that mean harm or have died: sockets without a word, half messages, one byte at a time, unread answers."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc

from tests.campaign import requests
from tests.campaign.fuzz import STREAM
from tests.campaign.wire import EXPLAIN, HEALTH, OPTIONS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS, DATA, END_HEADERS = 4, 1, 0, 4
SECONDS_PER_BYTE = 0.05


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """Return an HTTP/2 frame."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def headers(path: str) -> bytes:
    """Return a request's headers: POST, http, the path, and what gRPC wants, in HPACK's plainest form."""

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    return (
        b"\x83\x86\x04" + text(path) + b"\x01" + text("localhost") + b"\x0f\x10" + text("application/grpc")
        + b"\x00" + text("te") + text("trailers")
    )  # fmt: skip


def half_a_message(stream: int = 1) -> bytes:
    """Return a call that promises 1,000,000 bytes and sends 1,000 of them."""
    path = EXPLAIN + "Explain"
    body = b"\0" + struct.pack(">I", 1_000_000) + bytes(1000)
    return frame(HEADERS, END_HEADERS, stream, headers(path)) + frame(DATA, 0, stream, body)


def connect(address: str) -> socket.socket:
    """Open a connection."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), 5)


@contextmanager
def junk_connections(address: str, count: int) -> Iterator[None]:
    """Hold connections: a third silent, a third that sent noise, a third that sent something that is no HTTP/2."""
    said = (b"", os.urandom(200), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with ExitStack() as stack:
        for number in range(count):
            one = stack.enter_context(connect(address))
            if said[number % 3]:
                one.sendall(said[number % 3])
        yield


@contextmanager
def half_messages(address: str, count: int) -> Iterator[None]:
    """Hold connections whose calls stop in the middle of a message."""
    with ExitStack() as stack:
        for _ in range(count):
            one = stack.enter_context(connect(address))
            one.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + b"".join(half_a_message(1 + 2 * n) for n in range(5)))
        yield


@contextmanager
def slow_writers(address: str, count: int) -> Iterator[None]:
    """Send valid calls one byte at a time, on many connections."""
    message = PREFACE + frame(SETTINGS, 0, 0, b"") + half_a_message()
    stop = threading.Event()
    with ExitStack() as stack:
        sockets = [stack.enter_context(connect(address)) for _ in range(count)]

        def write() -> None:
            for number in range(len(message)):
                for one in sockets:
                    try:
                        one.send(message[number : number + 1])
                    except OSError:
                        continue  # the server has had enough of it
                if stop.wait(SECONDS_PER_BYTE):
                    return

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(10)


@contextmanager
def stuck_readers(address: str, count: int, messages: int = 400) -> Iterator[None]:
    """Ask on streams for large answers that are never read, and watch health without listening."""
    data = requests.floats(3).SerializeToString()
    answers: list[grpc.Call] = []
    options = (*OPTIONS, ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    with ExitStack() as stack:
        for _ in range(count):
            channel = stack.enter_context(grpc.insecure_channel(address, options))
            answers.append(channel.stream_stream(STREAM)(iter([data] * messages), timeout=300))
            answers.append(channel.unary_stream(HEALTH + "Watch")(b"", timeout=300))
        try:
            yield
        finally:
            for one in answers:
                one.cancel()


NUISANCES: dict[str, Callable[[str], object]] = {
    "300 junk connections": lambda address: junk_connections(address, 300),
    "50 half messages": lambda address: half_messages(address, 50),
    "50 slow writers": lambda address: slow_writers(address, 50),
    "20 stuck readers": lambda address: stuck_readers(address, 20),
}
