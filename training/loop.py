"""Learn a classifier: the interpretable CNN with its filter loss, then the decomposed final layer."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from analyzers.attach import Selection
from analyzers.class_features import Histogram
from analyzers.errors import PellucidError
from analyzers.progress import track
from training.backbones import BACKBONES
from training.data import Batches
from training.filter_losses import FILTER_LOSSES
from training.job import Job
from training.network import Network

log = logging.getLogger("pellucid.training")


class TrainingError(PellucidError):
    """Learning cannot go on."""


@dataclass(slots=True)
class History:
    """What happened, epoch by epoch.

    Attributes:
        epochs: one record an epoch.
        seconds: time that learning took.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def build(job: Job, classes: int) -> Network:
    """Build the job's network with freshly drawn weights."""
    model = job.model
    return Network(
        BACKBONES[model.backbone](),
        classes,
        size=job.data.size,
        filters=model.filters,
        beta=model.beta,
        masked=model.interpretable,
        mean=model.mean,
        std=model.std,
    )


def learn(job: Job, train: Batches, test: Batches, classes: int) -> tuple[Network, Selection, History]:
    """Train the network, find its class features and, if the job says so, decompose its final layer.

    Raises:
        TrainingError: the loss is not finite.
    """
    if job.train.threads:
        torch.set_num_threads(job.train.threads)
    torch.manual_seed(job.train.seed)
    generator = torch.Generator().manual_seed(job.train.seed)
    network, history = build(job, classes), History()
    if job.train.start is not None:
        start_from(network, job.train.start, train, job.train.batch_size)
    started = time.monotonic()
    _fit(network, job, train, test, generator, history, job.train.epochs, job.train.learning_rate, "learning")
    selection = class_features(network, job, train)
    if job.head.decompose:
        network.head.decompose(selection.sets)
        _fit(
            network,
            job,
            train,
            test,
            generator,
            history,
            job.head.epochs,
            job.head.learning_rate,
            "decomposing",
        )
    history.seconds = time.monotonic() - started
    return network, selection, history


def class_features(network: Network, job: Job, train: Batches) -> Selection:
    """Find each class's features on the training pictures."""
    histogram = Histogram(network.head.head(), min(job.head.k1, network.head.in_features), job.head.rule)
    network.eval()
    with torch.no_grad():
        for images, label in train.ordered(job.train.batch_size):
            histogram.add(network.pooled(network.map(images)).numpy(), label.numpy())
    return Selection(histogram.index_sets(min(job.head.k2, network.head.in_features)), histogram.k1, job.head.rule)


def accuracy(network: Network, batches: Batches, batch_size: int) -> float:
    """Return the share of pictures whose best class is the right one."""
    network.eval()
    with torch.no_grad():
        hits = sum(int((network(images)[0].argmax(1) == label).sum()) for images, label in batches.ordered(batch_size))
    return hits / len(batches)


def _fit(
    network: Network,
    job: Job,
    train: Batches,
    test: Batches,
    generator: torch.Generator,
    history: History,
    epochs: int,
    learning_rate: float,
    title: str,
) -> None:
    """Run epochs of AdamW under a one-cycle schedule."""
    steps = train.steps(job.train.batch_size)
    if network.parts is not None:
        _prepare(network, job, train)
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=job.train.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=epochs * steps)
    for _ in range(epochs):
        number = len(history.epochs) + 1
        network.train()
        total = np.zeros(2)
        batches = track(train.shuffled(job.train, generator), f"{title}, epoch {number}", steps)
        for images, label in batches:
            logits, maps = network(images)
            loss = F.cross_entropy(logits, label)
            filter_loss = _filter_loss(network, job, maps, logits, label)
            combined = loss + filter_weight(job, number) * filter_loss
            if not math.isfinite(combined.item()):
                raise TrainingError(
                    f"the loss is {combined.item()} in epoch {number}; lower train.learning_rate or train.filter_weight"
                )
            optimiser.zero_grad(set_to_none=True)
            combined.backward()
            optimiser.step()
            schedule.step()
            if network.parts is not None:
                network.parts.state.normalise_gates()
            total += (loss.item(), filter_loss.item())
        record = {
            "epoch": number,
            "loss": total[0] / steps,
            "filter_loss": total[1] / steps,
            "accuracy": accuracy(network, test, job.train.batch_size),
        }
        history.epochs.append(record)
        log.info("%s, epoch %d: loss %.3f, test accuracy %.3f", title, number, record["loss"], record["accuracy"])


def _prepare(network: Network, job: Job, train: Batches) -> None:
    """Tell the filter losses the class shares and, where gates are learned, how to classify gated maps."""
    if network.parts is None:
        return
    state = network.parts.state
    state.class_share.copy_(torch.bincount(train.label, minlength=network.head.out_features) / len(train))
    state.gate.requires_grad_(job.train.filter_loss == "gates")
    state.classify = lambda maps: network.head(network.pooled(maps))


def filter_weight(job: Job, epoch: int) -> float:
    """Return lambda of the filter loss in an epoch; the paper's is lambda_0 / t (section 3)."""
    factor = {"decay": 1 / epoch, "constant": 1.0, "ramp": min(1.0, epoch / job.train.epochs)}
    return job.train.filter_weight * factor[job.train.filter_schedule]


def start_from(network: Network, path: Path, train: Batches, batch_size: int) -> None:
    """Load the weights of an earlier run; where a mask is new, rescale the head so that logits keep their size.

    Raises:
        TrainingError: the file is not there, or holds another network.
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise TrainingError(f"cannot start from {path}: {' '.join(str(error).split())[:300]}") from None
    parts = network.parts
    if parts is None or not parts.masked:
        return
    network.eval()
    plain, masked = torch.zeros(parts.state.scale.shape), torch.zeros(parts.state.scale.shape)
    with torch.no_grad():
        for images, _ in islice(train.ordered(batch_size), 20):
            maps = network.map(images)
            plain += maps.mean((0, 2, 3))
            masked += parts.mask(maps).mean((0, 2, 3)) * parts.gain
        network.head.weight *= plain / masked.clamp(min=1e-9)


def _filter_loss(network: Network, job: Job, maps: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    if network.parts is None:
        return torch.zeros(())
    state = network.parts.state
    state.observe(maps.detach(), label)
    if not job.train.filter_weight:
        return torch.zeros(())
    loss, _ = FILTER_LOSSES[job.train.filter_loss](maps, logits, label, state)
    return loss
