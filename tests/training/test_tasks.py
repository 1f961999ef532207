"""One class a picture, several, or one category against the rest: labels, losses, figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analyzers.errors import DataError
from tests import oracles
from tests.conftest import NAMES, random_pictures
from training.backbones import BACKBONES
from training.data import Batches
from training.job import Job, JobError
from training.network import Network
from training.tasks import (
    accuracy,
    activation,
    answers,
    classification_loss,
    distillation_loss,
    label_figures,
    member,
    posed,
)


def job(**sections: dict[str, object]) -> Job:
    return Job.model_validate({"name": "x", **sections})


def several(count: int = 30) -> np.ndarray:
    """Return labels that are present or not at random."""
    return np.random.default_rng(0).random((count, len(NAMES))) < 0.4


def test_the_logistic_loss_is_its_equation() -> None:
    logits = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    truth = torch.from_numpy(np.random.default_rng(0).random((7, 4)) < 0.5).long()
    expected = oracles.logistic_loss(logits.numpy(), truth.numpy())
    assert classification_loss(logits, truth, "logistic").item() == pytest.approx(expected, rel=1e-12)
    one = torch.tensor([0, 3, 1, 2, 2, 0, 1])
    expected = oracles.logistic_loss(logits.numpy(), np.eye(4)[one.numpy()])
    assert classification_loss(logits, one, "logistic").item() == pytest.approx(expected, rel=1e-12)


def test_the_logistic_loss_of_huge_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = classification_loss(logits, torch.tensor([1]), "logistic")
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert torch.equal(logits.grad, torch.tensor([[1.0, -1.0]]))


@pytest.mark.parametrize("loss", ["softmax", "logistic"])
def test_the_distillation_loss_is_four_times_the_divergence_at_temperature_two(loss: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, taught = (torch.randn(6, 4, dtype=torch.float64, generator=generator) * 3 for _ in range(2))
    expected = oracles.distillation_loss(logits.numpy(), taught.numpy(), loss)
    assert distillation_loss(logits, taught, loss).item() == pytest.approx(expected, rel=1e-10)
    assert distillation_loss(taught, taught, loss).item() == pytest.approx(0, abs=1e-12)
    assert distillation_loss(1e4 * logits, taught, loss).isfinite()


def test_labels_may_be_numbers_or_a_mask() -> None:
    assert member(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert member(torch.tensor([[1, 0, 1]]), 3).tolist() == [[1, 0, 1]]


def test_a_category_is_asked_about_as_yes_or_no() -> None:
    pictures = random_pictures()
    asked = posed(pictures, job(data={"category": "dog"}))
    assert asked.names == ("not dog", "dog")
    np.testing.assert_array_equal(asked.label, (pictures.label == 1).astype(int))
    with pytest.raises(DataError, match="the data has no class 'dgo'; the nearest names are dog, "):
        posed(pictures, job(data={"category": "dgo"}))


def test_a_category_is_found_among_several_labels() -> None:
    pictures = replace(random_pictures(), labels=several())
    asked = posed(pictures, job(data={"category": "owl"}))
    np.testing.assert_array_equal(asked.label, several()[:, 2].astype(int))
    assert asked.labels is None


def test_several_labels_and_a_loss_for_one_are_refused() -> None:
    pictures = replace(random_pictures(), labels=several())
    with pytest.raises(JobError, match=r"several labels each, and train.loss is 'softmax'.* set it to 'logistic', or"):
        posed(pictures, job())
    assert posed(pictures, job(train={"loss": "logistic"})) is pictures
    assert Batches(pictures, 16).label.tolist() == several().astype(int).tolist()


def test_probabilities_of_classes_by_themselves_are_sigmoids() -> None:
    assert activation(job()) == "softmax"
    assert activation(job(train={"loss": "logistic"})) == "sigmoid"
    assert activation(job(data={"category": "dog"})) == "softmax"  # over 0 and its logit


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network(BACKBONES["small"](), len(NAMES), size=32, filters=4)


def test_figures_are_those_of_the_network_s_answers(network: Network) -> None:
    labels = several()
    test = Batches(replace(random_pictures(size=32), labels=labels), 32)
    asked = job(train={"loss": "logistic", "batch_size": 7})
    with torch.no_grad():
        logits = network.eval()(test.pixels.float() / 255)[0].numpy()
    np.testing.assert_allclose(answers(network, test, 7), logits, atol=1e-5)
    figures = label_figures(network, test, asked)
    precision = np.mean([oracles.average_precision(logits[:, c], labels[:, c]) for c in range(3)])
    assert figures["average_precision"]["value"] == pytest.approx(precision)
    right = ((logits > 0) == labels).mean()
    assert figures["accuracy_at_zero"]["value"] == pytest.approx(right)
    assert figures["accuracy_at_zero"]["controls"]["always_no"] == pytest.approx(1 - labels.mean())
    assert accuracy(network, test, 7) == pytest.approx(right)


def test_of_one_category_its_own_logit_alone_is_measured() -> None:
    torch.manual_seed(0)
    network = Network(BACKBONES["small"](), 2, size=32, filters=4, against_rest=True)
    pictures = random_pictures(size=32).one_against_rest("cat")
    test = Batches(pictures, 32)
    figures = label_figures(network, test, job(data={"category": "cat"}))
    logits = answers(network, test, 8)
    assert figures["average_precision"]["classes"] == 1
    expected = oracles.average_precision(logits[:, 1], pictures.label == 1)
    assert figures["average_precision"]["value"] == pytest.approx(expected)
    assert figures["accuracy_at_zero"]["value"] == pytest.approx(accuracy(network, test, 8))  # the best of 0 and z


def test_where_one_class_of_many_is_asked_for_there_are_no_such_figures(network: Network) -> None:
    test = Batches(random_pictures(size=32), 32)
    assert label_figures(network, test, job()) is None
    logits = answers(network, test, 8)
    assert accuracy(network, test, 8) == (logits.argmax(1) == test.label.numpy()).mean()


def test_a_pack_with_several_labels_a_picture_goes_there_and_back(tmp_path: Path) -> None:
    from analyzers.read_pictures import read_pictures

    pictures = replace(random_pictures(), labels=several())
    pictures.save(tmp_path / "pack.npz")
    again = read_pictures(tmp_path / "pack.npz")
    np.testing.assert_array_equal(again.labels, pictures.labels)
    assert again.fingerprint() == pictures.fingerprint() != random_pictures().fingerprint()
    test = again.of_split("test")
    np.testing.assert_array_equal(test.labels, several()[again.split == 1])
    other = again.relabelled(("owl", "cat", "dog"))
    np.testing.assert_array_equal(other.labels, several()[:, [2, 0, 1]])
    assert again.relabelled(("not cat", "cat")).label.tolist() == several()[:, 0].astype(int).tolist()


@pytest.mark.parametrize("labels", [np.full((30, 3), 2), np.zeros((30, 2), int)])
def test_labels_that_are_neither_yes_nor_no_for_each_class_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    from analyzers.read_pictures import read_pictures

    replace(random_pictures(), labels=labels).save(tmp_path / "pack.npz")
    with pytest.raises(DataError, match=r"labels is \[30, \d\]; expected 0 or 1 for each of the 3 names"):
        read_pictures(tmp_path / "pack.npz")
