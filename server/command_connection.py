"""What every command of `pellucid` that asks a server takes: whom to ask, how patiently, and as whom."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from server import client_environment as environment
from server.client import DEFAULT_RETRIES, DEFAULT_TIMEOUT_SECONDS, Client, Tls


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the options; files and the server may be named in the environment as well."""
    parser.add_argument(
        "--server",
        default=os.environ.get(environment.SERVER, "127.0.0.1:50051"),
        metavar="HOST:PORT",
        help="default 127.0.0.1:50051; several with commas, or a gRPC name such as dns:///HOST:PORT",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help=f"for a request with all its tries (default {DEFAULT_TIMEOUT_SECONDS:g})",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=DEFAULT_RETRIES,
        metavar="N",
        help=f"tries more where the server is away or overloaded (default {DEFAULT_RETRIES})",
    )
    secure = parser.add_argument_group(
        "TLS and tokens", f"also as {', '.join(environment.CLIENT_VARIABLES[1:])} in the environment"
    )
    secure.add_argument("--tls", action="store_true", help="use TLS; what follows but the tokens does so too")
    _add_file(secure, "--ca", environment.CA, "PEM file of who may certify the server (default: public authorities)")
    _add_file(secure, "--certificate", environment.CERTIFICATE, "PEM file of your own certificate")
    _add_file(secure, "--key", environment.KEY, "PEM file of its key")
    secure.add_argument(
        "--server-name",
        default=os.environ.get(environment.SERVER_NAME, ""),
        metavar="NAME",
        help="what the server's certificate calls it, where that is not HOST",
    )
    _add_file(
        secure,
        "--token-file",
        environment.TOKEN_FILE,
        f"file of the token; {environment.TOKEN} in the environment is the token itself",
    )
    secure.add_argument(
        "--token-in-clear", action="store_true", help="send it without TLS, where something on the way has TLS"
    )


def open_client(options: argparse.Namespace, *, with_token: bool = True) -> Client:
    """Return a client as the options say.

    Args:
        options: what was given.
        with_token: whether to send a token, if there is one.

    Raises:
        InvalidInputError: the options do not fit together.
        OSError: a file cannot be read.
    """
    files = options.ca, options.certificate, options.key
    wanted = options.tls or options.server_name or any(file is not None for file in files)
    token = options.token_file or os.environ.get(environment.TOKEN) or None
    return Client(
        options.server,
        timeout_seconds=options.timeout,
        retries=options.retries,
        tls=Tls(*files, options.server_name) if wanted else None,
        token=token if with_token else None,
        token_in_clear=options.token_in_clear,
    )


def _add_file(group: argparse._ArgumentGroup, name: str, variable: str, text: str) -> None:
    found = os.environ.get(variable)
    group.add_argument(name, type=Path, default=Path(found) if found else None, metavar="FILE", help=text)
