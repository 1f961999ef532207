"""Every setting of the server: command line first, then `PELLUCID_...` in the environment, then the default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]
MIB = 1024 * 1024
PROGRAM = "pellucid-serve"


class Settings(BaseSettings):
    """Serve explained models over gRPC."""

    model_config = SettingsConfigDict(
        env_prefix="PELLUCID_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name=PROGRAM,
    )

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
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much to log on stderr")

    @model_validator(mode="after")
    def _refuse_control_of_one_of_several(self) -> Self:
        if self.model_control and self.processes > 1:
            raise ValueError("a client would load a model in one process of several; use --poll-seconds instead")
        return self
