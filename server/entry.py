"""Entry: one version of a model and how it is; and how an answering model is found among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from analyzers.errors import PellucidError
from server.errors import RefusedModelError, UnknownModelError, clip
from server.model import ExplainedModel

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
"""Where a version is on its way, in the words of the model repository protocol."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version.

    Attributes:
        name: of the model.
        version: a number.
        model: what answers; None where nothing does.
        problem: why nothing answers, or why what answers is not what lies on disk; empty where all is well.
        state: READY where something answers.
        refused: whether a file was tried and found bad.
    """

    name: str
    version: str
    model: ExplainedModel | None
    problem: str = ""
    state: State = "READY"
    refused: bool = False

    @property
    def reason(self) -> str:
        """What the model repository protocol calls the problem."""
        return self.problem


Table = Mapping[str, tuple[Entry, ...]]
"""The entries of each name, in the order of their versions."""


def find(table: Table, name: str, version: str) -> ExplainedModel:
    """Return a model that is ready; the only model where `name` is empty, the highest version where `version` is.

    Raises:
        UnknownModelError: there is none of that name or version, or it is not loaded; the message says which are.
        RefusedModelError: it is there but was refused; the message says why.
    """
    if not name and len(table) == 1:
        name = next(iter(table))
    entries = table.get(name, ())
    for entry in reversed(entries):
        if entry.model is not None and version in ("", entry.version):
            return entry.model
    raise absent(table, name, version)


def absent(table: Table, name: str, version: str) -> PellucidError:
    """Return the error that says why there is no model to answer."""
    entries = table.get(name, ())
    if not entries:
        wanted = f"'{clip(name, 80)}'" if name else "without a name"
        there = ", ".join(sorted(table)[:20]) or "none"
        return UnknownModelError(clip(name, 80), f"model: there is no model {wanted}; there are {there}")
    chosen = next((e for e in entries if e.version == version), None) if version else _first_reason(entries)
    if chosen is None:
        there = ", ".join(entry.version for entry in entries[-20:])
        return UnknownModelError(
            f"{name}/{clip(version, 20)}", f"version: '{name}' has no version '{clip(version, 20)}'; there are {there}"
        )
    if chosen.refused:
        return RefusedModelError(f"{name}/{chosen.version}", refusal(chosen))
    return UnknownModelError(f"{name}/{chosen.version}", f"model: '{name}' version {chosen.version} {chosen.problem}")


def _first_reason(entries: tuple[Entry, ...]) -> Entry:
    """Return the newest version whose file was refused, or else the newest."""
    return next((entry for entry in reversed(entries) if entry.refused), entries[-1])


def refusal(entry: Entry) -> str:
    """Return the sentence that a caller gets."""
    return f"model: '{entry.name}' version {entry.version} was refused: {entry.problem}"
