"""What a scenario found, and the report that all of them make together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from analyzers.files import write_atomically

MAX_PROBLEMS = 12  # in a report; how many there were is always said


@dataclass(frozen=True)
class Outcome:
    """What a scenario found.

    Attributes:
        name: of the scenario.
        counts: how often what happened.
        figures: what was measured, each with its unit in its name.
        bar: what must hold, in words.
        met: whether it did.
        problems: what went against the bar, one sentence each.
        seconds: how long the scenario took.
    """

    name: str
    counts: Mapping[str, int]
    figures: Mapping[str, float]
    bar: str
    met: bool
    problems: tuple[str, ...] = ()
    seconds: float = 0.0


def outcome(
    name: str, counts: Mapping[str, int], figures: Mapping[str, float], bar: str, problems: Sequence[str]
) -> Outcome:
    """Return an Outcome that is met when there is no problem."""
    few = [*problems[:MAX_PROBLEMS], *([f"and {len(problems) - MAX_PROBLEMS} more"] * (len(problems) > MAX_PROBLEMS))]
    return Outcome(name, counts, figures, bar, not problems, tuple(few))


def write_report(path: Path, outcomes: Sequence[Outcome], machine: str) -> None:
    """Write PATH as a Markdown table, and the same as JSON beside it; each atomically."""
    write_atomically(path, markdown(outcomes, machine).encode())
    document = {"machine": machine, "outcomes": [asdict(one) for one in outcomes]}
    write_atomically(path.with_suffix(".json"), json.dumps(document, indent=2).encode())


def markdown(outcomes: Sequence[Outcome], machine: str) -> str:
    """Return the report: one row for each scenario, then every problem."""
    rows = [
        f"| {one.name} | {_pairs(one.counts)} | {_pairs(one.figures)} | {one.bar} | {'yes' if one.met else '**no**'} |"
        for one in outcomes
    ]
    problems = [f"- {one.name}: {sentence}" for one in outcomes for sentence in one.problems]
    lines = [machine, "", "| scenario | counts | figures | bar | met |", "|---|---|---|---|---|", *rows]
    return "\n".join([*lines, *(["", "Against the bar:", *problems] if problems else []), ""])


def _pairs(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in values.items())


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
