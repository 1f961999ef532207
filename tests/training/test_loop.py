"""Runs that stop and go on, averaged weights, schedules, and what is kept when something goes wrong."""

from __future__ import annotations

from copy import copy
from pathlib import Path

import pytest
import torch

from analyzers.class_features import membership
from tests.conftest import ROOT
from training import checkpoint
from training.creatures import creatures
from training.data import Batches, augment
from training.job import Job, read_job
from training.loop import TrainingError, build, filter_weight, learn
from training.network import Network
from training.watch import watching

SIZE = 48
TINY = ["--data.size=48", "--model.filters=8", "--train.epochs=2", "--head.epochs=2", "--train.threads=1"]


def job(folder: Path, *overrides: str) -> Job:
    return read_job(ROOT / "examples" / "creatures.toml", [*TINY, f"--output={folder}", *overrides])


@pytest.fixture(scope="module")
def splits() -> tuple[Batches, Batches]:
    drawn = creatures(64, size=SIZE)
    return Batches(drawn.of_split("train"), SIZE), Batches(drawn.of_split("test"), SIZE)


def same(one: Network, other: Network) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("epochs_before", [1, 2, 3])
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    tmp_path: Path, splits: tuple[Batches, Batches], epochs_before: int
) -> None:
    whole, selection, history = learn(job(tmp_path / "whole", "--train.ema=0.9"), *splits, 8)

    def stop(record: dict[str, float], network: Network) -> None:
        if record["epoch"] == epochs_before:
            raise StoppedError

    interrupted = job(tmp_path / "interrupted", "--train.ema=0.9")
    with pytest.raises(StoppedError):
        learn(interrupted, *splits, 8, watch=stop)
    resumed, again, later = learn(interrupted, *splits, 8, resume=True)
    assert same(whole, resumed)
    assert (selection.sets == again.sets).all()
    assert history.epochs == later.epochs


def test_a_run_with_several_layers_and_templates_of_their_own_resumes_bit_for_bit(
    tmp_path: Path, splits: tuple[Batches, Batches]
) -> None:
    options = [
        *("--model.interpretable_layers=layer2", "--model.beta=per-filter", "--model.peak=centroid"),
        *("--train.loss=logistic", "--train.filter_classes=balanced", "--head.decompose=false"),
    ]
    whole, _, history = learn(job(tmp_path / "whole", *options), *splits, 8)

    def stop(record: dict[str, float], network: Network) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        learn(job(tmp_path / "cut", *options), *splits, 8, watch=stop)
    resumed, _, later = learn(job(tmp_path / "cut", *options), *splits, 8, resume=True)
    assert same(whole, resumed)
    assert history.epochs == later.epochs
    for state in whole.states:
        assert set(state.category.tolist()) <= set(range(8))
        assert state.scale.ne(1).any()
        assert state.templates.beta.std() > 0


def test_the_filter_losses_of_all_layers_add_up(tmp_path: Path, splits: tuple[Batches, Batches]) -> None:
    """With a learning rate of next to nothing, the network with two layers is the network with one, twice."""
    still = ["--train.learning_rate=1e-12", "--train.epochs=1", "--head.decompose=false", "--model.beta=1e-6"]
    recorded = {}
    for layers in ("layer2", "layer1,layer2", "layer1"):
        options = [*still, f"--model.interpretable_layers={layers}", "--model.filters=0"]
        recorded[layers] = learn(job(tmp_path / layers, *options), *splits, 8)[2].epochs[0]
    one, other, both = recorded["layer2"], recorded["layer1"], recorded["layer1,layer2"]
    assert both["filter_loss"] == pytest.approx(one["filter_loss"] + other["filter_loss"], rel=1e-3)
    assert one["filter_loss"]
    assert other["filter_loss"]


def test_a_picture_with_several_labels_counts_for_each_of_its_classes(
    tmp_path: Path, splits: tuple[Batches, Batches]
) -> None:
    asked = job(tmp_path, "--train.loss=logistic")
    train, test = (copy(batches) for batches in splits)
    for batches in (train, test):
        batches.label = torch.nn.functional.one_hot(batches.label, 8)
        batches.label[:, 3] = 1
    network, selection, history = learn(asked, train, test, 8)
    assert selection.sets.shape == (8, 5)
    torch.testing.assert_close(network.states[0].class_share[3], torch.tensor(1.0))
    assert 0 <= history.epochs[-1]["accuracy"] <= 1


def test_without_resume_a_run_starts_anew(tmp_path: Path, splits: tuple[Batches, Batches]) -> None:
    first, _, _ = learn(job(tmp_path), *splits, 8)
    second, _, history = learn(job(tmp_path), *splits, 8)
    assert same(first, second)
    assert len(history.epochs) == 4


