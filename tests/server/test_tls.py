"""TLS and mTLS: who is answered, certificates that change while the server runs, files that are none."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from analyzers.errors import PellucidError
from server.client import Client, ServerError, Tls
from server.command import main
from server.tls import CertificateError, TlsFiles
from server.watched import Watched
from tests.conftest import ROOT, random_pictures, running_server
from tests.server.certificates import Authority, tls_arguments

PICTURE = random_pictures(1).encoded[0]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def encrypted(authority: Authority, repository: Path) -> Iterator[str]:
    """The address of a server with TLS that asks clients for nothing."""
    certificate = authority.certify("server", "127.0.0.1", "pellucid.example")
    with running_server("--repository", str(repository), *tls_arguments(certificate)) as (address, _):
        yield address


def asked(address: str, tls: Tls | None) -> int:
    """Open a connection of one's own and ask; returns how many models there are."""
    with Client(address, tls=tls, retries=0, timeout_seconds=10, channels=2) as client:
        return len(client.list_models())


def refused(address: str, tls: Tls | None) -> bool:
    with pytest.raises(ServerError) as caught:
        asked(address, tls)
    return caught.value.code is grpc.StatusCode.UNAVAILABLE


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_whoever_knows_the_authority_is_answered_and_nobody_else(
    authority: Authority, encrypted: str, tmp_path: Path
) -> None:
    with Client(encrypted, tls=authority.client()) as client:
        assert client.explain(PICTURE)[0].predictions
    assert refused(encrypted, None)
    assert refused(encrypted, Authority(tmp_path).client())
    assert refused(encrypted, Tls())  # public authorities know nothing of ours
    with pytest.raises(ServerError, match=r"expected a server with TLS, its certificate of the authority \(ca\)"):
        asked(encrypted, Tls())
    with pytest.raises(ServerError, match="one that wants TLS"):
        asked(encrypted, None)


def test_the_server_s_name_is_checked(authority: Authority, encrypted: str) -> None:
    assert asked(encrypted, Tls(authority.file, server_name="pellucid.example"))
    assert refused(encrypted, Tls(authority.file, server_name="other.example"))


def test_with_a_client_ca_only_those_with_its_certificates_are_answered(
    authority: Authority, repository: Path, tmp_path: Path
) -> None:
    arguments = [*tls_arguments(authority.certify("both", "127.0.0.1"), authority.file), "--log-format", "json"]
    stranger = Authority(tmp_path, "stranger").certify("web", "web.example")
    with running_server("--repository", str(repository), *arguments) as (address, process):
        assert asked(address, authority.client(authority.certify("web", "web.example")))
        assert refused(address, authority.client())
        assert refused(address, authority.client(stranger))
        process.terminate()
        assert all(json.loads(line) for line in process.stderr.read().splitlines())  # gRPC's own core writes none


@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_new_certificate_is_used_without_losing_a_connection_and_a_broken_one_is_not(
    repository: Path, tmp_path: Path, processes: str
) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    paths = old.certify("server", "127.0.0.1")
    arguments = ["--repository", str(repository), "--processes", processes, *tls_arguments(paths)]
    with running_server(*arguments) as (address, process), Client(address, tls=old.client(), retries=0) as open_already:
        assert open_already.list_models()
        paths[0].write_text("broken")
        for _ in range(8):  # longer than the server takes to look
            assert asked(address, old.client())
            time.sleep(0.2)
        assert new.certify("server", "127.0.0.1") == paths

        def everywhere() -> bool:
            try:
                return all(asked(address, new.client()) for _ in range(6))
            except ServerError:
                return False

        until(everywhere)
        assert refused(address, old.client())
        assert open_already.list_models()
        process.terminate()
        said = process.stderr.read()
    count = said.count("changed and cannot be used")
    assert 1 <= count <= int(processes)
    assert "changed and was read again" in said


