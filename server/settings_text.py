"""Settings as TOML, to be read by people and by the server again."""

from __future__ import annotations

import json
import re

from server.settings import Settings

_BARE = re.compile("[A-Za-z0-9_-]+")  # keys that need no quotes


def settings_text(settings: Settings) -> str:
    """Return each setting that has a value, in the order of `--help`; none of them is a secret, only where one lies."""
    values = settings.model_dump(mode="json", exclude={"config"}, exclude_none=True)
    plain = [f"{name} = {_toml(value)}\n" for name, value in values.items() if not isinstance(value, dict)]
    tables = [_table([name], value) for name, value in values.items() if isinstance(value, dict)]
    return "".join(plain + tables)


def _table(path: list[str], values: dict[str, object]) -> str:
    inner = {name: value for name, value in values.items() if isinstance(value, dict)}
    lines = [f"{_key(name)} = {_toml(value)}\n" for name, value in values.items() if name not in inner]
    head = f"\n[{'.'.join(map(_key, path))}]\n" if lines else ""
    return head + "".join(lines) + "".join(_table([*path, name], value) for name, value in inner.items())


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _toml(name)


def _toml(value: object) -> str:
    """Write a string, a number, a boolean or a list of them; JSON's and TOML's are the same."""
    return json.dumps(value, ensure_ascii=False)
