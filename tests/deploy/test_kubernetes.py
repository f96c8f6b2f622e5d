"""The manifests: what the contract says, as Kubernetes takes it, and locked down."""

from typing import Any

import kubernetes_validate
import pytest

from deploy import kubernetes
from deploy.kubernetes import GATEWAY, PROCESSES

VERSION = "1.37"
FILES = kubernetes.manifests()
DOCUMENTS = [
    document for name, file in FILES.items() if name != "kustomization.yaml" for document in file
]


def named(document: dict[str, Any]) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in DOCUMENTS if each["kind"] == kind}


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_what_the_contract_says(name: str) -> None:
    written = (kubernetes.FOLDER / name).read_text()
    assert written == kubernetes.rendered(FILES[name]), "run `python -m deploy.kubernetes`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_kubernetes_would_take_it(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_schema_would_refuse_a_misspelt_field() -> None:
    broken = {**of_kind("Deployment")["gateway"], "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)


def test_who_may_connect_is_what_the_contract_says() -> None:
    assert kubernetes.callers() == {
        "auth_svc": {GATEWAY, "booking_svc", "stock_svc", "payment_svc"},
        "booking_svc": {GATEWAY},
        "stock_svc": {GATEWAY, "booking_svc"},
        "payment_svc": {GATEWAY, "booking_svc"},
        "limit_svc": {GATEWAY},
    }
    policies = of_kind("NetworkPolicy")
    assert policies["deny-all"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    let_in = policies["booking-svc"]["spec"]["ingress"][1]["from"]
    assert [each["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for each in let_in] == [
        "gateway"
    ]


@pytest.mark.parametrize("name", [*PROCESSES, GATEWAY])
def test_every_pod_is_locked_down_and_probed(name: str) -> None:
    pod = of_kind("Deployment")[name.replace("_", "-")]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
    assert pod["terminationGracePeriodSeconds"] > 17
    # Secrets come by reference only.
    assert "env" not in container


def test_each_service_gets_its_own_secret_only() -> None:
    for service in PROCESSES:
        name = service.replace("_", "-")
        pod = of_kind("Deployment")[name]["spec"]["template"]["spec"]
        sources = [each.get("secretRef") for each in pod["containers"][0]["envFrom"]]
        assert [each["name"] for each in sources if each] == [name]
