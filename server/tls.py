"""The server's certificates: checked when it starts, read again when they change, without losing a connection."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from analyzers.errors import PellucidError
from server.settings import Settings
from server.watched import Watched


class CertificateError(PellucidError):
    """A certificate, a key or a list of authorities that cannot be used."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the server's certificates are.

    Attributes:
        certificate: PEM, the server's first and then those it rests on.
        key: PEM, not encrypted.
        client_ca: PEM, who may certify clients; None where clients need no certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path is not None)

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Read and check the files.

        Raises:
            CertificateError: one cannot be read or is not what it should be, or they do not belong together.
        """
        self._check()
        certificate, key = _read(self.certificate), _read(self.key)
        authorities = None if self.client_ca is None else _read(self.client_ca)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)

    def _check(self) -> None:
        for path in self.paths:
            _read(path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password here OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self.certificate, self.key, password=b"")
        except (ssl.SSLError, ValueError) as error:
            expected = f"{self.certificate} and {self.key} are not a certificate and its key, both PEM, not encrypted"
            raise CertificateError(f"{expected}: {_reason(error)}") from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise CertificateError(f"{self.client_ca} has no certificates, PEM: {_reason(error)}") from None


def tls_files(settings: Settings) -> TlsFiles | None:
    """Return where the certificates are; None where the server has none."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that follow the files; connections that are open keep what they were opened with.

    Raises:
        CertificateError: the files cannot be used now.
    """
    watched = Watched(files.paths, files.read)
    first = given = watched.value()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """Return what the next handshakes are to use; None where that is what the last one used."""
        nonlocal given
        if given is (now := watched.value()):
            return None
        given = now
        return now

    return grpc.dynamic_ssl_server_credentials(
        first,
        changed,  # type: ignore[arg-type]  # None is what gRPC wants where nothing is new
        require_client_authentication=files.client_ca is not None,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)
