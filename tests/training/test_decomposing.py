"""Decomposing a final layer: what learns and what stands still, sets that were published, weights of others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from analyzers.class_features import membership
from analyzers.errors import DataError, InvalidInputError
from tests.conftest import ROOT
from training.backbones import BACKBONES
from training.creatures import creatures
from training.data import Batches, augment
from training.job import Job, JobError, read_job
from training.loop import learn
from training.network import Network

SIZE = 32
RESNET = ["--data.size=32", "--model.backbone=resnet20", "--model.filters=0", "--model.interpretable=false"]


@pytest.fixture(scope="module")
def splits() -> tuple[Batches, Batches]:
    drawn = creatures(64, size=SIZE)
    return Batches(drawn.of_split("train"), SIZE), Batches(drawn.of_split("test"), SIZE)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a whole network, named as others name theirs."""
    torch.manual_seed(5)
    backbone = BACKBONES["resnet20"]()
    tensors = {f"module.{name}": tensor for name, tensor in backbone.state_dict().items()}
    head = torch.nn.Linear(backbone.channels, 8)
    tensors |= {f"module.linear.{name}": tensor.detach() for name, tensor in head.named_parameters()}
    path = tmp_path_factory.mktemp("weights") / "resnet20.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def job(folder: Path, weights: Path, *overrides: str) -> Job:
    whole = [f"--model.weights={weights}", "--model.keep_head=true", "--train.epochs=0", "--head.epochs=1"]
    common = ["--train.threads=1", f"--output={folder}", *overrides]
    return read_job(ROOT / "examples" / "creatures.toml", [*RESNET, *whole, *common])


def test_a_checkpoint_s_own_final_layer_is_taken_and_without_learning_it_stays(
    tmp_path: Path, weights: Path, splits: tuple[Batches, Batches]
) -> None:
    network, selection, history = learn(job(tmp_path, weights, "--head.decompose=false"), *splits, 8)
    torch.manual_seed(5)
    backbone = BACKBONES["resnet20"]()
    head = torch.nn.Linear(backbone.channels, 8)
    assert torch.equal(network.head.weight, head.weight)
    assert torch.equal(network.head.bias, head.bias)
    assert not history.epochs
    assert selection.sets.shape == (8, 5)


def changed(network: Network, weights: Path, folder: Path, splits: tuple[Batches, Batches]) -> set[str]:
    """Return the names of parameters and buffers that differ from those of the start."""
    start, _, _ = learn(job(folder / "start", weights, "--head.decompose=false"), *splits, 8)
    pairs = zip(network.state_dict().items(), start.state_dict().values(), strict=True)
    return {name for (name, now), before in pairs if not torch.equal(now, before)}


@pytest.mark.parametrize("learns", ["head", "last_block", "all"])
def test_what_is_not_to_learn_stands_still_batch_statistics_included(
    tmp_path: Path, weights: Path, splits: tuple[Batches, Batches], learns: str
) -> None:
    network, _, _ = learn(job(tmp_path / "run", weights, f"--head.train={learns}"), *splits, 8)
    names = changed(network, weights, tmp_path, splits)
    assert {"head.weight", "head.mask"} <= names
    body = {name for name in names if name.startswith("backbone.")}
    if learns == "head":
        assert not body
    elif learns == "last_block":
        assert body
        assert all(name.startswith("backbone.layer3.2.") for name in body)
    else:
        assert any(name.startswith("backbone.conv1") for name in body)
        assert any("running_mean" in name for name in body)


def test_published_sets_are_taken_as_they_are(tmp_path: Path, weights: Path, splits: tuple[Batches, Batches]) -> None:
    sets = {str(c): [c, c + 10, c + 20] for c in range(8)}
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    network, selection, _ = learn(job(tmp_path, weights, f"--head.indices={tmp_path}/sets.json"), *splits, 8)
    assert selection.rule == "given"
    assert selection.sets.tolist() == [sets[str(c)] for c in range(8)]
    own = membership(network.head.head(), selection.sets)
    assert np.array_equal(network.head.head().weight != 0, own)


