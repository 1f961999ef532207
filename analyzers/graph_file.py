"""The file of an explanatory graph: one `.npz` without pickle, arrays and a JSON text; docs/explanatory-graph.md.

`manifest` holds the JSON (uint8, UTF-8): format, schema, tensors and grids of the layers, classes, fingerprints. The
arrays are the fields of `GraphLayer` and `Root` under `layer0.filter`, ... (0 is the top layer) and `root.nodes`, ...
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from analyzers.errors import DataError
from analyzers.explanatory_graph import QUANTILES, ExplanatoryGraph, GraphLayer, Root
from analyzers.files import write_atomically
from analyzers.manifest import Grid

FORMAT: Literal["pellucid.explanatory_graph"] = "pellucid.explanatory_graph"
SCHEMA: Literal[1] = 1

Arrays = dict[str, npt.NDArray[Any]]

# The arrays of a layer and of the root: numbers as "i" (whole) or "f", and the axes; g graphs, v nodes, c filters.
_LAYER = {
    "scale": ("f", "c"),
    "floor": ("f", "c"),
    "filter": ("i", "gv"),
    "prior": ("f", "gv2"),
    "mean": ("f", "gv2"),
    "sigma": ("f", "gv"),
    "spread": ("f", "gv"),
    "parents": ("i", "gvm"),
    "threshold": ("f", "gv"),
    "quantiles": ("f", "gvq"),
    "rank": ("f", "gv"),
    "top_picture": ("i", "gvt"),
    "top_score": ("f", "gvt"),
    "top_position": ("f", "gvt2"),
}
_ROOT = {"nodes": ("i", "gr"), "displacements": ("f", "d2"), "mean": ("f", "g2")}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Layer(_Section):
    tensor: str
    grid: Grid


class _Root(_Section):
    sigma: Annotated[float, Field(gt=0)]
    mirrored: bool


class _Document(_Section):
    format: Literal["pellucid.explanatory_graph"] = FORMAT
    schema_version: Literal[1] = Field(alias="schema", default=SCHEMA)
    layers: Annotated[tuple[_Layer, ...], Field(min_length=1)]
    root: _Root | None
    classes: tuple[str, ...]
    model: str
    data: str
    pictures: Annotated[int, Field(ge=1)]
    settings: dict[str, int | float | str]


def save_graph(graph: ExplanatoryGraph, path: Path) -> None:
    """Write a graph; the file appears whole or not at all, and equal graphs give equal bytes.

    Raises:
        OSError: the disk refuses.
    """
    write_atomically(path, graph_to_bytes(graph))


def graph_to_bytes(graph: ExplanatoryGraph) -> bytes:
    """Return what `save_graph` writes."""
    document = _Document(
        layers=tuple(_Layer(tensor=layer.tensor, grid=layer.grid) for layer in graph.layers),
        root=None if graph.root is None else _Root(sigma=graph.root.sigma, mirrored=graph.root.mirrored),
        classes=graph.classes,
        model=graph.model,
        data=graph.data,
        pictures=graph.pictures,
        settings=graph.settings,
    )
    arrays: Arrays = {"manifest": np.frombuffer(document.model_dump_json(by_alias=True).encode(), np.uint8)}
    for number, layer in enumerate(graph.layers):
        arrays |= {f"layer{number}.{name}": _narrow(getattr(layer, name)) for name in _LAYER}
    if graph.root is not None:
        arrays |= {f"root.{name}": _narrow(getattr(graph.root, name)) for name in _ROOT}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def load_graph(path: Path) -> ExplanatoryGraph:
    """Read a graph.

    Raises:
        DataError: there is no such file, it is no graph or a damaged one, or its schema is not the one read here.
    """
    if not path.is_file():
        raise DataError(f"there is no graph file {path}; learn one with `pellucid-train graph`")
    return graph_from_bytes(path.read_bytes(), path)


def graph_from_bytes(data: bytes, path: Path) -> ExplanatoryGraph:
    """Read what `graph_to_bytes` returned; `path` is what errors call it.

    Raises:
        DataError: it is no graph or a damaged one, or its schema is not the one read here.
    """
    arrays = _read(data, path)
    document = _document(path, arrays)
    layers: list[GraphLayer] = []
    for number, described in enumerate(document.layers):
        fields = _fields(path, arrays, f"layer{number}", _LAYER)
        layers.append(GraphLayer(tensor=described.tensor, grid=described.grid, **fields))
        _check_layer(path, layers)
    root = None
    if document.root is not None:
        fields = _fields(path, arrays, "root", _ROOT)
        root = Root(sigma=document.root.sigma, mirrored=document.root.mirrored, **fields)
        _check_root(path, root, layers[0])
    graphs = len(layers[0].filter)
    if graphs != max(1, len(document.classes)):
        raise _damaged(path, f"{graphs} graphs for {len(document.classes)} classes")
    return ExplanatoryGraph(
        layers=tuple(layers),
        root=root,
        classes=document.classes,
        model=document.model,
        data=document.data,
        pictures=document.pictures,
        settings=document.settings,
    )


def _narrow(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.int32 if array.dtype.kind == "i" else np.float32)


def _damaged(path: Path, detail: str) -> DataError:
    return DataError(f"{path} is a damaged graph file, {detail}; learn the graph anew with `pellucid-train graph`")


def _read(data: bytes, path: Path) -> Arrays:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as pack:
            return {name: pack[name] for name in pack.files}
    except Exception:  # zipfile, zlib and numpy's header parser raise unrelated classes
        raise DataError(
            f"{path} is not a graph file, or a damaged one; expected the output of `pellucid-train graph`"
        ) from None


def _document(path: Path, arrays: Arrays) -> _Document:
    try:
        text = arrays["manifest"].tobytes().decode()
        found = json.loads(text)
        kind, schema = found["format"], found["schema"]
    except (KeyError, ValueError, TypeError, RecursionError):
        kind, schema = None, None
    if kind != FORMAT:
        raise DataError(f"{path} holds no explanatory graph; expected the output of `pellucid-train graph`")
    if schema != SCHEMA:
        raise DataError(
            f"{path} has schema {str(schema)[:20]}, this version reads schema {SCHEMA};"
            " learn the graph anew or use another version"
        )
    try:
        return _Document.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, f"its manifest is wrong at {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _fields(path: Path, arrays: Arrays, place: str, wanted: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Return arrays by field, each of its kind and finite, equal letters standing for equal lengths."""
    lengths = {"2": 2, "q": QUANTILES}
    fields = {}
    for name, (kind, axes) in wanted.items():
        array = arrays.get(f"{place}.{name}")
        if array is None:
            raise _damaged(path, f"{place}.{name} is missing")
        if array.dtype.kind != kind or array.ndim != len(axes):
            raise _damaged(path, f"{place}.{name} is {array.dtype} {list(array.shape)}")
        for letter, length in zip(axes, array.shape, strict=True):
            if lengths.setdefault(letter, length) != length:
                raise _damaged(path, f"{place}.{name} has shape {list(array.shape)}, which does not fit the others")
        if not np.isfinite(array).all():
            raise _damaged(path, f"{place}.{name} holds numbers that are not finite")
        fields[name] = array.astype(np.int64 if kind == "i" else np.float32)
    return fields


