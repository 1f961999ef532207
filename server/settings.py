"""Every setting of the server: command line first, then `PELLUCID_...` in the environment, then the default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Positive = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Serve explained models over gRPC."""

    model_config = SettingsConfigDict(
        env_prefix="PELLUCID_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name="pellucid-serve",
    )

    repository: Path = Field(description="folder with NAME/VERSION/model.onnx files")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(50051, description="port; 0 takes a free one")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="gpu refuses to fall back to the CPU")
    workers: Positive = Field(os.cpu_count() or 1, description="runs at a time")
    threads: Positive = Field(1, description="threads within one run")
    max_requests: Positive = Field(256, description="requests at a time, waiting ones included; more are refused")
    max_images: Positive = Field(64, description="pictures per request")
    max_pixels: Positive = Field(50_000_000, description="pixels per picture, read from its header before decoding")
    max_request_bytes: Positive = Field(64 * 1024 * 1024, description="bytes per request")
    grace_seconds: Annotated[float, Field(ge=0)] = Field(10.0, description="time for running requests at shutdown")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much to log on stderr")
