"""`explanatory_graph`: learn part patterns of several conv layers and how they hang together (arXiv 1708.01785).

Layers are learned from the top down, the filters of a layer independently of each other given the layer above. Each
picture's displacement of the whole object is voted for by the top layer's best nodes, which are then learned anew
around it. `docs/explanatory-graph.md` says where this follows the paper and where it does not.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from analyzers.errors import DataError
from analyzers.explanatory_graph import ExplanatoryGraph, Root
from analyzers.progress import track
from training.feature_cache import Filters, Float32Array, MapSource
from training.graph_blocks import Block, Workspace
from training.graph_em import Lattice, positions
from training.graph_filter import Above, FilterNodes, find_nodes, first_places, learn_filter
from training.graph_job import GraphJob, check, identity
from training.graph_layer import LearnedLayer, assemble, join, pack, summarise
from training.graph_parents import Candidates, choose_candidates
from training.graph_root import SIGMA, VOTERS, displacement_grid, vote
from training.graph_shelf import Shelf
from training.ranks import ALONE, Ranks

CANDIDATES = 600
ROOT_ROUNDS = 2
Int64Array = npt.NDArray[np.int64]


def learn_graph(
    job: GraphJob, source: MapSource, workspace: Workspace, *, resume: bool = False, ranks: Ranks = ALONE
) -> ExplanatoryGraph:
    """Learn the graphs of a job.

    Args:
        job: what to learn.
        source: where the maps of all pictures come from.
        workspace: where blocks that are done and the feature cache go; left in place for the caller to remove.
        resume: whether to go on with what an earlier run of the same job left there.
        ranks: the processes that share the filters; each of them returns the same, the first one keeps the blocks.

    Raises:
        DataError: there are too few pictures, a map holds NaN, or every filter of a layer is dead.
    """
    check(job)
    if ranks.first:
        workspace.open(identity(job), resume=resume)
    ranks.told(None)  # the others wait until that was found to be in order
    parts = [Filters(layer.tensor, layer.grid.cells, 0, layer.filters) for layer in job.layers]
    cache = workspace.cache(ranks)
    shelf = Shelf(source, parts, job.memory_bytes, cache)
    runs = [_Run(job, number, shelf, workspace, ranks) for number in range(len(job.graphs))]
    steps = chain.from_iterable(run.steps() for run in runs)
    with _single_threaded():
        for _ in track(steps, "explanatory graph", sum(run.total for run in runs), shown=ranks.first):
            pass
    if ranks.count > 1:
        shutil.rmtree(cache, ignore_errors=True)
    layers = tuple(
        assemble(plan.tensor, plan.grid, plan.filters, [run.layers[place] for run in runs])
        for place, plan in enumerate(job.layers)
    )
    root = None
    if job.rooted:
        root = Root(
            nodes=np.stack([_padded(run.voters, max(len(run.voters) for run in runs)) for run in runs]),
            displacements=displacement_grid(),
            mean=np.stack([run.mean_displacement for run in runs]),
            sigma=SIGMA,
            mirrored=job.mirrored,
        )
    return ExplanatoryGraph(
        layers=layers,
        root=root,
        classes=job.classes,
        model=job.model,
        data=job.data,
        pictures=len(np.unique(np.concatenate([graph.pictures for graph in job.graphs]))),
        settings=asdict(job.rule)
        | {"seed": job.seed, "cache_bytes": shelf.largest_bytes, "passes": shelf.passes}
        | {"dead_filters": sum(run.dead for run in runs)}
        | job.settings,
    )


@dataclass(frozen=True, slots=True)
class Task:
    """A layer that is learned, and for the how manieth time.

    Attributes:
        place: of the layer, 0 the top.
        turn: 0 at first, then once more after each vote of the root.
        learns: whether nodes move, or are only looked for.
    """

    place: int
    turn: int
    learns: bool = True


class _Run:
    """The learning of one graph: which blocks there are, and what they need of those before them.

    Attributes:
        layers: what was learned, from the top.
        voters: numbers of the top layer's nodes that vote for the root.
        mean_displacement: (2,) of the root over the graph's own pictures.
        dead: filters that never fire or are the same everywhere, over all layers.
    """

    def __init__(self, job: GraphJob, number: int, shelf: Shelf, workspace: Workspace, ranks: Ranks) -> None:
        self.job, self.number, self.shelf, self.workspace, self.ranks = job, number, shelf, workspace, ranks
        plan = job.graphs[number]
        self.own = len(plan.pictures)
        self.pictures = np.concatenate([plan.pictures, plan.reference]).astype(np.int64)
        self.filters = [
            tuple(range(layer.filters)) if chosen is None else chosen
            for layer, chosen in zip(job.layers, plan.filters, strict=True)
        ]
        self.layers: list[LearnedLayer] = []
        self.voters = np.zeros(0, np.int64)
        self.mean_displacement = np.zeros(2, np.float32)
        self.dead = 0

    @property
    def total(self) -> int:
        """How many blocks there are."""
        turns = [ROOT_ROUNDS + 2 if self.job.rooted and not place else 1 for place in range(len(self.filters))]
        blocks = (-(-len(filters) // self.job.block) for filters in self.filters)
        return sum(turn * count for turn, count in zip(turns, blocks, strict=True))

    def steps(self) -> Iterator[None]:
        """Learn everything, block by block."""
        layer = yield from self._layer(Task(0, 0), Above(None, None), None, None)
        root: Tensor | None = None
        mirrored: Tensor | None = None
        for turn in range(1, ROOT_ROUNDS + 2 if self.job.rooted else 0):
            root, mirrored = self._vote(layer)
            above = Above(root, None)
            layer = yield from self._layer(Task(0, turn, learns=turn <= ROOT_ROUNDS), above, mirrored, layer)
        self.layers.append(layer)
        for place in range(1, len(self.job.layers)):
            above = Above(root, self._candidates(place - 1, mirrored))
            layer = yield from self._layer(Task(place, 0), above, mirrored, None)
            self.layers.append(layer)

    def _layer(
        self, task: Task, above: Above, mirrored: Tensor | None, before: LearnedLayer | None
    ) -> Generator[None, None, LearnedLayer]:
        filters, size = self.filters[task.place], self.job.block
        summaries = []
        lattice = self._lattice(task.place, mirrored)
        for first in range(0, len(filters), size):
            name = self._name(task, first)
            block = self._read(name)
            if block is None:
                block = self._block(task, filters[first : first + size], above, lattice, before)
                if self.ranks.first:
                    self.workspace.write(name, block)
            summaries.append(summarise(block, lattice, self.own, self.pictures))
            yield
        layer = LearnedLayer.of(summaries)
        if not len(layer.filter):
            raise DataError(f"every filter of '{self.job.layers[task.place].tensor}' is dead; name another layer")
        if not task.turn:
            self.dead += len(filters) - len(np.unique(layer.filter))
        return layer

    def _block(
        self, task: Task, filters: Sequence[int], above: Above, lattice: Lattice, before: LearnedLayer | None
    ) -> Block:
        plan, own = self.job.layers[task.place], above.take(slice(self.own))

        def learn(number: int, scale: float, floor: float, values: Float32Array) -> Block:
            activation, rule = self._tensor(values), self.job.rule
            prior = self._start(task.place, number, lattice, before)
            if before is None or task.learns:
                nodes = learn_filter(activation[: self.own], lattice.take(slice(self.own)), prior, own, rule)
            else:
                nodes = FilterNodes(prior, self._tensor(before.sigma[before.filter == number]), None)
            cell, score = find_nodes(nodes, activation, lattice, above, rule.chunk)
            return pack(number, scale, floor, nodes, above, cell, score)

        found = {}
        with ThreadPoolExecutor(self.job.threads) as pool:
            for turn, number in enumerate(filters):
                scale, floor = self.shelf.factors(plan.tensor, number)  # of all filters: processes read maps together
                if scale > 0 and turn % self.ranks.count == self.ranks.number:
                    values = self.shelf.activation(plan.tensor, number, self.pictures)
                    found[turn] = pool.submit(learn, number, scale, floor, values)
            shares = self.ranks.gather({turn: future.result() for turn, future in found.items()})
        learned = {turn: block for share in shares for turn, block in share.items()}
        return join([learned[turn] for turn in sorted(learned)], len(self.pictures))

    def _read(self, name: str) -> Block | None:
        """Return a block that is done, or None; the first process has them."""
        return self.ranks.told(self.workspace.read(name) if self.ranks.first else None)

    def _start(self, place: int, number: int, lattice: Lattice, before: LearnedLayer | None) -> Tensor:
        """Return where a filter's nodes start: where they were, or at cells drawn for it alone."""
        if before is not None:
            return self._tensor(before.prior[before.filter == number])
        seed = (self.job.seed, place, number, *([self.number] if self.job.classes else []))
        return first_places(seed, self.job.layers[place].nodes, lattice.rows, self._columns(place))

    def _vote(self, layer: LearnedLayer) -> tuple[Tensor, Tensor | None]:
        """Let the best nodes vote; displacements are returned less their mean over the own pictures."""
        best = np.argsort(-layer.score, kind="stable")[:VOTERS]
        self.voters = np.sort(best)  # by filter, so that each map is read once
        lattice = self._lattice(0, None)
        tensor = self.job.layers[0].tensor
        voters = (
            (
                self._tensor(self.shelf.activation(tensor, int(layer.filter[node]), self.pictures)),
                self._tensor(layer.prior[node]),
            )
            for node in self.voters
        )
        root, mirrored = vote(voters, lattice.rows, lattice.columns[0], self.job.mirrored)
        mean = root[: self.own].mean(0)
        self.mean_displacement = mean.cpu().numpy().astype(np.float32)
        return root - mean, mirrored if self.job.mirrored else None

    def _candidates(self, place: int, mirrored: Tensor | None) -> Candidates:
        """Read where the nodes of a layer that may be parents were found."""
        layer = self.layers[place]
        chosen = choose_candidates(layer.score, layer.mean, layer.variance, CANDIDATES, self.job.rule.parents)
        turn = ROOT_ROUNDS + 1 if self.job.rooted and not place else 0
        lattice, start = self._lattice(place, mirrored), 0
        trails: dict[int, Tensor] = {}
        for first in range(0, len(self.filters[place]), self.job.block):
            block = self._read(self._name(Task(place, turn), first))
            if block is None:
                raise DataError(f"a block of '{self.job.layers[place].tensor}' has gone from {self.workspace.folder}")
            here = chosen[(chosen >= start) & (chosen < start + len(block.filter))]
            cell = torch.from_numpy(block.cell[here - start].T.astype(np.int64)).to(self.job.device)
            trails |= dict(zip(here.tolist(), positions(cell, lattice).unbind(1), strict=True))
            start += len(block.filter)
        trail = torch.stack([trails[node] for node in chosen.tolist()], 1)
        return Candidates(
            node=torch.from_numpy(chosen).to(self.job.device),
            displacement=trail - self._tensor(layer.mean[chosen]),
            sigma=self._tensor(layer.sigma[chosen]),
        )

    def _name(self, task: Task, first: int) -> str:
        return f"graph{self.number}.layer{task.place}.turn{task.turn}.from{first}"

    def _columns(self, place: int) -> Tensor:
        grid = self.job.layers[place].grid
        return self._tensor((grid.offset[1] + np.arange(grid.cells[1]) * grid.stride[1]) / self.job.size[1])

    def _lattice(self, place: int, mirrored: Tensor | None) -> Lattice:
        grid, columns = self.job.layers[place].grid, self._columns(place)[None]
        rows = self._tensor((grid.offset[0] + np.arange(grid.cells[0]) * grid.stride[0]) / self.job.size[0])
        return Lattice(rows, columns if mirrored is None else torch.where(mirrored[:, None], 1 - columns, columns))

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.job.device, self.job.dtype)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Let each operation run in one thread: filters run beside each other instead, and sums stay in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _padded(numbers: Int64Array, length: int) -> Int64Array:
    return np.concatenate([numbers, np.full(length - len(numbers), -1, np.int64)])
