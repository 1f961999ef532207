"""Settings as they were given, or one sentence for each wrong one: its name, where it was said, what was expected."""

from __future__ import annotations

import difflib
import re
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import CliApp, CliSettingsSource, SettingsError

from analyzers.errors import PellucidError
from server.client_environment import CLIENT_VARIABLES
from server.settings import GROUPS, PROGRAM, Settings
from server.settings_sources import is_service_url

PREFIX = "PELLUCID_"
MAX_SHOWN = 80  # characters of a wrong value

# What Kubernetes sets for Services whose names begin with `pellucid`, besides `..._PORT=tcp://...`.
_SERVICE = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)"
)


class WrongSettingsError(PellucidError):
    """Settings that cannot be used.

    Attributes:
        sentences: what is wrong, one sentence each.
    """

    def __init__(self, *sentences: str) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = sentences


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[Settings, bool]:
    """Return the settings, and whether they are only to be checked.

    Args:
        arguments: of the command line.
        environment: names and values; pydantic reads the process's own, which this is.

    Raises:
        WrongSettingsError: something is misspelt, missing or out of range.
    """
    try:
        source = _command_line()
        given = source.root_parser.parse_args(list(arguments))
        check = given.check
        del given.check
    except SettingsError as error:
        raise WrongSettingsError(_command_line_sentence(str(error))) from None
    if misspelt := [_misspelt_variable(name) for name in environment if _is_misspelt(name, environment[name])]:
        raise WrongSettingsError(*misspelt)
    try:
        return CliApp.run(Settings, cli_args=given, cli_settings_source=source), check
    except SettingsError as error:
        raise WrongSettingsError(_source_sentence(str(error))) from None
    except ValidationError as error:
        config = getattr(given, "config", None) or environment.get(f"{PREFIX}CONFIG")
        raise WrongSettingsError(*_sentences(error.errors(), arguments, environment, str(config))) from None


def _command_line() -> CliSettingsSource[ArgumentParser]:
    """Return the command line's parser, its help in groups."""
    title, titles = "", {}
    for name in Settings.model_fields:
        titles[name] = title = GROUPS.get(name, title)
    groups: dict[str, Any] = {}

    def add(parser: ArgumentParser, *names: str, **options: Any) -> Any:  # noqa: ANN401 (argparse's own words)
        title = titles.get(options.get("dest", ""))
        if title is None:
            return parser.add_argument(*names, **options)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        return groups[title].add_argument(*names, **options)

    source: CliSettingsSource[ArgumentParser] = CliSettingsSource(Settings, add_argument_method=add)
    source.root_parser.epilog = (
        f"Each may also be set in the environment, as {PREFIX}NAME, or in the file that --config names."
        f" `{PROGRAM} token NAME` makes a token for --tokens."
    )
    source.root_parser.add_argument(
        "--check", action="store_true", help="print the settings as they would be used, as TOML, and end"
    )
    return source


def _command_line_sentence(said: str) -> str:
    """Say in our words what argparse says of a flag that it does not know."""
    said = said.removeprefix("error parsing CLI: ")
    unknown = re.fullmatch(r"unrecognized arguments: (-[^\s=]*)?.*", said, re.DOTALL)
    if unknown is None or unknown[1] is None:
        return f"the command line: {said}; --help lists the settings"
    name = unknown[1].strip("-").replace("-", "_")
    return f"{unknown[1]} on the command line is no setting{_nearest(name, Settings.model_fields, _flag)}"


def _source_sentence(said: str) -> str:
    """Say in our words what pydantic says of a variable that has to be JSON."""
    unreadable = re.fullmatch(r'error parsing value for field "(\w+)" from source "Environment".*', said)
    return f"{_variable(unreadable[1])} in the environment is not JSON, which it has to be" if unreadable else said


def _is_misspelt(name: str, value: str) -> bool:
    upper = name.upper()
    if not upper.startswith(PREFIX) or upper in CLIENT_VARIABLES:
        return False
    if upper.removeprefix(PREFIX).lower() in Settings.model_fields:
        return False
    return not (_SERVICE.fullmatch(name) or is_service_url(name, value))


def _misspelt_variable(name: str) -> str:
    nearest = _nearest(name.upper().removeprefix(PREFIX).lower(), Settings.model_fields, _variable)
    return f"{name} in the environment is no setting{nearest}"


def _sentences(
    errors: Iterable[ErrorDetails], arguments: Sequence[str], environment: Mapping[str, str], config: str
) -> list[str]:
    """Return one sentence for each wrong setting; several errors of one are the several things it might have been."""
    found: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        found.setdefault(_name(error), []).append(error)
    return [_sentence(name, errors, _place(name, arguments, environment, config)) for name, errors in found.items()]


def _sentence(name: str, errors: Sequence[ErrorDetails], place: str) -> str:
    kind, first = errors[0]["type"], errors[0]
    message = " or ".join(dict.fromkeys(error["msg"].removeprefix("Value error, ") for error in errors))
    if not name:
        return message
    if kind == "missing":
        return (
            f"{_flag(name)} is not set; expected it on the command line, {PREFIX}{name.upper()}, or the --config file"
        )
    if kind == "extra_forbidden":
        return f"{place} is no setting{_nearest(str(first['loc'][-1]), _neighbours(first['loc']))}"
    shown = repr(first["input"])
    shown = shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 3] + "..."
    return f"{place} is {shown}; {message[:1].lower()}{message[1:]}"


def _name(error: ErrorDetails) -> str:
    """Return the setting's name, with those of the tables that it is in."""
    top = str(error["loc"][0]) if error["loc"] else ""
    nested = top not in Settings.model_fields or _model_in(Settings.model_fields[top].annotation) is not None
    return ".".join(map(str, error["loc"])) if nested else top


def _place(name: str, arguments: Sequence[str], environment: Mapping[str, str], config: str) -> str:
    top = name.partition(".")[0]
    flags = (_flag(top), _flag(f"no_{top}"))
    if any(argument.partition("=")[0] in flags for argument in arguments):
        return f"{_flag(name)} on the command line"
    if any(each.upper() == _variable(top) for each in environment):
        return f"{_variable(top)} in the environment"
    return f"{name} in {config}"


def _neighbours(place: tuple[int | str, ...]) -> list[str]:
    """Return the names that could stand where an unknown one does."""
    model: type[BaseModel] | None = Settings
    for step in place[:-1]:
        if model is not None and step in model.model_fields:
            model = _model_in(model.model_fields[str(step)].annotation)
    return [] if model is None else list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 (a type, whatever it is)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner)) is not None), None)


def _nearest(name: str, known: Iterable[str], spelt: Callable[[str], str] = str) -> str:
    """Return the end of a sentence about a name that is none of those known; `spelt` says how one would be written."""
    near = difflib.get_close_matches(name.lower(), list(known), 1)
    return f"; did you mean {spelt(near[0])}?" if near else f"; `{PROGRAM} --help` lists them"


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
