"""The explanatory graph from a real server: what the analyzers compute, cut as asked for, refused where it is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import grpc
import onnx
import pytest

from analyzers.attach_graph import attach_graph
from analyzers.explain import Wanted, explain
from analyzers.files import write_atomically
from analyzers.geometry import Frame
from analyzers.manifest import METADATA_KEY, Manifest
from analyzers.pixels import to_model_input
from analyzers.runtime import open_session
from pellucid.v1 import explain_pb2 as pb
from pellucid.v1 import explain_pb2_grpc as pb_grpc
from server.client import Client, ServerError
from server.command import main
from tests.conftest import NAMES, SIZE, explain_tiny, random_pictures, running_server, tiny_graph, unsigned
from tests.server.test_answers import as_sent

PICTURES = random_pictures(6, seed=3)


def changed(model: onnx.ModelProto, change: Callable[[dict], object]) -> bytes:
    """Change the manifest's section of the graph."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    entry = next(e for e in copy.metadata_props if e.key == METADATA_KEY)
    document = json.loads(entry.value)
    change(document["explanatory_graph"])
    entry.value = json.dumps(document)
    return copy.SerializeToString()


BAD: dict[str, tuple[Callable[[dict], object], str]] = {
    "no-output": (
        lambda graph: graph["layers"][0].update(score="explanatory_graph.9.score"),
        "names the output 'explanatory_graph.9.score' but the graph has none of that name",
    ),
    "no-boolean": (
        lambda graph: graph["layers"][0].update(present=graph["layers"][0]["score"]),
        "is float32, the manifest means booleans",
    ),
    "too-few-nodes": (
        lambda graph: [graph["layers"][1][name][0].pop() for name in ("node", "filter", "parents")],
        "the manifest means",
    ),
    "strange-parents": (
        lambda graph: graph["layers"][1]["parents"][0][0].append(99),
        "name parents that the layer above has not",
    ),
    "too-few-graphs": (lambda graph: graph.update(graph="explanatory_graph.graph"), "there are 1 graphs for 3 classes"),
}


@pytest.fixture(scope="module")
def models() -> dict[str, onnx.ModelProto]:
    bare = explain_tiny()[2]
    return {
        "all": attach_graph(bare, tiny_graph(bare)),
        "each": attach_graph(bare, tiny_graph(bare, NAMES)),
        "soft": attach_graph(bare, tiny_graph(bare), form="soft"),
    }


@pytest.fixture(scope="module")
def client(models: dict[str, onnx.ModelProto], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    root = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        write_atomically(root / name / "1" / "model.onnx", model.SerializeToString())
    for name, (change, _) in BAD.items():
        write_atomically(root / name / "1" / "model.onnx", changed(models["all"], change))
    with running_server("--repository", str(root), "--log-level", "error") as (address, _), Client(address) as client:
        client.address = address
        yield client


@pytest.mark.parametrize("name", ["all", "each", "soft"])
def test_an_answer_is_what_the_analyzers_compute(client: Client, models: dict[str, onnx.ModelProto], name: str) -> None:
    session = open_session(models[name].SerializeToString(), threads=1)
    manifest = Manifest.from_metadata(session.metadata)
    outputs = session.run_images(manifest, to_model_input(PICTURES.decoded(SIZE, SIZE)))
    frame = Frame(1, 1, SIZE, SIZE)
    seen = 0
    for row, answer in enumerate(client.explain(PICTURES.encoded, model=name)):
        expected = explain(manifest, outputs, row, frame, Wanted())
        (answer,), (expected,) = unsigned([answer]), unsigned([expected])
        assert as_sent(asdict(answer)) == as_sent(asdict(expected))
        graph = answer.explanatory_graph
        assert graph.class_name == (answer.predictions[0].class_name if name == "each" else "")
        known = {(node.layer, node.node) for node in graph.nodes}
        assert all((node.layer - 1, parent) in known for node in graph.nodes for parent in node.parents)
        assert all(0 <= node.x <= SIZE and 0 <= node.y <= SIZE and 0 <= node.percentile <= 100 for node in graph.nodes)
        seen += sum(len(node.parents) for node in graph.nodes)
    assert seen > 10


def test_fewer_nodes_and_only_strong_ones_are_answered_on_request(client: Client) -> None:
    (whole,) = client.explain(PICTURES.encoded[0], model="all")
    (few,) = client.explain(PICTURES.encoded[0], model="all", max_nodes=1)
    (strong,) = client.explain(PICTURES.encoded[0], model="all", min_percentile=50)
    assert [node.layer for node in few.explanatory_graph.nodes] == [0, 1]
    expected = [node.node for node in whole.explanatory_graph.nodes if node.percentile >= 50]
    assert [node.node for node in strong.explanatory_graph.nodes] == expected
    assert 0 < len(expected) < len(whole.explanatory_graph.nodes)
    (without,) = client.explain(PICTURES.encoded[0], model="all", rows=["parts"])
    assert without.explanatory_graph is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_nodes": -3}, "max_nodes: is -3; expected 0 \\(the default\\) or more"),
        ({"min_percentile": 120.0}, "min_percentile: is 120; expected 0 to 100"),
        ({"min_percentile": float("nan")}, "min_percentile: is nan; expected 0 to 100"),
    ],
)
def test_a_wrong_request_says_which_field(client: Client, options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ServerError, match=sentence) as caught:
        client.explain(PICTURES.encoded[0], model="all", **options)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


def test_files_that_do_not_fit_are_refused_and_the_others_served(client: Client) -> None:
    status = {model.model: model for model in client.list_models()}
    assert {name for name, model in status.items() if model.ready} == {"all", "each", "soft"}
    for name, (_, sentence) in BAD.items():
        assert sentence in status[name].problem
    assert list(status["all"].rows) == ["parts", "explanatory_graph", "class_features"]


def test_a_model_says_which_layers_its_graph_has(client: Client) -> None:
    with grpc.insecure_channel(client.address) as channel:
        answer = pb_grpc.ExplainServiceStub(channel).GetModel(pb.GetModelRequest(model="all"))
    assert [(layer.layer, layer.nodes) for layer in answer.graph_layers] == [("relu", 9), ("relu", 13)]


def test_the_command_prints_the_tree(client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(PICTURES.encoded[0])
    command = ["explain", str(tmp_path / "a.png"), "--server", client.address, "--model=all"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "explanatory graph: " in printed
    assert "\n      layer 1 node " in printed
    assert main([*command, "--nodes=1", "--min-percentile=1", "--json"]) == 0
    nodes = json.loads(capsys.readouterr().out)[0]["explanatory_graph"]["nodes"]
    assert [node["layer"] for node in nodes] == [0, 1]
