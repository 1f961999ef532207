"""`python -m tests.campaign`: run the scenarios in full and write what they found."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.campaign.battery import battery
from tests.campaign.bombs import compressed_bomb, picture_bombs
from tests.campaign.cancels import cancels
from tests.campaign.drain import drain
from tests.campaign.expiry import expiry
from tests.campaign.fuzz import fuzz
from tests.campaign.hostile_models import hostile_models
from tests.campaign.nuisances import nuisances
from tests.campaign.outcome import Outcome, write_report
from tests.campaign.overload import overload
from tests.campaign.reloads import reloads
from tests.campaign.restarts import restarts
from tests.campaign.soak import soak


def scenarios(scale: float, minutes: float, seed: int) -> dict[str, Callable[[], Outcome]]:
    """Return every scenario by name; `scale` 1 is the whole of it."""

    def times(count: int, least: int = 1) -> int:
        return max(least, round(count * scale))

    return {
        "battery": battery,
        "fuzz": lambda: fuzz(times(100_000, 300), seed),
        "cancels": lambda: cancels(times(20_000, 200), seed),
        "drain": lambda: drain(times(1000, 50)),
        "restarts": lambda: restarts(times(6, 2)),
        "kills": lambda: restarts(times(6, 2), kill=True),
        "reloads-load": lambda: reloads(times(100, 10), "load"),
        "reloads-polling": lambda: reloads(times(100, 10), "polling"),
        "hostile-models": hostile_models,
        "picture-bombs": lambda: picture_bombs(times(200, 20)),
        "compressed-bomb": compressed_bomb,
        "overload": lambda: overload(max(4.0, 20 * scale)),
        "expiry": lambda: expiry(times(10, 2)),
        "nuisances": lambda: nuisances(max(1.0, 8 * scale), times(3)),
        "soak": lambda: soak(minutes),
    }


def machine() -> str:
    """Return on what this ran."""
    cores, python = os.cpu_count(), platform.python_version()
    return f"{cores} cores, {platform.machine()}, Python {python}, server and clients together."


def attempt(name: str, scenario: Callable[[], Outcome]) -> Outcome:
    """Run a scenario; one that breaks is one that is not met."""
    began = time.monotonic()
    try:
        found = scenario()
    except Exception as error:
        traceback.print_exc()
        found = Outcome(name, {}, {}, "it runs", False, (f"it broke: {type(error).__name__}: {str(error)[:300]}",))
    return replace(found, seconds=time.monotonic() - began)


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; return 1 if a bar is missed."""
    names = list(scenarios(1, 1, 0))
    parser = argparse.ArgumentParser("python -m tests.campaign", description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("campaign.md"), help="where to write; JSON goes beside it")
    parser.add_argument("--only", action="append", choices=names, help="run this scenario; may be given again")
    parser.add_argument("--scale", type=float, default=1.0, help="share of every count; 1 is the whole of it")
    parser.add_argument("--minutes", type=float, default=20.0, help="how long the soak takes")
    parser.add_argument("--seed", type=int, default=20_250, help="what damage and moments are made from")
    options = parser.parse_args(arguments)
    chosen = {
        name: scenario
        for name, scenario in scenarios(options.scale, options.minutes, options.seed).items()
        if name in (options.only or names)
    }
    outcomes: list[Outcome] = []
    for number, (name, scenario) in enumerate(chosen.items(), 1):
        print(f"[{number}/{len(chosen)}] {name} ...", file=sys.stderr, flush=True)
        outcomes.append(attempt(name, scenario))
        one = outcomes[-1]
        print(f"    {'met' if one.met else 'NOT MET'} in {one.seconds:.0f} s", file=sys.stderr, flush=True)
        for sentence in one.problems:
            print(f"    {sentence}", file=sys.stderr, flush=True)
        write_report(options.report, outcomes, machine())
    return 0 if all(one.met for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
