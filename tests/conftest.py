"""Shared fixtures: a tiny real network, its pictures, a repository of it and a real server on a free port."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import pytest
from PIL import Image

from analyzers.attach import Selection, attach, fit
from analyzers.explanation import Explanation, Proof
from analyzers.explanatory_graph import ExplanatoryGraph, GraphLayer, Root
from analyzers.files import write_atomically
from analyzers.fingerprint import maps_fingerprint
from analyzers.manifest import Grid
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.plain import Layer, Plain, read_plain

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
NAMES = ("cat", "dog", "owl")
SIZE = 16

# A plain classifier as anybody might bring it: 3 x 16 x 16 -> conv, stride 2 -> ReLU -> mean -> 3 classes.
TINY = """
<ir_version: 10, opset_import: ["" : 20]>
tiny (float[batch, 3, 16, 16] image) => (float[batch, 3] logits)
{
    conv = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (image, conv_weight, conv_bias)
    relu = Relu (conv)
    pooled = GlobalAveragePool (relu)
    flat = Flatten (pooled)
    logits = Gemm <transB: int = 1> (flat, head_weight, head_bias)
}
"""
FILTERS = 8


def tiny_plain(seed: int = 0) -> bytes:
    """Return the tiny classifier with random weights, an ONNX file without any metadata."""
    random = np.random.default_rng(seed)
    model = onnx.parser.parse_model(TINY)
    weights = {
        "conv_weight": random.normal(0, 0.5, (FILTERS, 3, 3, 3)),
        "conv_bias": random.normal(0, 0.1, FILTERS),
        "head_weight": random.normal(0, 2, (len(NAMES), FILTERS)),
        "head_bias": random.normal(0, 1, len(NAMES)),
    }
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return model.SerializeToString()


def png(pixels: np.ndarray) -> bytes:
    """Encode (height, width, 3) uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def random_pictures(count: int = 30, seed: int = 1, size: int = SIZE) -> Pictures:
    """Return pictures of noise whose labels take turns; the last third is the test split."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, size, size, 3), np.uint8)
    return Pictures(
        names=NAMES,
        encoded=tuple(png(picture) for picture in pixels),
        label=np.arange(count) % len(NAMES),
        split=(np.arange(count) >= count * 2 // 3).astype(np.int64),
        group=np.arange(count),
    )


def unsigned(answers: Iterable[Explanation]) -> list[Explanation]:
    """Return answers without what says which bytes they are about, to compare those of the same picture."""
    return [replace(answer, proof=Proof(answer.proof.completeness_gap)) for answer in answers]


def explain_tiny(seed: int = 0, k: int = 3) -> tuple[Plain, Selection, onnx.ModelProto]:
    """Attach explanations to the tiny classifier."""
    plain = read_plain(tiny_plain(seed), names=NAMES)
    pictures = random_pictures()
    images = to_model_input(pictures.decoded(SIZE, SIZE))
    selection = fit(plain, [(images, pictures.label)], k1=k, k2=k).selection
    return plain, selection, attach(plain, selection, layer=Layer())


def tiny_graph(model: onnx.ModelProto, classes: tuple[str, ...] = ()) -> ExplanatoryGraph:
    """Return a random explanatory graph of the tiny classifier: its one conv map serves as both layers."""
    random, graphs = np.random.default_rng(7), max(1, len(classes))

    def layer(nodes: int, above: int) -> GraphLayer:
        shape = (graphs, nodes)
        filters = random.integers(0, FILTERS, shape)
        filters[:, -1] = -1
        return GraphLayer(
            tensor="relu",
            grid=Grid(cells=(8, 8), stride=(2, 2), offset=(0.5, 0.5), receptive_field=(3, 3)),
            scale=np.full(FILTERS, 0.5, np.float32),
            floor=np.zeros(FILTERS, np.float32),
            filter=filters,
            prior=random.random((*shape, 2), np.float32),
            mean=random.random((*shape, 2), np.float32),
            sigma=(0.1 + 0.3 * random.random(shape)).astype(np.float32),
            spread=(0.1 + 0.3 * random.random(shape)).astype(np.float32),
            parents=random.integers(0, above - 1, (*shape, 3)) if above else np.zeros((*shape, 0), np.int64),
            threshold=np.full(shape, -3, np.float32),
            quantiles=np.sort(random.normal(0.5, 0.7, (*shape, 21)), 2).astype(np.float32),
            rank=random.random(shape, np.float32),
            top_picture=np.zeros((*shape, 1), np.int64),
            top_score=np.zeros((*shape, 1), np.float32),
            top_position=np.zeros((*shape, 1, 2), np.float32),
        )

    table = np.stack(np.meshgrid([-0.2, 0, 0.2], [-0.2, 0, 0.2], indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    voters = np.tile(np.arange(4), (graphs, 1))
    return ExplanatoryGraph(
        layers=(layer(10, 0), layer(14, 10)),
        root=Root(voters, table, np.zeros((graphs, 2), np.float32), 0.06, mirrored=True),
        classes=classes,
        model=maps_fingerprint(model, ["relu", "relu"]),
        data="cd" * 32,
        pictures=9,
    )


@pytest.fixture(scope="session")
def tiny_model() -> bytes:
    """An explained ONNX file of the tiny classifier."""
    return explain_tiny()[2].SerializeToString(deterministic=True)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, tiny_model: bytes) -> Path:
    """A repository with the tiny model as `tiny`, version 1."""
    root = tmp_path_factory.mktemp("models")
    write_atomically(root / "tiny" / "1" / "model.onnx", tiny_model)
    return root


@contextmanager
def running_server(
    *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run `pellucid-serve` as its own process on a free port; yields its address and the process."""
    command = [sys.executable, "-m", "server", "--port", "0", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PELLUCID_LAME_DUCK_SECONDS": "0"} | (environment or {}),
    )
    try:
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            process.kill()
            pytest.fail(f"no address but {line!r}; {process.stderr.read()}")
        yield line.removeprefix("listening on ").strip(), process
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
        process.stderr.close()


@pytest.fixture(scope="session")
def address(repository: Path) -> Iterator[str]:
    """The address of a real server with the tiny model."""
    with running_server("--repository", str(repository), "--log-level", "warning") as (target, _):
        yield target


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures and networks; skips visibly where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("real pictures and networks are not on this machine")
    return SHARED
