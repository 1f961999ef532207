"""What to learn of an explanatory graph: layers, pictures, filters and settings, checked before anything starts."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from analyzers.errors import DataError
from analyzers.manifest import Grid
from training.graph_filter import Rule

MIN_PICTURES = 20
MIN_CELLS = 4
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """A layer to learn.

    Attributes:
        tensor: its conv map.
        filters: how many it has.
        grid: where its cells lie, in pixels of the model's input.
        nodes: of each filter.
    """

    tensor: str
    filters: int
    grid: Grid
    nodes: int


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """One graph to learn.

    Attributes:
        pictures: those it is learned from.
        reference: those without the class, which only calibrate presence; may be empty.
        filters: for each layer the filters that it uses; None for all.
    """

    pictures: Int64Array
    reference: Int64Array
    filters: tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class GraphJob:
    """What to learn, and how.

    Attributes:
        layers: top layer first.
        graphs: one for each class, or one for all.
        classes: names of the classes; empty for one graph for all.
        size: (height, width) of the model's input.
        model: fingerprint of the network.
        data: fingerprint of the pictures.
        rooted: whether the root vote is used.
        mirrored: whether it tries the mirrored layout too.
        rule: of the EM.
        seed: of the nodes' first places; each filter's own derives from it, the layer's and the filter's number.
        memory_bytes: how large the feature cache may be.
        block: filters that are written, and lost when killed, at a time.
        device: "cpu" or "cuda".
        double: compute in float64.
        threads: filters that are learned beside each other; the result does not depend on it.
        settings: what else the file shall say about how it was learned.
    """

    layers: tuple[LayerPlan, ...]
    graphs: tuple[GraphPlan, ...]
    size: tuple[int, int]
    classes: tuple[str, ...] = ()
    model: str = ""
    data: str = ""
    rooted: bool = True
    mirrored: bool = True
    rule: Rule = field(default_factory=Rule)
    seed: int = 0
    memory_bytes: int = 2_000_000_000
    block: int = 32
    device: str = "cpu"
    double: bool = False
    threads: int = field(default_factory=lambda: torch.get_num_threads())
    settings: dict[str, int | float | str] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation."""
        return torch.float64 if self.double else torch.float32


def check(job: GraphJob) -> None:
    """Refuse a job that cannot be learned.

    Raises:
        DataError: too few pictures, or a layer that is too small.
    """
    few = [number for number, graph in enumerate(job.graphs) if len(graph.pictures) < MIN_PICTURES]
    if few:
        of = ", ".join(
            f"{len(job.graphs[n].pictures)}" + (f" of '{job.classes[n]}'" if job.classes else "") for n in few[:8]
        )
        raise DataError(f"there are too few pictures, {of}; a graph takes at least {MIN_PICTURES}")
    for layer in job.layers:
        cells = layer.grid.cells
        if min(cells) < MIN_CELLS:
            raise DataError(
                f"'{layer.tensor}' has {cells[0]} x {cells[1]} cells, which tells no places apart; name layers with at"
                f" least {MIN_CELLS} x {MIN_CELLS}"
            )
        if not 1 <= layer.nodes <= cells[0] * cells[1]:
            raise DataError(f"{layer.nodes} nodes do not fit the {cells[0] * cells[1]} cells of '{layer.tensor}'")


def identity(job: GraphJob) -> dict[str, Any]:
    """Return what makes two runs the same one."""
    graphs = hashlib.sha256()
    for graph in job.graphs:
        graphs.update(graph.pictures.astype("<i8").tobytes() + b"|" + graph.reference.astype("<i8").tobytes())
        graphs.update(repr(graph.filters).encode())
    plans = [[layer.tensor, layer.filters, layer.nodes, layer.grid.model_dump_json()] for layer in job.layers]
    return {
        "layers": plans,
        "graphs": graphs.hexdigest(),
        "classes": list(job.classes),
        "size": list(job.size),
        "model": job.model,
        "data": job.data,
        "root": [job.rooted, job.mirrored],
        "rule": asdict(job.rule),
        "seed": job.seed,
        "block": job.block,
        "numbers": [job.device, job.double],
        "memory_bytes": job.memory_bytes,
    }
