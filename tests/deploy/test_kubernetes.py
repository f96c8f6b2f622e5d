"""The manifests: up to date, valid, consistent with the contract, with minimal privileges."""

import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy import kubernetes
from deploy.kubernetes import GATEWAY, PROCESSES
from mesh.paths import ROOT
from mesh.settings import SERVICES

VERSION = "1.37"
FILES = kubernetes.manifests()
EVERY = [
    document
    for name, file in FILES.items()
    if not name.endswith("kustomization.yaml")
    for document in file
]
# Kubernetes itself has no schema of the Prometheus operator's kinds.
DOCUMENTS = [document for document in EVERY if "monitoring" not in document["apiVersion"]]


def named(document: dict[str, Any]) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {
        document["metadata"]["name"]: document for document in EVERY if document["kind"] == kind
    }


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_up_to_date(name: str) -> None:
    written = (kubernetes.FOLDER / name).read_text()
    assert written == kubernetes.rendered(FILES[name]), "run `python -m deploy.kubernetes`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_a_manifest_is_valid_for_kubernetes(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_schema_refuses_a_misspelt_field() -> None:
    broken = {**of_kind("Deployment")["gateway"], "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)


def test_network_policies_allow_the_callers_in_the_contract() -> None:
    # Every service asks every other for its health.
    assert kubernetes.callers() == {
        **{service: {GATEWAY, *SERVICES} - {service} for service in SERVICES},
        "limit_svc": {GATEWAY},
    }
    policies = of_kind("NetworkPolicy")
    assert policies["deny-all"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    [pod] = policies["limit-svc"]["spec"]["ingress"][1]["from"]
    assert pod["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "gateway"


@pytest.mark.parametrize("name", [*PROCESSES, GATEWAY])
def test_every_pod_has_minimal_privileges_and_probes(name: str) -> None:
    pod = of_kind("Deployment")[name.replace("_", "-")]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
    assert pod["terminationGracePeriodSeconds"] > 17
    # Secrets are only referenced.
    assert "env" not in container


def test_each_service_gets_only_its_own_secret_as_files() -> None:
    folder = of_kind("ConfigMap")["boxoffice"]["data"]["BOXOFFICE_SECRETS_FOLDER"]
    for service in PROCESSES:
        name = service.replace("_", "-")
        pod = of_kind("Deployment")[name]["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert [list(source) for source in container["envFrom"]] == [["configMapRef"]]
        [secret] = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "secrets"]
        assert secret["secretName"] == name
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["secrets"] == folder


def test_the_job_of_the_migrations_is_apart_and_reaches_the_databases() -> None:
    assert [name for name, file in FILES.items() for part in file if part["kind"] == "Job"] == [
        "migrations/job.yaml"
    ]
    assert "../migrations" not in FILES["base/kustomization.yaml"][0]["resources"]
    policy = of_kind("NetworkPolicy")["migrations"]["spec"]
    pod = of_kind("Job")["migrations"]["spec"]["template"]
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert {"port": 5432, "protocol": "TCP"} in policy["egress"][1]["ports"]


def test_limits_and_replicas_agree_with_the_autoscaler() -> None:
    config = of_kind("ConfigMap")["boxoffice"]["data"]
    for scaler in of_kind("HorizontalPodAutoscaler").values():
        assert scaler["spec"]["maxReplicas"] == int(config["BOXOFFICE_REPLICAS"])
        assert scaler["spec"]["maxReplicas"] == int(config["BOXOFFICE_GATEWAYS"])
        target = scaler["spec"]["scaleTargetRef"]["name"]
        assert "replicas" not in of_kind("Deployment")[target]["spec"]


def test_the_prometheus_operator_reads_every_process_and_all_alerts() -> None:
    monitors = of_kind("PodMonitor")
    for name in (*PROCESSES, GATEWAY):
        spec = monitors[name.replace("_", "-")]["spec"]
        pod = of_kind("Deployment")[name.replace("_", "-")]["spec"]["template"]
        assert spec["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        [endpoint] = spec["podMetricsEndpoints"]
        ports = pod["spec"]["containers"][0]["ports"]
        assert endpoint["port"] in [port["name"] for port in ports]
        assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": name}]
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    assert of_kind("PrometheusRule")["alerts"]["spec"]["groups"] == rules["groups"]


@pytest.mark.parametrize("overlay", ["example", "example/migrations"])
def test_kubectl_builds_the_example(overlay: str) -> None:
    """Only where kubectl is installed."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return
    completed = subprocess.run(
        [kubectl, "kustomize", str(kubernetes.FOLDER / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    built = list(yaml.safe_load_all(completed.stdout))
    images = {
        container["image"]
        for document in built
        if document["kind"] in ("Deployment", "Job")
        for container in document["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"registry.example.com/boxoffice:1.0.0"}
    assert ("Job" in {document["kind"] for document in built}) is overlay.endswith("migrations")
