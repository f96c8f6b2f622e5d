"""The manifests: up to date, valid, consistent with the contract, with minimal privileges."""

from typing import Any

import kubernetes_validate
import pytest

from deploy import kubernetes
from deploy.kubernetes import GATEWAY, PROCESSES
from mesh.settings import SERVICES

VERSION = "1.37"
FILES = kubernetes.manifests()
DOCUMENTS = [
    document for name, file in FILES.items() if name != "kustomization.yaml" for document in file
]


def named(document: dict[str, Any]) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {
        document["metadata"]["name"]: document for document in DOCUMENTS if document["kind"] == kind
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


def test_each_service_gets_only_its_own_secret() -> None:
    for service in PROCESSES:
        name = service.replace("_", "-")
        pod = of_kind("Deployment")[name]["spec"]["template"]["spec"]
        sources = [source.get("secretRef") for source in pod["containers"][0]["envFrom"]]
        assert [secret["name"] for secret in sources if secret] == [name]
