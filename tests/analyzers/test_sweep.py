"""Sweeps, ablations and overlaps against numbers by hand and from the paper's own script."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analyzers.__main__ import main
from analyzers.class_features import Head
from analyzers.disentangle import ablation, concentration, overlap
from analyzers.feature_table import FeatureTable
from analyzers.manifest import RULES
from tests.conftest import random_pictures, tiny_plain


def pair(features: int, k: int, shared: int) -> dict[str, float]:
    sets = np.array([range(k), range(k - shared, 2 * k - shared)])
    return overlap(Head(np.ones((2, features), np.float32), np.zeros(2, np.float32)), sets)


# Facts: what the authors' measure gives for sets of 5 of 64 features that share 0 to 5.
@pytest.mark.parametrize(
    ("shared", "information"), [(0, 0.00663), (1, 0.00654), (2, 0.03629), (3, 0.08511), (4, 0.15587), (5, 0.27417)]
)
def test_mutual_information_of_memberships(shared: int, information: float) -> None:
    found = pair(64, 5, shared)
    assert found["mutual_information"] == pytest.approx(information, abs=1e-5)
    assert found["jaccard"] == pytest.approx(shared / (10 - shared))
    assert found["union"] == 10 - shared
    assert found["mutual_information_with_self"] == pytest.approx((information + 0.27417) / 2, abs=1e-5)


def test_mutual_information_falls_again_for_large_sets_so_it_is_no_measure_of_overlap() -> None:
    assert pair(64, 20, 0)["mutual_information"] == pytest.approx(0.1474, abs=1e-4)
    assert pair(64, 20, 6)["mutual_information"] == pytest.approx(0.0002, abs=1e-4)


def test_concentration_by_hand() -> None:
    """Class 0 has feature 0 alone; class 1 has features 1 and 2 alike."""
    pooled = np.array([[4, 0, 0, 0], [2, 0, 0, 0], [0, 1, 1, 0], [0, 3, 3, 0]], np.float32)
    head = Head(np.ones((2, 4), np.float32), np.zeros(2, np.float32))
    found = concentration(FeatureTable(pooled, np.array([0, 0, 1, 1])), head, 1)
    assert found["psi"] == pytest.approx(3 / 4)  # one feature holds half of the sum in both
    assert found["mu"] == pytest.approx(1.0)
    assert found["histogram_entropy"] == pytest.approx(0.0)
    assert found["top_share"] == pytest.approx(1.0)


def test_ablation_finds_what_decides_and_what_does_not() -> None:
    random = np.random.default_rng(0)
    label = np.arange(400) % 2
    pooled = random.random((400, 8)).astype(np.float32) * 0.1
    pooled[np.arange(400), label] += 1  # feature c is class c's
    head = Head(np.eye(2, 8, dtype=np.float32), np.zeros(2, np.float32))
    found = ablation(FeatureTable(pooled, label), head, np.array([[0], [1]]), pooled.mean(0))
    assert found["zero"]["removed"]["value"] < 0.1
    assert found["zero"]["random"]["value"] > found["zero"]["removed"]["value"] + 0.5
    assert found["zero"]["only"]["value"] == 1.0
    assert found["mean"]["removed"]["n"] == 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep")
    random_pictures(90).save(path / "pack.npz")
    for seed in (0, 1):
        (path / f"net{seed}.onnx").write_bytes(tiny_plain(seed))
    return path


def test_a_sweep_of_two_models_has_tables_a_report_and_a_figure(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"sweep {folder}/net0.onnx {folder}/net1.onnx --data {folder}/pack.npz --tune"
    command += " --k1 1,4 --k2 1,2,99 --k 1,2,8"
    assert main([*command.split(), "--report", f"{folder}/s.json", "--figure", f"{folder}/s.png"]) == 0
    text = capsys.readouterr().out
    assert text.count("## net") == 2
    report = json.loads((folder / "s.json").read_text())["net1"]
    assert report["grid"]["k2"] == [1, 2, 8]
    assert np.array(report["grid"]["accuracy"]).shape == (2, 3)
    assert set(report["rules"]) == set(RULES)
    # With every feature every rule is the full layer, and so is a refit of it.
    full = report["accuracy"]["value"]
    assert all(figures[-1]["value"] == pytest.approx(full) for figures in report["rules"].values())
    assert report["heads"][-1]["refitted"]["value"] == pytest.approx(full, abs=0.07)
    with Image.open(folder / "s.png") as figure:
        assert figure.size[0] > 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--k 0", "is not whole numbers N,N,... from 1 on"),
        ("--k1 x", "is not whole numbers N,N,... from 1 on"),
        ("--rule colour", "invalid choice"),
    ],
)
def test_options_that_cannot_be_meant(
    folder: Path, options: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(f"sweep {folder}/net0.onnx --data {folder}/pack.npz {options}".split())
    assert words in capsys.readouterr().err


def test_two_models_of_one_name_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"sweep {folder}/net0.onnx {folder}/net0.onnx --data {folder}/pack.npz --k 1".split()) == 1
    assert "two models are called net0" in capsys.readouterr().err
