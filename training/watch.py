"""Watch a run in TensorBoard: loss, filter loss and accuracy, and where the filters fire on a few pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data import Batches
from training.job import Job
from training.loop import Watcher
from training.network import Network

PICTURES = 8


@contextmanager
def watching(job: Job, pictures: Batches) -> Iterator[Watcher | None]:
    """Yield what the loop calls after every epoch, or None where the job wants no TensorBoard."""
    if not job.train.tensorboard:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and few runs need it

    writer = SummaryWriter(str(job.folder / "events"))
    shown = pictures.pixels[:PICTURES].float() / 255

    def watch(record: dict[str, float], network: Network) -> None:
        number = int(record["epoch"])
        for name in ("loss", "filter_loss", "accuracy"):
            writer.add_scalar(name, record[name], number)
        writer.add_images("pictures, and their strongest filter", peaks(network, shown), number)
        writer.flush()

    try:
        yield watch
    finally:
        writer.close()


@torch.no_grad()
def peaks(network: Network, images: Tensor) -> Tensor:
    """Return each picture beside the map of its strongest filter, cell by cell: (pictures, 3, h, 2 w)."""
    maps = network.eval().map(images.to(network.mean.device)).cpu()
    strongest = maps[torch.arange(len(maps)), maps.flatten(2).amax(2).argmax(1)][:, None]
    strongest = strongest / strongest.flatten(1).amax(1).clamp(min=1e-9)[:, None, None, None]
    heat = F.interpolate(strongest, images.shape[2:], mode="nearest").expand(-1, 3, -1, -1)
    return torch.cat([images, heat], 3)
