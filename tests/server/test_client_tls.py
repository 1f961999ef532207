"""What a client sends to prove who it is, and to whom it does not send it; both clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from analyzers.errors import InvalidInputError
from server.channels import Connection
from server.client import Client, Tls
from server.command import main
from tests.server.certificates import Authority
from tests.server.client_fakes import Ask, both, echo, fake_server

TOKEN = "a-token-1q2w3e"  # noqa: S105 (nobody's)


def sent(fake: Any) -> list[str | None]:  # noqa: ANN401
    return [metadata.get("authorization") for metadata in fake.metadata]


@both
def test_a_token_goes_with_every_call(ask: Ask, tmp_path: Path) -> None:
    with fake_server(echo) as fake:
        ask(fake.address, "explain", b"1", client={"token": TOKEN})
        ask(fake.address, "explain", b"1")
        assert sent(fake) == [f"Bearer {TOKEN}", None]


def test_a_token_s_file_is_read_anew_for_each_call(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    with fake_server(echo) as fake, Client(fake.address, token=path) as client:
        client.explain(b"1")
        path.write_text(" second \n")
        client.explain(b"1")
        assert sent(fake) == ["Bearer first", "Bearer second"]
        path.write_text("\n")
        with pytest.raises(InvalidInputError, match=r"token: in .* is empty"):
            client.explain(b"1")
        path.unlink()
        with pytest.raises(OSError, match="No such file"):
            client.explain(b"1")


@pytest.mark.parametrize("target", ["10.0.0.7:1", "dns:///host:1", "localhost:1,host:1", "[2001:db8::1]:1", "xds:host"])
def test_a_token_is_not_sent_in_the_clear_to_another_machine(target: str) -> None:
    with pytest.raises(InvalidInputError, match="in the clear; expected tls, or token_in_clear") as caught:
        Connection(target, token=TOKEN)
    assert TOKEN not in str(caught.value)
    for allowed in ({"tls": Tls()}, {"token_in_clear": True}, {"credentials": grpc.ssl_channel_credentials()}):
        assert Connection(target, token=TOKEN, **allowed).call_metadata()


@pytest.mark.parametrize("target", ["127.0.0.2:1", "localhost:1", "[::1]:1", "unix:/run/x", "dns:///localhost:1"])
def test_a_token_is_sent_within_the_machine(target: str) -> None:
    assert Connection(target, token=TOKEN).call_metadata() == (("authorization", f"Bearer {TOKEN}"),)


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "\u00e4"])
def test_what_is_no_token_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^token: ") as caught:
        Connection("127.0.0.1:1", token=token)
    assert not token or token not in str(caught.value)


def test_nobody_reads_a_token_in_what_a_connection_prints() -> None:
    shown = repr(Connection("127.0.0.1:1", token=TOKEN, metadata=[("authorization", f"Bearer {TOKEN}")]))
    assert TOKEN not in shown


def test_tls_and_credentials_are_one_or_the_other() -> None:
    with pytest.raises(InvalidInputError, match="credentials: are set beside tls"):
        Connection("127.0.0.1:1", tls=Tls(), credentials=grpc.ssl_channel_credentials())


def test_files_that_are_no_certificates_are_one_sentence(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.certify("web", "web.example")
    _, other = authority.certify("other", "other.example")
    (tmp_path / "empty").write_bytes(b"")
    assert Tls(authority.file, certificate, key).credentials()
    for tls in (Tls(tmp_path / "empty"), Tls(key), Tls(None, certificate, other), Tls(None, key, key)):
        with pytest.raises(InvalidInputError, match="expected PEM certificates, and a key that belongs to them"):
            tls.credentials()
    with pytest.raises(FileNotFoundError):
        Client("127.0.0.1:1", tls=Tls(tmp_path / "gone"))
    with pytest.raises(InvalidInputError, match="without the other"):
        Tls(certificate=certificate)


def test_the_command_takes_a_token_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "picture.png").write_bytes(b"1")
    with fake_server(echo) as fake:
        asking = ["explain", str(tmp_path / "picture.png"), "--server", fake.address, "--json"]
        assert main([*asking, "--token-file", str(tmp_path / "token")]) == 0
        monkeypatch.setenv("PELLUCID_TOKEN", "from-the-environment")
        assert main(asking) == 0
        monkeypatch.setenv("PELLUCID_TOKEN_FILE", str(tmp_path / "token"))
        assert main(asking) == 0
        assert main([*asking, "--token-file", str(tmp_path / "gone")]) == 1
        assert sent(fake) == [f"Bearer {TOKEN}", "Bearer from-the-environment", f"Bearer {TOKEN}"]
    capsys.readouterr()
    assert main(["models", "--server", "10.0.0.7:50051"]) == 1
    assert "in the clear" in capsys.readouterr().err


def test_health_by_command_sends_no_token_and_fails_where_the_server_does_not_serve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from grpc_health.v1 import health_pb2

    monkeypatch.setenv("PELLUCID_TOKEN", TOKEN)
    with fake_server(echo) as fake:
        assert main(["health", "--server", fake.address]) == 0
        fake.say(health_pb2.HealthCheckResponse.NOT_SERVING)
        assert main(["health", "--server", fake.address]) == 1
    captured = capsys.readouterr()
    assert captured.out == "SERVING\nNOT_SERVING\n"
    assert captured.err == f"pellucid: error: {fake.address} says NOT_SERVING; expected SERVING\n"
    assert main(["health", "--server", fake.address, "--timeout", "1"]) == 1
