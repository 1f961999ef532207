"""`pellucid-serve`: serve explained models over gRPC."""

from __future__ import annotations

import asyncio
import logging
import sys

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from analyzers import cli
from server.app import serve
from server.settings import Settings

PROGRAM = "pellucid-serve"

# How long a thread that runs a model waits for a busy event loop to let it go on; Python's own 5 ms are half a run.
SWITCH_SECONDS = 0.0005


def main(arguments: list[str] | None = None) -> int:
    """Run the server until it is told to stop and return the exit code."""
    try:
        settings = CliApp.run(Settings, cli_args=sys.argv[1:] if arguments is None else arguments)
    except ValidationError as error:
        for problem in error.errors():
            name = "--" + ".".join(map(str, problem["loc"])).replace("_", "-")
            print(f"{PROGRAM}: error: {name}: {problem['msg']}; see --help", file=sys.stderr)
        return 2
    except SettingsError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(
        level=settings.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    sys.setswitchinterval(SWITCH_SECONDS)
    return cli.run(PROGRAM, lambda: asyncio.run(serve(settings, _announce)))


def _announce(address: str) -> None:
    print(f"listening on {address}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
