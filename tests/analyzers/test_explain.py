"""From raw outputs to an Explanation, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analyzers.errors import InvalidInputError
from analyzers.explain import Wanted, explain, probabilities
from analyzers.geometry import Frame
from analyzers.ledger import render
from analyzers.manifest import Scores
from analyzers.plain import manifest_of
from analyzers.runtime import open_session
from tests.analyzers.test_manifest import described
from tests.conftest import SIZE, explain_tiny, png

FRAME = Frame(1, 1, 8, 8)
OUTPUTS = {
    "logits": np.array([[1.0, 4.0, 2.5]], np.float32),
    "cell": np.array([[3, 0, 1]]),
    "score": np.array([[2.0, 0.0, 5.0]], np.float32),
    "classes": np.array([[1, 2]]),
    "features": np.array([[[0, 2, -1], [1, 0, 2]]])[..., None],
    "activations": np.array([[[2, 4, 9], [0, 2, 4]]], np.float32),
    "contributions": np.array([[[1.0, -3.0, 0.0], [0.0, 0.5, 1.0]]], np.float32),
    "rest": np.array([[0.0, 5.0, 0.25]], np.float32),
    "bias": np.array([[1.0, 0.75]], np.float32),
}


def test_an_explanation_by_hand() -> None:
    said = explain(described(), OUTPUTS, 0, FRAME, Wanted())
    assert [(p.class_name, p.logit) for p in said.predictions] == [("b", 4.0), ("c", 2.5)]
    assert [(p.filter, p.score, p.x, p.y, p.learned_for) for p in said.parts.parts] == [
        (2, 5.0, 6.0, 2.0, "c"),
        (0, 2.0, 6.0, 6.0, "a"),
    ]
    first, second = said.class_features
    assert [(e.feature, e.contribution, e.activation) for e in first.contributions] == [(2, -3.0, 4.0), (0, 1.0, 2.0)]
    assert (first.rest, first.bias, first.omitted, first.total) == (5.0, 1.0, 0.0, 4.0)
    assert [e.feature for e in second.contributions] == [2, 0, 1]
    assert second.contributions[2].part is None  # filter 1 did not fire
    assert second.contributions[0].part == said.parts.parts[0]


def test_what_is_left_out_is_summed_up() -> None:
    said = explain(described(), OUTPUTS, 0, FRAME, Wanted(top_k_classes=1, top_k_reasons=1))
    (ledger,) = said.class_features
    assert [e.feature for e in ledger.contributions] == [2]
    assert (ledger.omitted, ledger.total) == (1.0, 4.0)
    assert len(said.parts.parts) == 1


def test_rows_can_be_left_out() -> None:
    assert explain(described(), OUTPUTS, 0, FRAME, Wanted(frozenset({"parts"}))).class_features is None
    assert explain(described(), OUTPUTS, 0, FRAME, Wanted(frozenset({"class_features"}))).parts is None


def test_probabilities_do_not_overflow() -> None:
    logits = np.array([1000.0, 0.0, -1000.0], np.float32)
    np.testing.assert_allclose(probabilities(Scores(tensor="x"), logits), [1, 0, 0])
    sigmoid = probabilities(Scores(tensor="x", activation="sigmoid"), logits)
    np.testing.assert_allclose(sigmoid, [1, 0.5, 0])


def test_the_text_of_a_ledger_adds_up() -> None:
    text = render(explain(described(), OUTPUTS, 0, FRAME, Wanted()), "picture.png")
    assert text.splitlines()[0].startswith("picture.png: b ")
    assert "-3.000  part 2 at (6, 2), learned for c" in text
    assert "+5.000  rest" in text
    assert "+4.000  = logit of b (+4.000)" in text


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"rows": frozenset({"part"})}, "rows"),
        ({"top_k_classes": -1}, "top_k_classes"),
        ({"top_k_reasons": -1}, "top_k_reasons"),
    ],
)
def test_what_cannot_be_wanted_is_refused(arguments: dict, field: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{field}: ") as caught:
        Wanted(**arguments)
    assert caught.value.field == field


def test_the_figure_lays_evidence_over_the_picture_beside_the_ledger(tmp_path: Path) -> None:
    from analyzers.figure import draw

    model = explain_tiny()[2]
    outputs = open_session(model.SerializeToString()).run(
        {"image": np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)}
    )
    frame, widths = Frame(1, 1, SIZE, SIZE), []
    for evidence in (False, True):
        answer = explain(manifest_of(model), outputs, 0, frame, Wanted(evidence=evidence))
        draw(png(np.full((SIZE, SIZE, 3), 128, np.uint8)), answer, tmp_path / "figure.png")
        with Image.open(tmp_path / "figure.png") as figure:
            widths.append(figure.size[0])
            colours = len(np.unique(np.asarray(figure.convert("RGB")).reshape(-1, 3), axis=0))
    assert widths[1] > widths[0]
    assert colours > 500  # the map and its scale
