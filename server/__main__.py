"""`pellucid-serve`: serve explained models over gRPC."""

from __future__ import annotations

import sys

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from server.processes import serve_alone, serve_together
from server.settings import PROGRAM, Settings


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
    run = serve_alone if settings.processes == 1 else serve_together
    return run(settings, _announce)


def _announce(address: str) -> None:
    print(f"listening on {address}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
