"""The text of an explanation: what it says is what adds up."""

from __future__ import annotations

import re

import pytest

from analyzers.explanation import Box, Contribution, Explanation, Ledger, Part, Parts, Prediction
from analyzers.ledger import describe, render

BOX = Box(0, 0, 4, 4)
HEAD = Part(filter=7, score=2.5, x=10.4, y=20.6, cell=BOX, receptive_field=BOX, learned_for="owl")
EDGE = Part(filter=2, score=1.25, x=3, y=4, cell=BOX, receptive_field=BOX)
OWL = Prediction(1, "owl", 3.5, 0.9)
CAT = Prediction(0, "cat", 1.0, 0.075)
LEDGER = Ledger(
    class_index=1,
    class_name="owl",
    logit=3.5,
    contributions=(Contribution(7, 4.125, 1.5, HEAD), Contribution(2, -1.5, 0.5, EDGE), Contribution(5, 0.0, 0.0)),
    omitted=0.375,
    rest=-0.25,
    bias=0.75,
)


def amounts(text: str) -> list[float]:
    """Return the signed numbers at the start of a ledger's lines."""
    return [float(number) for number in re.findall(r"^ +([+-]\d+\.\d{3})  ", text, re.MULTILINE)]


def test_the_lines_above_the_rule_add_up_to_the_line_below() -> None:
    *entries, total = amounts(render(Explanation((OWL, CAT), 32, 32, class_features=(LEDGER,))))
    assert entries == [4.125, -1.5, 0.0, 0.375, -0.25, 0.75]
    assert sum(entries) == total == 3.5


def test_a_ledger_word_for_word() -> None:
    said = Explanation((OWL, CAT), 32, 32, Parts((HEAD, EDGE), "map"), (LEDGER,))
    assert render(said, "barn.png") == "\n".join(
        [
            "barn.png: owl  90.0%",
            "    +4.125  part 7 at (10, 21), learned for owl",
            "    -1.500  filter 2 at (3, 4)",
            "    +0.000  feature 5 (did not fire)",
            "    +0.375  class features not listed",
            "    -0.250  rest (all other features)",
            "    +0.750  bias",
            "  --------",
            "    +3.500  = logit of owl (+3.500)",
            "  not: cat 7.5%",
        ]
    )


def test_without_a_ledger_the_parts_are_told() -> None:
    text = render(Explanation((OWL,), 32, 32, Parts((HEAD, EDGE), "map")))
    assert text.splitlines() == [
        "owl  90.0%",
        "  filter 7 fired at (10, 21), score 2.50",
        "  filter 2 fired at (3, 4), score 1.25",
    ]


def test_without_reasons_the_prediction_is_told() -> None:
    assert render(Explanation((OWL,), 32, 32)) == "owl  90.0%"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (Contribution(3, 1.0, 0.5), "feature 3"),
        (Contribution(3, 0.0, 0.0), "feature 3 (did not fire)"),
        (Contribution(2, 1.0, 0.5, EDGE), "filter 2 at (3, 4)"),
        (Contribution(7, 1.0, 0.5, HEAD), "part 7 at (10, 21), learned for owl"),
    ],
)
def test_a_contribution_is_described_by_the_best_name_it_has(entry: Contribution, words: str) -> None:
    assert describe(entry) == words


def test_a_ledger_says_what_it_adds_up_to_even_where_that_is_not_the_logit() -> None:
    wrong = Ledger(0, "cat", 9.0, (Contribution(0, 1.0, 1.0),), 0.0, 2.0, 3.0)
    assert wrong.total == 6.0
    assert "+6.000  = logit of cat (+9.000)" in render(Explanation((CAT,), 8, 8, class_features=(wrong,)))
