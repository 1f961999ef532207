"""Pictures as tensors: the whole split decoded once, shuffled and augmented batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from analyzers.check_pictures import check_pictures
from analyzers.pictures import Pictures
from analyzers.read_pictures import read_pictures
from training.creatures import creatures
from training.job import Data, Train


def load(data: Data, seed: int) -> Pictures:
    """Read the job's pictures, all of which can then be decoded, or draw the creatures.

    Raises:
        DataError: there are none, or some cannot be read and are not to be skipped.
    """
    if data.path is None:
        return creatures(data.creatures, seed=seed, size=data.size)
    return check_pictures(read_pictures(data.path), data.unreadable)


class Batches:
    """A split as tensors.

    Attributes:
        pixels: (pictures, 3, size, size) uint8.
        label: (pictures,) int64; where pictures may have several labels, (pictures, classes) int64 of 0 and 1.
    """

    def __init__(self, pictures: Pictures, size: int) -> None:
        self.pixels = torch.from_numpy(pictures.decoded(size, size)).permute(0, 3, 1, 2).contiguous()
        several = pictures.labels
        self.label = torch.from_numpy(pictures.label if several is None else several.astype(np.int64))

    def __len__(self) -> int:
        return len(self.label)

    def steps(self, batch_size: int) -> int:
        """Return how many batches an epoch has."""
        return math.ceil(len(self) / batch_size)

    def ordered(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all pictures as they are, float32 in 0..1, and their labels."""
        for start in range(0, len(self), batch_size):
            rows = slice(start, start + batch_size)
            yield self.pixels[rows].float() / 255, self.label[rows]

    def shuffled(self, train: Train, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield all pictures in random order, flipped, shifted, zoomed and with jittered light, and their numbers."""
        for rows in torch.randperm(len(self), generator=generator).split(train.batch_size):
            yield augment(self.pixels[rows].float() / 255, train, generator), self.label[rows], rows


def augment(images: Tensor, train: Train, generator: torch.Generator) -> Tensor:
    """Flip, shift and zoom each picture at random and change its brightness and contrast a little; or crop it."""
    count = len(images)
    if train.augment == "crop":
        return _cropped(images, train, generator)

    def spread(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    affine = torch.zeros(count, 2, 3)
    zoom = 1 + train.zoom * spread(count)
    affine[:, 0, 0] = zoom * torch.where(spread(count) < 0, -1.0, 1.0)
    affine[:, 1, 1] = zoom
    affine[:, :, 2] = 2 * train.shift * spread(count, 2)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    middle = images.mean((1, 2, 3), keepdim=True)
    contrast, brightness = 1 + 0.2 * spread(count, 1, 1, 1), 0.1 * spread(count, 1, 1, 1)
    return ((images - middle) * contrast + middle + brightness).clamp(0, 1)


def _cropped(images: Tensor, train: Train, generator: torch.Generator) -> Tensor:
    """Flip each picture at random and shift it by whole pixels, black coming in: nothing is interpolated."""
    count, side = len(images), images.shape[-1]
    reach = round(train.shift * side)
    padded = F.pad(images, (reach,) * 4)
    down, across = torch.randint(0, 2 * reach + 1, (2, count), generator=generator)
    row, column = torch.arange(images.shape[-2]), torch.arange(side)
    flipped = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(flipped[:, None], column.flip(0), column) + across[:, None]
    rows = row + down[:, None]
    pick = torch.arange(count)[:, None, None]
    return padded[pick, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
