"""The Explanation: what one picture's answer says. Plain values, the same in the server and in the client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """A box in pixels of the picture that was sent."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and how much the model believes in it.

    Attributes:
        class_index: number of the class.
        class_name: its name.
        logit: value before the activation.
        probability: 0..1, by the model's activation over all classes.
    """

    class_index: int
    class_name: str
    logit: float
    probability: float


@dataclass(frozen=True, slots=True)
class Part:
    """One filter that fired, and where.

    Attributes:
        filter: number of the filter in its layer.
        score: its highest activation, > 0.
        x: centre of the peak's cell, pixels from the left of the picture that was sent.
        y: the same from the top.
        cell: the peak's grid cell.
        receptive_field: everything that the peak can depend on.
        learned_for: class that the filter was learned for, or "".
    """

    filter: int
    score: float
    x: float
    y: float
    cell: Box
    receptive_field: Box
    learned_for: str = ""


@dataclass(frozen=True, slots=True)
class Parts:
    """Filters of one layer that fired, strongest first."""

    parts: tuple[Part, ...]
    layer: str


@dataclass(frozen=True, slots=True)
class Node:
    """One part pattern of an explanatory graph that is present, and where.

    Attributes:
        layer: place of its layer in the graph, 0 the top one.
        node: its number in that layer of the learned graph.
        filter: the filter that it is a pattern of.
        x: where it is, pixels from the left of the picture that was sent.
        y: the same from the top.
        score: log score.
        percentile: 0..100, where the score stands among those of the pictures that the graph was learned from.
        parents: numbers of those of its parents, nodes of the layer above, that are in the same answer.
    """

    layer: int
    node: int
    filter: int
    x: float
    y: float
    score: float
    percentile: float
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ExplanatoryGraph:
    """The part patterns that are present in a picture.

    Attributes:
        nodes: layer by layer, the top one first; in each, the highest percentile first.
        layers: names of the conv layers, the top one first.
        class_name: whose graph it is; "" for one graph for all classes.
        right: how far the whole object is right of its usual place, in pixels; 0 without a root.
        down: the same downwards.
        mirrored: whether the picture is taken as mirrored.
    """

    nodes: tuple[Node, ...]
    layers: tuple[str, ...]
    class_name: str = ""
    right: float = 0.0
    down: float = 0.0
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Contribution:
    """One feature's share in one logit.

    Attributes:
        feature: number of the feature.
        contribution: weight x feature, signed, in logits.
        activation: the pooled feature itself.
        part: the filter behind it and where it fired, if the model can tell and it did.
    """

    feature: int
    contribution: float
    activation: float
    part: Part | None = None


@dataclass(frozen=True, slots=True)
class EvidenceMap:
    """What argues for a class and where: all features' contributions by cell of the map behind them.

    Attributes:
        values: (rows, columns), signed, in logits; their sum + the class's bias is its logit.
        area: what the map's cells cover, in pixels of the picture that was sent; may reach beyond it.
    """

    values: tuple[tuple[float, ...], ...]
    area: Box


@dataclass(frozen=True, slots=True)
class Ledger:
    """Adds up to a logit: sum of contributions + omitted + rest + bias = logit.

    Attributes:
        class_index: number of the class.
        class_name: its name.
        logit: what the ledger adds up to.
        contributions: class-specific features, largest absolute contribution first.
        omitted: class-specific features that were not asked for.
        rest: all other features; 0 for a decomposed final layer.
        bias: the class's bias.
        evidence: where; None if not asked for or not to be had.
    """

    class_index: int
    class_name: str
    logit: float
    contributions: tuple[Contribution, ...]
    omitted: float
    rest: float
    bias: float
    evidence: EvidenceMap | None = None

    @property
    def total(self) -> float:
        """What the entries add up to; equals `logit` up to rounding."""
        return sum(entry.contribution for entry in self.contributions) + self.omitted + self.rest + self.bias


@dataclass(frozen=True, slots=True)
class Contrast:
    """Why the best class and not the runner-up: sum of contributions + rest + bias = margin.

    Attributes:
        class_index: number of the best class.
        class_name: its name.
        against_index: number of the runner-up.
        against_name: its name.
        margin: logit of the best - logit of the runner-up.
        contributions: (weight for the best - weight for the runner-up) x feature, largest absolute share first.
        rest: the same over all features that are not listed.
        bias: bias of the best - bias of the runner-up.
    """

    class_index: int
    class_name: str
    against_index: int
    against_name: str
    margin: float
    contributions: tuple[Contribution, ...]
    rest: float
    bias: float

    @property
    def total(self) -> float:
        """What the entries add up to; equals `margin` up to rounding."""
        return sum(entry.contribution for entry in self.contributions) + self.rest + self.bias


@dataclass(frozen=True, slots=True)
class Proof:
    """How exact an explanation is, and what it is an explanation of.

    Attributes:
        completeness_gap: largest difference between a logit of the answer and what its ledger or its evidence adds
            up to, in logits; None without class features.
        exact: whether every contribution is also a sum over the cells of a conv map, so that it has a place.
        inexact: why not, with the place in the graph; "" if it is.
        model_sha256: of the model file, hexadecimal.
        image_sha256: of the picture as it was sent: the encoded file, or the raw numbers.
        execution_provider: what ran the model, such as "CPUExecutionProvider".
        runtime: the runtime and its version.
    """

    completeness_gap: float | None = None
    exact: bool = False
    inexact: str = ""
    model_sha256: str = ""
    image_sha256: str = ""
    execution_provider: str = ""
    runtime: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the model says about one picture, and why.

    Attributes:
        predictions: the best classes, most probable first.
        width: width in pixels of the picture that positions refer to.
        height: its height.
        parts: which filters fired where; None if not asked for or not to be had.
        class_features: one ledger for each of `predictions`; None alike.
        explanatory_graph: which part patterns are present where; None alike.
        contrast: why the best class and not the runner-up; None alike.
        proof: how exact it is, and what of.
    """

    predictions: tuple[Prediction, ...]
    width: int
    height: int
    parts: Parts | None = None
    class_features: tuple[Ledger, ...] | None = None
    explanatory_graph: ExplanatoryGraph | None = None
    contrast: Contrast | None = None
    proof: Proof = Proof()
