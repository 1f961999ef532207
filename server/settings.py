"""Every setting of the server: command line, then `PELLUCID_...` in the environment, then a file, then the default.

`server.read_settings` reads them and says what is wrong with them.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from server.model_settings import ModelSettings
from server.settings_sources import ConfigFile, Environment

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]
MIB = 1024 * 1024
PROGRAM = "pellucid-serve"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address to listen on."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


# `--help` puts a title above the setting that is named here; it holds for those that follow.
GROUPS = {
    "config": "settings file",
    "repository": "where",
    "versions": "models",
    "device": "running",
    "max_requests": "what is too much",
    "metrics_port": "metrics and traces",
    "lame_duck_seconds": "stopping",
    "tls_certificate": "who may ask",
    "connection_age_seconds": "connections",
    "log_level": "log",
}


class Settings(BaseSettings):
    """Serve explained models over gRPC."""

    model_config = SettingsConfigDict(
        env_prefix="PELLUCID_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name=PROGRAM,
        cli_exit_on_error=False,
        cli_hide_none_type=True,
        cli_parse_none_str="none",
    )

    config: Path | None = Field(None, description="TOML file of these settings, each under its own name with _ for -")

    repository: Path = Field(description="folder with NAME/VERSION/model.onnx files")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(50051, description="port; 0 takes a free one")

    processes: Positive = Field(
        1,
        description="server processes on the port, each with its own copy of the models; more serve small ones faster",
    )

    versions: Literal["latest", "all"] | Positive = Field(
        "latest", description="which versions of a model to serve: latest, all, or how many of the newest"
    )
    poll_seconds: Seconds = Field(0.0, description="how often to look for changed models; 0 never looks")
    model_control: bool = Field(False, description="let clients load and unload models")
    vet_seconds: Annotated[float, Field(gt=0)] = Field(120.0, description="time a model file may take in its trial")
    vet_memory_bytes: Positive = Field(8192 * MIB, description="memory a model file may take in its trial")

    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="gpu refuses to fall back to the CPU")
    workers: Positive = Field(os.cpu_count() or 1, description="runs at a time, of all models and processes together")
    instances: Annotated[int, Field(ge=0)] = Field(0, description="runs at a time of one model; 0: as many as workers")
    threads: Positive = Field(1, description="threads within one run")
    max_batch: Positive = Field(8, description="pictures of different requests that may share a run")
    max_delay_ms: Annotated[float, Field(ge=0)] = Field(
        0.0, description="how long pictures may wait for others to share a run with, while something else runs"
    )
    max_request_seconds: Annotated[float, Field(gt=0)] = Field(
        60.0, description="what takes longer is ended, whatever the caller's deadline"
    )

    models: dict[str, ModelSettings] = Field(
        {}, description='settings of single models, of all of them under "*": which provider runs them, and how'
    )

    max_requests: Positive = Field(2048, description="requests at a time, waiting ones included; more are refused")
    max_queue: Positive = Field(256, description="pictures that may wait for one model; more are refused")
    max_images: Positive = Field(64, description="pictures per request")
    max_pixels: Positive = Field(50_000_000, description="pixels per picture, read from its header before decoding")
    max_request_bytes: Positive = Field(64 * MIB, description="bytes per request")
    max_waiting_bytes: Positive = Field(1024 * MIB, description="bytes of all requests that are under way")

    metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(0, description="port of /metrics over HTTP; 0: none")
    metrics_host: str = Field("", description="address of that port (default: the same as --host)")
    traces_endpoint: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = Field(
        "", description="OTLP collector that traces are sent to by gRPC, http://HOST:PORT or https://HOST:PORT"
    )
    traces_sample: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="share of calls that are traced, of those whose caller does not say"
    )

    lame_duck_seconds: Seconds = Field(1.0, description="between NOT_SERVING and no longer taking requests")
    grace_seconds: Seconds = Field(30.0, description="time for running requests at shutdown")

    tls_certificate: Path | None = Field(None, description="PEM file of the server's certificate and those it rests on")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's key, not encrypted")
    tls_client_ca: Path | None = Field(
        None, description="PEM file of who may certify clients; only clients with such a certificate are answered"
    )
    tokens: Path | None = Field(None, description="TOML file of who may do what: tokens and certificates, with scopes")
    tokens_in_clear: bool = Field(
        False, description="take tokens without TLS from other machines, where something in front of the server has it"
    )

    connection_age_seconds: Seconds = Field(
        0.0, description="after which a connection is to be opened anew, a tenth more or less; 0 never"
    )
    connection_age_grace_seconds: Seconds = Field(
        0.0, description="time for what still runs on a connection that is too old; 0 as long as it takes"
    )
    max_streams: Annotated[int, Field(ge=0)] = Field(
        0, description="calls at a time on one connection, more wait in the client; 0 as many as --max-requests"
    )
    keepalive_seconds: Annotated[float, Field(gt=0)] = Field(
        60.0, description="silence after which a client is asked whether it is still there"
    )
    keepalive_timeout_seconds: Annotated[float, Field(gt=0)] = Field(20.0, description="time for its answer")
    min_ping_seconds: Seconds = Field(
        10.0, description="how often a client may ask whether the server is there; who asks more often is cut off"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much to log on stderr")
    log_format: Literal["text", "json"] = Field("text", description="a line of text or a JSON object for each record")
    access_log: bool = Field(False, description="log answered calls at level info, not debug; failed ones always are")

    @model_validator(mode="after")
    def _refuse_control_of_one_of_several(self) -> Self:
        if self.model_control and self.processes > 1:
            raise ValueError("a client would load a model in one process of several; use --poll-seconds instead")
        return self

    @model_validator(mode="after")
    def _refuse_half_of_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("one of --tls-certificate and --tls-key is set; expected both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("--tls-client-ca is set without --tls-certificate and --tls-key; expected all three")
        return self

    @model_validator(mode="after")
    def _refuse_tokens_in_clear(self) -> Self:
        if self.tokens is None or self.tls_certificate is not None or self.tokens_in_clear or is_loopback(self.host):
            return self
        raise ValueError(
            f"--tokens is set without TLS, and at --host {self.host} they come from other machines, to be read on the"
            " way; set --tls-certificate and --tls-key, or --tokens-in-clear where a proxy in front has TLS"
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment before the file; the command line comes before both by itself."""
        return init_settings, Environment(settings_cls), ConfigFile(settings_cls)
