"""What a model wants its pictures to be, put into its graph, so that everybody sends RGB pictures in 0..1."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from pydantic import BaseModel, ConfigDict, ValidationError

from analyzers import cli, manifest
from analyzers.errors import DataError, ModelError
from analyzers.graph import Graph, attributes
from analyzers.manifest import ModelInput


class Preprocessing(BaseModel):
    """What a model wants its pictures to be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[int, int] | None = None
    """(height, width) where the input's shape leaves them open."""
    mean: manifest.Triple | None = None
    """Subtracted from pictures in 0..1, per channel."""
    std: manifest.Triple | None = None
    """Then divided by, per channel."""
    value_range: tuple[float, float] | None = None
    """What 0 and 1 are then mapped to, such as (0, 255) or (-1, 1)."""
    channels: Literal["RGB", "BGR"] = "RGB"
    """The order in which the model takes them; mean and std are in RGB order all the same."""
    layout: Literal["NCHW", "NHWC"] | None = None
    """Of the input, where its shape does not tell."""


NOTHING = Preprocessing()


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Let a command say what its model wants."""
    group = command.add_argument_group("pre-processing, which goes into the graph")
    group.add_argument("--preprocessing", type=Path, metavar="FILE.toml", help="the same keys as the options below")
    group.add_argument("--size", type=cli.pair, metavar="H,W", help="picture size where the model leaves it open")
    group.add_argument("--mean", type=cli.triple, metavar="R,G,B", help="subtracted from pictures in 0..1")
    group.add_argument("--std", type=cli.triple, metavar="R,G,B", help="then divided by")
    group.add_argument(
        "--value-range", type=cli.interval, metavar="LOW,HIGH", help="what 0 and 1 are then mapped to: 0,255 or -1,1"
    )
    group.add_argument("--channels", choices=("RGB", "BGR"), help="the order the model takes them in (default RGB)")
    group.add_argument("--layout", choices=("NCHW", "NHWC"), help="of the input, where its shape does not tell")


def read_arguments(options: argparse.Namespace) -> Preprocessing:
    """Return what the command line says, over what the file says.

    Raises:
        DataError: the file is not TOML of the keys that there are.
    """
    known: dict[str, object] = {}
    if options.preprocessing is not None:
        try:
            known = tomllib.loads(options.preprocessing.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{options.preprocessing} is not TOML: {error}") from None
    given = {name: getattr(options, name) for name in Preprocessing.model_fields}
    try:
        return Preprocessing.model_validate(known | {name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        keys = ", ".join(Preprocessing.model_fields)
        raise DataError(f"{options.preprocessing}: {place}: {first['msg']}; the keys are {keys}") from None


def refuse_other_numbers(known: ModelInput, preprocessing: Preprocessing) -> None:
    """Refuse a pre-processing for a file that has its own.

    Raises:
        ModelError: it is another one.
    """
    asked = (preprocessing.mean or known.mean, preprocessing.std or known.std)
    if asked != (known.mean, known.std) or preprocessing.value_range is not None or preprocessing.channels != "RGB":
        raise ModelError(
            f"the file normalises its pictures itself, by mean {known.mean} and std {known.std};"
            " leave the pre-processing out"
        )


def picture_input(model: ModelProto, preprocessing: Preprocessing) -> ModelInput:
    """Check the picture input, free its batch axis and put the pre-processing behind it."""
    value = Graph(model).single_input()
    kind, dimensions = value.type.tensor_type.elem_type, value.type.tensor_type.shape.dim
    shape = [d.dim_value or "?" for d in dimensions]
    axes = _axes(shape, preprocessing.layout)
    if kind not in (TensorProto.FLOAT, TensorProto.UINT8) or axes is None:
        held = TensorProto.DataType.Name(kind).lower()
        raise ModelError(
            f"the input '{value.name}' has shape {shape} of {held}; expected float32 or uint8"
            " (batch, 3, height, width) or (batch, height, width, 3)"
        )
    size = preprocessing.size
    height, width = (
        dimensions[axis].dim_value or (0 if size is None else size[place]) for place, axis in enumerate(axes)
    )
    if height < 1 or width < 1:
        raise ModelError(f"the input '{value.name}' leaves its size open; say which with --size HEIGHT,WIDTH")
    if size is not None and size != (height, width):
        raise ModelError(f"the input '{value.name}' is {height} x {width}, not {size[0]} x {size[1]}; leave --size out")
    mean, std = _whole_normalisation(preprocessing, kind)
    _free_batch(model, dimensions[0].dim_value)
    dimensions[0].dim_param = "batch"
    for axis, extent in zip((*axes, 6 - sum(axes)), (height, width, 3), strict=True):
        dimensions[axis].dim_value = extent
    for output in model.graph.output:
        for dimension in output.type.tensor_type.shape.dim[:1]:
            dimension.dim_param = "batch"
    del model.graph.value_info[:]  # shapes inferred for the batch axis that was
    picture = ModelInput(tensor=value.name, height=height, width=width, mean=mean, std=std)
    steps = _steps(
        model, picture, channels=preprocessing.channels, turned=axes == (1, 2), bytes_=kind == TensorProto.UINT8
    )
    if not steps:
        return picture
    taken = {value.name, *Graph(model).producer}
    source = name = next(name for name in ("image", "picture", "pellucid.picture") if name not in taken)
    for number, (operator, inputs, options) in enumerate(steps):
        target = value.name if number == len(steps) - 1 else f"pellucid.{operator.lower()}"
        node = helper.make_node(operator, [source, *inputs], [target], name=f"pellucid.{operator.lower()}", **options)
        model.graph.node.insert(number, node)
        source = target
    value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, height, width]))
    return picture.model_copy(update={"tensor": name})


def _axes(shape: list[int | str], layout: str | None) -> tuple[int, int] | None:
    """Return which axes are height and width; None where the shape is no RGB picture's."""
    if len(shape) != 4:
        return None
    if layout is None:
        layout = "NHWC" if shape[3] == 3 and shape[1] != 3 else "NCHW"
    channels = shape[1] if layout == "NCHW" else shape[3]
    return {"NCHW": (2, 3), "NHWC": (1, 2)}[layout] if channels in (3, "?") else None


