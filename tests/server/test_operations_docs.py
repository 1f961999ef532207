"""What docs/operations.md shows is what the server takes and says."""

from __future__ import annotations

import json
import re
import shlex
import tomllib

import pytest

from server.authorise import Access
from server.command import _parser
from server.logs import FIELDS
from server.read_settings import WrongSettingsError, read_settings
from server.settings import Settings
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "operations.md").read_text()
TABLE = (ROOT / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def blocks(kind: str) -> list[str]:
    return [text for name, text in BLOCKS if name == kind]


def test_the_files_that_are_shown_are_valid() -> None:
    settings, access = map(tomllib.loads, blocks("toml"))
    assert set(settings) <= set(Settings.model_fields)
    assert Access.model_validate(access).certificates["deploy.example"].scopes == {"read", "admin"}


def test_every_command_is_understood() -> None:
    commands = [shlex.split(line) for block in blocks("") for line in block.splitlines() if line.startswith("pellucid")]
    asked = [words for words in commands if words[0] == "pellucid"]
    served = [words for words in commands if words[0] == "pellucid-serve"]
    assert len(asked) >= 2
    for words in asked:
        _parser().parse_args(words[1:])
    for words in served:
        read_settings(words[1:], {})


def test_the_error_that_is_shown_is_the_error_that_is_said() -> None:
    (shown,) = re.findall(r"^pellucid-serve: error: (PELLUCID_.*)$", TEXT, re.MULTILINE)
    with pytest.raises(WrongSettingsError) as caught:
        read_settings(["--repository", "models"], {"PELLUCID_MAX_BACTH": "16"})
    assert caught.value.sentences == (shown,)


def test_the_line_that_is_shown_has_the_fields_that_are_written() -> None:
    (shown,) = map(json.loads, blocks("json"))
    assert set(shown) == {"time", "level", "logger", "message", "process", "request_id", *FIELDS}


def test_every_setting_stands_in_the_table() -> None:
    missing = {name for name in Settings.model_fields if f"`--{name.replace('_', '-')}`" not in TABLE}
    assert missing == set()
