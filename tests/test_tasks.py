"""Every task that a job can state, from the job to a served answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analyzers.pictures import Pictures
from server.client import Client
from tests.conftest import ROOT, running_server
from training.__main__ import main as train
from training.creatures import creatures

TINY = ["--data.size=48", "--model.filters=6", "--train.epochs=1", "--head.epochs=1", "--train.threads=1"]


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return creatures(64, size=48)


@pytest.fixture(scope="module")
def several(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack whose pictures have their species and, every other one, the first species too."""
    path = tmp_path_factory.mktemp("pack") / "several.npz"
    labels = np.eye(len(pictures.names), dtype=bool)[pictures.label]
    labels[::2, 0] = True
    replace(pictures, labels=labels).save(path)
    return path


def run(name: str, *options: str) -> int:
    return train(["run", str(ROOT / "examples" / "creatures.toml"), *TINY, f"--name={name}", *options])


def test_a_category_and_several_labels_are_learned_served_and_explained(
    several: Path, pictures: Pictures, tmp_path: Path
) -> None:
    species = pictures.names[1]
    where = [f"--data.path={several}", f"--output={tmp_path}"]
    assert run("single", *where, f"--data.category={species}", "--model.peak=centroid") == 0
    assert run("multi", *where, "--train.loss=logistic", "--model.interpretable_layers=layer2") == 0
    for name in ("single", "multi"):
        report = json.loads((tmp_path / name / "1" / "report.json").read_text())
        assert report["labels"]["average_precision"]["classes"] == (1 if name == "single" else 8)
        assert 0 <= report["labels"]["accuracy_at_zero"]["value"] <= 1
    assert report["labels"]["accuracy_at_zero"]["n"] == 16
    with running_server("--repository", str(tmp_path)) as (address, _), Client(address) as client:
        single = client.explain(pictures.encoded[:3], model="single", top_k_classes=2)
        multi = client.explain(pictures.encoded[:3], model="multi", top_k_classes=8)
    for explanation in (*single, *multi):
        for ledger in explanation.class_features:
            assert abs(ledger.total - ledger.logit) <= 1e-4
    for explanation in single:
        logit = {prediction.class_name: prediction.logit for prediction in explanation.predictions}
        probability = {prediction.class_name: prediction.probability for prediction in explanation.predictions}
        assert logit[f"not {species}"] == 0
        assert probability[species] == pytest.approx(1 / (1 + np.exp(-logit[species])), abs=1e-6)
        assert {part.learned_for for part in explanation.parts.parts} <= {species}
    for explanation in multi:
        for prediction in explanation.predictions:
            assert prediction.probability == pytest.approx(1 / (1 + np.exp(-prediction.logit)), abs=1e-6)


def test_several_labels_and_a_loss_for_one_end_in_a_sentence(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("wrong", f"--data.path={several}", f"--output={tmp_path}") != 0
    assert "which knows of one; set it to 'logistic'" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_unreadable_pictures_and_empty_classes_end_a_run_in_a_sentence_or_are_left_out(
    pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, empty = tmp_path / "damaged.npz", tmp_path / "empty.npz"
    replace(pictures, encoded=(b"no picture", *pictures.encoded[1:])).save(damaged)
    of_first = (pictures.label == 0) & (pictures.split == 0)
    pictures.take(np.flatnonzero(~of_first)).save(empty)
    assert run("damaged", f"--data.path={damaged}", f"--output={tmp_path}") != 0
    assert "1 of 64 pictures cannot be read: picture 0" in capsys.readouterr().err
    assert run("empty", f"--data.path={empty}", f"--output={tmp_path}") != 0
    assert f"1 of 8 classes have no picture: {pictures.names[0]}; add" in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in ("damaged", "empty"))
    assert run("skipped", f"--data.path={damaged}", f"--output={tmp_path}", "--data.unreadable=skip", "--html") == 0
    report = json.loads((tmp_path / "skipped" / "1" / "report.json").read_text())
    assert report["training"]["job"]["data"]["unreadable"] == "skip"
    assert "<img" in (tmp_path / "skipped" / "1" / "report.html").read_text()


def test_a_run_on_a_split_that_shares_pictures_ends_in_a_sentence(
    pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = pictures.take(np.r_[np.arange(len(pictures)), np.arange(len(pictures))])
    split = np.repeat([0, 1], len(pictures))
    replace(twice, split=split, group=np.arange(len(twice))).save(tmp_path / "pack.npz")
    assert run("leaking", f"--data.path={tmp_path / 'pack.npz'}", f"--output={tmp_path}") != 0
    assert "64 of 64 test pictures are learned from" in capsys.readouterr().err
