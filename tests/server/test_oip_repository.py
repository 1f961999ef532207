"""Listing, loading and unloading models over the Open Inference Protocol: what is asked of a repository, and one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import tritonclient.grpc as triton
from google.protobuf.message import Message
from tritonclient.utils import InferenceServerException

from analyzers.errors import InvalidInputError, PellucidError
from analyzers.files import write_atomically
from server.errors import NotAllowedError, UnknownModelError, UnsupportedError
from server.oip import InferenceService, Unary
from server.oip_messages import oip
from server.request import Limits
from server.settings import Settings
from tests.conftest import running_server
from tests.server.test_oip_infer import FLOATS, given


class Shelf:
    """Does as a repository does, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def index(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(name="owls", version="1", state="READY", reason=""),
            SimpleNamespace(name="owls", version="2", state="UNAVAILABLE", reason="the file is damaged"),
        ]

    def load(self, name: str) -> None:
        if name != "owls":
            raise UnknownModelError(name, f"model: there is no model '{name}'; there are owls")
        self.told.append(("load", name))

    def unload(self, name: str) -> None:
        self.told.append(("unload", name))


def ask(shelf: Shelf, method: str, request: Message, *, model_control: bool = True) -> Message:
    settings = Settings(repository=Path(), model_control=model_control)
    with ThreadPoolExecutor(1) as decoders:
        service = InferenceService(shelf, Limits(8, 100), settings, decoders)
        call = service.methods()[method]
        assert isinstance(call, Unary)
        return asyncio.run(call.answer(call.request.FromString(request.SerializeToString())))


def test_every_version_is_listed_with_its_state_and_reason() -> None:
    listed = ask(Shelf(), "RepositoryIndex", oip.RepositoryIndexRequest(), model_control=False)
    assert [(one.name, one.version, one.state, one.reason) for one in listed.models] == [
        ("owls", "1", "READY", ""),
        ("owls", "2", "UNAVAILABLE", "the file is damaged"),
    ]


def test_only_ready_versions_are_listed_where_only_those_are_wanted() -> None:
    listed = ask(Shelf(), "RepositoryIndex", oip.RepositoryIndexRequest(ready=True))
    assert [(one.name, one.version) for one in listed.models] == [("owls", "1")]


LOAD, UNLOAD = oip.RepositoryModelLoadRequest, oip.RepositoryModelUnloadRequest


@pytest.mark.parametrize("field", ["model_name", "repository_name"])
def test_a_model_is_loaded_and_unloaded_by_name_wherever_the_client_puts_it(field: str) -> None:
    shelf = Shelf()
    ask(shelf, "RepositoryModelLoad", LOAD(**{field: "owls"}))
    ask(shelf, "RepositoryModelUnload", UNLOAD(**{field: "owls"}))
    assert shelf.told == [("load", "owls"), ("unload", "owls")]


REFUSED: dict[str, tuple[type[Message], dict[str, object], type[PellucidError], str]] = {
    "no name": (LOAD, {}, InvalidInputError, "model_name: is empty"),
    "an unknown model": (LOAD, {"model_name": "lions"}, UnknownModelError, "there is no model 'lions'"),
    "a configuration": (LOAD, {"parameters": {"config": "{}"}}, UnsupportedError, r"parameters\[config\]"),
    "a file": (LOAD, {"parameters": {"file:1/model.onnx": b"x"}}, UnsupportedError, r"parameters\[file:1/model.onnx"),
    "no name to unload": (UNLOAD, {}, InvalidInputError, "model_name: is empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_loaded_is_refused_with_a_sentence_and_loads_nothing(name: str) -> None:
    kind, fields, error, words = REFUSED[name]
    request = kind(**{key: value for key, value in fields.items() if key != "parameters"})
    for key, value in fields.get("parameters", {}).items():
        request.model_name = "owls"
        request.parameters[key].MergeFrom(
            oip.ModelRepositoryParameter(**{"bytes_param" if isinstance(value, bytes) else "string_param": value})
        )
    shelf = Shelf()
    method = "RepositoryModelLoad" if kind is LOAD else "RepositoryModelUnload"
    with pytest.raises(error, match=words):
        ask(shelf, method, request)
    assert not shelf.told


@pytest.mark.parametrize(
    ("method", "request_"),
    [("RepositoryModelLoad", LOAD(model_name="owls")), ("RepositoryModelUnload", UNLOAD(model_name="owls"))],
)
def test_clients_may_neither_load_nor_unload_unless_the_server_allows_it(method: str, request_: Message) -> None:
    shelf = Shelf()
    with pytest.raises(NotAllowedError, match="--model-control"):
        ask(shelf, method, request_, model_control=False)
    assert not shelf.told


def test_the_extension_is_announced_where_it_works() -> None:
    told = ask(Shelf(), "ServerMetadata", oip.ServerMetadataRequest())
    assert "model_repository" in told.extensions


def test_a_model_goes_and_comes_back_over_the_wire(tmp_path: Path, tiny_model: bytes) -> None:
    write_atomically(tmp_path / "tiny" / "1" / "model.onnx", tiny_model)
    write_atomically(tmp_path / "torn" / "1" / "model.onnx", tiny_model[:5000])
    with (
        running_server("--repository", str(tmp_path), "--model-control", "--log-level", "error") as (
            address,
            _,
        ),
        triton.InferenceServerClient(address) as client,
    ):

        def listed() -> dict[str, tuple[str, bool]]:
            return {one.name: (one.state, bool(one.reason)) for one in client.get_model_repository_index().models}

        assert listed() == {"tiny": ("READY", False), "torn": ("UNAVAILABLE", True)}
        client.unload_model("tiny")
        assert not client.is_model_ready("tiny")
        assert listed()["tiny"][0] == "UNAVAILABLE"
        client.load_model("tiny")
        assert client.infer("tiny", [given(FLOATS)]).as_numpy("logits").shape == (4, 3)
        assert listed()["tiny"] == ("READY", False)
        for name, status in (("lion", "NOT_FOUND"), ("../tiny", "NOT_FOUND"), ("torn", "FAILED_PRECONDITION")):
            with pytest.raises(InferenceServerException) as caught:
                client.load_model(name)
            assert caught.value.status() == f"StatusCode.{status}"
            assert str(tmp_path) not in caught.value.message()
        with pytest.raises(InferenceServerException, match="models come from the repository"):
            client.load_model("tiny", config="{}", files={"file:1/model.onnx": tiny_model})
