"""The variables that the command `pellucid` reads; the server refuses misspelt settings, and these are none."""

from __future__ import annotations

SERVER = "PELLUCID_SERVER"
CA = "PELLUCID_CA"
CERTIFICATE = "PELLUCID_CERTIFICATE"
KEY = "PELLUCID_KEY"
SERVER_NAME = "PELLUCID_SERVER_NAME"
TOKEN = "PELLUCID_TOKEN"  # noqa: S105 (a name)
TOKEN_FILE = "PELLUCID_TOKEN_FILE"  # noqa: S105 (a name)

CLIENT_VARIABLES = (SERVER, CA, CERTIFICATE, KEY, SERVER_NAME, TOKEN, TOKEN_FILE)
