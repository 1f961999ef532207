"""Where learning begins: a freshly built network, on weights that others trained or on those of an earlier run."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from analyzers.errors import DataError, PellucidError
from training.backbones import BACKBONES, split_checkpoint
from training.data import Batches
from training.interpretable import interpretable_layers, keep_means
from training.job import Job
from training.network import Network
from training.weights import load_pretrained, read_weights

_BATCHES = 20  # that means of maps are taken over


class TrainingError(PellucidError):
    """Learning cannot begin or go on."""


def build(job: Job, classes: int, *, pretrained: bool = True) -> Network:
    """Build the job's network with freshly drawn weights and, unless it is to be restored anyway, pretrained ones.

    Raises:
        DataError: the weights cannot be read or do not fit.
        LayerError: a layer that is to be interpretable is not there or cannot be.
    """
    return _network(job, classes, masked=job.masked, pretrained=pretrained)


def build_teacher(job: Job, classes: int, start: Path) -> Network:
    """Build the ordinary network of the job's shape with the weights of an earlier run.

    Raises:
        TrainingError: the file is not there, or holds another network.
    """
    teacher = _network(job, classes, masked=False, pretrained=False)
    _load(teacher, start)
    return teacher


def _network(job: Job, classes: int, *, masked: bool, pretrained: bool) -> Network:
    model = job.model
    backbone = BACKBONES[model.backbone]()
    if model.weights is not None and pretrained:
        load_pretrained(backbone, model.weights)
    network = Network(
        backbone,
        classes,
        size=job.data.size,
        filters=model.filters,
        layers=model.interpretable_layers,
        beta=model.beta,
        peak=model.peak,
        masked=masked,
        against_rest=job.data.category is not None,
        mean=model.mean,
        std=model.std,
    )
    if model.keep_head and model.weights is not None and pretrained:
        _load_head(network, model.weights)
    return network


def _load_head(network: Network, path: Path) -> None:
    """Take the final layer of a checkpoint.

    Raises:
        DataError: it has none of that shape.
    """
    _, head = split_checkpoint(read_weights(path))
    own = {name: list(tensor.shape) for name, tensor in network.head.named_parameters()}
    there = {name: list(tensor.shape) for name, tensor in head.items()}
    if own != there:
        raise DataError(f"{path} has a final layer of {there or 'nothing'}; the network's is {own}")
    with torch.no_grad():
        for name, parameter in network.head.named_parameters():
            parameter.copy_(head[name])


def begin(network: Network, job: Job, train: Batches) -> None:
    """Load the weights of an earlier run, if the job names one, and make up for masks that are new.

    Raises:
        TrainingError: the file is not there, or holds another network.
    """
    if job.train.start is not None:
        start_from(network, job.train.start, train, job.train.batch_size)
    layers = interpretable_layers(network.backbone).values()
    if any(layer.masked and bool((layer.gain == 1).all()) for layer in layers):
        device, batches = network.mean.device, islice(train.ordered(job.train.batch_size), _BATCHES)
        pictures = ((images.to(device) - network.mean) / network.std for images, _ in batches)
        keep_means(network.backbone, pictures)


def start_from(network: Network, path: Path, train: Batches, batch_size: int) -> None:
    """Load the weights of an earlier run; where a mask is new, rescale the head so that logits keep their size.

    Raises:
        TrainingError: the file is not there, or holds another network.
    """
    _load(network, path)
    parts = network.parts
    if parts is None or not parts.masked:
        return
    network.eval()
    device = network.mean.device
    plain, masked = torch.zeros_like(parts.state.scale), torch.zeros_like(parts.state.scale)
    with torch.no_grad():
        for images, _ in islice(train.ordered(batch_size), _BATCHES):
            maps = network.map(images.to(device))
            plain += maps.mean((0, 2, 3))
            masked += parts.mask(maps).mean((0, 2, 3)) * parts.gain
        network.head.weight *= plain / masked.clamp(min=1e-9)


def _load(network: Network, path: Path) -> None:
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise TrainingError(f"cannot start from {path}: {' '.join(str(error).split())[:300]}") from None
