"""Objects that Kubernetes has no schema for, as far as deploy/ uses them: what is not here is refused.

The names are those of the definitions' own types: KServe 0.21 (`kserve.models` of its Python package) and the
Prometheus operator 0.80 (`monitoring.coreos.com/v1`). Containers and pods are left to Kubernetes' schemas.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Strict(BaseModel):
    """Fields in camel case, others refused."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, strict=True)


class Metadata(Strict):
    name: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class LabelSelector(Strict):
    match_labels: dict[str, str]


class MetricsEndpoint(Strict):
    port: str
    path: Annotated[str, Field(pattern="^/")]
    interval: Annotated[str, Field(pattern=r"^\d+s$")]
    scrape_timeout: Annotated[str, Field(pattern=r"^\d+s$")]


class PodMonitorSpec(Strict):
    selector: LabelSelector
    job_label: str
    pod_metrics_endpoints: list[MetricsEndpoint]


class PodMonitor(Strict):
    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class SupportedModelFormat(Strict):
    name: str
    version: str | None = None
    auto_select: bool | None = None
    priority: int | None = None


class ServingRuntimeSpec(Strict):
    annotations: dict[str, str] = {}
    supported_model_formats: list[SupportedModelFormat]
    protocol_versions: list[Literal["v1", "v2", "grpc-v1", "grpc-v2"]]
    multi_model: bool = False
    containers: list[dict[str, Any]]


class ClusterServingRuntime(Strict):
    api_version: Literal["serving.kserve.io/v1alpha1"]
    kind: Literal["ClusterServingRuntime"]
    metadata: Metadata
    spec: ServingRuntimeSpec


class ModelFormat(Strict):
    name: str
    version: str | None = None


class ModelSpec(Strict):
    model_format: ModelFormat
    protocol_version: Literal["v1", "v2", "grpc-v1", "grpc-v2"]
    runtime: str
    storage_uri: str


class PredictorSpec(Strict):
    model: ModelSpec | None = None
    min_replicas: int | None = None
    containers: list[dict[str, Any]] | None = None
    termination_grace_period_seconds: int | None = None
    enable_service_links: bool | None = None


class InferenceServiceSpec(Strict):
    predictor: PredictorSpec


class InferenceService(Strict):
    api_version: Literal["serving.kserve.io/v1beta1"]
    kind: Literal["InferenceService"]
    metadata: Metadata
    spec: InferenceServiceSpec
