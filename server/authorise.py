"""Who may do what: tokens and certificates with their scopes, from a file that is read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from analyzers.errors import PellucidError
from server.client_environment import TOKEN as CLIENT_TOKEN
from server.errors import MissingScopeError, UnauthenticatedError
from server.settings import Settings, is_loopback
from server.watched import Watched

log = logging.getLogger("pellucid.server")

Scope = Literal["read", "admin"]
Metadata = Iterable[tuple[str, str | bytes]]

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
HEADER = "authorization"
LONGEST_TOKEN = 4096  # bytes; what is longer is not even hashed

OPEN = {  # what probes ask, and what says nothing about models
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
}
ADMIN = {
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
}

_STRICT = ConfigDict(extra="forbid", frozen=True)
_SENT = "expected a token that the server knows, as metadata 'authorization: Bearer TOKEN'"


class AccessFileError(PellucidError):
    """The file of tokens and certificates cannot be used."""


class TokenEntry(BaseModel):
    """A token, of which only the hash is known, and what it is good for."""

    model_config = _STRICT
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]


class CertificateEntry(BaseModel):
    """What whoever has a certificate may do."""

    model_config = _STRICT
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]


class Access(BaseModel):
    """The whole file.

    Attributes:
        tokens: by a name for the log.
        certificates: by one of the certificate's alternative names (URI, DNS, ...), or its common name.
    """

    model_config = _STRICT
    tokens: dict[Annotated[str, Field(pattern=f"^{NAME.pattern}$")], TokenEntry] = {}
    certificates: dict[str, CertificateEntry] = {}


class Authoriser:
    """Says who calls, and refuses who may not.

    Args:
        access: what the file says.
    """

    def __init__(self, access: Callable[[], Access]) -> None:
        self._access = access

    def caller(self, method: str, metadata: Metadata, names: Callable[[], Iterable[str]]) -> str:
        """Return the name of who calls a method; empty where anybody may.

        Args:
            method: "/package.Service/Method".
            metadata: what came with the call.
            names: returns the names of the client's certificate, which has been checked; asked where no token came.

        Raises:
            UnauthenticatedError: nobody that we know.
            MissingScopeError: somebody that may not do this.
        """
        if method in OPEN:
            return ""
        access = self._access()
        headers = [value for key, value in metadata if key == HEADER]
        name, scopes = _by_token(access, headers) if headers else _by_certificate(access, names())
        needed: Scope = "admin" if method in ADMIN else "read"
        if needed not in scopes:
            raise MissingScopeError(
                f"'{name}' may not call {method.rpartition('/')[2]}; expected a token or a certificate with the scope"
                f" '{needed}', this one has {' and '.join(sorted(scopes))}"
            )
        return name


def open_authoriser(settings: Settings) -> Authoriser | None:
    """Return who decides; None where anybody may do everything that the settings allow.

    Raises:
        AccessFileError: the file cannot be used now.
    """
    if settings.tokens is None:
        return None
    path, certificates = settings.tokens, settings.tls_client_ca is not None
    return Authoriser(Watched((path,), lambda: read_access(path, certificates=certificates)).value)


def read_access(path: Path, *, certificates: bool) -> Access:
    """Read who may do what.

    Args:
        path: the file.
        certificates: whether clients' certificates are checked, without which none may be named.

    Raises:
        AccessFileError: it cannot be read, or is not what it should be.
    """
    try:
        access = Access.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise AccessFileError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]  # a token might stand where its hash should
        place = ".".join(map(str, first["loc"]))
        raise AccessFileError(f"{path}: {place}: {first['msg']}; `pellucid-serve token NAME` prints an entry") from None
    except ValueError as error:
        raise AccessFileError(f"{path} is not a TOML file: {error}") from None
    if not access.tokens and not access.certificates:
        raise AccessFileError(f"{path} names nobody, so nobody could ask; `pellucid-serve token NAME` prints an entry")
    if access.certificates and not certificates:
        raise AccessFileError(f"{path} names certificates, which nobody checks; expected --tls-client-ca")
    known: dict[str, str] = {}
    for name, entry in access.tokens.items():
        if (other := known.setdefault(entry.sha256, name)) != name:
            raise AccessFileError(f"{path}: tokens.{other} and tokens.{name} are the same token; expected one each")
    return access


def warn_of_open_door(settings: Settings, environment: Mapping[str, str]) -> None:
    """Say so where anybody may ask and nobody may have meant it."""
    if not is_loopback(settings.host) and settings.tls_certificate is None and settings.tokens is None:
        log.warning(
            "whoever reaches %s may ask, and it can be read on the way; --tls-certificate and --tokens change that",
            settings.host,
        )
    if settings.tokens is None and CLIENT_TOKEN in environment:
        log.warning("%s is what clients send and guards nothing here; the setting is --tokens", CLIENT_TOKEN)


def certificate_names(context: Mapping[str, Iterable[bytes]]) -> list[str]:
    """Return the names in a client's certificate, as gRPC's authentication context has them; none without TLS."""
    keys = ("x509_subject_alternative_name", "x509_common_name")
    return [name.decode("utf-8", "replace") for key in keys for name in context.get(key, ())]


def _by_token(access: Access, headers: list[str | bytes]) -> tuple[str, frozenset[Scope]]:
    """Find a token in a time that does not tell how much of it was right."""
    header = headers[0]
    if len(headers) > 1 or not isinstance(header, str):
        raise UnauthenticatedError(f"'{HEADER}' came {len(headers)} times or is not text; {_SENT}")
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip() or len(token) > LONGEST_TOKEN:
        raise UnauthenticatedError(f"'{HEADER}' is not 'Bearer TOKEN'; {_SENT}")
    digest = hashlib.sha256(token.strip().encode()).hexdigest()
    found: tuple[str, frozenset[Scope]] | None = None
    for name, entry in access.tokens.items():
        if hmac.compare_digest(entry.sha256, digest):
            found = name, entry.scopes
    if found is None:
        raise UnauthenticatedError(f"the token is none that the server knows; {_SENT}")
    return found


def _by_certificate(access: Access, names: Iterable[str]) -> tuple[str, frozenset[Scope]]:
    came = False
    for name in names:
        came = True
        if (entry := access.certificates.get(name)) is not None:
            return name, entry.scopes
    if came:
        raise UnauthenticatedError(f"the server knows the client's certificate by none of its names; {_SENT}")
    raise UnauthenticatedError(f"no token came with the call; {_SENT}")
