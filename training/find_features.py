"""`class_features`: which features decide each class, found on the training pictures with the network as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from analyzers.attach import Selection
from analyzers.class_features import INDEX_SETS, Histogram, check_index_sets
from analyzers.files import read_json
from training.data import Batches
from training.job import Job
from training.network import Network
from training.ranks import ALONE, Ranks
from training.tasks import member


def class_features(network: Network, job: Job, train: Batches, ranks: Ranks = ALONE) -> Selection:
    """Find each class's features on the training pictures, or take those that the job brings.

    Processes share the batches out, and each of them counts all of them in their order.

    Raises:
        DataError: the job's sets cannot be read.
        InvalidInputError: they do not fit.
    """
    head = network.head.head()
    if job.head.indices is not None:
        sets = check_index_sets(read_json(job.head.indices, INDEX_SETS), len(head.bias), head.weight.shape[1])
        return Selection(sets, None, "given")
    histogram = Histogram(head, min(job.head.k1, head.weight.shape[1]), job.head.rule)
    network.eval()
    device, batches = network.mean.device, train.rows(job.train.batch_size)

    def features(batch: slice) -> Tensor:
        with torch.no_grad():
            return network.pooled(network.map(train.images(batch).to(device))).cpu()

    for batch, pooled in zip(batches, ranks.in_turns(batches, features), strict=True):
        # A picture counts for each of its classes.
        rows, own = member(train.label[batch], len(head.bias)).nonzero(as_tuple=True)
        histogram.add(pooled[rows].numpy(), own.numpy())
    return Selection(histogram.index_sets(min(job.head.k2, head.weight.shape[1])), histogram.k1, job.head.rule)
