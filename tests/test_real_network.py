"""A network that others trained, on real pictures: the paper's figures within their error, proofs, quality, sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analyzers.__main__ import main as analyze
from analyzers.explain import Wanted
from analyzers.geometry import Frame
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.read_pictures import read_pictures
from server.convert import to_message
from server.load import load_model
from training.__main__ import main as train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resnet20")


@pytest.fixture
def plain(folder: Path, shared_data: Path) -> Path:
    path = folder / "resnet20.onnx"
    if not path.exists():
        weights, pack = shared_data / "resnet20-12fca82f.safetensors", shared_data / "cifar10-lossless.npz"
        assert train(f"export --backbone resnet20 --weights {weights} --data {pack} --output {path}".split()) == 0
    return path


@pytest.fixture
def explained(plain: Path, folder: Path, shared_data: Path) -> Path:
    path = folder / "explained.onnx"
    if not path.exists():
        pack = shared_data / "cifar10-lossless.npz"
        assert analyze(f"attach {plain} --data {pack} --k1 10 --k2 10 --output {path}".split()) == 0
    return path


def pictures(shared_data: Path, count: int) -> Pictures:
    return read_pictures(shared_data / "cifar10-lossless.npz").of_split("test").take(np.arange(count))


def test_the_papers_figures_come_out_within_their_error(plain: Path, folder: Path, shared_data: Path) -> None:
    """arXiv 2112.07719: 91.71 % with all features, 88.59 % at k1 = k2 = 5, on all 10,000 pictures; here 450."""
    report, pack = folder / "sweep.json", shared_data / "cifar10-lossless.npz"
    assert analyze(f"sweep {plain} --data {pack} --k1 5 --k2 5 --k 3,5,10 --report {report}".split()) == 0
    found = json.loads(report.read_text())["resnet20"]
    full = found["accuracy"]["value"]
    assert full == pytest.approx(0.917, abs=0.015)
    by_rule = {rule: {figure["k"]: figure["value"] for figure in found["rules"][rule]} for rule in found["rules"]}
    assert by_rule["feature"][5] == pytest.approx(0.8859, abs=0.025)
    assert by_rule["contribution"][5] == pytest.approx(0.8859, abs=0.025)
    assert by_rule["random"][5] < 0.5
    refitted = {row["k"]: row["refitted"]["value"] for row in found["heads"]}
    assert refitted[5] > full - 0.02
    assert found["ablation"]["mean"]["removed"]["value"] < found["ablation"]["mean"]["random"]["value"] - 0.02


def test_an_answer_with_five_classes_and_ten_reasons_takes_four_kilobytes_at_most(
    explained: Path, shared_data: Path
) -> None:
    model = load_model(explained, "resnet20", "1", device="cpu", threads=1)
    images = to_model_input(pictures(shared_data, 64).decoded(32, 32))
    frames = [Frame(1, 1, 32, 32)] * len(images)
    for answer in model.explain(images, frames, ["0" * 64] * len(images), Wanted()):
        assert [len(ledger.contributions) for ledger in answer.class_features] == [10] * 5
        assert to_message(answer).ByteSize() <= 4096
        assert answer.proof.completeness_gap <= 1e-4


@pytest.mark.slow
def test_evidence_on_real_pictures_beats_what_knows_nothing(explained: Path, folder: Path, shared_data: Path) -> None:
    report, pack = folder / "quality.json", shared_data / "cifar10-lossless.npz"
    assert analyze(f"evaluate {explained} --data {pack} --quality 200 --report {report}".split()) == 0
    board = json.loads(report.read_text())["quality"]
    for metric in ("insertion_minus_deletion_mean", "insertion_minus_deletion_blur", "road"):
        margin = board[metric]["margin"]["centre"]
        assert margin["value"] > 2 * margin["standard_error"]
    assert board["spearman_randomised_head"]["passes"]
    assert board["spearman_randomised_head"]["controls_pass"] == {"centre": False, "edges": False, "random": True}
    assert board["concurrency_difference"]["value"] == 0


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_smaller_copies_keep_their_explanations(explained: Path, folder: Path, shared_data: Path, form: str) -> None:
    pack, output = shared_data / "cifar10-lossless.npz", folder / f"{form}.json"
    copy = folder / f"{form}.onnx"
    command = f"certify {explained} --data {pack} --against {form} --output {output} --copy {copy}"
    assert analyze(command.split()) == 0
    assert all(json.loads(output.read_text())["passed"].values())
    assert copy.stat().st_size < explained.stat().st_size
    load_model(copy, "copy", "1", device="cpu", threads=1)
