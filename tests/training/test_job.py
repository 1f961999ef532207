from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from training.job import JobError, describe, read_job


def job_file(folder: Path, text: str = 'name = "x"\n') -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def test_a_job_states_only_what_differs(tmp_path: Path) -> None:
    job = read_job(job_file(tmp_path))
    assert (job.folder, job.model.backbone, job.train.filter_loss) == (Path("models/x/1"), "small", "plain")


def test_overrides_win_over_the_file_in_both_spellings(tmp_path: Path) -> None:
    path = job_file(tmp_path, 'name = "x"\n[train]\nepochs = 9\n')
    job = read_job(path, ["--train.epochs", "2", "--head.k1=7", "--output", "out", "--train.filter-schedule", "ramp"])
    assert (job.train.epochs, job.head.k1, job.output, job.train.filter_schedule) == (2, 7, Path("out"), "ramp")


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ('name = "x"\n[train]\nepoch = 3\n', [], "train.epoch: Extra inputs are not permitted"),
        ('name = "x"\n[train]\nepochs = 0\n', [], "train.epochs"),
        ('name = "../x"\n', [], "name"),
        ("", [], "name: Field required"),
        ("name = ", [], "is not TOML"),
        ('name = "x"\n', ["--train.epochs"], "lacks a value"),
        ('name = "x"\n', ["epochs=3"], "unexpected 'epochs=3'"),
        ('name = "x"\n', ["--name.first", "y"], "'name' is not a section"),
        ('name = "x"\n', ["--model.backbone", "resnet21"], "there is no backbone 'resnet21'; there are small"),
        ('name = "x"\n', ["--train.learning_rate", "nan"], "train.learning_rate"),
        ('name = "x"\n', ["--model.peak", "median"], "model.peak: Input should be 'argmax' or 'centroid'"),
        ('name = "x"\n', ["--model.beta", "0"], "model.beta: Input should be greater than 0"),
        ('name = "x"\n', ["--model.beta", "each"], "model.beta: Input should be 'per-filter'"),
        ('name = "x"\n[model]\ninterpretable_layers = 3\n', [], "model.interpretable_layers"),
        ('name = "x"\n', ["--model.interpretable_layers=a,a"], "a layer is named twice; name each once"),
        ('name = "x"\n', ["--train.loss=logistic", "--data.category=fox"], "has the logistic loss as it is; leave"),
        ('name = "x"\n', ["--train.distil=1"], "keeps near the answers of train.start; name the run to start from"),
        (
            'name = "x"\n',
            ["--train.filter_loss=gates", "--model.interpretable_layers=layer2"],
            "'gates' works on the last layer alone; leave model.interpretable_layers out",
        ),
    ],
)
def test_a_wrong_job_is_refused_naming_the_key(tmp_path: Path, text: str, overrides: list[str], sentence: str) -> None:
    with pytest.raises(JobError) as caught:
        read_job(job_file(tmp_path, text), overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_are_a_list_in_a_file_and_parted_by_commas_on_the_command_line(tmp_path: Path) -> None:
    listed = read_job(job_file(tmp_path, 'name = "x"\n[model]\ninterpretable_layers = ["layer3", "layer4"]\n'))
    assert listed.model.interpretable_layers == ("layer3", "layer4")
    given = read_job(
        job_file(tmp_path), ["--model.interpretable-layers", "layer3, layer4", "--model.beta", "per-filter"]
    )
    assert given.model.interpretable_layers == ("layer3", "layer4")
    assert given.model.beta == "per-filter"
    assert read_job(job_file(tmp_path), ["--model.beta=3.5"]).model.beta == 3.5


def test_a_missing_job_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"nowhere\.toml cannot be read"):
        read_job(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_every_example_is_a_valid_job(path: Path) -> None:
    assert read_job(path).name


def test_the_help_lists_every_key() -> None:
    assert all(f"--{key}" in describe() for key in ("data.size", "model.filters", "train.filter_weight", "head.k2"))
