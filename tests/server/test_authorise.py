"""Who may do what: tokens and certificates with scopes, and a file of them that changes while the server runs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.utils import InferenceServerException

from server import app
from server.__main__ import main
from server.authorise import ADMIN, OPEN, Access, AccessFileError, Authoriser, read_access, warn_of_open_door
from server.client import Client, ServerError, Tls
from server.errors import MissingScopeError, UnauthenticatedError
from server.oip import InferenceService
from server.oip_messages import SERVICE as OPEN_INFERENCE
from server.settings import Settings
from server.watched import Watched
from tests.conftest import random_pictures, running_server
from tests.server.certificates import Authority, tls_arguments

READ, ADMIN_TOKEN, BOTH, WRONG = "reads-9w8e7r", "administers-5t6y7u", "both-3e4r5t", "wrong-0p9o8i"
LIST = f"/{app.SERVICE}/ListModels"
LOAD = f"/{OPEN_INFERENCE}/RepositoryModelLoad"


def entry(name: str, token: str, *scopes: str) -> str:
    return f'[tokens.{name}]\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\nscopes = {json.dumps(scopes)}\n'


TOKENS = entry("web", READ, "read") + entry("deploy", ADMIN_TOKEN, "admin") + entry("boss", BOTH, "read", "admin")


def authoriser(text: str = TOKENS) -> Authoriser:
    return Authoriser(lambda: Access.model_validate(tomllib.loads(text)))


def caller(method: str, *headers: str | bytes, names: tuple[str, ...] = (), text: str = TOKENS) -> str:
    return authoriser(text).caller(method, [("authorization", each) for each in headers], lambda: names)


def test_a_token_is_good_for_its_scopes_alone() -> None:
    assert caller(LIST, f"Bearer {READ}") == "web"
    assert caller(LIST, f"bearer  {BOTH} ") == "boss"
    assert caller(LOAD, f"Bearer {BOTH}") == "boss"
    assert caller(LOAD, f"Bearer {ADMIN_TOKEN}") == "deploy"
    with pytest.raises(MissingScopeError, match=r"'web' may not call RepositoryModelLoad; expected .* scope 'admin'"):
        caller(LOAD, f"Bearer {READ}")
    with pytest.raises(MissingScopeError, match=r"'deploy' may not call ListModels; expected .* the scope 'read'"):
        caller(LIST, f"Bearer {ADMIN_TOKEN}")


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("",),
        (READ,),
        ("Bearer",),
        ("Bearer ",),
        (f"Basic {READ}",),
        (f"Bearer {READ}x",),
        (f"Bearer {READ[:-1]}",),
        (f"Bearer {hashlib.sha256(READ.encode()).hexdigest()}",),  # who has read the file has no token yet
        (f"Bearer {READ}".encode(),),
        (f"Bearer {READ}", f"Bearer {READ}"),
        ("Bearer " + "x" * 100_000,),
        ("Bearer \u00e4\u20ac\U0001f511",),
    ],
)
def test_whatever_is_no_known_token_is_refused_and_not_repeated(headers: tuple[str | bytes, ...]) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        caller(LIST, *headers)
    assert READ[:-1] not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_what_probes_ask_is_open_and_loading_and_unloading_are_all_that_administers() -> None:
    assert [caller(method) for method in sorted(OPEN)] == [""] * len(OPEN)
    calls = {
        f"/{OPEN_INFERENCE}/{name}"
        for name in InferenceService(None, None, Settings(repository=Path()), None).methods()
    }
    assert calls >= ADMIN | {method for method in OPEN if OPEN_INFERENCE in method}
    assert {method for method in calls if "Load" in method or "Unload" in method} == ADMIN


def test_a_certificate_is_known_by_any_of_its_names() -> None:
    text = '[certificates."spiffe://here/web"]\nscopes = ["read"]\n[certificates.ops]\nscopes = ["admin"]\n'
    assert caller(LIST, names=("web.example", "spiffe://here/web"), text=text) == "spiffe://here/web"
    assert caller(LOAD, names=("ops",), text=text) == "ops"
    with pytest.raises(UnauthenticatedError, match="knows the client's certificate by none of its names"):
        caller(LIST, names=("spiffe://here/web/more",), text=text)
    with pytest.raises(UnauthenticatedError, match="the token is none"):
        caller(LIST, "Bearer wrong", names=("spiffe://here/web",), text=text)  # wrong is wrong, whoever says it


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names nobody"),
        ("tokens = 1", "tokens: Input should be"),
        (entry("web", READ), "tokens.web.scopes: "),
        (entry("web", READ, "write"), "tokens.web.scopes.0: Input should be 'read' or 'admin'"),
        (f'[tokens.web]\nsha256 = "{READ}"\nscopes = ["read"]', "tokens.web.sha256: String should match"),
        ('[tokens.web]\nscopes = ["read"]', "tokens.web.sha256: Field required"),
        (entry("web", READ, "read") + "expires = 1", "tokens.web.expires: Extra inputs"),
        (entry('"a b"', READ, "read"), "tokens.a b.[key]: String should match"),
        ("[token.web]", "token: Extra inputs"),
        (entry("web", READ, "read") + entry("ops", READ, "admin"), "tokens.web and tokens.ops are the same token"),
        ('[certificates.web]\nscopes = ["read"]', "names certificates, which nobody checks; expected --tls-client-ca"),
        ("[tokens", "is not a TOML file"),
    ],
)
def test_a_wrong_file_is_one_sentence_without_what_may_be_a_token(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "tokens.toml").write_text(text)
    with pytest.raises(AccessFileError) as caught:
        read_access(tmp_path / "tokens.toml", certificates=False)
    assert str(caught.value).startswith(str(tmp_path / "tokens.toml"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert READ not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, words in (("gone", "cannot be read: No such file"), (".", "cannot be read"), ("binary", "is not a TOML")):
        with pytest.raises(AccessFileError, match=words):
            read_access(tmp_path / name, certificates=False)


def test_a_token_that_is_taken_out_of_the_file_lets_nobody_in_any_more(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(TOKENS)
    watched = Watched((path,), lambda: read_access(path, certificates=False), look_seconds=0)
    deciding = Authoriser(watched.value)
    assert deciding.caller(LIST, [("authorization", f"Bearer {READ}")], tuple) == "web"
    path.write_text("broken")
    assert deciding.caller(LIST, [("authorization", f"Bearer {READ}")], tuple) == "web"
    path.write_text(entry("web", "another", "read"))
    with pytest.raises(UnauthenticatedError):
        deciding.caller(LIST, [("authorization", f"Bearer {READ}")], tuple)
    assert deciding.caller(LIST, [("authorization", "Bearer another")], tuple) == "web"


def test_a_made_token_is_random_and_known_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = []
    for name, scopes in (("web", ["read"]), ("ops", ["admin", "read"])):
        assert main(["token", name, *(f"--scope={scope}" for scope in scopes)]) == 0
        captured = capsys.readouterr()
        tokens.append(captured.err.split()[-1])
        assert tokens[-1] not in captured.out
        with (tmp_path / "tokens.toml").open("a") as file:
            file.write(captured.out)
    access = read_access(tmp_path / "tokens.toml", certificates=False)
    deciding = Authoriser(lambda: access)
    assert deciding.caller(LIST, [("authorization", f"Bearer {tokens[0]}")], tuple) == "web"
    assert deciding.caller(LOAD, [("authorization", f"Bearer {tokens[1]}")], tuple) == "ops"
    assert all(len(token) >= 43 for token in tokens)
    assert len(set(tokens)) == 2


@pytest.mark.parametrize("arguments", [[], ["a b"], ["a", "--scope", "write"], ["x" * 65], ['a"]\n[tokens.b']])
def test_a_token_of_an_odd_name_or_scope_is_not_made(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["token", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


Running = tuple[str, subprocess.Popen]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Running]:
    """A server with tokens, which lets who may load models, and logs all that it ever does."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_text(TOKENS)
    with running_server(
        "--repository", str(repository), "--tokens", str(path), "--model-control", "--log-level=debug"
    ) as running:
        yield running


