"""Certificates of an authority that exists for the tests alone."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.client import Tls


class Authority:
    """Certifies whoever asks, and keeps the files in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._ca, self._folder = trustme.CA(), folder
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def certify(self, file: str, *names: str, common_name: str | None = None) -> tuple[Path, Path]:
        """Write a certificate of these names and its key; returns where they are."""
        made = self._ca.issue_cert(*names, common_name=common_name)
        return self._write(file, made.cert_chain_pems[0].bytes(), made.private_key_pem.bytes())

    def certify_uri(self, file: str, uri: str) -> tuple[Path, Path]:
        """Write a certificate with a URI for a name, as SPIFFE has it."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_pem_x509_certificate(self._ca.cert_pem.bytes())
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
            .sign(serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None), hashes.SHA256())
        )
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        return self._write(
            file,
            made.public_bytes(pem),
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain),
        )

    def client(self, certificate: tuple[Path, Path] | None = None) -> Tls:
        """Return how a client that trusts this authority connects, with a certificate of its own or without."""
        return Tls(self.file) if certificate is None else Tls(self.file, *certificate)

    def _write(self, file: str, certificate: bytes, key: bytes) -> tuple[Path, Path]:
        paths = self._folder / f"{file}.pem", self._folder / f"{file}.key"
        for path, data in zip(paths, (certificate, key), strict=True):
            path.write_bytes(data)
        return paths


def tls_arguments(certificate: tuple[Path, Path], client_ca: Path | None = None) -> list[str]:
    """Return the settings of a server with this certificate."""
    arguments = ["--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1])]
    return arguments if client_ca is None else [*arguments, "--tls-client-ca", str(client_ca)]
