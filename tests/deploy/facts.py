"""What the files in deploy/ are held against: the Dockerfile, the server's settings, the metrics' names."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.settings import Settings
from tests.conftest import ROOT
from tests.container.dockerfile import Stage, chain, environment, last, read_stages

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; it comes with pellucid[dev]")

DEPLOY = ROOT / "deploy"
SCHEMAS = "1.37"
VARIANTS = ("cpu", "gpu")
GRPC_PORT, METRICS_PORT, USER = 50051, 8002, 65532

Document = dict[str, Any]


def stages(variant: str) -> list[Stage]:
    return chain(read_stages((ROOT / "Dockerfile").read_text()), variant)


def image_environment(variant: str) -> dict[str, str]:
    return environment(stages(variant))


def image_user(variant: str) -> str:
    return last(stages(variant), "USER").value


def settings() -> frozenset[str]:
    return frozenset(Settings.model_fields)


def set_by_environment(variables: dict[str, str]) -> set[str]:
    """Return the settings that PELLUCID_... variables name."""
    return {name.removeprefix("PELLUCID_").lower() for name in variables if name.startswith("PELLUCID_")}


def set_by_arguments(arguments: list[str]) -> dict[str, str]:
    return {
        name.removeprefix("--").replace("-", "_"): value
        for name, _, value in (argument.partition("=") for argument in arguments)
    }


def checked(values: Document) -> Settings:
    """Return the settings that a file or a command line gives.

    Raises:
        ValidationError: a name or a value that the server would refuse.
    """
    return Settings(**{"repository": Path("/models")} | values)


def documents(path: Path) -> Iterator[Document]:
    return (document for document in yaml.safe_load_all(path.read_text()) if document)


def toml(text: str) -> Document:
    return tomllib.loads(text)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: what Prometheus calls its type, and its labels."""

    kind: str
    labels: frozenset[str]

    def series(self, name: str) -> set[str]:
        """Return the names under which it is stored."""
        return {f"{name}_{end}" for end in ("bucket", "sum", "count")} if self.kind == "histogram" else {name}


def _metric(kind: str, *labels: str) -> Metric:
    return Metric(kind, frozenset(labels))


METRICS = {
    "pellucid_requests_total": _metric("counter", "method", "code"),
    "pellucid_request_seconds": _metric("histogram", "method"),
    "pellucid_stage_seconds": _metric("histogram", "model", "version", "stage"),
    "pellucid_batch_pictures": _metric("histogram", "model", "version"),
    "pellucid_pictures_total": _metric("counter", "model", "version"),
    "pellucid_waiting_pictures": _metric("gauge", "model", "version"),
    "pellucid_running_requests": _metric("gauge"),
    "pellucid_refused_total": _metric("counter", "reason"),
    "pellucid_model_ready": _metric("gauge", "model", "version", "provider"),
    "pellucid_drift": _metric("gauge", "model", "version", "what"),
    "pellucid_drift_by_chance": _metric("gauge", "model", "version", "what"),
    "process_resident_memory_bytes": _metric("gauge"),
    "up": _metric("gauge"),
}
STAGES = frozenset({"decode", "queue", "run", "encode"})
SCRAPED = frozenset({"instance", "job", "namespace", "pod", "le"})
"""Labels that Prometheus adds itself, and the histogram's own."""
