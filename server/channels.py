"""How a client reaches its servers: names, balancing, TLS, limits. The same for `Client` and `AsyncClient`."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TypedDict

import grpc
import grpc.aio

from analyzers import __version__
from analyzers.errors import InvalidInputError
from server.client_tls import Tls, bearer

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
    tls: Tls | None
    token: str | Path | None
    token_in_clear: bool
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
        tls: `Tls(...)`; None sends everything in the clear.
        token: the token to send with every call, or a Path of a file that has it, which is read anew for each.
        token_in_clear: whether to send it without TLS to another machine, where something on the way has TLS.
        credentials: any other credentials of gRPC's, in the place of `tls`.
        compression: of what is sent, such as `grpc.Compression.Gzip`; encoded pictures do not get smaller by it.
        metadata: (key, value) pairs to send with every call.
        keepalive_seconds: how often to ask a silent server whether it is there, 10 or more; 0 never asks.
        max_message_bytes: the largest request and the largest answer.

    Raises:
        InvalidInputError: the target is no address, a number is out of range, or a token would be sent in the clear.
    """

    target: str | Sequence[str]
    _: KW_ONLY
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    retries: int = DEFAULT_RETRIES
    channels: int = 1
    tls: Tls | None = None
    token: str | Path | None = field(default=None, repr=False)
    token_in_clear: bool = False
    credentials: grpc.ChannelCredentials | None = None
    compression: grpc.Compression | None = None
    metadata: Sequence[tuple[str, str | bytes]] = field(default=(), repr=False)
    keepalive_seconds: float = 0.0
    max_message_bytes: int = MAX_MESSAGE_BYTES

    def __post_init__(self) -> None:
        _addresses(self.target)
        check("timeout_seconds", self.timeout_seconds, self.timeout_seconds > 0, "more than 0")
        check("retries", self.retries, self.retries >= 0, "0 or more")
        check("channels", self.channels, self.channels >= 1, "1 or more")
        silent = self.keepalive_seconds == 0 or self.keepalive_seconds >= SHORTEST_KEEPALIVE_SECONDS
        check("keepalive_seconds", self.keepalive_seconds, silent, f"0, or {SHORTEST_KEEPALIVE_SECONDS:g} or more")

        if self.tls is not None and self.credentials is not None:
            raise InvalidInputError("credentials", "are set beside tls; expected one of them")
        if self.token is not None:
            if not isinstance(self.token, Path):
                bearer(self.token)
            if not (self.token_in_clear or self.tls or self.credentials or all(map(_is_local, self.addresses))):
                text = (
                    f"would be sent to {self.name} in the clear; expected tls, or token_in_clear where the way is safe"
                )
                raise InvalidInputError("token", text)

    def call_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Return what goes with a call besides its message.

        Raises:
            InvalidInputError: the file of the token has none.
            OSError: it cannot be read.
        """
        own = tuple(self.metadata)
        return own if self.token is None else (*own, bearer(self.token))

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
        name, options, credentials = _grpc_name(self.addresses), self._options(), self._credentials()
        return [self._blocking(name, options, credentials) for _ in range(self.channels)]

    def open_async(self) -> list[grpc.aio.Channel]:
        """Open channels of the running event loop; they connect when first used.

        Raises:
            InvalidInputError: one of several hosts has no address.
        """
        name, options, credentials = _grpc_name(self.addresses), self._options(), self._credentials()
        return [self._asynchronous(name, options, credentials) for _ in range(self.channels)]

    def _credentials(self) -> grpc.ChannelCredentials | None:
        return self.credentials if self.tls is None else self.tls.credentials()

    def _blocking(
        self, name: str, options: Sequence[Option], credentials: grpc.ChannelCredentials | None
    ) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(name, options, self.compression)
        return grpc.secure_channel(name, credentials, options, self.compression)

    def _asynchronous(
        self, name: str, options: Sequence[Option], credentials: grpc.ChannelCredentials | None
    ) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(name, options, self.compression)
        return grpc.aio.secure_channel(name, credentials, options, self.compression)

    def _options(self) -> list[Option]:
        options: list[Option] = [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.primary_user_agent", f"pellucid-python/{__version__}"),
            # Of what surely never reached a server, as when a connection has just grown old; with `retries` or without.
            ("grpc.enable_retries", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),  # or a try within the first second would not even connect
            ("grpc.max_reconnect_backoff_ms", 500),  # a restarted server is back in use before the next one restarts
        ]
        addresses = self.addresses
        if len(addresses) > 1 or addresses[0].startswith(_BALANCED):
            options.append(("grpc.service_config", _ROUND_ROBIN))
        if len(addresses) > 1:
            options.append(("grpc.default_authority", addresses[0]))  # else the whole list would be the host's name
        if self.tls is not None and self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
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


def _is_local(address: str) -> bool:
    """Return whether what is sent to an address stays on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = re.sub(r"^(dns:(///)?|ipv4:|ipv6:)", "", address).rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
