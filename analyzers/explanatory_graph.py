"""`explanatory_graph`: part patterns of several conv layers and how they hang together (arXiv 1708.01785).

A node is one part pattern of one filter: a place where the filter fires, relative to the nodes above it (its parents).
A filter that fires at several parts has several nodes. Positions are (row, column) as shares of the picture's height
and width, 0 the upper or left edge and 1 the lower or right one, so that layers of any resolution share one frame.

What a graph says about one picture, layers from the top (x runs over the cells of a node V's filter):
    F(x) = max(f(x) / scale - floor, 0)
    D, Q = mean displacement of V's M parents, and how much they disagree, with weights a = 1 / (M sigma^2) of each:
        delta = position - mean of a parent;  D = spread^2 sum a delta;  Q = sum a |delta|^2 - |D|^2 / spread^2
    log P(x) = c - Q / 2 - |x - (prior + D)|^2 / (2 spread^2),  c = -log 2 pi - mean over parents of log sigma^2
    position, log score = argmax, max over x of log(F(x) + LOG_EPS) + log P(x); the first cell of equals
In the top layer D is the root's displacement less its mean (0 without a root), Q = 0, c = -log 2 pi - log spread^2.
The root's displacement is the first place of highest V(d) = sum over voters k of
    log(ROOT_EPS + sum_x F_k(x) exp(-|x - (prior_k + d)|^2 / (2 root.sigma^2)))
over all of `displacements` as the picture is and, if `mirrored`, then over all of them as its mirror image would be.
In a picture that is taken as mirrored a cell at (row, column) lies at (row, 1 - column) for all of the above, the
maps themselves stay as they are; so do positions, until they are reported, when they are mirrored back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from analyzers.manifest import Grid

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

LOG_EPS = 1e-6  # a map that is 0 everywhere gives a floor, not minus infinity
ROOT_EPS = 0.1  # what a voter whose part is missing leaves to the others
QUANTILES = 21


@dataclass(frozen=True, slots=True)
class GraphLayer:
    """The nodes of one conv layer.

    A graph for all classes has `graphs` = 1; class by class, graph c belongs to class c. Graphs have equally many
    nodes: those of `filter` -1 pad. Parents are nodes of the same graph in the layer above.

    Attributes:
        tensor: the conv map in the model, (batch, filters, height, width).
        grid: where its cells lie.
        scale: (filters,) what activations are divided by, > 0.
        floor: (filters,) what is then subtracted; what remains above 0 is the activation F of the paper.
        filter: (graphs, nodes) each node's filter; -1 pads.
        prior: (graphs, nodes, 2) mu_V, where the node is expected.
        mean: (graphs, nodes, 2) mean position over the pictures it was learned from; displacements refer to it.
        sigma: (graphs, nodes) sigma_V, its own spread, which weighs it as a parent.
        spread: (graphs, nodes) the spread round the place that its parents predict.
        parents: (graphs, nodes, parents) numbers of nodes in the layer above; -1 pads; none in the top layer.
        threshold: (graphs, nodes) log score from which on the node counts as present.
        quantiles: (graphs, nodes, 21) of its log score over the pictures it was learned from, 0 %, 5 %, ... 100 %.
        rank: (graphs, nodes) how good a pattern it is, larger is better; export reports the best. A node that is
            nearly always found where a better one of its filter is comes behind all that are not.
        top_picture: (graphs, nodes, pictures) numbers of the pictures it fits best, best first; -1 pads.
        top_score: (graphs, nodes, pictures) its log score there.
        top_position: (graphs, nodes, pictures, 2) and its position.
    """

    tensor: str
    grid: Grid
    scale: Float32Array
    floor: Float32Array
    filter: Int64Array
    prior: Float32Array
    mean: Float32Array
    sigma: Float32Array
    spread: Float32Array
    parents: Int64Array
    threshold: Float32Array
    quantiles: Float32Array
    rank: Float32Array
    top_picture: Int64Array
    top_score: Float32Array
    top_position: Float32Array


@dataclass(frozen=True, slots=True)
class Root:
    """How top-layer nodes vote for the object's displacement, which makes uncropped pictures work.

    Attributes:
        nodes: (graphs, voters) numbers of top-layer nodes; -1 pads.
        displacements: (places, 2) the displacements that are tried: every row displacement with every column
            displacement, row-major.
        mean: (graphs, 2) mean displacement over the pictures it was learned from.
        sigma: spread of a voter round its place.
        mirrored: whether the mirrored layout is tried too.
    """

    nodes: Int64Array
    displacements: Float32Array
    mean: Float32Array
    sigma: float
    mirrored: bool


@dataclass(frozen=True, slots=True)
class ExplanatoryGraph:
    """A learned graph.

    Attributes:
        layers: top layer first.
        root: the root vote; None for pictures that are cropped to the object.
        classes: names of the classes whose graphs these are; empty for one graph for all.
        model: SHA-256 of the ONNX file whose maps it was learned from.
        data: SHA-256 over the pictures and labels.
        pictures: how many there were.
        settings: how it was learned, for people.
    """

    layers: tuple[GraphLayer, ...]
    root: Root | None
    classes: tuple[str, ...]
    model: str
    data: str
    pictures: int
    settings: dict[str, int | float | str] = field(default_factory=dict)
