"""What the Dockerfile says: its stages and their instructions, and what .dockerignore lets in."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from dockerfile_parse import DockerfileParser


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its keyword in capitals, its flags such as `from` and `chown`, and the rest of the line."""

    keyword: str
    value: str
    flags: Mapping[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """Return the arguments of the JSON form, or those a shell would see."""
        return list(json.loads(self.value)) if self.value.startswith("[") else shlex.split(self.value)

    def pairs(self, known: Mapping[str, str]) -> dict[str, str]:
        """Return KEY=VALUE pairs, variables filled in from `known`."""
        return dict(fill(word, known).split("=", 1) for word in self.words())


@dataclass(frozen=True, slots=True)
class Stage:
    """A FROM and what follows it."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]


def fill(text: str, known: Mapping[str, str]) -> str:
    """Replace $NAME and ${NAME}; unknown ones become empty, as in a shell."""
    names = {name: "" for match in Template.pattern.findall(text) for name in (match[1] or match[2],)}
    return Template(text).substitute(names | dict(known))


def read_stages(text: str) -> list[Stage]:
    """Read a Dockerfile; ARGs before the first FROM are filled in with their defaults."""
    parser = DockerfileParser(fileobj=io.BytesIO(text.encode()))
    stages: list[Stage] = []
    known: dict[str, str] = {}
    lines: list[Instruction] = []
    for step in parser.structure:
        if step["instruction"] == "COMMENT":
            continue
        if step["instruction"] == "FROM":
            base, name = re.fullmatch(r"(\S+)(?:\s+AS\s+(\S+))?", step["value"], re.IGNORECASE).groups()
            lines = []
            stages.append(Stage(name or str(len(stages)), fill(base, known), ()))
        elif not stages and step["instruction"] == "ARG":
            known |= dict([step["value"].split("=", 1)])
        else:
            lines.append(_instruction(step["instruction"], step["value"]))
            stages[-1] = Stage(stages[-1].name, stages[-1].base, tuple(lines))
    return stages


def _instruction(keyword: str, value: str) -> Instruction:
    flags: dict[str, str] = {}
    while match := re.match(r"--([a-z-]+)=(\S+)\s+", value):
        flags[match[1]] = match[2]
        value = value[match.end() :]
    return Instruction(keyword, value, flags)


def chain(stages: list[Stage], target: str) -> list[Stage]:
    """Return the stages that a target is built upon by FROM, the first one first, the target last.

    Raises:
        KeyError: there is no such stage.
    """
    named = {stage.name: stage for stage in stages}
    found = [named[target]]
    while found[0].base in named:
        found.insert(0, named[found[0].base])
    return found


def environment(stages: list[Stage]) -> dict[str, str]:
    """Return what ENV sets in a chain of stages."""
    known: dict[str, str] = {}
    for stage in stages:
        for one in stage.instructions:
            if one.keyword == "ENV":
                known |= one.pairs({"PATH": "/usr/local/bin:/usr/bin:/bin"} | known)
    return known


def last(stages: list[Stage], keyword: str) -> Instruction:
    """Return the last instruction of that keyword in a chain of stages.

    Raises:
        LookupError: there is none.
    """
    found = [one for stage in stages for one in stage.instructions if one.keyword == keyword]
    if not found:
        raise LookupError(f"no {keyword} in {', '.join(stage.name for stage in stages)}")
    return found[-1]


class Ignore:
    """.dockerignore: the last pattern that matches a path or a folder above it decides; `!` lets in again."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        self._let_in = tuple(line.removeprefix("!").strip("/") for line in lines if line.startswith("!"))
        self._rules = [(_pattern(line.removeprefix("!").strip("/")), not line.startswith("!")) for line in lines]

    def __call__(self, path: Path) -> bool:
        """Tell whether a path, relative to the build context, is left out."""
        ways = [str(path), *(str(parent) for parent in path.parents if parent != Path())]
        out = False
        for pattern, leaves_out in self._rules:
            if any(pattern.fullmatch(way) for way in ways):
                out = leaves_out
        return out

    def looks_into(self, folder: Path) -> bool:
        """Tell whether anything in a folder may be let in."""
        return not self(folder) or any(name.startswith(f"{folder}/") for name in self._let_in)


def _pattern(text: str) -> re.Pattern[str]:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(parts.get(piece, re.escape(piece)) for piece in re.split(r"(\*\*/|\*\*|\*|\?)", text)))