def test_wrong_sets_are_refused(tmp_path: Path, weights: Path, splits: tuple[Batches, Batches]) -> None:
    (tmp_path / "sets.json").write_text("[]")
    with pytest.raises(InvalidInputError, match="indices"):
        learn(job(tmp_path, weights, f"--head.indices={tmp_path}/sets.json"), *splits, 8)
    (tmp_path / "sets.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON; expected"):
        learn(job(tmp_path, weights, f"--head.indices={tmp_path}/sets.json"), *splits, 8)


def test_a_teacher_keeps_the_decomposed_layer_nearer_to_the_full_one(
    tmp_path: Path, weights: Path, splits: tuple[Batches, Batches]
) -> None:
    def away(*options: str) -> float:
        folder = tmp_path / "_".join(options or ("none",)).strip("-")
        often = ("--head.epochs=12", "--head.learning_rate=1e-2", *options)
        network, _, _ = learn(job(folder, weights, *often), *splits, 8)
        images, _ = next(splits[0].ordered(48))
        with torch.no_grad():
            taught = full.eval()(images)[0].softmax(1)
            return float((network.eval()(images)[0].softmax(1) - taught).abs().mean())

    full, _, _ = learn(job(tmp_path / "full", weights, "--head.decompose=false"), *splits, 8)
    assert away("--head.distil=20") < away()


def test_a_run_with_a_teacher_resumes_bit_for_bit(
    tmp_path: Path, weights: Path, splits: tuple[Batches, Batches]
) -> None:
    options = ["--head.epochs=3", "--head.distil=1.0", "--head.train=last_block"]

    class StoppedError(Exception):
        pass

    def stop(record: dict[str, float], network: Network) -> None:
        if record["epoch"] == 2:
            raise StoppedError

    whole, _, _ = learn(job(tmp_path / "whole", weights, *options), *splits, 8)
    with pytest.raises(StoppedError):
        learn(job(tmp_path / "cut", weights, *options), *splits, 8, watch=stop)
    resumed, _, _ = learn(job(tmp_path / "cut", weights, *options), *splits, 8, resume=True)
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--model.keep_head=true"], "model.keep_head needs model.weights"),
        (["--train.epochs=0"], "train.epochs is 0, but neither train.start nor model.keep_head"),
        (["--head.train=tail"], "head.train"),
        (["--head.distil=-1"], "head.distil"),
        (["--train.augment=turn"], "train.augment"),
    ],
)
def test_a_job_that_cannot_be_meant_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(JobError, match=words):
        read_job(ROOT / "examples" / "creatures.toml", overrides)


def test_a_final_layer_of_another_size_is_refused(
    tmp_path: Path, weights: Path, splits: tuple[Batches, Batches]
) -> None:
    with pytest.raises(DataError, match=r"has a final layer of .*\[8, 64\].*; the network's is .*\[5, 64\]"):
        learn(job(tmp_path, weights), *splits, 5)


def test_cropping_moves_whole_pixels_and_nothing_else(tmp_path: Path, weights: Path) -> None:
    train = job(tmp_path, weights, "--train.augment=crop", "--train.shift=0.125").train
    images = torch.rand(40, 3, 16, 16)
    cropped = augment(images, train, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    seen = set()
    for before, after in zip(padded, cropped, strict=True):
        found = [
            (flip, down, across)
            for flip in (False, True)
            for down in range(5)
            for across in range(5)
            if torch.equal(window_of(before, down, across, flip), after)
        ]
        assert found
        seen.add(found[0])
    assert len({flip for flip, _, _ in seen}) == 2
    assert len(seen) > 10


def window_of(image: torch.Tensor, down: int, across: int, flip: bool) -> torch.Tensor:
    window = image[:, down : down + 16, across : across + 16]
    return window.flip(-1) if flip else window
