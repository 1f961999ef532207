"""The Manifest: what a model file says about itself, kept as JSON in its metadata under `pellucid.manifest`.

Names and labels only; numbers (weights, tables) live in the graph. A file with a manifest and no rows is a
plain classifier that can be served, and to which explanations can be attached.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from analyzers.documents import read_document
from analyzers.errors import ModelError

SCHEMA = 2
METADATA_KEY = "pellucid.manifest"
ROWS = ("parts", "explanatory_graph", "class_features")

Triple = tuple[float, float, float]
Peak = Literal["argmax", "centroid"]
Rule = Literal["contribution", "feature", "absolute_contribution", "weight", "absolute_weight", "random"]
RULES: tuple[Rule, ...] = get_args(Rule)
PositiveInt = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelInput(_Section):
    """The pictures that the graph takes: float32 (batch, 3, height, width)."""

    tensor: str
    height: PositiveInt
    width: PositiveInt
    channels: Literal["RGB"] = "RGB"
    value_range: tuple[float, float] = (0.0, 1.0)
    resize: Literal["stretch"] = "stretch"
    mean: Triple = (0.0, 0.0, 0.0)
    """Subtracted inside the graph, per channel, in units of the value range."""
    std: Triple = (1.0, 1.0, 1.0)
    """Divided by inside the graph, per channel."""


class Scores(_Section):
    """The tensor of class scores before the activation: float32 (batch, classes)."""

    tensor: str
    activation: Literal["softmax", "sigmoid"] = "softmax"


class Grid(_Section):
    """From the cells of a conv map to pixels of the model's input; every pair is (vertical, horizontal)."""

    cells: tuple[PositiveInt, PositiveInt]
    stride: tuple[float, float]
    """Pixels from one cell to the next."""
    offset: tuple[float, float]
    """Centre of the first cell in pixels, where 0 is the picture's edge and 0.5 the first pixel's centre."""
    receptive_field: tuple[float, float]
    """Extent in pixels of what one cell can depend on."""


class Parts(_Section):
    """Where the filters of one conv layer fired (arXiv 1710.00935)."""

    layer: str
    """The conv map that was measured, before any mask."""
    cell: str
    """Output, int64 (batch, filters): row-major index of each map's peak, where a part template is centred."""
    score: str
    """Output, float32 (batch, filters): each map's highest value."""
    peak: Peak = "argmax"
    """What the peak is: the first highest cell, or the cell nearest to the map's centre of mass."""
    grid: Grid
    filters: PositiveInt
    interpretable: bool
    """Whether the layer was trained with part templates; otherwise these are an ordinary layer's peaks."""
    learned_for: tuple[int, ...] | None = None
    """Class of each filter, where filters were learned for classes."""

    @model_validator(mode="after")
    def _one_class_a_filter(self) -> Parts:
        if self.learned_for is not None and len(self.learned_for) != self.filters:
            raise ValueError(f"learned_for has {len(self.learned_for)} entries for {self.filters} filters")
        return self


class GraphLayer(_Section):
    """The nodes of one conv layer in an explanatory graph."""

    layer: str
    """The conv map in which they are looked for."""
    grid: Grid
    position: str
    """Output, float32 (batch, nodes, 2): (row, column) as shares of the picture's height and width."""
    score: str
    """Output, float32 (batch, nodes): log score."""
    percentile: str
    """Output, float32 (batch, nodes): 0..100, where the score stands among those of the pictures learned from."""
    present: str
    """Output, bool (batch, nodes)."""
    node: tuple[tuple[int, ...], ...]
    """(graphs, nodes) number of each node in the learned graph; -1 pads graphs with fewer."""
    filter: tuple[tuple[int, ...], ...]
    """(graphs, nodes) the filter that it is a pattern of; -1 pads."""
    parents: tuple[tuple[tuple[int, ...], ...], ...]
    """(graphs, nodes, up to 15) places of its parents among the nodes of the layer above."""


class ExplanatoryGraph(_Section):
    """Part patterns of several conv layers and the larger patterns that they belong to (arXiv 1708.01785)."""

    layers: Annotated[tuple[GraphLayer, ...], Field(min_length=1)]
    """The top one first."""
    form: Literal["hard", "soft"]
    """A node's place: its best cell, or the mean of cells weighted by their scores."""
    graph: str | None = None
    """Output, int64 (batch,): whose graph was looked at, the predicted class's; null for one graph for all."""
    displacement: str | None = None
    """Output, float32 (batch, 2): how far the whole object is from its usual place, (down, right) as shares."""
    mirrored: str | None = None
    """Output, bool (batch,): whether the picture is taken as mirrored."""

    @model_validator(mode="after")
    def _nodes_and_parents_exist(self) -> ExplanatoryGraph:
        graphs, above = len(self.layers[0].node), 0
        for layer in self.layers:
            nodes = {len(own) for table in (layer.node, layer.filter, layer.parents) for own in table}
            if {len(table) for table in (layer.node, layer.filter, layer.parents)} != {graphs} or len(nodes) != 1:
                raise ValueError(f"node, filter and parents of '{layer.layer}' have different lengths")
            parents = [parent for graph in layer.parents for node in graph for parent in node]
            if parents and not 0 <= min(parents) <= max(parents) < above:
                raise ValueError(f"nodes of '{layer.layer}' name parents that the layer above has not")
            above = nodes.pop()
        return self