def test_what_is_wrong_with_files_at_the_start_is_one_sentence(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.certify("good", "127.0.0.1")
    _, other = authority.certify("other", "127.0.0.1")
    locked, empty, gone = tmp_path / "locked.key", tmp_path / "empty.pem", tmp_path / "gone.pem"
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    empty.write_bytes(b"")
    assert TlsFiles(certificate, key, authority.file).read()
    for files, words in (
        (TlsFiles(gone, key, None), f"{gone} cannot be read: No such file"),
        (TlsFiles(certificate, tmp_path, None), f"{tmp_path} cannot be read: Is a directory"),
        (TlsFiles(certificate, other, None), "are not a certificate and its key"),
        (TlsFiles(key, certificate, None), "are not a certificate and its key"),
        (TlsFiles(empty, key, None), "are not a certificate and its key"),
        (TlsFiles(certificate, locked, None), "are not a certificate and its key"),
        (TlsFiles(certificate, key, gone), f"{gone} cannot be read: No such file"),
        (TlsFiles(certificate, key, empty), f"{empty} has no certificates"),
        (TlsFiles(certificate, key, key), f"{key} has no certificates"),
    ):
        with pytest.raises(CertificateError) as caught:
            files.read()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_server_with_a_bad_certificate_does_not_start(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("bad")
    bad = tmp_path / "bad.pem"
    command = [sys.executable, "-m", "server", "--port=0", f"--repository={repository}", *tls_arguments((bad, bad))]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, stdin=subprocess.DEVNULL)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.splitlines()[-1].startswith(f"pellucid-serve: error: {bad} and {bad} are not a certificate and")
    assert "Traceback" not in run.stderr


def test_files_are_read_again_when_they_change_and_complained_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "number"

    def read() -> int:
        text = path.read_text()
        if not text.isdigit():
            raise PellucidError("it is no number")
        return int(text)

    path.write_text("1")
    with caplog.at_level(logging.INFO):
        watched = Watched((path,), read, look_seconds=0)
        assert [watched.value() for _ in range(3)] == [1] * 3
        assert caplog.text == ""
        path.write_text("none")
        assert [watched.value() for _ in range(3)] == [1] * 3
        assert caplog.text.count("it is no number") == 1
        path.unlink()
        assert [watched.value() for _ in range(3)] == [1] * 3
        assert caplog.text.count("cannot be used") == 2
        (tmp_path / "next").write_text("22")
        (tmp_path / "next").rename(path)
        assert watched.value() == 22
        (tmp_path / "new").symlink_to(tmp_path / "b")  # as Kubernetes swaps a whole folder of secrets
        (tmp_path / "b").write_text("333")
        (tmp_path / "new").rename(path)
        assert watched.value() == 333


def test_between_looks_no_file_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "number"
    path.write_text("1")
    watched = Watched((path,), path.read_text, look_seconds=3600)
    path.write_text("22")
    assert watched.value() == "1"


def test_health_by_command_works_with_tls_and_without_a_token(
    authority: Authority,
    encrypted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asking = ["health", "--server", encrypted, "--timeout", "10"]
    assert main([*asking, "--ca", str(authority.file)]) == 0
    assert capsys.readouterr().out == "SERVING\n"
    assert main([*asking, "--ca", str(authority.file), "--service", "pellucid.v1.ExplainService", "--json"]) == 0
    assert capsys.readouterr().out == '{"status": "SERVING"}\n'
    for arguments, words in (
        ([], "UNAVAILABLE"),
        (["--tls"], "UNAVAILABLE"),
        (["--ca", str(Authority(tmp_path).file)], "UNAVAILABLE"),
        (["--ca", str(authority.file), "--service", "nothing"], "NOT_FOUND: service: there is no 'nothing'"),
        (["--ca", str(tmp_path / "gone")], "No such file"),
        (["--ca", str(authority.file), "--key", str(authority.file)], "tls: has a certificate or a key without"),
    ):
        assert main([*asking, *arguments]) == 1
        captured = capsys.readouterr()
        assert words in captured.err
        assert captured.err.count("\n") == 1
    monkeypatch.setenv("PELLUCID_SERVER", encrypted)
    monkeypatch.setenv("PELLUCID_CA", str(authority.file))
    monkeypatch.setenv("PELLUCID_SERVER_NAME", "pellucid.example")
    assert main(["health"]) == 0
    assert main(["models"]) == 0
