"""The whole way: draw, learn, decompose, export, attach, serve, ask. Small, but nothing is faked."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from analyzers.__main__ import main as analyze
from analyzers.pixels import to_model_input
from analyzers.read_pictures import read_pictures
from analyzers.runtime import open_session
from server.client import Client
from server.command import main as ask
from tests.conftest import ROOT, running_server
from training.__main__ import main as train

TINY_RUN = [
    *("--data.size=48", "--data.creatures=160", "--model.filters=16"),
    *("--train.epochs=2", "--head.epochs=1", "--train.threads=1"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model that a small run has written."""
    output = tmp_path_factory.mktemp("run")
    assert train(["run", str(ROOT / "examples" / "creatures.toml"), *TINY_RUN, f"--output={output}"]) == 0
    return output


@pytest.fixture(scope="module")
def creatures_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "creatures.npz"
    assert train(["creatures", "--count", "40", "--size", "48", "--seed", "9", "--output", str(path)]) == 0
    return path


def test_a_run_writes_a_model_and_its_report(models: Path) -> None:
    folder = models / "creatures" / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "report.json", "weights.safetensors"]
    report = json.loads((folder / "report.json").read_text())
    assert report["completeness_gap"]["value"] <= 1e-4
    assert report["proof"]["logits_gap_torch"] <= 1e-4
    assert report["accuracy"]["n"] == 40
    assert report["accuracy_class_features"]["value"] == report["accuracy"]["value"]  # decomposed: no rest
    assert len(report["training"]["epochs"]) == 3


def test_a_served_model_answers_with_parts_and_ledgers_that_add_up(models: Path, creatures_pack: Path) -> None:
    pictures = read_pictures(creatures_pack)
    with running_server("--repository", str(models)) as (address, _), Client(address) as client:
        explanations = client.explain(pictures.encoded, top_k_classes=8)
        described = client.get_model("creatures")
    assert tuple(described.classes) == pictures.names
    assert list(described.rows) == ["parts", "class_features"]
    for explanation in explanations:
        assert len(explanation.class_features) == 8
        for ledger in explanation.class_features:
            assert abs(ledger.total - ledger.logit) <= 1e-4
            assert ledger.rest == 0
            assert len(ledger.contributions) == 5
        for part in explanation.parts.parts:
            assert part.score > 0
            assert 0 <= part.x <= 48
            assert 0 <= part.y <= 48
            assert part.learned_for in pictures.names


def test_the_server_answers_what_the_file_computes(models: Path, creatures_pack: Path) -> None:
    pictures = read_pictures(creatures_pack)
    session = open_session(models / "creatures" / "1" / "model.onnx")
    logits = session.run({"image": to_model_input(pictures.decoded(48, 48))})["logits"]
    with running_server("--repository", str(models)) as (address, _), Client(address) as client:
        explanations = client.explain(pictures.encoded)
    for row, explanation in enumerate(explanations):
        best = explanation.predictions[0]
        assert best.class_index == logits[row].argmax()
        assert best.logit == logits[row].max()


def test_the_command_line_explains_a_picture_file_and_draws_it(
    models: Path, creatures_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, figure = tmp_path / "creature.png", tmp_path / "figure.png"
    picture.write_bytes(read_pictures(creatures_pack).encoded[0])
    with running_server("--repository", str(models)) as (address, _):
        assert ask(["explain", str(picture), "--server", address, "--figure", str(figure)]) == 0
    printed = capsys.readouterr().out
    assert "= logit of" in printed
    assert "bias" in printed
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_demo_learns_serves_explains_and_draws(tmp_path: Path) -> None:
    command = [sys.executable, "examples/demo.py", "--models", str(tmp_path / "models"), "--pictures", "8"]
    command += ["--figure", str(tmp_path / "demo.png"), *TINY_RUN]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "of 8 new creatures named rightly" in run.stdout
    assert "= logit of" in run.stdout
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "models" / "creatures" / "1" / "model.onnx").is_file()


@pytest.mark.slow
def test_real_animals_go_from_pictures_to_explained_answers(shared_data: Path, tmp_path: Path) -> None:
    pack = shared_data / "animal-parts-20.npz"
    small = ["--data.size=64", "--train.epochs=1", "--head.epochs=1", f"--data.path={pack}", f"--output={tmp_path}"]
    assert train(["run", str(ROOT / "examples" / "animals.toml"), *small]) == 0
    report = json.loads((tmp_path / "animals" / "1" / "report.json").read_text())
    assert report["parts"]["tracking_ratio"]["controls"]["centre"] == pytest.approx(1)
    pictures = read_pictures(pack).of_split("test").take(np.arange(8))
    with running_server("--repository", str(tmp_path)) as (address, _), Client(address) as client:
        for answer in client.explain(pictures.encoded, top_k_classes=20):
            assert (answer.width, answer.height) == (128, 128)
            assert all(abs(ledger.total - ledger.logit) <= 1e-4 for ledger in answer.class_features)


