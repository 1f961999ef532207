"""The page of served figures says what was measured, no more and no less."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("matplotlib", reason="pellucid[figures] is not installed")

from benchmarks.page import PAGE, page, picture, read
from benchmarks.record import Record


def test_the_page_is_what_its_program_makes_of_the_records() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(*read())


def test_another_figure_makes_another_page() -> None:
    serving, one_process, peers = read()
    faster = [line | {"rate": 2 * float(line["rate"])} for line in serving.lines]
    assert page(dataclasses.replace(serving, lines=faster), one_process, peers) != PAGE.read_text(encoding="utf-8")


def test_who_could_not_be_measured_is_named_with_the_reason() -> None:
    serving, one_process, peers = read()
    left = dataclasses.replace(peers, left_out={"Nobody's Server 1.0": "it did not start"})
    assert "Left out: Nobody's Server 1.0: it did not start." in page(serving, one_process, left)


def test_the_picture_has_a_panel_for_each_network() -> None:
    peers: Record = read()[2]
    networks = {line["network"] for line in peers.lines}
    assert len(picture(peers).axes) == len(networks)
