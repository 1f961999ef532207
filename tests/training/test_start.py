"""Where learning begins: pretrained weights, earlier runs, and what makes up for new masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from analyzers.errors import DataError
from training.backbones import BACKBONES
from training.creatures import creatures
from training.data import Batches
from training.interpretable import interpretable_layers
from training.job import Job
from training.loop import learn
from training.network import Network
from training.start import TrainingError, begin, build, build_teacher
from training.tasks import answers

SIZE = 48


def job(**sections: object) -> Job:
    return Job.model_validate({"name": "x", "data": {"size": SIZE}, "model": {"filters": 8}} | sections)


@pytest.fixture(scope="module")
def train() -> Batches:
    return Batches(creatures(32, size=SIZE), SIZE)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    backbone = BACKBONES["small"]()
    save_file({f"module.{name}": tensor for name, tensor in backbone.state_dict().items()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_a_job_s_weights_are_in_the_backbone_whether_its_layers_are_masked_or_not(weights: Path) -> None:
    from safetensors.torch import load_file

    expected = {name.removeprefix("module."): tensor for name, tensor in load_file(weights).items()}
    for layers in ([], ["layer2"], ["layer2", "layer3"]):
        network = build(job(model={"weights": weights, "filters": 8, "interpretable_layers": layers}), 8)
        own = {name.replace(".source", ""): tensor for name, tensor in network.backbone.state_dict().items()}
        assert all(torch.equal(own[name], tensor) for name, tensor in expected.items())


def test_weights_that_do_not_fit_are_refused(weights: Path) -> None:
    with pytest.raises(DataError, match=r"w\.safetensors: the weights do not fit: .* give the backbone that"):
        build(job(model={"weights": weights, "backbone": "resnet20"}), 8)


def test_a_run_goes_on_without_the_weights_it_began_with(tmp_path: Path, weights: Path, train: Batches) -> None:
    sections = {
        "model": {"weights": weights, "filters": 8},
        "train": {"epochs": 2, "threads": 1},
        "head": {"decompose": False},
    }
    asked = Job.model_validate({"name": "x", "output": tmp_path, "data": {"size": SIZE}} | sections)

    def stop(record: dict[str, float], network: Network) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(asked, train, train, 8, watch=stop)
    weights.unlink()
    _, _, history = learn(asked, train, train, 8, resume=True)
    assert len(history.epochs) == 2


def test_new_masks_inside_a_backbone_pass_on_the_means_of_their_maps(train: Batches) -> None:
    asked = job(model={"filters": 8, "interpretable_layers": ["layer1", "layer2"]})
    torch.manual_seed(0)
    network = build(asked, 8)
    begin(network, asked, train)
    layers = interpretable_layers(network.backbone)
    assert list(layers) == ["layer1", "layer2"]
    passed = {}
    for name, layer in layers.items():
        layer.register_forward_hook(
            lambda module, given, output, name=name: passed.update({name: output.mean((0, 2, 3))})
        )
    with torch.no_grad():
        _, maps = network.eval().with_all_maps(next(train.ordered(32))[0])
    for (name, layer), (_, x) in zip(layers.items(), maps, strict=False):
        assert bool((layer.gain > 1).any())
        torch.testing.assert_close(passed[name], x.mean((0, 2, 3)), rtol=1e-4, atol=1e-7)


def test_gains_that_an_earlier_run_found_are_kept(tmp_path: Path, train: Batches) -> None:
    sections = {"model": {"filters": 8, "interpretable_layers": ["layer2"]}}
    first = build(job(**sections), 8)
    begin(first, job(**sections), train)
    layer = interpretable_layers(first.backbone)["layer2"]
    layer.gain.mul_(1.5)
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    later = job(**sections, train={"start": tmp_path / "weights.safetensors"})
    second = build(later, 8)
    begin(second, later, train)
    assert torch.equal(interpretable_layers(second.backbone)["layer2"].gain, layer.gain)


def test_a_masked_network_starts_from_the_ordinary_one_with_the_same_layers(tmp_path: Path, train: Batches) -> None:
    model = {"filters": 8, "interpretable_layers": ["layer2"]}
    ordinary = build(job(model=model | {"interpretable": False}), 8)
    save_file(ordinary.state_dict(), tmp_path / "weights.safetensors")
    asked = job(model=model, train={"start": tmp_path / "weights.safetensors"})
    masked = build(asked, 8)
    begin(masked, asked, train)
    images = next(train.ordered(32))[0]
    with torch.no_grad():
        before, after = ordinary.eval()(images)[0], masked.eval()(images)[0]
    assert 0.5 < float(after.std() / before.std()) < 2
    assert not torch.equal(before, after)


def test_distilling_keeps_a_network_near_what_it_started_from(tmp_path: Path, train: Batches) -> None:
    def learned(**train_section: object) -> Network:
        asked = job(
            output=tmp_path,
            model={"filters": 8, "mask": False, "interpretable": "start" in train_section},
            train={"threads": 1, "batch_size": 8, "filter_weight": 0.1} | train_section,
            head={"decompose": False},
        )
        return learn(asked, train, train, 8)[0]

    begun = learned(epochs=6)
    taught = answers(begun, train, 32)
    save_file(begun.state_dict(), tmp_path / "start.safetensors")
    moved = {
        distil: float(
            abs(
                answers(learned(epochs=16, start=tmp_path / "start.safetensors", distil=distil), train, 32) - taught
            ).mean()
        )
        for distil in (0.0, 10.0)
    }
    assert moved[10.0] < 0.6 * moved[0.0]


def test_a_teacher_of_another_shape_is_refused(tmp_path: Path, train: Batches) -> None:
    save_file(build(job(model={"filters": 4}), 8).state_dict(), tmp_path / "start.safetensors")
    with pytest.raises(TrainingError, match="cannot start from"):
        build_teacher(job(), 8, tmp_path / "start.safetensors")


def test_without_a_mask_the_filter_loss_alone_teaches_filters_their_parts(tmp_path: Path, train: Batches) -> None:
    ends = {}
    for interpretable in (True, False):
        asked = job(
            output=tmp_path,
            model={"filters": 8, "mask": False, "interpretable": interpretable},
            train={"epochs": 1, "threads": 1, "filter_weight": 1},
            head={"decompose": False},
        )
        network, _, history = learn(asked, train, train, 8)
        assert network.parts is not None
        assert not network.parts.masked
        ends[interpretable] = history.epochs[-1]["filter_loss"]
    assert ends[True] != 0
    assert ends[False] == 0