class Contrast(_Section):
    """Which features argue for the best class against the runner-up."""

    features: str
    """Output, int64 (batch, reasons): feature numbers, largest share first."""
    contributions: str
    """Output, float32 (batch, reasons): (weight for the best - weight for the runner-up) x value, in logits."""
    total: str | None = None
    """Output, float32 (batch,): the same over all features; with the difference of the biases, the margin. Null where
    there is evidence, whose sums for the two classes differ by it."""


class ClassFeatures(_Section):
    """Contributions of class-specific features (arXiv 2112.07719) for the best `max_classes` classes."""

    classes: str
    """Output, int64 (batch, max_classes): class numbers, highest logit first."""
    features: str
    """Output, int64 (batch, max_classes, reasons, 1): feature numbers; -1 pads classes with fewer than k2."""
    activations: str
    """Output, float32 (batch, max_classes, reasons): values of those features."""
    contributions: str
    """Output, float32 (batch, max_classes, reasons): weight x value, in logits."""
    omitted: str | None = None
    """Output, float32 (batch, max_classes): class features beyond the reasons; null where all of them are reported."""
    rest: str
    """Output, float32 (batch, all classes): contribution of every other feature."""
    bias: str
    """Output, float32 (batch, max_classes)."""
    contrast: Contrast | None = None
    """The best class against the runner-up; null where there is one class."""
    evidence: str | None = None
    """Output, float32 (batch, max_classes, rows, columns): all features' contributions by cell of the map, in logits;
    their sum + bias = logit. Null where the features are no means over the cells of a map."""
    grid: Grid | None = None
    """Where those cells lie."""
    pooled: str
    """Output, float32 (batch, all features): what the final layer reads."""
    head: str
    """Output, float32 (all classes, all features): the final layer's weights, the same in every run."""
    map: str | None = None
    """The conv map behind the features."""
    flat: bool = False
    """Whether features are the map's cells, channel by channel, instead of their means."""
    inexact: str = ""
    """Why contributions cannot be split over the cells of a map, with the place in the graph; empty if they can."""
    max_classes: PositiveInt
    reasons: PositiveInt
    """Features reported per class."""
    k1: PositiveInt | None = None
    """Features counted per picture when the sets were found; null for sets that came from outside."""
    k2: PositiveInt
    """Features per class."""
    rule: Rule | Literal["given"]
    """What was ranked to find the class features; "given" for index sets that came from outside."""
    decomposed: Literal["kept", "refitted", "tuned"] | None = None
    """How the weights of a decomposed final layer were found, which reads class features alone; null for a full one."""
    features_are_filters: bool
    """Whether feature j is the pooled map of filter j of `parts`."""

    @property
    def exact(self) -> bool:
        """Whether every contribution is also a sum over the cells of a conv map, so that it has a place."""
        return not self.inexact


class Provenance(_Section):
    """Where a model came from."""

    producer: str
    data: str = ""
    data_fingerprint: str = ""
    pictures: int = 0


class Manifest(_Section):
    """What a model file says about itself."""

    schema_version: Literal[2] = Field(alias="schema", default=2)
    input: ModelInput
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    scores: Scores
    provenance: Provenance
    parts: Parts | None = None
    explanatory_graph: ExplanatoryGraph | None = None
    class_features: ClassFeatures | None = None

    @model_validator(mode="after")
    def _filters_belong_to_classes(self) -> Manifest:
        learned_for = () if self.parts is None else self.parts.learned_for or ()
        strange = [number for number in learned_for if not 0 <= number < len(self.classes)]
        if strange:
            raise ValueError(f"filters were learned for class {strange[0]}, but there are {len(self.classes)} classes")
        return self

    @model_validator(mode="after")
    def _graphs_belong_to_classes(self) -> Manifest:
        graph = self.explanatory_graph
        if graph is not None and len(graph.layers[0].node) != (1 if graph.graph is None else len(self.classes)):
            raise ValueError(f"there are {len(graph.layers[0].node)} graphs for {len(self.classes)} classes")
        return self

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows that this model can explain, in the order of `ROWS`."""
        return tuple(row for row in ROWS if getattr(self, row, None) is not None)

    @property
    def max_classes(self) -> int:
        """How many classes one answer can hold."""
        return len(self.classes) if self.class_features is None else self.class_features.max_classes

    def to_json(self) -> str:
        """Return the text that goes into the file; equal manifests give equal text."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> Manifest:
        """Read the manifest of a model file's metadata.

        Raises:
            ModelError: there is none, it is damaged, or its schema is not the one this version reads.
        """
        text = metadata.get(METADATA_KEY)
        if text is None:
            raise ModelError(
                f"the file has no '{METADATA_KEY}' in its metadata, so nothing says what its outputs mean;"
                " make it with `pellucid-train` or `pellucid-analyze attach`"
            )
        try:
            document = json.loads(text)
            schema = document["schema"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ModelError("the manifest is not JSON with a 'schema'; attach the explanations anew") from None
        if schema != SCHEMA:
            raise ModelError(
                f"the manifest has schema {str(schema)[:20]}, this version reads schema {SCHEMA};"
                " attach the explanations anew or use another version"
            )
        return read_document(cls, text, name="manifest", remedy="attach the explanations anew")
