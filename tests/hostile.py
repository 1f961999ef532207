"""Files that mean harm, or are damaged in every way we know of; none of them may ever be served.

Each is made from a good model, so that nothing but the harm in it is a reason to refuse it. Those of `CONTENTS` are
what a model file may hold, those of `PLACES` what may lie where one should. `SLOW` are refused only by running out of
what a trial may take.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from analyzers.manifest import METADATA_KEY
from analyzers.probe import PROBE_KEY

Make = Callable[[bytes], bytes]
HUGE = 1 << 40


def load(good: bytes) -> ModelProto:
    return onnx.load_model_from_string(good)


def changed(change: Callable[[ModelProto], object]) -> Make:
    """Make a file by changing a good one's model."""

    def make(good: bytes) -> bytes:
        model = load(good)
        change(model)
        return model.SerializeToString()

    return make


# Weights outside the file, wherever ONNX allows a tensor.


def _external(tensor: TensorProto, location: str, offset: str = "0", length: str = "") -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value:
            tensor.external_data.add(key=key, value=value)


def external(location: str, offset: str = "0", length: str = "") -> Make:
    return changed(lambda model: _external(model.graph.initializer[0], location, offset, length))


def _outside(model: ModelProto) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(8, np.float32), "outside")
    _external(tensor, "weights.bin")
    return tensor


def _in_function(model: ModelProto) -> None:
    node = helper.make_node("Constant", [], ["y"], value=_outside(model))
    model.functions.append(helper.make_function("mine", "f", [], ["y"], [node], [helper.make_opsetid("", 20)]))


def _in_branch(model: ModelProto) -> None:
    node = helper.make_node("Constant", [], ["y"], value=_outside(model))
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8])
    branch = helper.make_graph([node], "branch", [], [value])
    _add(model, [helper.make_node("If", ["yes"], ["bomb"], then_branch=branch, else_branch=branch)], yes=np.array(True))


def _in_sparse(model: ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(_outside(model))
    sparse.dims.extend([8])


def _in_training(model: ModelProto) -> None:
    model.training_info.add().algorithm.initializer.append(_outside(model))


# Operators beside the good ones; `bomb` becomes an output of the graph.


def _add(model: ModelProto, nodes: list[NodeProto], output: object = None, **constants: np.ndarray) -> None:
    for name, array in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model.graph.node.extend(nodes)
    value = output or helper.make_tensor_value_info("bomb", TensorProto.FLOAT, None)
    model.graph.output.append(value)


def bomb(*nodes: NodeProto, kind: int = TensorProto.FLOAT, **constants: np.ndarray) -> Make:
    value = helper.make_tensor_value_info("bomb", kind, None)
    return changed(lambda model: _add(model, list(nodes), value, **constants))


def at_run_time(operator: str, *more: str, kind: int = TensorProto.FLOAT, **constants: np.ndarray) -> Make:
    """An operator that gets a huge size only once there is a picture: the batch size times 2^40."""
    nodes = [
        helper.make_node("Shape", ["image"], ["bomb/size"], start=0, end=1),
        helper.make_node("Mul", ["bomb/size", "bomb/factor"], ["bomb/huge"]),
        helper.make_node(operator, [name or "bomb/huge" for name in more], ["bomb"]),
    ]
    return bomb(*nodes, kind=kind, **constants, **{"bomb/factor": np.array([HUGE])})


def _loop(trips: int | None, body: list[NodeProto] = (), condition: bool = True) -> Callable[[ModelProto], None]:  # type: ignore[assignment]
    boolean, number = (helper.make_tensor_value_info, TensorProto.BOOL), TensorProto.INT64
    inside = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["x"], ["y"]), *body],
        "body",
        [boolean[0]("i", number, []), boolean[0]("c", boolean[1], []), boolean[0]("x", TensorProto.FLOAT, [1])],
        [boolean[0]("d", boolean[1], []), boolean[0]("y", TensorProto.FLOAT, [1])],
    )

    def change(model: ModelProto) -> None:
        constants = {"yes": np.array(condition), "start": np.zeros(1, np.float32)}
        if trips is not None:
            constants["trips"] = np.array(trips)
        node = helper.make_node("Loop", ["trips" if trips is not None else "", "yes", "start"], ["bomb"], body=inside)
        _add(model, [node], **constants)

    return change


