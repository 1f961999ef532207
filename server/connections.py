"""Where the server listens, with TLS or without, and how long connections live."""

from __future__ import annotations

import grpc.aio

from server.settings import Settings
from server.tls import server_credentials, tls_files

Option = tuple[str, int]


def connection_options(settings: Settings) -> list[Option]:
    """Return the settings that are gRPC's."""
    options = [
        ("grpc.max_receive_message_length", settings.max_request_bytes),
        # Unless it is one of ours, a second server on the same port is a mistake, not a wish.
        ("grpc.so_reuseport", int(settings.processes > 1)),
        ("grpc.keepalive_time_ms", _ms(settings.keepalive_seconds)),  # finds who has vanished without a word
        ("grpc.keepalive_timeout_ms", _ms(settings.keepalive_timeout_seconds)),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(settings.min_ping_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if settings.connection_age_seconds:
        options.append(("grpc.max_connection_age_ms", _ms(settings.connection_age_seconds)))
    if settings.connection_age_seconds and settings.connection_age_grace_seconds:
        options.append(("grpc.max_connection_age_grace_ms", _ms(settings.connection_age_grace_seconds)))
    if settings.max_streams:
        options.append(("grpc.max_concurrent_streams", settings.max_streams))
    return options


def listen(server: grpc.aio.Server, settings: Settings) -> int:
    """Take the port, to answer on it once the server starts, and return its number.

    Raises:
        CertificateError: the certificate, its key or the authorities cannot be used.
        OSError: the port is taken.
    """
    address, files = f"{settings.host}:{settings.port}", tls_files(settings)
    credentials = None if files is None else server_credentials(files)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise OSError(f"cannot listen on {address}; the port is taken or the address is not this machine's") from None


def _ms(seconds: float) -> int:
    return max(1, round(1000 * seconds))
