"""The Kubernetes manifests, written from the contract: `python -m deploy.kubernetes`.

A Kustomize base in deploy/kubernetes/: an overlay sets the image, the domain, the secrets
and what differs from a middling start. Who may connect to whom is what the contract's
policies say (`callers`, and what the gateway routes), and nothing else is let through.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import descriptor_pb2

from gateway.clusters import service_of
from mesh.paths import CONTRACT
from mesh.rpc import policy
from mesh.rpc.policy import MethodPolicy
from mesh.settings import LIMIT_SERVICE, SERVICES, MeshSettings

FOLDER = Path(__file__).parent / "kubernetes"
NAMESPACE = "boxoffice"
GATEWAY = "gateway"
IMAGE = "boxoffice"

PROCESSES = (*SERVICES, LIMIT_SERVICE)
GATEWAY_PORT = 8443
GATEWAY_PROBES_PORT = 9463
_HOME = "/var/lib/boxoffice"
_USER = 10001
_DRAIN_SECONDS = 5
_GRACE_SECONDS = 12

# What is not an RPC of the contract: booking_svc adds up everybody's grpc.health.v1.
_ASKS_FOR_HEALTH = "booking_svc"
# Who talks to the world outside: providers, mail servers, consumers of webhooks.
_GOES_OUTSIDE: Mapping[str, tuple[int, ...]] = {
    "payment_svc": (443,),
    "booking_svc": (443, 465, 587),
    "auth_svc": (465, 587),
}

Manifest = dict[str, Any]


def callers() -> dict[str, frozenset[str]]:
    """Who calls each service, by the contract."""
    found: dict[str, set[str]] = {service: {_ASKS_FOR_HEALTH} for service in SERVICES}
    found[LIMIT_SERVICE] = {GATEWAY}
    for each in _policies():
        if each.path.startswith("/boxoffice.limits."):
            # Envoy asks it by itself, by a method of Envoy's.
            continue
        service = service_of(each)
        found.setdefault(service, set()).update(each.callers)
        if each.is_routed:
            found[service].add(GATEWAY)
    return {service: frozenset(who - {service}) for service, who in found.items()}


def manifests() -> dict[str, list[Manifest]]:
    """Every file's documents, by file name."""
    files = {
        "namespace.yaml": [_namespace()],
        "config.yaml": [_config()],
        "migrations.yaml": [_migrations()],
        "gateway.yaml": _gateway(),
        "network.yaml": [_deny_all(), *map(_network_policy, (*PROCESSES, GATEWAY))],
    }
    for service in PROCESSES:
        files[f"{_dashed(service)}.yaml"] = _service(service)
    files["kustomization.yaml"] = [
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": NAMESPACE,
            "resources": sorted(files),
        }
    ]
    return files


def rendered(documents: list[Manifest]) -> str:
    head = "# Written by `python -m deploy.kubernetes`: change deploy/kubernetes.py instead.\n"
    return head + "---\n".join(yaml.safe_dump(each, sort_keys=False) for each in documents)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, documents in manifests().items():
        (FOLDER / name).write_text(rendered(documents))


def _policies() -> list[MethodPolicy]:
    contract = descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes())
    return list(policy.of_contract(contract).values())


def _service(service: str) -> list[Manifest]:
    port, metrics = MeshSettings().port(service), MeshSettings().metrics_port(service)
    container = {
        **_container(service, ["python", "-m", service]),
        "ports": [
            {"name": "grpc", "containerPort": port},
            {"name": "metrics", "containerPort": metrics},
        ],
        # Over plain HTTP beside the service: Kubernetes' gRPC probes know no mutual TLS.
        "startupProbe": _probe("/ready", metrics, period=1, failures=60),
        "livenessProbe": _probe("/live", metrics, period=10, failures=3),
        "readinessProbe": _probe("/ready", metrics, period=2, failures=1),
    }
    return [
        _account(service),
        _deployment(service, container, _volumes(service), metrics),
        {
            **_head("v1", "Service", service),
            # Headless: its name has every pod's address, and each caller balances by itself.
            "spec": {
                "clusterIP": "None",
                "selector": _labels(service),
                "ports": [{"name": "grpc", "port": port, "targetPort": "grpc"}],
            },
        },
        _budget(service),
        _autoscaler(service),
    ]