def test_over_the_wire_a_call_without_a_good_token_is_refused_with_details(guarded: Running) -> None:
    for token in (None, WRONG):
        with Client(guarded[0], token=token) as client, pytest.raises(ServerError) as caught:
            client.explain(random_pictures(1).encoded)
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert caught.value.request_id
        assert caught.value.tries == 1
    with Client(guarded[0], token=READ) as client:
        assert client.explain(random_pictures(1).encoded)


def test_over_the_wire_loading_a_model_needs_the_scope_admin(guarded: Running) -> None:
    client = triton.InferenceServerClient(guarded[0])
    with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
        client.load_model("tiny")
    with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
        client.load_model("tiny", headers={"authorization": f"Bearer {READ}"})
    with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
        client.get_model_metadata("tiny", headers={"authorization": f"Bearer {ADMIN_TOKEN}"})
    client.load_model("tiny", headers={"authorization": f"Bearer {ADMIN_TOKEN}"})
    assert client.get_model_metadata("tiny", headers={"authorization": f"Bearer {BOTH}"}).name == "tiny"
    client.close()


def test_over_the_wire_health_is_open_and_streams_are_not(guarded: Running) -> None:
    with Client(guarded[0]) as client:
        client.wait_until_ready()
    with grpc.insecure_channel(guarded[0]) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as caught:
            list(reflection.ServerReflectionInfo(iter([question])))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        header = (("authorization", f"Bearer {READ}"),)
        assert list(reflection.ServerReflectionInfo(iter([question]), metadata=header))
        infer = channel.stream_stream(f"/{OPEN_INFERENCE}/ModelStreamInfer")
        with pytest.raises(grpc.RpcError) as caught:
            list(infer(iter([b""])))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_certificates_say_who_somebody_is(repository: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    path = tmp_path / "tokens.toml"
    path.write_text(
        '[certificates."spiffe://here/web"]\nscopes = ["read"]\n[certificates.ops]\nscopes = ["read", "admin"]\n'
        + entry("web", READ, "read")
    )
    web = authority.client(authority.certify_uri("web", "spiffe://here/web"))
    ops = authority.client(authority.certify("ops", "ops.example", common_name="ops"))
    other = authority.client(authority.certify("other", "other.example"))
    arguments = tls_arguments(authority.certify("server", "127.0.0.1"), authority.file)
    with running_server(
        "--repository", str(repository), "--tokens", str(path), *arguments, "--access-log", "--log-format", "json"
    ) as (address, process):

        def ask(tls: Tls, token: str | None = None) -> None:
            with Client(address, tls=tls, token=token) as client:
                assert client.list_models()

        ask(web)
        ask(ops)
        ask(other, READ)
        for tls, token in ((other, None), (web, "wrong")):
            with pytest.raises(ServerError, match="UNAUTHENTICATED"):
                ask(tls, token)
        process.terminate()
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    called = [line for line in lines if line["logger"] == "pellucid.access"]
    assert [line.get("caller", "") for line in called] == ["spiffe://here/web", "ops", "web", "", ""]
    assert [line["status"] for line in called] == ["OK"] * 3 + ["UNAUTHENTICATED"] * 2
    assert [line["level"] for line in called] == ["info"] * 3 + ["warning"] * 2


def test_no_token_stands_in_any_log(guarded: Running) -> None:
    address, process = guarded
    for token in (READ, WRONG, ADMIN_TOKEN):
        with Client(address, token=token) as client:
            if token == READ:
                client.list_models()
            else:
                with pytest.raises(ServerError) as caught:
                    client.list_models()
                assert token not in str(caught.value)
    process.terminate()
    said = process.stdout.read() + process.stderr.read()
    assert said.count("ListModels") >= 3
    assert not any(token in said for token in (READ, WRONG, ADMIN_TOKEN, BOTH))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "whoever reaches 0.0.0.0 may ask"),  # noqa: S104 (it is what the warning is about)
        ({"host": "127.0.0.1"}, ""),
        ({"host": "0.0.0.0", "tokens": "t", "tokens_in_clear": True}, ""),  # noqa: S104
        ({"host": "0.0.0.0", "tls_certificate": "c", "tls_key": "k"}, ""),  # noqa: S104
    ],
)
def test_a_server_that_anybody_reaches_says_so(
    settings: dict[str, object], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_open_door(Settings(repository=Path(), **settings), {})
    assert words in caplog.text
    assert bool(words) == bool(caplog.records)


def test_a_client_s_token_in_the_place_of_the_setting_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_open_door(Settings(repository=Path()), {"PELLUCID_TOKEN": READ})
    assert "PELLUCID_TOKEN is what clients send" in caplog.text
    assert READ not in caplog.text