@pytest.mark.slow
def test_the_demo_s_model_is_at_least_95_percent_right(tmp_path: Path) -> None:
    assert train(["run", str(ROOT / "examples" / "creatures.toml"), f"--output={tmp_path}"]) == 0
    report = json.loads((tmp_path / "creatures" / "1" / "report.json").read_text())
    assert report["accuracy"]["value"] >= 0.95


def test_the_same_job_writes_the_same_bytes(models: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "run", "examples/creatures.toml", *TINY_RUN, f"--output={tmp_path}"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    file = Path("creatures/1/model.onnx")
    assert (tmp_path / file).read_bytes() == (models / file).read_bytes()


def test_evaluate_says_the_same_as_the_run_s_report(
    models: Path, creatures_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    model = models / "creatures" / "1" / "model.onnx"
    assert analyze(["evaluate", str(model), "--data", str(creatures_pack), "--split=all", f"--report={report}"]) == 0
    pictures = read_pictures(creatures_pack)
    logits = open_session(model).run({"image": to_model_input(pictures.decoded(48, 48))})["logits"]
    assert json.loads(report.read_text())["accuracy"]["value"] == (logits.argmax(1) == pictures.label).mean()


def test_a_run_stopped_by_ctrl_c_leaves_the_old_model_and_says_so(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "models")
    file = tmp_path / "models" / "creatures" / "1" / "model.onnx"
    before = file.read_bytes()
    command = [sys.executable, "-m", "training", "run", "examples/creatures.toml", *TINY_RUN, "--train.epochs=500"]
    process = subprocess.Popen(
        [*command, f"--output={tmp_path / 'models'}"], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    time.sleep(12)  # a busy machine takes so long to begin
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; the same command with --resume goes on" in errors
    assert "Traceback" not in errors
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["--data.path=nowhere.npz"], "there is no data at nowhere.npz"),
        (["--train.learning_rate=1e30"], "the loss is"),
        (["--model.backbone=vgg"], "there is no backbone 'vgg'"),
    ],
)
def test_a_run_that_cannot_go_on_says_why_and_writes_nothing(
    tmp_path: Path, overrides: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = str(ROOT / "examples" / "creatures.toml")
    assert train(["run", job, *TINY_RUN, f"--output={tmp_path}", *overrides]) == 1
    errors = capsys.readouterr().err
    assert sentence in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.rglob("model.onnx"))


def test_a_third_party_resnet20_goes_from_checkpoint_to_explained_answers(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, explained = tmp_path / "plain.onnx", tmp_path / "models" / "cifar10" / "1" / "model.onnx"
    pack, report = str(shared_data / "cifar10-lossless.npz"), tmp_path / "report.json"
    weights = str(shared_data / "resnet20-12fca82f.safetensors")
    assert train(f"export --backbone resnet20 --weights {weights} --data {pack} --output {plain}".split()) == 0
    assert analyze(f"attach {plain} --data {pack} --output {explained}".split()) == 0
    assert analyze(f"evaluate {explained} --data {pack} --report {report}".split()) == 0
    figures = json.loads(report.read_text())
    assert figures["accuracy"]["value"] > 0.89
    assert figures["accuracy_class_features"]["value"] > 0.84
    assert {row["k"] for row in figures["accuracy_by_k"]} >= {3, 5, 10}
    assert figures["completeness_gap"]["value"] <= 1e-4
    test = read_pictures(Path(pack)).of_split("test").take(np.arange(20))
    with running_server("--repository", str(tmp_path / "models")) as (address, _), Client(address) as client:
        answers = client.explain(test.encoded, top_k_classes=10)
    for answer in answers:
        assert all(abs(ledger.total - ledger.logit) <= 1e-4 for ledger in answer.class_features)


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "--backbone", "resnet32", "--data", str(shared_data / "cifar10-lossless.npz")]
    weights, output = str(shared_data / "resnet20-12fca82f.safetensors"), tmp_path / "plain.onnx"
    assert train([*arguments, "--weights", weights, "--output", str(output)]) == 1
    assert "the weights do not fit" in capsys.readouterr().err
    assert not output.exists()