def _whole_normalisation(preprocessing: Preprocessing, kind: int) -> tuple[manifest.Triple, manifest.Triple]:
    """Return the mean and std that also map onto the value range: lo + (hi - lo) (x - m) / s = (x - mean) / std."""
    given = preprocessing.mean or (0.0, 0.0, 0.0), preprocessing.std or (1.0, 1.0, 1.0)
    mean, std = (np.array(triple, np.float64) for triple in given)
    if not (np.isfinite((mean, std)).all() and (std > 0).all()):
        raise ModelError(
            f"mean {given[0]} and std {given[1]} cannot normalise; expected finite numbers and std above 0"
        )
    low, high = preprocessing.value_range or ((0.0, 255.0) if kind == TensorProto.UINT8 else (0.0, 1.0))
    if not (np.isfinite((low, high)).all() and low < high):
        raise ModelError(f"pictures cannot range from {low:g} to {high:g}; expected two numbers, the lower one first")
    if (low, high) != (0.0, 1.0):
        std = std / (high - low)
        mean = mean - low * std
    return _triple(mean), _triple(std)


def _triple(values: npt.NDArray[np.float64]) -> manifest.Triple:
    red, green, blue = values.tolist()
    return red, green, blue


_Step = tuple[str, list[str], dict[str, Any]]


