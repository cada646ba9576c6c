"""Nothing in cluster/ is open to the world or has needless rights, and no secret is in a file."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_ui import free_port
from tests.deadlines import stretched

from .files import (
    CLUSTER,
    COMPOSE,
    ROOT,
    commands,
    documents,
    manifests,
    pod_templates,
    ray_cluster_specs,
    texts,
    walk,
)


def test_ports_of_containers_are_published_on_loopback() -> None:
    services = documents(COMPOSE)[0]["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {
        "head": ["127.0.0.1:8265:8265"],
        "mlflow": ["${MLFLOW_BIND:-127.0.0.1}:5000:5000"],
    }
    tls = documents("docker/tls.yaml")[0]["services"]["tls"]
    assert tls["ports"] == ["${TLS_BIND:-127.0.0.1}:443:443"] and "stores" not in tls["networks"]
    assert all(
        "network_mode" not in service and "privileged" not in service
        for service in services.values()
    )
    assert services["postgres"]["networks"] == services["s3"]["networks"] == ["stores"]
    assert documents(COMPOSE)[0]["networks"]["stores"] == {"internal": True}


def test_all_interfaces_only_inside_of_networks_that_are_closed() -> None:
    """In a container or a pod a server has to listen on all interfaces to be reached at all.

    Nowhere else may one.
    """
    found = {name: len(re.findall(r"0\.0\.0\.0|\[::\]", text)) for name, text in texts().items()}
    assert {name: number for name, number in found.items() if number} == {
        COMPOSE: 3,
        "kubernetes/mlflow.yaml": 1,
        "kubernetes/raycluster.yaml": 1,
        "kubernetes/rayjob.yaml": 1,
    }


def test_dashboards_of_machines_listen_on_loopback() -> None:
    heads = [
        (name, arguments)
        for name, arguments in commands("ray", "start")
        if "--head" in arguments and name.startswith("ray/")
    ]
    assert {name for name, _ in heads} == {"ray/aws.yaml", "ray/gcp.yaml", "ray/onprem.yaml"}
    assert all("--dashboard-host=127.0.0.1" in arguments for _, arguments in heads)


def test_machines_in_a_cloud_are_behind_a_firewall_of_their_own() -> None:
    nodes = [
        kind["node_config"]
        for kind in documents("ray/aws.yaml")[0]["available_node_types"].values()
    ]
    assert all(node["SecurityGroupIds"] for node in nodes), (
        "Ray would make a group that lets in ssh from everywhere"
    )
    gcp = documents("ray/gcp.yaml")[0]
    interfaces = [
        interface
        for kind in gcp["available_node_types"].values()
        for interface in kind["node_config"]["networkInterfaces"]
    ]
    assert interfaces and all("accessConfigs" not in interface for interface in interfaces), (
        "which would give them a public address"
    )
    assert gcp["provider"]["use_internal_ips"] is True


def test_kubernetes_opens_nothing() -> None:
    kinds = [manifest["kind"] for manifest in manifests()]
    assert "Ingress" not in kinds
    services = [
        manifest["spec"]["type"] for manifest in manifests() if manifest["kind"] == "Service"
    ]
    services += [spec["headGroupSpec"]["serviceType"] for spec in ray_cluster_specs()]
    assert set(services) == {"ClusterIP"}
    leaves = [path for manifest in manifests() for path, _ in walk(manifest)]
    assert not [
        path
        for path in leaves
        if {"hostNetwork", "hostPort", "hostPath", "nodePort", "privileged"} & set(path)
    ]


def test_kubernetes_lets_in_who_is_named() -> None:
    """Pods are closed by default; policies are about pods that exist and let in pods that exist."""
    policies = {
        manifest["metadata"]["name"]: manifest["spec"]
        for manifest in manifests()
        if manifest["kind"] == "NetworkPolicy"
    }
    assert policies.pop("deny-by-default") == {"podSelector": {}, "policyTypes": ["Ingress"]}
    own = {
        template["metadata"]["labels"]["app.kubernetes.io/name"]
        for template in pod_templates()
        if template.get("metadata", {}).get("labels")
    }
    kuberay = {"ray.io/cluster", "ray.io/node-type"}  # labels that KubeRay gives its pods

    def exists(selector: dict[str, Any]) -> bool:
        labels = selector.get("matchLabels", {})
        keys = {expression["key"] for expression in selector.get("matchExpressions", [])}
        return bool(labels or keys) and set(labels.values()) <= own and keys <= kuberay

    for policy in policies.values():
        assert exists(policy["podSelector"])
        for rule in policy["ingress"]:
            for peer in rule["from"]:
                if "namespaceSelector" not in peer:
                    assert exists(peer["podSelector"])
                    continue
                (name,) = peer["namespaceSelector"]["matchLabels"].values()
                assert f"--namespace {name}" in texts()["README.md"], "which makes it"
                scraped = [{"protocol": "TCP", "port": 8080}]  # and nothing that runs code
                assert name == "kuberay-system" or (name, rule["ports"]) == ("monitoring", scraped)


@pytest.mark.parametrize(
    "template", pod_templates(), ids=lambda template: template["spec"]["containers"][0]["name"]
)
def test_containers_have_few_rights_and_bounds(template: dict[str, Any]) -> None:
    spec = template["spec"]
    for container in spec["containers"]:
        own = {**spec.get("securityContext", {}), **container["securityContext"]}
        assert own["runAsNonRoot"] is True and own["runAsUser"] > 0
        assert own["allowPrivilegeEscalation"] is False and own["capabilities"] == {"drop": ["ALL"]}
        assert own["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"cpu", "memory"} <= set(
            container["resources"]["requests"]
        ) and "memory" in container["resources"]["limits"]


def test_containers_of_images_do_not_run_as_root() -> None:
    for name, text in texts().items():
        if "Dockerfile" in name:
            assert int(re.findall(r"^USER (\d+)", text, re.MULTILINE)[-1]) > 0


# No secret

SECRET = re.compile(
    r"(password|passwd|secret|token|credential|api_?key|access_?key)", re.IGNORECASE
)
PATTERNS = {
    "a private key": r"-----BEGIN",
    "a key of AWS": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a password in a URI": r"://[^/\s:@]+:[^/\s@$]+@",
    "random characters": r"\b[0-9a-f]{32,}\b|\b[A-Za-z0-9+/]{40,}={0,2}(?![\w/.])",
}


@pytest.mark.parametrize("name", sorted(set(texts()) - {"constraints.txt"}))
def test_no_secret_in_a_file(name: str) -> None:
    text = re.sub(r"\bpath: /spec/[\w/]+", "", texts()[name])  # where kustomize is to change what
    for what, pattern in PATTERNS.items():
        assert not re.search(pattern, text), what
    if name.endswith(".yaml"):
        for document in documents(name):
            assert document.get("kind") != "Secret"
            for path, value in walk(document):
                if SECRET.search(path[-1]) and "matchLabels" not in path:
                    assert is_reference(path, str(value)), (path, value)
            for variable in variables(document):
                if SECRET.search(variable["name"]):
                    assert "value" not in variable, variable


def is_reference(path: tuple[str, ...], value: str) -> bool:
    """Tell whether a value says where a secret is, rather than being one."""
    wheres = ("secrets/", "/run/secrets/", "~/.ray/auth_token", "~/.mlflow/credentials")
    # Which have no secret as their value
    settings = (
        "secretName",
        "automountServiceAccountToken",
        "HttpTokens",
    )
    return value.startswith(wheres) or path[-1] in settings or "secrets" in path


def variables(value: Any) -> list[dict[str, Any]]:
    """Return the environment variables of all containers in a manifest."""
    if isinstance(value, dict):
        own = value.get("env", [])
        return [*own, *(variable for inner in value.values() for variable in variables(inner))]
    return (
        [variable for inner in value for variable in variables(inner)]
        if isinstance(value, list)
        else []
    )


def test_the_test_for_secrets_finds_them() -> None:
    for text in (
        "-----BEGIN RSA PRIVATE KEY-----",
        "AKIAIOSFODNN7EXAMPLE",
        "postgresql://mlflow:hunter2@db",
        "0f" * 16,
    ):
        assert any(re.search(pattern, text) for pattern in PATTERNS.values()), text
    assert not is_reference(("services", "db", "environment", "POSTGRES_PASSWORD"), "hunter2")


def test_secrets_that_pods_ask_for_are_made_in_the_readme() -> None:
    made: dict[str, set[str]] = {}
    for name, arguments in re.findall(r"create secret generic (\S+) (.*)", texts()["README.md"]):
        made[name] = set(re.findall(r"--from-literal=([\w-]+)=", arguments))
    wanted: dict[str, set[str]] = {"ray-token": {"auth_token"}}  # the key that KubeRay reads
    for reference in references([*manifests()]):
        wanted.setdefault(reference["name"], set()).add(reference["key"])
    assert made == wanted
    assert {spec["authOptions"]["secretName"] for spec in ray_cluster_specs()} == {"ray-token"}


def references(value: Any) -> list[dict[str, str]]:
    """Return every reference to a key of a secret."""
    if isinstance(value, dict):
        own = [value["secretKeyRef"]] if "secretKeyRef" in value else []
        return own + [found for inner in value.values() for found in references(inner)]
    return (
        [found for inner in value for found in references(inner)] if isinstance(value, list) else []
    )


def test_secrets_of_the_compose_file_are_made_by_its_script(tmp_path: Path) -> None:
    script = tmp_path / "secrets.sh"
    script.write_text(texts()["docker/secrets.sh"])
    folder = tmp_path / "secrets"

    def run() -> dict[str, str]:
        subprocess.run(["bash", script], check=True)
        return {path.name: path.read_text() for path in folder.iterdir()}

    first = run()
    assert run() == first, "what is there stays"
    declared = documents(COMPOSE)[0]["secrets"]
    assert {f"secrets/{name}" for name in first} == {secret["file"] for secret in declared.values()}
    assert len(set(first.values())) == len(first) and all(
        len(value) >= 40 for value in first.values()
    )
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (
        f"mlflow_tracking_username = writer\nmlflow_tracking_password ="
        f" {first['mlflow_writer_password']}" in first["mlflow_credentials"]
    )


def test_git_ignores_the_secrets() -> None:
    done = subprocess.run(
        ["git", "check-ignore", "-q", CLUSTER / "docker/secrets/ray_token"], cwd=ROOT, check=False
    )
    assert done.returncode == 0


@pytest.mark.long
@pytest.mark.timeout(300)
def test_ray_writes_to_mlflow_as_a_user_who_is_no_admin(tmp_path: Path) -> None:
    """With the script of the compose file, and MLflow's server as that starts it."""
    port = free_port()
    server = f"http://127.0.0.1:{port}"
    admin, writer = "a" * 24, "w" * 24
    settings = texts()["docker/mlflow.ini"]
    settings = re.sub(r"postgresql\S+", f"sqlite:///{tmp_path}/users.db", settings)
    (tmp_path / "mlflow.ini").write_text(settings)
    env = os.environ | {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "mlflow.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    store = f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db"
    command = ["mlflow", "server", "--app-name=basic-auth", f"--port={port}", "--workers=1", store]
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=tmp_path, env=env, start_new_session=True
    )

    def make(password: str) -> None:
        (tmp_path / "password").write_text(password)
        script = [CLUSTER / "docker/writer.py", server, tmp_path / "password", tmp_path / "mark"]
        subprocess.run([sys.executable, *script], env=env, check=True, timeout=stretched(120))
        assert (tmp_path / "mark").exists()

    def ask(method: str, path: str, user: str, password: str, body: dict[str, Any]) -> int:
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        url = f"{server}/api/2.0/mlflow/{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=stretched(30)) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    try:
        make(writer)
        make(writer + "2")  # a password that was changed
        own = ("writer", writer + "2")
        assert ask("POST", "experiments/create", "writer", writer, {"name": "old"}) == 401
        assert ask("POST", "experiments/create", "admin", admin, {"name": "others"}) == 200
        assert ask("POST", "experiments/create", *own, {"name": "own"}) == 200
        assert ask("POST", "runs/create", *own, {"experiment_id": "2"}) == 200
        assert ask("POST", "runs/create", *own, {"experiment_id": "1"}) == 403
        assert ask("POST", "experiments/delete", *own, {"experiment_id": "1"}) == 403
        new = {"username": "me", "password": "m" * 24}
        assert ask("POST", "users/create", *own, new) == 403
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
