"""`pellucid-serve`: serve explained models over gRPC."""

from __future__ import annotations

import os
import sys

from analyzers import cli
from server.memory import keep_little_memory
from server.read_settings import WrongSettingsError, read_settings
from server.settings import PROGRAM, Settings
from server.settings_text import settings_text

# What else is imported waits until the settings are known: they decide what gRPC, which looks when it is loaded, logs.


def main(arguments: list[str] | None = None) -> int:
    """Run the server until it is told to stop and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["token"]:
        from server.token_command import make_token

        return make_token(arguments[1:])
    try:
        settings, check = read_settings(arguments, os.environ)
    except WrongSettingsError as error:
        for sentence in error.sentences:
            print(f"{PROGRAM}: error: {sentence}", file=sys.stderr)
        return 2
    return cli.run(PROGRAM, lambda: _check(settings)) if check else _serve(settings)


def _check(settings: Settings) -> None:
    """Read the files that decide who may ask, and print the settings."""
    from server.authorise import open_authoriser
    from server.tls import tls_files

    if (files := tls_files(settings)) is not None:
        files.read()
    open_authoriser(settings)
    print(settings_text(settings), end="")


def _serve(settings: Settings) -> int:
    if settings.log_format == "json":  # gRPC's own core writes text, such as a line for every handshake that fails
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    keep_little_memory()
    from server.processes import serve_alone, serve_together

    run = serve_alone if settings.processes == 1 else serve_together
    return run(settings, _announce)


def _announce(address: str) -> None:
    print(f"listening on {address}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
