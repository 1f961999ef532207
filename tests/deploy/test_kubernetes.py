"""The Kubernetes objects: right by Kubernetes' own schemas, and in step with the image and the server's settings."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.app import SERVICES
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
    set_by_environment,
    settings,
    toml,
    yaml,
)
from tests.deploy.objects import PodMonitor

KUBERNETES = DEPLOY / "kubernetes"
BUILDS = ("base", "overlays/cpu", "overlays/gpu")
OBJECTS = sorted(path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml")
MONITORING = "monitoring.coreos.com/v1"


@pytest.fixture(scope="module", params=BUILDS)
def built(request: pytest.FixtureRequest) -> dict[str, Document]:
    """What `kubectl kustomize` makes of a folder, by kind."""
    program = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed; it comes with pellucid[dev]")
    done = subprocess.run([program, "kustomize", str(KUBERNETES / request.param)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    assert len(found) == done.stdout.count("\nkind: "), "two objects of a kind; look at each"
    return found


@pytest.fixture
def pod(built: dict[str, Document]) -> Document:
    return built["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: Document) -> Document:
    (only,) = pod["containers"]
    return only


def validate(document: Document) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate comes with pellucid[dev]")
    if document["apiVersion"] == MONITORING:
        PodMonitor.model_validate(document)
    else:
        schemas.validate(document, SCHEMAS, strict=True)


def test_every_object_that_is_built_is_right_by_its_schema(built: dict[str, Document]) -> None:
    for document in built.values():
        validate(document)


def test_a_misspelt_field_is_noticed(built: dict[str, Document]) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate comes with pellucid[dev]")
    wrong = built["Service"] | {"spec": built["Service"]["spec"] | {"clusterIp": "None"}}
    with pytest.raises(schemas.ValidationError, match="clusterIp"):
        validate(wrong)


def test_every_file_is_part_of_something_that_is_built() -> None:
    listed = [
        (path.parent / name).resolve()
        for path in KUBERNETES.rglob("kustomization.yaml")
        for one in documents(path)
        for name in [*one.get("resources", []), *(p["path"] for p in one.get("patches", []) if "path" in p)]
    ]
    assert set(OBJECTS) <= set(listed)


def test_the_pod_is_what_the_strictest_pod_security_standard_asks_for(pod: Document, container: Document) -> None:
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_services_set_no_variable_that_the_server_would_read(built: dict[str, Document], pod: Document) -> None:
    assert pod["enableServiceLinks"] is False
    assert built["Service"]["metadata"]["name"] != "pellucid"


def test_ports_are_the_image_s_and_every_probe_asks_the_health_service(container: Document) -> None:
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "grpc": GRPC_PORT,
        "metrics": METRICS_PORT,
    }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == GRPC_PORT
        assert container[probe]["grpc"].get("service", "") in ("", *SERVICES)


def test_objects_find_each_other(built: dict[str, Document], pod: Document, container: Document) -> None:
    labels = built["Deployment"]["spec"]["template"]["metadata"]["labels"]
    wanted = {"app.kubernetes.io/name": "pellucid"}
    assert wanted.items() <= labels.items()
    assert built["Service"]["spec"]["selector"] == wanted
    assert built["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == wanted
    assert built["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == wanted
    assert wanted.items().isdisjoint(
        built["NetworkPolicy"]["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    )
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["settings"]["configMap"]["name"] == built["ConfigMap"]["metadata"]["name"]
    claim = built["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["models"]["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert pod["serviceAccountName"] == built["ServiceAccount"]["metadata"]["name"]
    names = {port["name"] for port in container["ports"]}
    assert {rule["ports"][0]["port"] for rule in built["NetworkPolicy"]["spec"]["ingress"]} == names
    if "PodMonitor" in built:
        assert built["PodMonitor"]["spec"]["selector"]["matchLabels"] == wanted
        assert {end["port"] for end in built["PodMonitor"]["spec"]["podMetricsEndpoints"]} <= names


def test_models_and_settings_are_mounted_where_the_image_and_the_environment_say(container: Document) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert mounts["models"] == image_environment("cpu")["PELLUCID_REPOSITORY"]
    assert variables == {"PELLUCID_CONFIG": f"{mounts['settings']}/pellucid.toml"}
    assert set_by_environment(variables) <= settings()


def test_the_settings_file_says_what_the_server_understands_and_nothing_that_the_image_has_said(
    built: dict[str, Document],
) -> None:
    file = toml(built["ConfigMap"]["data"]["pellucid.toml"])
    assert checked(file).workers == file["workers"]
    assert not set(file) & set_by_environment(image_environment("gpu"))


def test_a_setting_that_the_server_lacks_is_noticed() -> None:
    with pytest.raises(ValidationError, match="wrokers"):
        checked({"wrokers": 2})


def test_a_pod_has_more_time_to_end_than_the_server_takes_and_as_many_workers_as_cpus(
    built: dict[str, Document], pod: Document, container: Document
) -> None:
    given = checked(toml(built["ConfigMap"]["data"]["pellucid.toml"]))
    assert pod["terminationGracePeriodSeconds"] > given.lame_duck_seconds + given.grace_seconds
    assert int(container["resources"]["requests"]["cpu"]) == given.workers


def test_the_autoscaler_alone_says_how_many_pods_there_are(built: dict[str, Document]) -> None:
    if "HorizontalPodAutoscaler" not in built:
        assert built["Deployment"]["spec"]["replicas"] == 2
        return
    scaler = built["HorizontalPodAutoscaler"]["spec"]
    assert "replicas" not in built["Deployment"]["spec"]
    assert scaler["scaleTargetRef"] == {
        "apiVersion": built["Deployment"]["apiVersion"],
        "kind": "Deployment",
        "name": built["Deployment"]["metadata"]["name"],
    }
    rules = next(documents(DEPLOY / "prometheus" / "adapter.yaml"))["rules"]
    assert [one["pods"]["metric"]["name"] for one in scaler["metrics"]] == [rule["name"]["as"] for rule in rules]


def test_the_gpu_s_overlay_asks_for_a_gpu_and_for_the_image_that_insists_on_it(
    built: dict[str, Document], container: Document
) -> None:
    gpu = "nvidia.com/gpu" in container["resources"]["limits"]
    assert container["image"].endswith("-gpu") == gpu