def _nested_loops(model: ModelProto) -> None:
    inner = ModelProto()
    _loop(1 << 31)(inner)
    node = inner.graph.node[0]
    node.output[0] = "unused"
    _loop(1 << 31, [helper.make_node("Constant", [], ["trips"], value_int=1 << 31), node])(model)


def _scan(model: ModelProto) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "body", [value], [out])
    node = helper.make_node("Scan", ["rows"], ["bomb"], body=body, num_scan_inputs=1)
    _add(model, [node], rows=np.zeros((9, 1), np.float32))


def field(number: int, content: bytes) -> bytes:
    """Serialise a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _deep_branches(good: bytes) -> bytes:
    """If in If in If, ten thousand deep: a graph holds a node, its attribute a graph, and so on."""
    graph = b""
    for _ in range(10_000):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    return good + field(7, graph)


def _many_nodes(good: bytes) -> bytes:
    """A million nodes in a row; the second `graph` field of a model is merged with the first."""
    nodes = [field(1, field(1, b"n%d" % n) + field(2, b"n%d" % (n + 1)) + field(4, b"Relu")) for n in range(1_000_000)]
    return good + field(7, b"".join(nodes))


def _many_weights(good: bytes) -> bytes:
    return good + field(7, b"".join(field(5, field(8, b"w%d" % number)) for number in range(1_000_000)))


def _many_outputs(model: ModelProto) -> None:
    for number in range(300_000):
        model.graph.output.add(name=f"o{number}")


def _cycle(model: ModelProto) -> None:
    _add(model, [helper.make_node("Relu", ["bomb"], ["a"]), helper.make_node("Relu", ["a"], ["bomb"])])


def _tensor(name: str, dims: list[int], raw: bytes = b"") -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        del tensor.dims[:]
        tensor.dims.extend(dims)
        if raw:
            tensor.raw_data = raw

    return change


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Make:
    """Change an initializer."""

    def make(model: ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))

    return changed(make)


def metadata(key: str, text: Callable[[str], str]) -> Make:
    """Change a metadata entry."""

    def make(model: ModelProto) -> None:
        entry = next(entry for entry in model.metadata_props if entry.key == key)
        entry.value = text(entry.value)

    return changed(make)


def document(change: Callable[[dict], object], key: str = METADATA_KEY) -> Make:
    """Change the manifest, or the probe, as JSON."""

    def make(text: str) -> str:
        known = json.loads(text)
        change(known)
        return json.dumps(known)

    return metadata(key, make)


def _dimension(place: int, size: int, *, output: bool = False) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        value = model.graph.output[0] if output else model.graph.input[0]
        value.type.tensor_type.shape.dim[place].dim_value = size

    return change


def _instead_of_logits(*nodes: NodeProto, kind: int = TensorProto.FLOAT, **constants: np.ndarray) -> Make:
    """Let the output `logits` be something made from it."""

    def change(model: ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = ["true_logits" if name == "logits" else name for name in names]
        model.graph.node.extend(nodes)
        for name, array in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        place = next(n for n, output in enumerate(model.graph.output) if output.name == "logits")
        model.graph.output[place].CopyFrom(helper.make_tensor_value_info("logits", kind, None))

    return changed(change)


def _value(kind: onnx.TypeProto) -> onnx.ValueInfoProto:
    return helper.make_value_info("bomb", kind)


_FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, None)


def _odd_output(kind: onnx.TypeProto, *nodes: NodeProto, **constants: np.ndarray) -> Make:
    return changed(lambda model: _add(model, list(nodes), _value(kind), **constants))


def _map_output(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    node = helper.make_node("ZipMap", ["logits"], ["bomb"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    of_map = onnx.TypeProto()
    of_map.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    of_map.sequence_type.elem_type.map_type.value_type.CopyFrom(_FLOATS)
    _add(model, [node], _value(of_map))


def _archive(good: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("model.onnx", good)
    return buffer.getvalue()


def _slow_sums(good: bytes) -> bytes:
    """A straight graph of a few kB that multiplies for days."""
    shape = np.array([4096, 4096])
    one = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [
        helper.make_node("Shape", ["image"], ["bomb/b"], start=0, end=1),
        helper.make_node("Mul", ["bomb/b", "bomb/zero"], ["bomb/0"]),
        helper.make_node("Add", ["bomb/0", "bomb/shape"], ["bomb/s"]),
        helper.make_node("ConstantOfShape", ["bomb/s"], ["m0"], value=one),
        *(helper.make_node("MatMul", [f"m{n}", "m0"], [f"m{n + 1}"]) for n in range(20_000)),
        helper.make_node("ReduceSum", ["m20000"], ["bomb"]),
    ]
    return bomb(*nodes, **{"bomb/zero": np.array([0]), "bomb/shape": shape})(good)


_node = helper.make_node
_size = np.array([HUGE])

CONTENTS: dict[str, Make] = {
    # Weights elsewhere.
    "external-traversal": external("../../etc/hostname", "0", "4"),
    "external-absolute": external("/etc/hostname", "0", "4"),
    "external-device": external("/dev/zero"),
    "external-standard-input": external("/dev/stdin"),
    "external-beside": external("weights.bin"),
    "external-negative-offset": external("weights.bin", "-4096", "864"),
    "external-huge-length": external("weights.bin", "0", str(1 << 62)),
    "external-memory-address": external("*/_ORT_MEM_ADDR_/*", "4096", "864"),
    "external-process-memory": external("/proc/self/mem", "4194304", "864"),
    "external-without-location": changed(
        lambda m: setattr(m.graph.initializer[0], "data_location", TensorProto.EXTERNAL)
    ),
    "external-attribute": changed(
        lambda m: _add(m, [_node("Constant", [], ["bomb"], value=_outside(m))]),
    ),
    "external-sparse": changed(_in_sparse),
    "external-function": changed(_in_function),
    "external-branch": changed(_in_branch),
    "external-training": changed(_in_training),
    # Sizes that lie.
    "huge-dimension": changed(_tensor("conv_bias", [1 << 62])),
    "negative-dimension": changed(_tensor("conv_bias", [-8])),
    "overflowing-dimensions": changed(_tensor("conv_bias", [1 << 32, 1 << 32])),
    "overflowing-to-the-right-size": changed(_tensor("conv_bias", [(1 << 61) + 1, 8])),
    "short-data": changed(_tensor("conv_bias", [8], b"\0" * 28)),
    "long-data": changed(_tensor("conv_bias", [8], b"\0" * 36)),
    "no-filters": changed(_tensor("conv_weight", [0, 3, 3, 3])),
    "other-filters": changed(_tensor("conv_weight", [8, 9, 3, 1])),
    # Graphs that are none.
    "cycle": changed(_cycle),
    "duplicate-tensor": changed(lambda m: _add(m, [_node("Relu", ["logits"], ["relu"])])),
    "duplicate-output": changed(lambda m: m.graph.output.add().CopyFrom(m.graph.output[0])),
    "unknown-domain": changed(lambda m: _add(m, [_node("Relu", ["logits"], ["bomb"], domain="evil")])),
    "custom-operator": changed(
        lambda m: (
            (m.opset_import.append(helper.make_opsetid("evil", 1)),)
            and _add(m, [_node("Run", ["logits"], ["bomb"], domain="evil", library="evil.so")])
        )
    ),
    "unknown-operator": bomb(_node("Explode", ["logits"], ["bomb"])),
    "compiled-part": changed(
        lambda m: (
            (m.opset_import.append(helper.make_opsetid("com.microsoft", 1)),)
            and _add(
                m, [_node("EPContext", ["logits"], ["bomb"], domain="com.microsoft", ep_cache_context="/etc/passwd")]
            )
        )
    ),
    "dangling-input": bomb(_node("Relu", ["nowhere"], ["bomb"])),
    "future-operators": changed(lambda m: setattr(m.opset_import[0], "version", 999)),
    "no-operators": changed(lambda m: m.ClearField("opset_import")),
    "future-format": changed(lambda m: setattr(m, "ir_version", 9999)),
    "wrong-types": bomb(_node("Add", ["logits", "parts.cell"], ["bomb"])),
    "no-nodes": changed(lambda m: m.graph.ClearField("node")),
    "no-outputs": changed(lambda m: m.graph.ClearField("output")),
    "two-inputs": changed(
        lambda m: m.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    ),
    "no-graph": changed(lambda m: m.ClearField("graph")),
    "two-graphs": lambda good: good + good,
    # What never ends.
    "endless-loop": changed(_loop(1 << 62)),
    "loop-while-true": changed(_loop(None)),
    "nested-loops": changed(_nested_loops),
    "scan": changed(_scan),
    "deep-branches": _deep_branches,
    # What wants all memory, when the file is loaded or when it is run.
    "constant-of-shape": bomb(_node("ConstantOfShape", ["n"], ["bomb"]), n=_size),
    "expand": bomb(_node("Expand", ["x", "n"], ["bomb"]), n=_size, x=np.zeros(1, np.float32)),
    "tile": bomb(_node("Tile", ["x", "n"], ["bomb"]), n=_size, x=np.zeros(1, np.float32)),
    "pad": bomb(_node("Pad", ["x", "n"], ["bomb"]), n=np.array([0, HUGE]), x=np.zeros(1, np.float32)),
    "range": bomb(
        _node("Range", ["a", "b", "c"], ["bomb"]),
        kind=TensorProto.INT64,
        a=np.array(0),
        b=np.array(1 << 60),
        c=np.array(1),
    ),
    "resize": bomb(_node("Resize", ["image", "", "s"], ["bomb"]), s=np.array([1, 1, 1e5, 1e5], np.float32)),
    "random": bomb(_node("RandomNormal", [], ["bomb"], shape=[HUGE])),
    "one-hot": bomb(
        _node("OneHot", ["i", "d", "v"], ["bomb"]),
        i=np.zeros(64, np.int64),
        d=np.array(1 << 36),
        v=np.array([0, 1], np.float32),
    ),
    "constant-of-shape-at-run-time": at_run_time("ConstantOfShape", ""),
    "expand-at-run-time": at_run_time("Expand", "x", "", x=np.zeros(1, np.float32)),
    "tile-at-run-time": at_run_time("Tile", "x", "", x=np.zeros(1, np.float32)),
    # Manifests.
    "no-manifest": changed(lambda m: m.ClearField("metadata_props")),
    "empty-manifest": metadata(METADATA_KEY, lambda text: ""),
    "null-manifest": metadata(METADATA_KEY, lambda text: "null"),
    "long-manifest": metadata(METADATA_KEY, lambda text: '{"schema": 2, "x": "' + "y" * 20_000_000 + '"}'),
    "deep-manifest": metadata(METADATA_KEY, lambda text: '{"schema":' * 500_000),
    "deep-list": metadata(METADATA_KEY, lambda text: "[" * 1_000_000 + "]" * 1_000_000),
    "huge-number": metadata(METADATA_KEY, lambda text: '{"schema": 1' + "0" * 100_000 + "}"),
    "million-classes": document(lambda d: d.update(classes=[str(n) for n in range(1_000_000)])),
    "not-a-number": metadata(METADATA_KEY, lambda text: text.replace('"mean":[0.0', '"mean":[NaN')),
    "other-schema": document(lambda d: d.update(schema=3)),
    "other-file": document(
        lambda d: (d["scores"].update(tensor="fc"), d["class_features"].update(pooled="avgpool", head="fc.weight"))
    ),
    "input-named-for-output": document(lambda d: d["input"].update(tensor="logits")),
    "huge-grid": document(lambda d: d["parts"]["grid"].update(cells=[1 << 40, 1 << 40])),
    "small-grid": document(lambda d: d["parts"]["grid"].update(cells=[1, 1])),
    "huge-ledger": document(lambda d: d["class_features"].update(max_classes=1 << 40)),
    "negative-filters": document(lambda d: d["parts"].update(filters=-1)),
    "huge-picture": document(lambda d: d["input"].update(height=1 << 40, width=1 << 40)),
    "metadata-not-text": lambda good: good.replace(b"unnamed", b"\xff\xfe\xfa\xc0\xc1\xf5\xff"),
    # Answers that are wrong.
    "ledgers-off": weight("class_features/rest_weight", lambda w: w * 1.01),
    "ledgers-of-others": weight("class_features/index", lambda i: i[::-1].copy()),
    "features-out-of-range": weight("class_features/index", lambda i: i + 1000),
    "not-a-number-weights": weight("conv_weight", lambda w: w * np.nan),
    "infinite-weights": weight("head_weight", lambda w: np.full_like(w, np.inf)),
    "logits-of-wrong-type": _instead_of_logits(
        _node("Cast", ["true_logits"], ["logits"], to=TensorProto.DOUBLE), kind=TensorProto.DOUBLE
    ),
    "integer-logits": _instead_of_logits(
        _node("Cast", ["true_logits"], ["logits"], to=TensorProto.INT64), kind=TensorProto.INT64
    ),
    "logits-of-wrong-rank": _instead_of_logits(_node("Unsqueeze", ["true_logits", "a"], ["logits"]), a=np.array([2])),
    "logits-of-all-pictures": _instead_of_logits(_node("ReduceMean", ["true_logits"], ["logits"])),
    "text-output": _odd_output(
        helper.make_tensor_type_proto(TensorProto.STRING, None),
        _node("Cast", ["logits"], ["bomb"], to=TensorProto.STRING),
    ),
    "sequence-output": _odd_output(
        helper.make_sequence_type_proto(_FLOATS), _node("SequenceConstruct", ["logits"], ["bomb"])
    ),
    "optional-output": _odd_output(helper.make_optional_type_proto(_FLOATS), _node("Optional", ["logits"], ["bomb"])),
    "map-output": changed(_map_output),
    "one-row-output": bomb(_node("ReduceMax", ["logits"], ["bomb"])),
    "no-pictures": changed(_dimension(0, 0)),
    "no-batch-axis": changed(lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop()),
    "one-channel": changed(_dimension(1, 1)),
    "double-pictures": changed(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE)),
    "altered-weights": changed(
        lambda m: [
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * np.float32(1.1), t.name))
            for t in m.graph.initializer
            if t.name == "conv_weight"
        ]
    ),
    "damaged-probe": metadata(PROBE_KEY, lambda text: text[:-5]),
    "infinite-probe": metadata(PROBE_KEY, lambda text: text.replace('"logits":[[', '"logits":[[1e999,')),
    "probe-of-another": document(lambda d: d.update(logits=[row[::-1] for row in d["logits"]]), PROBE_KEY),
    # Files of other kinds, and half ones.
    "empty": lambda good: b"",
    "one-byte": lambda good: good[:1],
    **{f"cut-at-{share}-percent": lambda good, s=share: good[: len(good) * s // 100] for share in (5, 30, 60, 95)},
    "cut-by-one-byte": lambda good: good[:-1],
    "zeros": lambda good: b"\0" * 10_000,
    "noise": lambda good: np.random.default_rng(0).bytes(100_000),
    "noise-behind": lambda good: good + np.random.default_rng(1).bytes(1000),
    "pickle": lambda good: pickle.dumps({"weights": list(range(100))}),
    "zip": _archive,
    "gzip": gzip.compress,
    "text": lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
    "html": lambda good: b"<!doctype html><html><body><h1>404 Not Found</h1></body></html>",
    "runtime-format": lambda good: b"\x20\0\0\0ORTM" + good,
    "group": lambda good: good + b"\x0b" * 1000,
    "endless-varint": lambda good: good + b"\x80" * 1000,
    "length-beyond-the-end": lambda good: good + varint(7 << 3 | 2) + varint(1 << 40),
    "two-gigabyte-length": lambda good: good + varint(7 << 3 | 2) + varint((1 << 64) - 1),
}


# What lies where the file should be.


def _socket(path: Path, good: bytes) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may have a hundred characters only
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _outside_link(path: Path, good: bytes) -> None:
    outside = path.parents[3] / "outside.onnx"
    outside.write_bytes(good)
    path.symlink_to(outside)


def _unreadable(path: Path, good: bytes) -> None:
    path.write_bytes(good)
    path.chmod(0)


PLACES: dict[str, Callable[[Path, bytes], object]] = {
    "folder": lambda path, good: path.mkdir(),
    "pipe": lambda path, good: os.mkfifo(path),
    "socket": _socket,
    "link-to-zeros": lambda path, good: path.symlink_to("/dev/zero"),
    "link-to-memory": lambda path, good: path.symlink_to("/proc/self/mem"),
    "link-to-passwords": lambda path, good: path.symlink_to("/etc/passwd"),
    "link-outside": _outside_link,
    "link-to-nothing": lambda path, good: path.symlink_to("nothing"),
    "link-to-itself": lambda path, good: path.symlink_to(path.name),
    "terabyte-hole": lambda path, good: _sparse(path, 1 << 40),
    "absent": lambda path, good: None,
} | ({"unreadable": _unreadable} if os.geteuid() else {})  # nothing is unreadable to root

SLOW: dict[str, Make] = {
    "million-nodes": _many_nodes,
    "many-outputs": changed(_many_outputs),
    "many-weights": _many_weights,
    "slow-sums": _slow_sums,
}
