"""Where settings come from besides the command line: the environment, and the TOML file that `config` names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError, TomlConfigSettingsSource

# Kubernetes says where each Service is: `PELLUCID_PORT=tcp://10.0.0.1:50051` for one that is called `pellucid`.
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")


def is_service_url(name: str, value: object) -> bool:
    """Return whether a variable or setting is what Kubernetes says of a Service, and none of ours.

    Args:
        name: of the variable or the setting.
        value: what it is set to.
    """
    return name.lower().endswith("port") and isinstance(value, str) and _SERVICE_URL.match(value) is not None


class Environment(EnvSettingsSource):
    """`PELLUCID_...` variables, without those that Kubernetes sets for a Service."""

    def __call__(self) -> dict[str, Any]:
        """Return each setting that the environment has."""
        return {name: value for name, value in super().__call__().items() if not is_service_url(name, value)}


class ConfigFile(TomlConfigSettingsSource):
    """The TOML file that the setting `config` names, which the command line or the environment has given."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, toml_file=None)

    def __call__(self) -> dict[str, Any]:
        """Return what is in the file; nothing where none is named.

        Raises:
            SettingsError: it cannot be read, or is no TOML.
        """
        config = self.current_state.get("config")
        return {} if not config else _read(Path(config))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"config: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # no UTF-8, or no TOML
        raise SettingsError(f"config: {path} is not a TOML file: {error}") from None
    if "config" in values:
        raise SettingsError(f"config: {path} names another settings file; expected all settings in one")
    return values
