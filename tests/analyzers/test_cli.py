"""`pellucid-analyze`: what it prints, writes, and says when something is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analyzers.__main__ import main
from analyzers.class_features import membership
from analyzers.manifest import Manifest
from analyzers.pixels import to_model_input
from analyzers.plain import explained_plain
from analyzers.runtime import open_session
from tests.conftest import NAMES, SIZE, explain_tiny, random_pictures, tiny_plain


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "pictures.npz"
    random_pictures(60).save(path)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.onnx"
    path.write_bytes(tiny_plain())
    return path


def attach(plain: Path, pack: Path, output: Path, *more: str) -> int:
    return main(["attach", str(plain), "--data", str(pack), "--output", str(output), "--k1=3", "--k2=3", *more])


def manifest(path: Path) -> Manifest:
    return Manifest.from_metadata(open_session(path).metadata)


def test_attach_inspect_and_evaluate_go_through(
    plain: Path, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, report = tmp_path / "models" / "tiny" / "1" / "model.onnx", tmp_path / "report.json"
    assert attach(plain, pack, model) == 0
    assert "logits unchanged" in capsys.readouterr().out
    assert main(["inspect", str(model)]) == 0
    printed = capsys.readouterr().out
    assert all(
        word in printed for word in ("16 x 16", "cat, dog, owl", "parts, class_features", "8 filters", "40 pictures")
    )
    assert main(["inspect", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 2
    assert main(["evaluate", str(model), "--data", str(pack), "--report", str(report)]) == 0
    assert "accuracy" in capsys.readouterr().out
    figures = json.loads(report.read_text())
    assert {"schema", "data", "accuracy", "accuracy_class_features", "completeness_gap", "accuracy_by_k"} <= set(
        figures
    )


def test_unreadable_pictures_are_refused_or_left_out_and_the_page_is_written(
    plain: Path, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model, page = tmp_path / "model.onnx", tmp_path / "page.html"
    assert attach(plain, pack, model) == 0
    pictures = random_pictures(60)
    replace(pictures, encoded=(b"no picture", *pictures.encoded[1:])).save(pack)
    command = ["evaluate", str(model), "--data", str(pack), "--split=all", "--html", str(page)]
    assert main(command) == 1
    assert "1 of 60 pictures cannot be read: picture 0" in capsys.readouterr().err
    assert not page.exists()
    assert main([*command, "--unreadable=skip", "--gallery-filters=2", "--gallery-pictures=1"]) == 0
    assert "1 of 60 pictures cannot be read and are left out: picture 0" in caplog.text
    assert json.loads(capsys.readouterr().out)["data"]["pictures"] == 59
    assert page.read_text().count("<img") == 2
    assert attach(plain, pack, model) == 1
    assert attach(plain, pack, model, "--unreadable=skip") == 0


def test_evaluate_measures_what_numpy_measures(plain: Path, pack: Path, tmp_path: Path) -> None:
    model, report = tmp_path / "model.onnx", tmp_path / "report.json"
    attach(plain, pack, model)
    main(["evaluate", str(model), "--data", str(pack), "--report", str(report)])
    figures = json.loads(report.read_text())
    test = random_pictures(60).of_split("test")
    images = to_model_input(test.decoded(SIZE, SIZE))
    logits = open_session(tiny_plain()).run({"image": images})["logits"]
    import onnx

    graph = onnx.load(model)
    head = explained_plain(graph).found.head
    sets = next(onnx.numpy_helper.to_array(t) for t in graph.graph.initializer if t.name == "class_features/index")
    pooled = open_session(graph.SerializeToString()).run({"image": images})["flat"]
    own = pooled @ np.where(membership(head, sets[:, :, 0]), head.weight, 0).T + head.bias
    assert figures["accuracy"]["value"] == (logits.argmax(1) == test.label).mean()
    assert figures["accuracy"]["n"] == 20
    assert figures["accuracy"]["controls"]["majority_class"] == pytest.approx(7 / 20)
    assert figures["accuracy_class_features"]["value"] == (own.argmax(1) == test.label).mean()
    assert figures["accuracy_class_features"]["k"] == 3
    assert figures["completeness_gap"]["value"] < 1e-5
    assert [row["k"] for row in figures["accuracy_by_k"]] == [1, 3, 5]


def test_published_index_sets_are_taken_as_they_are(plain: Path, pack: Path, tmp_path: Path) -> None:
    indices, model = tmp_path / "sets.json", tmp_path / "model.onnx"
    indices.write_text(json.dumps({"0": [1, 2], "1": [0], "2": [7, 6]}))
    assert attach(plain, pack, model, "--indices", str(indices)) == 0
    section = manifest(model).class_features
    assert (section.rule, section.k1, section.k2) == ("given", None, 2)
    report = tmp_path / "report.json"
    assert main(["evaluate", str(model), "--data", str(pack), "--report", str(report)]) == 0
    assert "accuracy_by_k" not in json.loads(report.read_text())


def test_class_names_come_from_the_flag_or_the_data_and_are_matched_by_name(
    plain: Path, pack: Path, tmp_path: Path
) -> None:
    names, model = tmp_path / "names.txt", tmp_path / "model.onnx"
    names.write_text("owl\ncat\ndog\n")
    assert attach(plain, pack, model) == 0
    assert manifest(model).classes == NAMES
    assert attach(plain, pack, model, "--names", str(names)) == 0
    assert manifest(model).classes == ("owl", "cat", "dog")


def test_normalisation_flags_go_into_the_file(plain: Path, pack: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    assert attach(plain, pack, model, "--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.1") == 0
    assert manifest(model).input.mean == (0.5, 0.4, 0.3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split=validation"], "unknown split 'validation'; there are train, test and all"),
        (["--k1=0"], "k1: is 0; expected 1 to 8"),
        (["--k2=99"], "k2: is 99; expected 1 to 8"),
        (["--indices=nowhere.json"], "nowhere.json"),
        (["--data=nowhere"], "there is no data at nowhere"),
    ],
)
def test_a_failed_attach_says_why_and_leaves_the_old_file(
    plain: Path, pack: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"old")
    assert attach(plain, pack, model, *arguments) == 1
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1
    assert model.read_bytes() == b"old"


def test_every_command_names_a_file_it_cannot_use(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(explain_tiny()[2].SerializeToString()[:500])
    for command in (
        ["attach", str(broken), "--data", str(pack), "--output", str(tmp_path / "x.onnx")],
        ["evaluate", str(broken), "--data", str(pack)],
        ["inspect", str(broken)],
        ["inspect", str(tmp_path / "nowhere.onnx")],
        ["evaluate", str(pack), "--data", str(pack)],
    ):
        assert main(command) == 1
        errors = capsys.readouterr().err
        assert errors.startswith("pellucid-analyze: error: ")
        assert errors.count("\n") == 1
    assert not (tmp_path / "x.onnx").exists()


def test_a_model_is_not_measured_on_other_classes(
    plain: Path, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    model, other = tmp_path / "model.onnx", tmp_path / "other.npz"
    attach(plain, pack, model)
    replace(random_pictures(), names=("cat", "dog", "elk")).save(other)
    assert main(["evaluate", str(model), "--data", str(other)]) == 1
    assert "only one of them has elk, owl" in capsys.readouterr().err


def test_wrong_options_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["attach"], ["attach", "x.onnx", "--data", "y", "--output", "z", "--mean", "1,2"], ["fly"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