def _check_layer(path: Path, layers: list[GraphLayer]) -> None:
    """Check the last of `layers` against itself and the one above."""
    layer, place = layers[-1], f"layer{len(layers) - 1}"
    above = layers[-2].filter if len(layers) > 1 else np.zeros((len(layer.filter), 0), np.int64)
    if len(above) != len(layer.filter):
        raise _damaged(path, f"{place} has {len(layer.filter)} graphs, the layer above {len(above)}")
    real = layer.filter >= 0
    if (layer.filter < -1).any() or (layer.filter >= len(layer.scale)).any():
        raise _damaged(path, f"{place}.filter names a filter that is not there")
    if (layer.parents < -1).any() or (layer.parents >= above.shape[1]).any():
        raise _damaged(path, f"{place}.parents names a node that is not there")
    graph = np.arange(len(above))[:, None, None]
    named = layer.parents >= 0
    if named.any() and (above[np.broadcast_to(graph, named.shape)[named], layer.parents[named]] < 0).any():
        raise _damaged(path, f"{place}.parents names a node that only pads")
    if not ((layer.scale > 0).all() and (layer.spread[real] > 0).all() and (layer.sigma[real] > 0).all()):
        raise _damaged(path, f"{place} has a scale or a spread that is not above 0")


def _check_root(path: Path, root: Root, top: GraphLayer) -> None:
    nodes = root.nodes
    if len(nodes) != len(top.filter) or (nodes < -1).any() or (nodes >= top.filter.shape[1]).any():
        raise _damaged(path, "root.nodes names a node that is not there")
    if (np.take_along_axis(top.filter, np.maximum(nodes, 0), 1)[nodes >= 0] < 0).any():
        raise _damaged(path, "root.nodes names a node that only pads")
    if not len(root.displacements):
        raise _damaged(path, "root.displacements is empty")
