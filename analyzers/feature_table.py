"""The features that a classifier's final layer reads, for every picture of a data set; read once, used many times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzers.class_features import Head
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.plain import Plain, probe
from analyzers.progress import track

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Features and true classes.

    Attributes:
        pooled: (pictures, features).
        label: (pictures,).
    """

    pooled: Float32Array
    label: Int64Array

    def logits(self, head: Head) -> Float32Array:
        """Return (pictures, classes) of a final layer."""
        return np.asarray(self.pooled @ head.weight.T + head.bias, np.float32)

    def accuracy(self, head: Head) -> float:
        """Return the share of pictures that a final layer gets right."""
        return float((self.logits(head).argmax(1) == self.label).mean())


def read_features(plain: Plain, pictures: Pictures, title: str, *, batch_size: int = 64) -> FeatureTable:
    """Run a model over pictures of its classes and keep their features."""
    session, _ = probe(plain)
    size = plain.manifest.input
    batches = track(pictures.batches(size.height, size.width, batch_size), title, -(-len(pictures) // batch_size))
    pooled = [session.run_images(plain.manifest, to_model_input(pixels))[plain.found.pooled] for pixels in batches]
    return FeatureTable(np.concatenate(pooled), pictures.label)
