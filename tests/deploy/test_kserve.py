"""The KServe objects: KServe's own fields, ports and probes as it wants them, in step with the image."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from server.app import SERVICES
from tests.deploy import objects
from tests.deploy.facts import (
    DEPLOY,
    GRPC_PORT,
    METRICS_PORT,
    SCHEMAS,
    USER,
    Document,
    checked,
    documents,
    image_environment,
    set_by_arguments,
)

KSERVE = DEPLOY / "kserve"
RUNTIME, SERVICE, CUSTOM = "clusterservingruntime.yaml", "inferenceservice.yaml", "inferenceservice-custom.yaml"
KINDS: dict[str, type[BaseModel]] = {
    RUNTIME: objects.ClusterServingRuntime,
    SERVICE: objects.InferenceService,
    CUSTOM: objects.InferenceService,
}


def read(name: str) -> Document:
    (only,) = documents(KSERVE / name)
    return only


def container(name: str) -> Document:
    spec = read(name)["spec"]
    (only,) = spec.get("containers") or spec["predictor"]["containers"]
    return only


@pytest.mark.parametrize("name", sorted(path.name for path in KSERVE.glob("*.yaml")))
def test_every_file_has_kserve_s_fields_and_no_other(name: str) -> None:
    KINDS[name].model_validate(read(name))


def test_a_misspelt_field_is_noticed() -> None:
    wrong = read(SERVICE)
    wrong["spec"]["predictor"]["model"]["storageURI"] = wrong["spec"]["predictor"]["model"].pop("storageUri")
    with pytest.raises(ValidationError, match="storageURI"):
        objects.InferenceService.model_validate(wrong)


@pytest.mark.parametrize("name", [RUNTIME, CUSTOM])
def test_containers_are_right_by_kubernetes_own_schema(name: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate comes with pellucid[dev]")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": {"containers": [container(name)]}}
    schemas.validate(pod, SCHEMAS, strict=True)


@pytest.mark.parametrize("name", [RUNTIME, CUSTOM])
def test_the_container_has_the_name_the_one_port_and_the_probe_that_kserve_looks_for(name: str) -> None:
    one = container(name)
    assert one["name"] == "kserve-container"
    assert one["ports"] == [{"name": "h2c", "containerPort": GRPC_PORT, "protocol": "TCP"}]
    assert one["readinessProbe"]["grpc"]["port"] == GRPC_PORT
    assert one["readinessProbe"]["grpc"]["service"] in SERVICES
    assert one["securityContext"]["runAsUser"] == USER
    assert one["securityContext"]["readOnlyRootFilesystem"] is True
    assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", [RUNTIME, CUSTOM])
def test_arguments_are_settings_and_leave_time_to_end(name: str) -> None:
    arguments = set_by_arguments(container(name)["args"])
    given = checked(arguments)
    assert str(given.repository) == "/mnt/models"
    assert str(given.workers) == container(name)["resources"]["limits"]["cpu"]
    for service in (SERVICE, CUSTOM):
        seconds = read(service)["spec"]["predictor"]["terminationGracePeriodSeconds"]
        assert seconds > given.lame_duck_seconds + given.grace_seconds


def test_metrics_are_scraped_where_the_image_has_them() -> None:
    annotations = read(RUNTIME)["spec"]["annotations"]
    assert annotations == {"prometheus.kserve.io/port": str(METRICS_PORT), "prometheus.kserve.io/path": "/metrics"}
    assert image_environment("cpu")["PELLUCID_METRICS_PORT"] == str(METRICS_PORT)


def test_the_service_asks_for_what_the_runtime_offers() -> None:
    runtime, model = read(RUNTIME), read(SERVICE)["spec"]["predictor"]["model"]
    offered = [{key: one[key] for key in ("name", "version")} for one in runtime["spec"]["supportedModelFormats"]]
    assert model["modelFormat"] in offered
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["runtime"] == runtime["metadata"]["name"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (objects.ServingRuntimeSpec, "v1alpha1_serving_runtime_spec"),
        (objects.SupportedModelFormat, "v1alpha1_supported_model_format"),
        (objects.PredictorSpec, "v1beta1_predictor_spec"),
        (objects.InferenceServiceSpec, "v1beta1_inference_service_spec"),
        (objects.ModelSpec, "v1beta1_model_spec"),
        (objects.ModelFormat, "v1beta1_model_format"),
    ],
)
def test_our_fields_are_those_of_kserve_s_own_package(ours: type[BaseModel], theirs: str) -> None:
    found = importlib.util.find_spec("kserve")
    if found is None or found.origin is None:
        pytest.skip("kserve is not installed; `pip install --no-deps kserve` is enough for this")
    tree = ast.parse((Path(found.origin).parent / "models" / f"{theirs}.py").read_text())
    assignments = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    (mapping,) = (node.value for node in assignments if getattr(node.targets[0], "id", "") == "attribute_map")
    names: dict[str, Any] = ast.literal_eval(mapping)
    assert {field.alias for field in ours.model_fields.values()} <= set(names.values())