def test_a_checkpoint_of_another_job_is_refused_naming_the_difference(
    tmp_path: Path, splits: tuple[Batches, Batches]
) -> None:
    learn(job(tmp_path), *splits, 8)
    with pytest.raises(checkpoint.CheckpointError, match=r"differs in model\.beta"):
        learn(job(tmp_path, "--model.beta=3"), *splits, 8, resume=True)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, splits: tuple[Batches, Batches]) -> None:
    path = job(tmp_path).folder / checkpoint.FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(checkpoint.CheckpointError, match="is damaged"):
        learn(job(tmp_path), *splits, 8, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    tmp_path: Path, splits: tuple[Batches, Batches]
) -> None:
    with pytest.raises(TrainingError, match=r"the loss is \w+ at step \d of epoch \d;.* lower train\.learning_rate"):
        learn(job(tmp_path, "--train.learning_rate=1e30"), *splits, 8)


def test_a_later_failure_keeps_the_last_good_checkpoint(tmp_path: Path, splits: tuple[Batches, Batches]) -> None:
    def poison(record: dict[str, float], network: Network) -> None:
        network.head.bias.data.fill_(float("nan"))

    with pytest.raises(TrainingError, match="the checkpoint of epoch 1 is kept"):
        learn(job(tmp_path), *splits, 8, watch=poison)
    state = checkpoint.load(job(tmp_path).folder / checkpoint.FILE, job(tmp_path))
    assert len(state["epochs"]) == 1
    assert all(bool(torch.isfinite(t).all()) for t in state["network"].values())


def test_averaged_weights_are_what_is_kept(tmp_path: Path, splits: tuple[Batches, Batches]) -> None:
    plain, _, _ = learn(job(tmp_path / "plain"), *splits, 8)
    averaged, _, _ = learn(job(tmp_path / "averaged", "--train.ema=0.9"), *splits, 8)
    assert not same(plain, averaged)


def test_averaging_leaves_the_decomposed_layer_decomposed(tmp_path: Path, splits: tuple[Batches, Batches]) -> None:
    network, selection, _ = learn(job(tmp_path, "--train.ema=0.9", "--train.filter_classes=balanced"), *splits, 8)
    own = membership(network.head.head(), selection.sets)
    assert set(network.head.mask.unique().tolist()) == {0.0, 1.0}
    assert not network.head.head().weight[~own].any()
    assert set(network.parts.state.category.tolist()) <= set(range(8))


def test_a_masked_network_starts_from_an_ordinary_one_with_logits_of_the_same_size(
    tmp_path: Path, splits: tuple[Batches, Batches]
) -> None:
    from safetensors.torch import save_file

    ordinary, _, _ = learn(job(tmp_path, "--model.interpretable=false", "--head.decompose=false"), *splits, 8)
    save_file(ordinary.state_dict(), tmp_path / "weights.safetensors")
    start = f"--train.start={tmp_path / 'weights.safetensors'}"
    from training.start import start_from

    masked = build(job(tmp_path, start), 8)
    start_from(masked, tmp_path / "weights.safetensors", splits[0], 16)
    images = next(splits[1].ordered(16))[0]
    with torch.no_grad():
        before, after = ordinary.eval()(images)[0], masked.eval()(images)[0]
    assert 0.5 < float(after.std() / before.std()) < 2


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path, splits: tuple[Batches, Batches]) -> None:
    with pytest.raises(TrainingError, match="cannot start from"):
        learn(job(tmp_path, f"--train.start={tmp_path / 'nowhere.safetensors'}"), *splits, 8)


def test_lambda_follows_its_schedule(tmp_path: Path) -> None:
    weights = {
        schedule: [filter_weight(job(tmp_path, "--train.filter_weight=1", f"--train.filter_schedule={schedule}"), t)
                   for t in (1, 2, 3)]
        for schedule in ("decay", "constant", "ramp")
    }  # fmt: skip
    assert weights == {"decay": [1, 1 / 2, 1 / 3], "constant": [1, 1, 1], "ramp": [0.5, 1, 1]}


def test_augmented_pictures_stay_pictures_and_follow_the_seed(tmp_path: Path, splits: tuple[Batches, Batches]) -> None:
    images = next(splits[0].ordered(8))[0]
    one, other = (augment(images, job(tmp_path).train, torch.Generator().manual_seed(s)) for s in (0, 0))
    assert torch.equal(one, other)
    assert one.shape == images.shape
    assert 0 <= float(one.min()) <= float(one.max()) <= 1
    assert not torch.equal(one, images)


def test_tensorboard_gets_scalars_and_pictures(tmp_path: Path, splits: tuple[Batches, Batches]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched = job(tmp_path, "--train.tensorboard=true", "--head.decompose=false")
    with watching(watched, splits[1]) as watch:
        learn(watched, *splits, 8, watch=watch)
    events = EventAccumulator(str(watched.folder / "events")).Reload()
    assert [event.step for event in events.Scalars("accuracy")] == [1, 2]
    assert events.Tags()["images"]
