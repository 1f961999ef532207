"""`pellucid-serve token`: make a token, and the lines by which a server knows it."""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys
from typing import get_args

from server.authorise import NAME, Scope
from server.settings import PROGRAM

TOKEN_BYTES = 32


def make_token(arguments: list[str]) -> int:
    """Print the lines for the file that `--tokens` names, and on stderr the token, which is kept nowhere.

    `pellucid-serve token NAME >> tokens.toml` adds the lines and shows the token.
    """
    parser = argparse.ArgumentParser(f"{PROGRAM} token", description=__doc__)
    parser.add_argument("name", type=_name, metavar="NAME", help="of whoever will use it, for the log")
    parser.add_argument(
        "--scope",
        action="append",
        choices=get_args(Scope),
        dest="scopes",
        help="what it is good for (default read); may be repeated",
    )
    options = parser.parse_args(arguments)
    token = secrets.token_urlsafe(TOKEN_BYTES)
    print(f"the token of {options.name}, shown this once: {token}", file=sys.stderr)
    print(
        f"[tokens.{options.name}]\n"
        f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
        f"scopes = {json.dumps(sorted(set(options.scopes or ['read'])))}\n"
    )
    return 0


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is not 1 to 64 letters, digits, - or _")
    return text
