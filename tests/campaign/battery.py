"""The battery: one call for each rule of the protocols, its status, and a word that the sentence must hold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from tests.campaign.battery_case import Case
from tests.campaign.battery_explain import EXPLAIN_CASES
from tests.campaign.battery_health import HEALTH_CASES
from tests.campaign.battery_inputs import INPUT_CASES
from tests.campaign.battery_models import MODEL_CASES
from tests.campaign.battery_stream import STREAM_CASES
from tests.campaign.models import slowed
from tests.campaign.outcome import Outcome, outcome
from tests.campaign.serving import Served, served
from tests.campaign.wire import OPTIONS, Reply, offences
from tests.conftest import explain_tiny

CASES: tuple[Case, ...] = (
    *INPUT_CASES,
    *MODEL_CASES,
    *STREAM_CASES,
    *HEALTH_CASES,
    *EXPLAIN_CASES,
)
SLOW_PRODUCTS = 200  # a run of a fifth of a second or more


@dataclass(frozen=True)
class Bench:
    """The servers that cases are tried on.

    Attributes:
        servers: by name; "open" lets models be loaded, "strict" does not and takes 100,000 bytes a request.
        channels: to each.
    """

    servers: dict[str, Served]
    channels: dict[str, grpc.Channel]


@contextmanager
def bench() -> Iterator[Bench]:
    """Start the servers of the battery, each with a good and a damaged model; one has a slow one, too."""
    good = explain_tiny()[2].SerializeToString(deterministic=True)
    models = {"tiny": good, "damaged": good.replace(b"Conv", b"Co\xffv"), "spare": good}
    slow = slowed(SLOW_PRODUCTS)
    strict = ("--max-request-bytes", "100000", "--max-images", "8")
    with served(models | {"slow": slow}, "--model-control") as one, served(models, *strict) as other:
        servers = {"open": one, "strict": other}
        channels = {name: grpc.insecure_channel(server.address, OPTIONS) for name, server in servers.items()}
        try:
            yield Bench(servers, channels)
        finally:
            for channel in channels.values():
                channel.close()


def problems(case: Case, bench: Bench) -> list[str]:
    """Try a case and return what is wrong with the answer."""
    started = time.monotonic()
    reply = case.call(bench.channels[case.server])
    seconds = time.monotonic() - started
    found = [] if reply.code.name in case.codes else [f"is {reply.code.name}, not {' or '.join(case.codes)}"]
    if not found and case.word.lower() not in reply.text.lower():
        found.append(f"does not say {case.word!r}")
    found += offences(reply, explained=case.explained)
    if seconds > case.seconds:
        found.append(f"took {seconds:.2f} s, more than {case.seconds:g} s")
    if reply.ok and not found:
        found += _answered(case, reply)
    return [f"{case.name}: {one}; it said {reply.text[:120]!r}" for one in found]


def _answered(case: Case, reply: Reply) -> list[str]:
    wrong = case.check(reply.data)
    return [f"answers {wrong}"] if wrong else []


def battery() -> Outcome:
    """Try every case; each counts once, right or wrong."""
    with bench() as servers:
        found = {case.name: problems(case, servers) for case in CASES}
        faults = [fault for server in servers.servers.values() for fault in server.faults()]
    right = sum(not wrong for wrong in found.values())
    return outcome(
        "battery",
        {"cases": len(CASES), "right": right},
        {},
        "every status and sentence right, details with each, under 4 KB",
        [sentence for wrong in found.values() for sentence in wrong] + faults,
    )


def same_names() -> set[str]:
    """Return names that stand twice among the cases."""
    names = [case.name for case in CASES]
    return {name for name in names if names.count(name) > 1}
