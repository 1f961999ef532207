"""The campaign in short: what a server must survive, each in seconds. `make campaign` runs the whole of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.campaign.__main__ import attempt, main
from tests.campaign.bombs import compressed_bomb, picture_bombs
from tests.campaign.drain import drain
from tests.campaign.expiry import expiry
from tests.campaign.fuzz import fuzz, message
from tests.campaign.hostile_models import hostile_models
from tests.campaign.nuisances import nuisances
from tests.campaign.outcome import Outcome, outcome, write_report
from tests.campaign.overload import overload
from tests.campaign.reloads import reloads
from tests.campaign.restarts import restarts
from tests.campaign.soak import soak

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="servers are watched through /proc")
FEW = ("external-absolute", "cut-by-one-byte", "endless-loop", "ledgers-off", "link-to-zeros")


def met(found: Outcome) -> Outcome:
    assert found.met, found
    return found


def test_damaged_messages_get_a_proper_status_and_change_nothing() -> None:
    found = met(fuzz(1500))
    assert found.counts["refused"] > 500


def test_a_damaged_message_is_the_same_whenever_it_is_made() -> None:
    assert [message(number, 1) for number in range(60)] == [message(number, 1) for number in range(60)]
    assert message(3, 1) != message(3, 2)


def test_calls_in_flight_at_sigterm_are_all_answered() -> None:
    found = met(drain(100, grace_seconds=20))
    assert found.counts["answered"] == found.counts["sent"]


def test_rolling_restarts_lose_no_call() -> None:
    assert met(restarts(2)).counts["lost"] == 0


def test_reloads_asked_for_lose_no_call_and_refuse_broken_files() -> None:
    assert met(reloads(6, "load")).counts["lost"] == 0


def test_reloads_noticed_by_polling_lose_no_call() -> None:
    assert met(reloads(2, "polling")).counts["lost"] == 0


def test_hostile_models_are_refused_beside_a_good_one() -> None:
    assert met(hostile_models(FEW, judged=False, vet_seconds=5)).counts["failed"] == 0


def test_pictures_that_promise_too_much_cost_nothing() -> None:
    met(picture_bombs(5, max_ms=100))  # five of them say little about 1 ms


def test_a_message_that_unpacks_to_too_much_is_refused() -> None:
    met(compressed_bomb(2))


def test_ten_times_too_many_requests_leave_the_server_as_useful_as_before() -> None:
    found = met(overload(2.5, min_goodput=0.1))  # others may use this machine as well
    assert found.counts["RESOURCE_EXHAUSTED"] > found.counts["OK"]


def test_work_that_nobody_waits_for_stops() -> None:
    met(expiry(2, products=60, max_late_ms=1000))  # a whole run takes longer


def test_bad_clients_do_not_keep_others_from_their_answers() -> None:
    met(nuisances(0.5, 1, judged=False))


def test_a_little_of_everything_loses_no_call_and_no_memory() -> None:
    assert met(soak(0.08)).counts["lost"] == 0


def test_a_report_has_a_row_for_every_scenario_and_says_what_missed_its_bar(tmp_path: Path) -> None:
    good = outcome("good", {"calls": 1000}, {"p99_ms": 1.2345}, "none lost", [])
    bad = outcome("bad", {"calls": 3}, {}, "none lost", [f"call {number} was lost" for number in range(20)])
    assert (good.met, bad.met) == (True, False)
    write_report(tmp_path / "campaign.md", [good, bad], "a machine")
    text = (tmp_path / "campaign.md").read_text()
    assert "| good | calls 1,000 | p99 ms 1.23 | none lost | yes |" in text
    assert "| bad | calls 3 |  | none lost | **no** |" in text
    assert "- bad: call 11 was lost" in text
    assert "- bad: and 8 more" in text
    assert [one["met"] for one in json.loads((tmp_path / "campaign.json").read_text())["outcomes"]] == [True, False]


def test_a_scenario_that_breaks_is_one_that_is_not_met(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Outcome:
        raise OSError("no server")

    found = attempt("broken", broken)
    assert not found.met
    assert found.problems == ("it broke: OSError: no server",)
    assert "no server" in capsys.readouterr().err


def test_callers_who_leave_at_any_moment_leave_nothing_behind_says_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "campaign.md"
    code = main(["--only", "cancels", "--scale", "0.015", "--report", str(report)])
    (found,) = json.loads(report.with_suffix(".json").read_text())["outcomes"]
    assert (code, found["met"]) == (0, True), found
    assert found["counts"]["calls"] == 300
    assert found["counts"]["cancelled"] > 250
    assert "| cancels | calls 300," in report.read_text()
    assert "[1/1] cancels ..." in capsys.readouterr().err
