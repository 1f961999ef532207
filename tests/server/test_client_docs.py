"""The snippets and commands of docs/client.md run as they stand, against a real server."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest

from analyzers.files import write_atomically
from server import client_errors, errors
from server.channels import Connection
from server.client import Client
from server.command import _parser
from tests.conftest import ROOT, random_pictures, running_server
from tests.server.certificates import Authority

TEXT = (ROOT / "docs" / "client.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
ADDRESSES = ("127.0.0.1:50051", "10.0.0.7:50051", "10.0.0.8:50051")


@pytest.fixture(scope="module")
def creatures(tmp_path_factory: pytest.TempPathFactory, tiny_model: bytes) -> str:
    """The address of a server with the model that the snippets ask for."""
    root = tmp_path_factory.mktemp("models")
    write_atomically(root / "creatures" / "1" / "model.onnx", tiny_model)
    with running_server("--repository", str(root), "--log-level", "warning") as (address, _):
        yield address


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_every_snippet_runs(
    snippet: str, creatures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    for name, encoded in zip(("fox.png", "owl.png", "pictures/a.png"), random_pictures(3).encoded, strict=True):
        (tmp_path / name).write_bytes(encoded)
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no picture")
    Authority(tmp_path)  # writes ca.pem
    (tmp_path / "token").write_text("secret")
    monkeypatch.chdir(tmp_path)
    for address in ADDRESSES:
        snippet = snippet.replace(address, creatures)
    exec(compile(snippet, "client.md", "exec"), {})  # noqa: S102 (our own text)
    assert ("print" in snippet) == bool(capsys.readouterr().out)


def test_what_the_error_snippet_says_it_prints_is_what_it_prints(creatures: str, tmp_path: Path) -> None:
    (tmp_path / "fox.png").write_bytes(random_pictures(1).encoded[0])
    with Client(creatures) as client, pytest.raises(client_errors.ServerError) as caught:
        client.explain([tmp_path / "fox.png", b"not a picture"], model="creatures")
    assert str(caught.value).startswith("INVALID_ARGUMENT: encoded_images[1]: is not a picture")
    assert (caught.value.reason, caught.value.field) == ("INVALID_INPUT", "encoded_images[1]")


def test_every_command_is_understood() -> None:
    commands = [line.partition(" >")[0] for line in re.findall(r"^pellucid .*$", TEXT, re.MULTILINE)]
    assert commands
    for line in commands:
        _parser().parse_args(shlex.split(line)[1:])


def test_every_option_and_every_verb_is_documented() -> None:
    options = set(inspect.signature(Connection).parameters) - {"target"}
    verbs = {name for name in vars(Client) if not name.startswith("_")}
    assert {name for name in options | verbs - {"close"} if f"`{name}" not in TEXT} == set()


def test_the_reasons_of_the_table_are_the_server_s() -> None:
    sent = {reason for _, _, reason, _ in errors._STATUSES}
    documented = set(
        re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", "".join(line for line in TEXT.splitlines() if line[:1] == "|"))
    )
    assert {"UNAUTHENTICATED", "MISSING_SCOPE", "NOT_ALLOWED"} <= sent & documented
    assert {"INVALID_INPUT", "UNKNOWN_MODEL", "REFUSED_MODEL", "OVERLOADED", "EXPIRED", "STOPPING"} <= sent & documented
