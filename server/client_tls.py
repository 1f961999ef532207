"""How a client proves who it is and checks who the server is: TLS and tokens."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from analyzers.errors import InvalidInputError

_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS to a server.

    Attributes:
        ca: PEM file of who may certify the server; None takes the authorities that gRPC comes with.
        certificate: PEM file of the client's own certificate, where the server wants one.
        key: PEM file of its key.
        server_name: the name that the server's certificate must have; the one in the target where left out.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidInputError("tls", "has a certificate or a key without the other; expected both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            InvalidInputError: one is not what it should be, or certificate and key do not belong together.
            OSError: one cannot be read.
        """
        self._check()
        ca, key, certificate = map(_read, (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def _check(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password=b"")
        except (ssl.SSLError, ValueError) as error:
            files = ", ".join(str(each) for each in (self.ca, self.certificate, self.key) if each is not None)
            expected = "expected PEM certificates, and a key that belongs to them and is not encrypted"
            raise InvalidInputError("tls", f"{files}: {getattr(error, 'reason', None) or error}; {expected}") from None


def bearer(token: str | Path) -> tuple[str, str]:
    """Return the metadata of a token, or of what a file has for one just now.

    Raises:
        InvalidInputError: it is no token; the sentence does not say what it is.
        OSError: the file cannot be read.
    """
    text = token.read_text(encoding="utf-8", errors="replace").strip() if isinstance(token, Path) else token
    if not _TOKEN.fullmatch(text):
        where = f"in {token} " if isinstance(token, Path) else ""
        raise InvalidInputError("token", f"{where}is empty, or not letters, digits and punctuation without spaces")
    return "authorization", f"Bearer {text}"


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
