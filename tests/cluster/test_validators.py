"""The files in cluster/ before the validators of those who read them.

Ray, Kubernetes, Docker, the shell. Each rejects a file with a mistake in it.
"""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deadlines import stretched

from .files import (
    CLUSTER,
    COMPOSE,
    Loader,
    documents,
    manifests,
    pod_templates,
    ray_cluster_specs,
    texts,
)
from .kuberay import SPECS

# The oldest version that is still maintained, or nearly; what it knows, newer ones know
KUBERNETES = "1.34"
BIN = Path(sys.executable).parent  # where pip puts programs
LAUNCHERS = ("ray/aws.yaml", "ray/gcp.yaml", "ray/onprem.yaml")
PLAIN = [manifest for manifest in manifests() if manifest["apiVersion"] != "ray.io/v1"]
OF_KUBERAY = [manifest for manifest in manifests() if manifest["apiVersion"] == "ray.io/v1"]


def run(*command: Any) -> tuple[int, str]:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=stretched(120),
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_key_that_is_there_twice_is_refused() -> None:
    """By the loader through which all of these tests read."""
    with pytest.raises(AssertionError, match="twice"):
        yaml.load("head: {cpus: 1, cpus: 2}", Loader)


# Ray's launcher


def launcher() -> Any:
    """What Ray itself reads a launcher's file with. `ray.autoscaler` alone does not have it."""
    return importlib.import_module("ray.autoscaler._private.util")


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_takes_the_launcher_file(name: str) -> None:
    config = documents(name)[0]
    launcher().validate_config(launcher().prepare_config(copy.deepcopy(config)))
    with pytest.raises(jsonschema.ValidationError):
        launcher().validate_config(launcher().prepare_config({**config, "max_worker": 3}))


@pytest.mark.parametrize("name", LAUNCHERS[:2])
def test_cloud_has_workers_on_spot_with_and_without_gpus(name: str) -> None:
    config = launcher().prepare_config(documents(name)[0])
    workers = {
        kind: node
        for kind, node in config["available_node_types"].items()
        if kind != config["head_node_type"]
    }
    assert sorted(node["resources"].get("GPU", 0) for node in workers.values()) == [0, 1]
    for node in workers.values():
        assert node["min_workers"] == 0 < node["max_workers"] <= config["max_workers"]
        market = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        assert market == "spot" or node["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
        is_gpu = bool(node["resources"].get("GPU"))
        assert (
            node.get("docker", {})
            .get("worker_image", config["docker"]["image"])
            .endswith("-gpu" if is_gpu else "-cpu")
        )
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0} and head["max_workers"] == 0
    assert (
        "InstanceMarketOptions" not in head["node_config"]
        and "scheduling" not in head["node_config"]
    ), "the head stays"


# Kubernetes


def identify(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}-{manifest['metadata'].get('name', 'digits')}"


@pytest.mark.parametrize("manifest", PLAIN, ids=identify)
def test_kubernetes_takes_the_manifest(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    "template", pod_templates(), ids=lambda template: template["spec"]["containers"][0]["name"]
)
def test_kubernetes_takes_the_pod(template: dict[str, Any]) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod", **template.get("metadata", {})},
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    wrong = copy.deepcopy(pod)
    wrong["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


@pytest.mark.parametrize("manifest", OF_KUBERAY, ids=identify)
def test_kuberay_has_the_fields(manifest: dict[str, Any]) -> None:
    schema = SPECS[manifest["kind"]]
    jsonschema.validate(manifest["spec"], schema)
    with pytest.raises(jsonschema.ValidationError, match="idleTimeoutSecond'"):
        wrong = copy.deepcopy(manifest["spec"])
        wrong.get("rayClusterSpec", wrong)["autoscalerOptions"]["idleTimeoutSecond"] = 3
        jsonschema.validate(wrong, schema)


def test_kuberay_takes_the_combination() -> None:
    """What its operator checks beyond the types of fields."""
    for spec in ray_cluster_specs():
        assert spec["authOptions"]["mode"] == "token" and [
            int(part) for part in spec["rayVersion"].split(".")
        ] >= [2, 52, 0]
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        assert spec["autoscalerOptions"]["version"] == "v2", (
            "of which it wants pods that are not restarted"
        )
        assert all(
            group["template"]["spec"].get("restartPolicy", "Never") == "Never" for group in groups
        )
        for group in groups:
            env = {
                variable["name"] for variable in group["template"]["spec"]["containers"][0]["env"]
            }
            assert not env & {
                "RAY_REDIS_ADDRESS",
                "REDIS_PASSWORD",
                "RAY_enable_autoscaler_v2",
                "RAY_AUTH_MODE",
                "RAY_AUTH_TOKEN",
            }, "which it sets"
            # Its own names: it adds them where they are missing
            for volume in (
                "shared-mem",
                "ray-logs",
            ):
                assert volume in {
                    mount["name"]
                    for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]
                }
        assert all(
            group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            for group in spec["workerGroupSpecs"]
        )
    cluster, job = ray_cluster_specs()
    assert cluster["gcsFaultToleranceOptions"]["redisPassword"] == {
        "valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}
    }
    assert "gcsFaultToleranceOptions" not in job