def _gateway() -> list[Manifest]:
    container = {
        **_container(GATEWAY, ["/opt/boxoffice/app/deploy/gateway.sh"]),
        "ports": [
            {"name": "https", "containerPort": GATEWAY_PORT},
            {"name": "metrics", "containerPort": GATEWAY_PROBES_PORT},
        ],
        "startupProbe": _probe("/ready", GATEWAY_PROBES_PORT, period=1, failures=60),
        "livenessProbe": _probe("/ready", GATEWAY_PROBES_PORT, period=10, failures=3),
        "readinessProbe": _probe("/ready", GATEWAY_PROBES_PORT, period=2, failures=1),
    }
    return [
        _account(GATEWAY),
        _deployment(GATEWAY, container, _volumes(GATEWAY), GATEWAY_PROBES_PORT),
        {
            **_head("v1", "Service", GATEWAY),
            "spec": {
                "type": "LoadBalancer",
                # The client's own address: limits are per address.
                "externalTrafficPolicy": "Local",
                "selector": _labels(GATEWAY),
                "ports": [{"name": "https", "port": 443, "targetPort": "https"}],
            },
        },
        _budget(GATEWAY),
        _autoscaler(GATEWAY),
    ]


def _deployment(
    name: str, container: Manifest, volumes: list[Manifest], metrics_port: int
) -> Manifest:
    return {
        **_head("apps/v1", "Deployment", name),
        "spec": {
            "replicas": 2,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": _labels(name)},
            # One more before one less: nothing is missing while it rolls.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {
                "metadata": {
                    "labels": _labels(name),
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": str(metrics_port),
                        "prometheus.io/path": "/stats/prometheus"
                        if name == GATEWAY
                        else "/metrics",
                    },
                },
                "spec": {
                    **_pod(name, container, volumes),
                    "terminationGracePeriodSeconds": _DRAIN_SECONDS + _GRACE_SECONDS + 5,
                    "topologySpreadConstraints": [
                        {
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "ScheduleAnyway",
                            "labelSelector": {"matchLabels": _labels(name)},
                        }
                    ],
                },
            },
        },
    }


def _pod(name: str, container: Manifest, volumes: list[Manifest]) -> Manifest:
    return {
        "serviceAccountName": _dashed(name),
        # Nothing here talks to Kubernetes.
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }


def _container(name: str, command: list[str]) -> Manifest:
    mounts = [
        {"name": "home", "mountPath": _HOME},
        {"name": "certificates", "mountPath": f"{_HOME}/certificates", "readOnly": True},
    ]
    if name == "auth_svc":
        mounts.append({"name": "keys", "mountPath": f"{_HOME}/keys", "readOnly": True})
    if name == GATEWAY:
        mounts.append({"name": "tls", "mountPath": "/etc/boxoffice/tls", "readOnly": True})
    container: Manifest = {
        "name": _dashed(name),
        "image": IMAGE,
        "command": command,
        "envFrom": [{"configMapRef": {"name": "boxoffice"}}],
        "resources": {
            "requests": {"cpu": "250m", "memory": "256Mi"},
            "limits": {"memory": "1536Mi" if name == GATEWAY else "512Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    if name != GATEWAY:
        # Each service's own secret: its database's URL, and what only it may know.
        container["envFrom"].append({"secretRef": {"name": _dashed(name)}})
    return container


def _volumes(name: str) -> list[Manifest]:
    volumes: list[Manifest] = [
        {"name": "home", "emptyDir": {"sizeLimit": "64Mi"}},
        {"name": "certificates", "secret": {"secretName": f"{_dashed(name)}-certificate"}},
    ]
    if name == "auth_svc":
        volumes.append({"name": "keys", "secret": {"secretName": "auth-svc-keys"}})
    if name == GATEWAY:
        volumes.append({"name": "tls", "secret": {"secretName": "gateway-tls"}})
    return volumes


def _migrations() -> Manifest:
    container = _container("booking_svc", ["python", "-m", "mesh.migrate", *SERVICES])
    container["name"] = "migrations"
    container["envFrom"] = [
        {"configMapRef": {"name": "boxoffice"}},
        *({"secretRef": {"name": _dashed(service)}} for service in SERVICES),
    ]
    container["volumeMounts"] = [{"name": "home", "mountPath": _HOME}]
    pod = _pod("migrations", container, [{"name": "home", "emptyDir": {"sizeLimit": "16Mi"}}])
    pod["serviceAccountName"] = "default"
    return {
        **_head("batch/v1", "Job", "migrations"),
        "spec": {
            "backoffLimit": 5,
            "activeDeadlineSeconds": 900,
            "ttlSecondsAfterFinished": 3600,
            "template": {
                "metadata": {"labels": _labels("migrations")},
                "spec": {**pod, "restartPolicy": "OnFailure"},
            },
        },
    }


def _namespace() -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        },
    }


def _config() -> Manifest:
    values = {
        "BOXOFFICE_ENVIRONMENT": "production",
        "BOXOFFICE_HOME": _HOME,
        "BOXOFFICE_HOST": "0.0.0.0",  # noqa: S104  the pod's own address, behind network policies
        "BOXOFFICE_METRICS_HOST": "0.0.0.0",  # noqa: S104
        "BOXOFFICE_SERVICE_DOMAIN": f"{NAMESPACE}.svc.cluster.local",
        "BOXOFFICE_DRAIN_SECONDS": str(_DRAIN_SECONDS),
        "BOXOFFICE_SHUTDOWN_GRACE_SECONDS": str(_GRACE_SECONDS),
        # More than one: limits are counted together, by limit_svc.
        "BOXOFFICE_GATEWAYS": "2",
        "BOXOFFICE_GATEWAY_PORT": str(GATEWAY_PORT),
        "BOXOFFICE_GATEWAY_METRICS_PORT": str(GATEWAY_PROBES_PORT),
        "BOXOFFICE_GATEWAY_TLS": "true",
        "BOXOFFICE_GATEWAY_CERTIFICATE": "/etc/boxoffice/tls/tls.crt",
        "BOXOFFICE_GATEWAY_KEY": "/etc/boxoffice/tls/tls.key",
    }
    return {**_head("v1", "ConfigMap", "boxoffice"), "data": values}


def _deny_all() -> Manifest:
    return {
        **_head("networking.k8s.io/v1", "NetworkPolicy", "deny-all"),
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    }


def _network_policy(name: str) -> Manifest:
    settings = MeshSettings()
    by_service = callers()
    metrics = GATEWAY_PROBES_PORT if name == GATEWAY else settings.metrics_port(name)
    monitoring = {"namespaceSelector": {"matchLabels": {"boxoffice/monitoring": "true"}}}
    ingress: list[Manifest] = [{"from": [monitoring], "ports": [_tcp(metrics)]}]
    if name == GATEWAY:
        ingress.append({"ports": [_tcp(GATEWAY_PORT)]})
    else:
        who = [{"podSelector": {"matchLabels": _labels(each)}} for each in sorted(by_service[name])]
        ingress.append({"from": who, "ports": [_tcp(settings.port(name))]})
    egress: list[Manifest] = [
        {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    ]
    egress += (
        {
            "to": [{"podSelector": {"matchLabels": _labels(service)}}],
            "ports": [_tcp(settings.port(service))],
        }
        for service, allowed in sorted(by_service.items())
        if name in allowed
    )
    if name == LIMIT_SERVICE:
        egress.append({"ports": [_tcp(6379)]})
    elif name != GATEWAY:
        # PostgreSQL and Redis, wherever they are; an overlay narrows it to their addresses.
        egress.append({"ports": [_tcp(5432), _tcp(6379)]})
    if outside := _GOES_OUTSIDE.get(name):
        egress.append({"ports": [_tcp(port) for port in outside]})
    return {
        **_head("networking.k8s.io/v1", "NetworkPolicy", name),
        "spec": {
            "podSelector": {"matchLabels": _labels(name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _budget(name: str) -> Manifest:
    return {
        **_head("policy/v1", "PodDisruptionBudget", name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _labels(name)}},
    }


def _autoscaler(name: str) -> Manifest:
    return {
        **_head("autoscaling/v2", "HorizontalPodAutoscaler", name),
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": _dashed(name),
            },
            "minReplicas": 2,
            "maxReplicas": 8,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": 70},
                    },
                }
            ],
        },
    }


def _account(name: str) -> Manifest:
    return {**_head("v1", "ServiceAccount", name), "automountServiceAccountToken": False}


def _probe(path: str, port: int, *, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _head(version: str, kind: str, name: str) -> Manifest:
    metadata = {"name": _dashed(name), "namespace": NAMESPACE, "labels": _labels(name)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": _dashed(name), "app.kubernetes.io/part-of": "boxoffice"}


def _tcp(port: int) -> Manifest:
    return {"port": port, "protocol": "TCP"}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


if __name__ == "__main__":
    main()