def _steps(model: ModelProto, picture: ModelInput, *, channels: str, turned: bool, bytes_: bool) -> list[_Step]:
    """Return the operators from RGB pictures in 0..1 to what the model takes; their constants go into the graph."""
    steps: list[_Step] = []

    def constant(name: str, array: npt.NDArray[np.generic]) -> str:
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    if any(picture.mean):
        mean = np.array(picture.mean, np.float32).reshape(1, 3, 1, 1)
        steps.append(("Sub", [constant("pellucid.mean", mean)], {}))
    if any(s != 1 for s in picture.std):
        steps.append(("Div", [constant("pellucid.std", np.array(picture.std, np.float32).reshape(1, 3, 1, 1))], {}))
    if channels == "BGR":
        steps.append(("Gather", [constant("pellucid.bgr", np.array([2, 1, 0], np.int64))], {"axis": 1}))
    if turned:
        steps.append(("Transpose", [], {"perm": [0, 2, 3, 1]}))
    if bytes_:
        steps += [("Round", [], {}), ("Cast", [], {"to": TensorProto.UINT8})]
    return steps


def frozen_batch(model: ModelProto) -> int:
    """Return the batch size that a model was exported for, 0 where its batch axis is free."""
    dimensions = Graph(model).single_input().type.tensor_type.shape.dim
    return int(dimensions[0].dim_value) if dimensions else 0


def _free_batch(model: ModelProto, frozen: int) -> None:
    """Let reshapes that were written for a batch of `frozen` pictures keep the batch that comes.

    So do constants that are joined to every picture, such as class tokens. Whether that is what was meant is checked
    later: the file as it came has to give the same answers.
    """
    if not frozen:
        return
    graph, nodes = Graph(model), []
    source = graph.single_input().name
    for number, node in enumerate(model.graph.node):
        if node.op_type == "Reshape" and not attributes(node).get("allowzero"):
            shape = graph.constant(node.input[1])
            if shape is not None and shape.ndim == 1 and len(shape) > 1 and shape[0] == frozen:
                name = f"pellucid.shape.{number}"
                model.graph.initializer.append(numpy_helper.from_array(np.array([0, *shape[1:]], np.int64), name))
                node.input[1] = name
        elif node.op_type == "Concat" and attributes(node)["axis"] != 0:
            for place, name in enumerate(node.input):
                constant = graph.constant(name)
                if frozen == 1 and constant is not None and constant.ndim > 1 and len(constant) == 1:
                    node.input[place] = f"pellucid.token.{number}.{place}"
                    nodes += _repeated(model, name, constant.ndim, source, node.input[place])
        nodes.append(node)
    if len(nodes) > len(model.graph.node):
        ordered = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(ordered)


def _repeated(model: ModelProto, constant: str, rank: int, source: str, target: str) -> list[NodeProto]:
    """Return nodes that repeat a constant (1, ...) once a picture."""
    ones = f"{target}.ones"
    model.graph.initializer.append(numpy_helper.from_array(np.ones(rank - 1, np.int64), ones))
    return [
        helper.make_node("Shape", [source], [f"{target}.batch"], start=0, end=1),
        helper.make_node("Concat", [f"{target}.batch", ones], [f"{target}.shape"], axis=0),
        helper.make_node("Expand", [constant, f"{target}.shape"], [target]),
    ]


def as_it_was(
    model: ModelProto, picture: ModelInput, images: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32] | npt.NDArray[np.uint8]:
    """Return what the file took before `picture_input`, for these pictures in 0..1; made in numpy, as a check."""
    mean, std = (np.array(triple, np.float64).reshape(1, 3, 1, 1) for triple in (picture.mean, picture.std))
    prepared = (images - mean) / std
    steps = {node.name for node in model.graph.node}
    if "pellucid.gather" in steps:
        prepared = prepared[:, ::-1]
    if "pellucid.transpose" in steps:
        prepared = prepared.transpose(0, 2, 3, 1)
    if "pellucid.cast" in steps:
        return np.ascontiguousarray(prepared.round(), np.uint8)
    return np.ascontiguousarray(prepared, np.float32)
