from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from analyzers.errors import ModelError
from analyzers.manifest import (
    METADATA_KEY,
    ClassFeatures,
    Grid,
    Manifest,
    ModelInput,
    Parts,
    Provenance,
    Scores,
)


def described() -> Manifest:
    return Manifest(
        input=ModelInput(tensor="image", height=8, width=8),
        classes=("a", "b", "c"),
        scores=Scores(tensor="logits"),
        provenance=Provenance(producer="a test"),
        parts=Parts(
            layer="map",
            cell="cell",
            score="score",
            grid=Grid(cells=(2, 2), stride=(4, 4), offset=(2, 2), receptive_field=(6, 6)),
            filters=3,
            interpretable=True,
            learned_for=(0, 1, 2),
        ),
        class_features=ClassFeatures(
            classes="classes",
            features="features",
            activations="activations",
            contributions="contributions",
            rest="rest",
            bias="bias",
            pooled="pooled",
            head="head",
            reasons=3,
            max_classes=2,
            k1=3,
            k2=3,
            rule="contribution",
            features_are_filters=True,
        ),
    )


def read(document: object) -> Manifest:
    return Manifest.from_metadata({METADATA_KEY: json.dumps(document)})


def changed(change: Callable[[dict], object]) -> dict:
    document = json.loads(described().to_json())
    change(document)
    return document


def test_a_manifest_survives_its_text_and_equal_ones_have_equal_texts() -> None:
    assert read(json.loads(described().to_json())) == described()
    assert described().to_json() == described().to_json()
    assert described().rows == ("parts", "class_features")
    assert described().max_classes == 2


def test_an_unknown_schema_is_refused_naming_both_versions() -> None:
    with pytest.raises(ModelError, match="has schema 9, this version reads schema 2"):
        read(changed(lambda d: d.update(schema=9)))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"classes": []}', "[" * 100_000])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="not JSON with a 'schema'"):
        Manifest.from_metadata({METADATA_KEY: text})


def test_a_file_without_a_manifest_is_refused_saying_what_to_do() -> None:
    with pytest.raises(ModelError, match="pellucid-analyze attach"):
        Manifest.from_metadata({"author": "somebody"})


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d.pop("input"), "input"),
        (lambda d: d["input"].update(height=0), "input.height"),
        (lambda d: d["input"].update(channels="BGR"), "input.channels"),
        (lambda d: d.update(classes=[]), "classes"),
        (lambda d: d["parts"].update(learned_for=[0, 1]), "2 entries for 3 filters"),
        (lambda d: d["parts"].update(learned_for=[0, 1, 3]), "class 3, but there are 3 classes"),
        (lambda d: d["class_features"].update(rule="magic"), "class_features.rule"),
        (lambda d: d["parts"]["grid"].update(stride=[float("1e999"), 1]), "parts.grid.stride"),
    ],
)
def test_a_wrong_manifest_is_refused_naming_the_place(change: Callable[[dict], object], place: str) -> None:
    with pytest.raises(ModelError) as caught:
        read(changed(change))
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)
