"""How a client reaches its servers: names, balancing, TLS, limits. The same for `Client` and `AsyncClient`."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TypedDict

import grpc
import grpc.aio

from analyzers import __version__
from analyzers.errors import InvalidInputError

DEFAULT_TIMEOUT_SECONDS = 30.0
DEFAULT_RETRIES = 4
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
SHORTEST_KEEPALIVE_SECONDS = 10.0  # servers close connections that ask more often

Option = tuple[str, str | int]

_GRPC_NAME = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):")
_BALANCED = ("dns:", "ipv4:", "ipv6:")
_ADDRESS = re.compile(r"(?P<host>\[[^\]]+\]|[^:/\[\]]+):(?P<port>\d{1,5})")
_ROUND_ROBIN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}})


class ConnectionOptions(TypedDict, total=False):
    """What `Client` and `AsyncClient` take besides the target; explained at `Connection`."""

    timeout_seconds: float
    retries: int
    channels: int
    credentials: grpc.ChannelCredentials | None
    compression: grpc.Compression | None
    metadata: Sequence[tuple[str, str | bytes]]
    keepalive_seconds: float
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class Connection:
    """Whom to ask, and how.

    Attributes:
        target: "HOST:PORT"; several of them, in a list or with commas; or a gRPC name such as "dns:///service:50051".
            Several servers take turns, and those that say NOT_SERVING, or nothing, are left out.
        timeout_seconds: how long a call may take, all its tries and the waits between them included.
        retries: how often a call is sent again that an absent, stopping or overloaded server did not answer; 0 never.
        channels: how many connections to keep to each server.
        credentials: `grpc.ssl_channel_credentials(...)` for TLS; None sends everything in the clear.
        compression: of what is sent, such as `grpc.Compression.Gzip`; encoded pictures do not get smaller by it.
        metadata: (key, value) pairs to send with every call, such as a token.
        keepalive_seconds: how often to ask a silent server whether it is there, 10 or more; 0 never asks.
        max_message_bytes: the largest request and the largest answer.

    Raises:
        InvalidInputError: the target is no address, or a number is out of range.
    """

    target: str | Sequence[str]
    _: KW_ONLY
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    retries: int = DEFAULT_RETRIES
    channels: int = 1
    credentials: grpc.ChannelCredentials | None = None
    compression: grpc.Compression | None = None
    metadata: Sequence[tuple[str, str | bytes]] = ()
    keepalive_seconds: float = 0.0
    max_message_bytes: int = MAX_MESSAGE_BYTES

    def __post_init__(self) -> None:
        _addresses(self.target)
        check("timeout_seconds", self.timeout_seconds, self.timeout_seconds > 0, "more than 0")
        check("retries", self.retries, self.retries >= 0, "0 or more")
        check("channels", self.channels, self.channels >= 1, "1 or more")
        silent = self.keepalive_seconds == 0 or self.keepalive_seconds >= SHORTEST_KEEPALIVE_SECONDS
        check("keepalive_seconds", self.keepalive_seconds, silent, f"0, or {SHORTEST_KEEPALIVE_SECONDS:g} or more")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Each "HOST:PORT", or the one gRPC name."""
        return _addresses(self.target)

    @property
    def name(self) -> str:
        """The servers as errors name them."""
        return ", ".join(self.addresses)

    def open(self) -> list[grpc.Channel]:
        """Open channels for blocking calls; they connect when first used.

        Raises:
            InvalidInputError: one of several hosts has no address.
        """
        name, options = _grpc_name(self.addresses), self._options()
        return [self._blocking(name, options) for _ in range(self.channels)]

    def open_async(self) -> list[grpc.aio.Channel]:
        """Open channels of the running event loop; they connect when first used.

        Raises:
            InvalidInputError: one of several hosts has no address.
        """
        name, options = _grpc_name(self.addresses), self._options()
        return [self._asynchronous(name, options) for _ in range(self.channels)]

    def _blocking(self, name: str, options: Sequence[Option]) -> grpc.Channel:
        if self.credentials is None:
            return grpc.insecure_channel(name, options, self.compression)
        return grpc.secure_channel(name, self.credentials, options, self.compression)

    def _asynchronous(self, name: str, options: Sequence[Option]) -> grpc.aio.Channel:
        if self.credentials is None:
            return grpc.aio.insecure_channel(name, options, self.compression)
        return grpc.aio.secure_channel(name, self.credentials, options, self.compression)

    def _options(self) -> list[Option]:
        options: list[Option] = [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.primary_user_agent", f"pellucid-python/{__version__}"),
            (
                "grpc.enable_retries",
                int(self.retries > 0),
            ),  # of what surely never reached a server; `Tries` does the rest
            ("grpc.initial_reconnect_backoff_ms", 100),  # or a try within the first second would not even connect
            ("grpc.max_reconnect_backoff_ms", 500),  # a restarted server is back in use before the next one restarts
        ]
        addresses = self.addresses
        if len(addresses) > 1 or addresses[0].startswith(_BALANCED):
            options.append(("grpc.service_config", _ROUND_ROBIN))
        if len(addresses) > 1:
            options.append(("grpc.default_authority", addresses[0]))  # else the whole list would be the host's name
        if self.channels > 1:
            options.append(("grpc.use_local_subchannel_pool", 1))  # equal channels would share one connection
        if self.keepalive_seconds:
            options.append(("grpc.keepalive_time_ms", round(1000 * self.keepalive_seconds)))
            options.append(("grpc.keepalive_timeout_ms", 20_000))
            options.append(("grpc.keepalive_permit_without_calls", 1))
        return options


def check(field: str, value: float, fits: bool, expected: str) -> None:
    """Refuse a number that does not fit.

    Raises:
        InvalidInputError: naming the field, what came and what was expected.
    """
    if not fits:
        raise InvalidInputError(field, f"is {value:g}; expected {expected}")


def _addresses(target: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(target, str) and _GRPC_NAME.match(target):
        return (target,)
    addresses = tuple(address.strip() for address in (target.split(",") if isinstance(target, str) else target))
    for address in addresses or ("",):
        if not _ADDRESS.fullmatch(address):
            expected = 'expected "HOST:PORT", several of them, or a gRPC name such as "dns:///HOST:PORT"'
            raise InvalidInputError("target", f"'{address[:120]}' is no address of a server; {expected}")
    return addresses


def _grpc_name(addresses: Sequence[str]) -> str:
    """Return one name for all: gRPC takes several addresses in one name only as numbers, all of one kind."""
    if len(addresses) == 1:
        return addresses[0]
    numbers = [number for address in addresses for number in _numbers(address)]
    if all(number.version == 4 for number, _ in numbers):
        return "ipv4:" + ",".join(f"{number}:{port}" for number, port in numbers)
    mapped = [number if number.version == 6 else f"::ffff:{number}" for number, _ in numbers]
    return "ipv6:" + ",".join(f"[{number}]:{port}" for number, (_, port) in zip(mapped, numbers, strict=True))


def _numbers(address: str) -> list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, str]]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise InvalidInputError("target", f"'{address}' has no address: {error}") from None
    return [(ipaddress.ip_address(str(where[4][0]).partition("%")[0]), port) for where in found]
