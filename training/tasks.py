"""What labels mean: one class a picture, several, or one category against the rest; their losses and figures."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from analyzers.label_metrics import Figure, accuracy_figure, precision_figure
from analyzers.pictures import Pictures
from training.data import Batches
from training.job import Job, JobError
from training.network import Network
from training.ranks import ALONE, Ranks


def posed(pictures: Pictures, job: Job) -> Pictures:
    """Return the pictures with the labels that the job asks about.

    Raises:
        DataError: there is no such category.
        JobError: pictures have several labels each, and the job's loss knows of one.
    """
    if job.data.category is not None:
        return pictures.one_against_rest(job.data.category)
    if pictures.labels is not None and job.train.loss == "softmax":
        raise JobError(
            "the pictures have several labels each, and train.loss is 'softmax', which knows of one; set it to"
            " 'logistic', or learn one class against the rest with data.category"
        )
    return pictures


def activation(job: Job) -> Literal["softmax", "sigmoid"]:
    """Return what turns the job's logits into probabilities."""
    return "sigmoid" if job.train.loss == "logistic" else "softmax"


def member(labels: Tensor, classes: int) -> Tensor:
    """Return (batch, classes) 0/1 from class numbers (batch,) or from such a mask."""
    return labels if labels.ndim == 2 else F.one_hot(labels, classes)


def classification_loss(logits: Tensor, labels: Tensor, loss: Literal["softmax", "logistic"]) -> Tensor:
    """Return the mean over pictures of cross-entropy, or of sum_c log(1 + exp(-y_c z_c)) with y_c of -1 and +1.

    Args:
        logits: (batch, classes).
        labels: class numbers (batch,); for the logistic loss also 0/1 (batch, classes).
        loss: which.
    """
    if loss == "softmax":
        return F.cross_entropy(logits, labels)
    sign = 2 * member(labels, logits.shape[1]).to(logits.dtype) - 1
    return F.softplus(-sign * logits).sum(1).mean()


def distillation_loss(logits: Tensor, taught: Tensor, loss: Literal["softmax", "logistic"]) -> Tensor:
    """Return how far answers are from a teacher's, at temperature 2 (Hinton et al., arXiv 1503.02531, section 2).

    Mean over pictures of 4 KL(teacher || network) of the classes, or of the sum over classes of yes and no.

    Args:
        logits: (batch, classes).
        taught: the teacher's logits, alike.
        loss: what the logits are trained with.
    """
    temperature = 2.0
    logits, taught = logits / temperature, taught / temperature
    if loss == "softmax":
        gap = F.kl_div(logits.log_softmax(1), taught.log_softmax(1), reduction="batchmean", log_target=True)
    else:
        yes = taught.sigmoid()
        least = F.binary_cross_entropy_with_logits(taught, yes, reduction="sum")
        gap = (F.binary_cross_entropy_with_logits(logits, yes, reduction="sum") - least) / len(logits)
    return temperature**2 * gap


def accuracy(network: Network, batches: Batches, batch_size: int, ranks: Ranks = ALONE) -> float:
    """Return the share of pictures whose best class is the right one; of yeses and noes for several labels each."""
    logits, label = torch.from_numpy(answers(network, batches, batch_size, ranks)), batches.label
    hits = (logits > 0) == (label > 0) if label.ndim == 2 else logits.argmax(1) == label
    return hits.double().mean().item()


def answers(
    network: Network, batches: Batches, batch_size: int, ranks: Ranks = ALONE
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the logits of all pictures, (pictures, classes); processes share the batches out."""
    network.eval()
    device = network.mean.device

    def logits(rows: slice) -> Tensor:
        with torch.no_grad():
            found: Tensor = network(batches.images(rows).to(device))[0]
        return found.float().cpu()

    return torch.cat(list(ranks.in_turns(batches.rows(batch_size), logits))).numpy()


def label_figures(network: Network, test: Batches, job: Job) -> dict[str, Figure] | None:
    """Return average precision and the accuracy of yes and no, where the job asks for yes or no; else None."""
    if job.data.category is None and job.train.loss == "softmax":
        return None
    score = answers(network, test, job.train.batch_size)
    truth = member(test.label, score.shape[1]).numpy().astype(bool)
    asked = slice(0 if job.data.category is None else 1, None)
    return {
        "average_precision": precision_figure(score[:, asked], truth[:, asked]),
        "accuracy_at_zero": accuracy_figure(score[:, asked], truth[:, asked]),
    }
