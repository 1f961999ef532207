"""Settings of a Ray Serve application: the plain server's, of each replica, and how many replicas there are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from server.settings import MIB, Positive, Settings

PROGRAM = "pellucid-ray"


class RaySettings(Settings):
    """Serve explained models on replicas that Ray Serve watches and replaces; limits are those of each replica."""

    model_config = SettingsConfigDict(cli_prog_name=PROGRAM)

    replicas: Positive = Field(
        1, description="replicas, each with its own copy of the models; the least with autoscaling"
    )
    max_replicas: Annotated[int, Field(ge=0)] = Field(0, description="autoscale up to so many; 0: as many as replicas")
    target_ongoing_requests: Annotated[float, Field(gt=0)] = Field(
        16.0, description="calls under way per replica that autoscaling aims at"
    )
    max_ongoing_requests: Positive = Field(
        64, description="calls at a time per replica, streams included; more wait in the proxy, up to max-requests"
    )
    cpus_per_replica: Annotated[float, Field(ge=0)] = Field(
        1.0, description="cores that Ray sets aside for a replica; also its workers where those are not given"
    )
    gpus_per_replica: Annotated[float, Field(ge=0)] = Field(0.0, description="GPUs that Ray sets aside for a replica")

    ray_address: str = Field("", description="a running Ray cluster, such as auto; empty starts Ray on this machine")
    ray_folder: Path | None = Field(None, description="where a Ray started here keeps logs and sockets; a short path")
    object_store_bytes: Annotated[int, Field(ge=80 * MIB)] = Field(
        1024 * MIB, description="shared memory of a Ray started here, for messages of more than 100 KB"
    )
    http_port: Annotated[int, Field(ge=1, le=65535)] = Field(
        8000, description="port of Ray's own HTTP proxy on 127.0.0.1, which answers /-/healthz and nothing of ours"
    )

    @model_validator(mode="after")
    def _refuse_what_is_another_server_s(self) -> Self:
        if self.processes > 1:
            raise ValueError("processes: replicas take the place of processes here; use replicas")
        if self.model_control:
            raise ValueError("a client would load a model in one replica of several; use poll_seconds instead")
        if self.tls_certificate is not None or self.tokens is not None:
            raise ValueError("tls_certificate, tokens: Ray Serve's proxies ask nobody who they are; use a gateway's")
        if self.port == 0:
            raise ValueError("port: Ray Serve takes no port for 0; expected a number from 1 on")
        if 0 < self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}; expected {self.replicas} (replicas) or more, or 0")
        return self

    @property
    def most_replicas(self) -> int:
        """How many replicas there may be."""
        return max(self.replicas, self.max_replicas)

    def of_replica(self) -> Settings:
        """Return what a replica is given: its workers are its cores, unless they were given."""
        workers = self.workers if "workers" in self.model_fields_set else max(1, math.floor(self.cpus_per_replica))
        return self.model_copy(update={"workers": workers})