# Docker


def test_docker_compose_takes_the_file(tmp_path: Path) -> None:
    check = (BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    code, said = run(*check, CLUSTER / COMPOSE, CLUSTER / "docker/tls.yaml")
    assert code == 0, said
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(yaml.safe_dump({"services": {"head": {"image": "x", "healtcheck": {}}}}))
    assert run(*check, wrong)[0] == 1


def test_services_of_compose_are_checked_and_bounded() -> None:
    compose = documents(COMPOSE)[0]
    more = documents("docker/tls.yaml")[0]["services"]
    compose = {"services": {**compose["services"], **more}}
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert set(service.get("depends_on", {})) <= set(compose["services"]), name
        assert all(
            condition == {"condition": "service_healthy"}
            for condition in service.get("depends_on", {}).values()
        )


def test_hadolint_takes_the_images(tmp_path: Path) -> None:
    files = [CLUSTER / name for name in texts() if "Dockerfile" in name]
    assert len(files) == 3
    code, said = run(BIN / "hadolint", *files)
    assert (code, said) == (0, "")
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN pip install ray\n")
    assert run(BIN / "hadolint", wrong)[0] == 1


def test_images_copy_files_that_exist() -> None:
    for name, text in texts().items():
        if "Dockerfile" in name:
            copied = [line.split() for line in text.splitlines() if line.startswith("COPY")]
            sources = [
                word for words in copied for word in words[1:-1] if not word.startswith("--")
            ]
            assert sources and all((CLUSTER.parent / source).exists() for source in sources)


# The shell


def test_shellcheck_takes_the_scripts(tmp_path: Path) -> None:
    scripts = [CLUSTER / name for name, text in texts().items() if text.startswith("#!")]
    assert {script.name for script in scripts} == {
        "run.sbatch",
        "node.sh",
        "secrets.sh",
        "filled.sh",
    }
    code, said = run(BIN / "shellcheck", *scripts)
    assert code == 0, said
    assert all(script.stat().st_mode & 0o100 for script in scripts)
    wrong = tmp_path / "wrong.sh"
    wrong.write_text("#!/bin/sh\necho $1\n")
    assert run(BIN / "shellcheck", wrong)[0] == 1


def test_shellcheck_takes_the_scripts_within_yaml(tmp_path: Path) -> None:
    found = [
        script
        for manifest in [*manifests(), documents(COMPOSE)[0]]
        for script in inner_scripts(manifest)
    ]
    assert len(found) == 3
    for index, script in enumerate(found):
        file = tmp_path / f"{index}.sh"
        file.write_text("#!/bin/sh\n" + script.replace("$$", "$"))
        # Declared and assigned at once: with -e a missing secret shows all the same
        code, said = run(BIN / "shellcheck", "--exclude=SC2155", file)
        assert code == 0, said


def inner_scripts(value: Any) -> list[str]:
    """Return what is given to `sh -ec` in a document."""
    if isinstance(value, list):
        own = [value[2]] if value[:2] == ["sh", "-ec"] else []
        return own + [script for inner in value for script in inner_scripts(inner)]
    return (
        [script for inner in value.values() for script in inner_scripts(inner)]
        if isinstance(value, dict)
        else []
    )


def test_shellcheck_takes_the_readme(tmp_path: Path) -> None:
    file = tmp_path / "readme.sh"
    blocks = texts()["README.md"].split("```bash\n")[1:]
    file.write_text("#!/usr/bin/env bash\n" + "\n".join(block.split("```")[0] for block in blocks))
    code, said = run(BIN / "shellcheck", "--severity=warning", "--exclude=SC2155", file)
    assert code == 0, said
