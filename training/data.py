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
from training.ranks import ALONE, Ranks


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

    def rows(self, batch_size: int) -> list[slice]:
        """Return the batches of all pictures in their order."""
        return [slice(start, start + batch_size) for start in range(0, len(self), batch_size)]

    def images(self, rows: slice | Tensor) -> Tensor:
        """Return pictures as they are, float32 in 0..1."""
        return self.pixels[rows].float() / 255

    def ordered(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all pictures as they are, float32 in 0..1, and their labels."""
        for rows in self.rows(batch_size):
            yield self.images(rows), self.label[rows]

    def shuffled(
        self, train: Train, generator: torch.Generator, ranks: Ranks = ALONE
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield all pictures in random order, flipped, shifted, zoomed and with jittered light, and their numbers.

        Order and changes are drawn for whole batches, alike in all processes; each gets the pictures of its share, and
        the labels and numbers of the whole batch.
        """
        for rows in torch.randperm(len(self), generator=generator).split(train.batch_size):
            own = ranks.share(len(rows))
            drawn = tuple(one[own] for one in _draw(len(rows), self.pixels.shape[-1], train, generator))
            yield _change(self.images(rows[own]), drawn, train), self.label[rows], rows


def augment(images: Tensor, train: Train, generator: torch.Generator) -> Tensor:
    """Flip, shift and zoom each picture at random and change its brightness and contrast a little; or crop it."""
    return _change(images, _draw(len(images), images.shape[-1], train, generator), train)


def _draw(count: int, side: int, train: Train, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draw how each of `count` pictures is changed: tensors of that many rows."""
    if train.augment == "crop":
        places = torch.randint(0, 2 * _reach(train, side) + 1, (2, count), generator=generator)
        return *places, torch.rand(count, generator=generator) < 0.5

    def spread(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    affine = torch.zeros(count, 2, 3)
    zoom = 1 + train.zoom * spread(count)
    affine[:, 0, 0] = zoom * torch.where(spread(count) < 0, -1.0, 1.0)
    affine[:, 1, 1] = zoom
    affine[:, :, 2] = 2 * train.shift * spread(count, 2)
    return affine, 1 + 0.2 * spread(count, 1, 1, 1), 0.1 * spread(count, 1, 1, 1)


def _reach(train: Train, side: int) -> int:
    return round(train.shift * side)


def _change(images: Tensor, drawn: tuple[Tensor, ...], train: Train) -> Tensor:
    """Change pictures as was drawn."""
    if not len(images):
        return images
    if train.augment == "crop":
        return _cropped(images, *drawn, reach=_reach(train, images.shape[-1]))
    affine, contrast, brightness = drawn
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    middle = images.mean((1, 2, 3), keepdim=True)
    return ((images - middle) * contrast + middle + brightness).clamp(0, 1)


def _cropped(images: Tensor, down: Tensor, across: Tensor, flipped: Tensor, *, reach: int) -> Tensor:
    """Flip pictures and shift them by whole pixels, black coming in: nothing is interpolated."""
    padded = F.pad(images, (reach,) * 4)
    row, column = torch.arange(images.shape[-2]), torch.arange(images.shape[-1])
    columns = torch.where(flipped[:, None], column.flip(0), column) + across[:, None]
    rows = row + down[:, None]
    pick = torch.arange(len(images))[:, None, None]
    return padded[pick, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
