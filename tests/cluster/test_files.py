"""What the files in cluster/ have to keep.

A header, versions that agree, commands that parse, names that lead somewhere.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import raylit
from raylit.cli.command import take_options
from raylit.cli.config import parse
from raylit.tune import SweepSpec

from .files import (
    CLUSTER,
    COMPOSE,
    ROOT,
    commands,
    constraints,
    documents,
    manifests,
    pod_templates,
    ray_cluster_specs,
    shell_commands,
    texts,
)

RAYLIT = r"(?:raylit|run\.sbatch)"


def test_readme_leads_to_every_file() -> None:
    links = set(re.findall(r"\]\(([^)#]+)\)", texts()["README.md"]))
    assert links == set(texts()) - {"README.md"}


@pytest.mark.parametrize("name", sorted(set(texts()) - {"README.md", "constraints.txt"}))
def test_header_says_what_the_file_is_for_and_how_it_is_used(name: str) -> None:
    if name.endswith(".json"):  # has no comments
        assert re.match(r"(A|[A-Z]\w+) .{30,}", json.loads(texts()[name])["description"])
        return
    lines = texts()[name].removeprefix("#!/usr/bin/env bash\n").splitlines()
    header = lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]
    assert header and re.match(r"# (A|[A-Z]\w+) .{30,}", header[0]), "a sentence at the top"
    assert len(header) >= 3
    assert name == "docker/mlflow.ini" or any(line.startswith("#   ") for line in header), (
        "a command, indented"
    )


# Versions


def test_versions_are_those_that_are_tested() -> None:
    pinned = constraints()
    wanted = {
        r"rayproject/ray:([\d.]+)-py": pinned["ray"],
        r"rayVersion: \"([\d.]+)\"": pinned["ray"],
        r"raylit-mlflow:([\d.]+)": pinned["mlflow"],
        r"\braylit:([\d.]+)-[cg]pu": raylit.__version__,
    }
    for pattern, version in wanted.items():
        found = {
            name: set(re.findall(pattern, text))
            for name, text in texts().items()
            if re.search(pattern, text)
        }
        assert found, pattern
        assert set().union(*found.values()) == {version}, f"{pattern}: {found}"


def test_one_python_everywhere() -> None:
    tags = {
        python
        for text in texts().values()
        for python in re.findall(r"rayproject/ray:[\d.]+-py(\d+)", text)
    }
    assert tags == {"311"}
    assert re.findall(
        r"^FROM \S*python:([\d.]+)-", texts()["docker/Dockerfile.mlflow"], re.MULTILINE
    ) == ["3.11"]
    assert sys.version_info[:2] == (3, 11), "CI tests the Python that the clusters have"


def test_images_have_a_tag_that_stays() -> None:
    images = [
        image
        for text in texts().values()
        for image in re.findall(
            r"^\s*(?:- )?(?:image|worker_image): ([\w./:-]+)", text, re.MULTILINE
        )
    ]
    images += [
        image
        for text in texts().values()
        for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    ]
    assert len(images) > 15
    assert [image for image in images if not re.search(r":v?\d[\w.-]*$", image)] == []


def test_every_pip_install_is_held_to_the_constraints() -> None:
    named: set[str] = set()
    for name, text in texts().items():
        if name == "constraints.txt":
            continue
        for call in re.findall(r"pip install((?:[^\n&]|&(?!&))*(?:\n\s+\$\([^\n]*)?)", text):
            assert re.search(r"-c \S*constraints\.txt", call), f"{name}: pip install{call}"
            packages = re.findall(
                r"(?<=\s)'?([a-z][\w-]+)(?:\[\w+\])?'?(?=\s|$)",
                re.sub(r"\$\(.*?\)|-\S+ \S+constraints\.txt|--\S+( http\S+)?", "", call),
            )
            named |= set(packages)
    assert named == {
        "boto3",
        "google-api-python-client",
        "google-cloud-storage",
        "mlflow",
        "nvidia-ml-py",
        "psycopg2-binary",
    }
    assert named <= set(constraints())


def test_images_of_ray_differ_in_cuda_alone() -> None:
    cpu, gpu = (
        re.sub(r"^#.*\n", "", texts()[name], flags=re.MULTILINE).replace("-gpu", "-cpu")
        for name in ("docker/Dockerfile", "docker/Dockerfile.gpu")
    )
    assert cpu.replace(
        " --extra-index-url https://download.pytorch.org/whl/cpu", ""
    ) == gpu.replace(" nvidia-ml-py", "")


# Commands


@pytest.mark.parametrize(
    ("name", "arguments"), commands(RAYLIT, "check|fit|validate|test|predict|tune")
)
def test_commands_of_raylit_parse(
    name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    command, *rest = [argument.replace("/home/ray/app/", "") for argument in arguments]
    options, rest = take_options(command, rest)
    config = parse(command, rest)
    assert config.values.model.class_path.endswith("LitDigits"), name
    if command == "tune":
        assert SweepSpec.from_dict(yaml.safe_load(Path(options.sweep).read_text())).space
        assert config.values.trainer.num_workers in (None, 0), "a trial is one process"


def test_every_kind_of_cluster_has_a_fit_and_a_sweep() -> None:
    sections = re.split(r"^## ", texts()["README.md"], flags=re.MULTILINE)[2:]
    assert [section.splitlines()[0] for section in sections] == [
        "One machine, in containers",
        "AWS",
        "Google Cloud",
        "Machines of your own",
        "Kubernetes",
        "Slurm",
        "Looking after it",  # of all of them
    ]
    for section in sections[:-1]:
        assert "tune --config" in section
        assert "fit --config" in section or "rayjob.yaml" in section or "as for AWS" in section


def test_commands_of_ray_parse() -> None:
    from ray.scripts.scripts import cli

    words = [
        command[command.index("ray") :]
        for command in shell_commands()
        if "ray" in command and "docker" not in command
    ]
    calls = [command[1:] for command in words if command[0] == "ray"] + [
        arguments for _, arguments in commands("ray", "start")
    ]
    assert {call[0] for call in calls} == {
        "up",
        "exec",
        "attach",
        "dashboard",
        "down",
        "start",
        "job",
        "get-auth-token",
    }
    for call in calls:
        group, rest = cli, call
        while hasattr(group, "commands"):
            group, rest = group.commands[rest[0]], rest[1:]
        group.make_context(group.name, list(rest))


# Clouds


def filled(name: str, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / name).write_text(text)
    command = [CLUSTER / "ray/filled.sh", folder / name]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_file_with_placeholders_is_refused(tmp_path: Path) -> None:
    for name in ("aws.yaml", "gcp.yaml", "onprem.yaml"):
        done = filled(name, texts()[f"ray/{name}"], tmp_path)
        assert done.returncode == 1 and f"{name} is not filled in" in done.stderr
    done = filled("aws.yaml", texts()["ray/aws.yaml"], tmp_path)
    found = re.findall(r"^\d+:\s+(\S+)", done.stderr, re.MULTILINE)
    assert {
        "ImageId:",
        "SecurityGroupIds:",
        "IamInstanceProfile:",
        "fs-0123456789abcdef0.efs.us-west-2.amazonaws.com:/",
    } == set(found)


def filled_by_readme(name: str, stand_ins: str, folder: Path) -> str:
    """Return a launcher's file as the README's command fills it, with what the cloud answers."""
    lines = texts()["README.md"].splitlines()
    (line,) = [one for one in lines if one.startswith("sed -i") and one.endswith(f"/{name}")]
    file = folder / name
    file.write_text(texts()[f"ray/{name}"])
    script = f"{stand_ins}; {line.replace(f'cluster/ray/{name}', str(file))}"
    subprocess.run(["bash", "-euc", script], check=True)
    assert filled(name, file.read_text(), folder).returncode == 0
    return file.read_text()


def test_the_walk_through_of_google_fills_its_file(tmp_path: Path) -> None:
    text = filled_by_readme("gcp.yaml", "gcloud() { echo lab-7; }; files=10.1.2.3", tmp_path)
    config = yaml.safe_load(text)
    assert config["provider"]["project_id"] == "lab-7"
    assert any("10.1.2.3:/runs /mnt/runs" in line for line in config["initialization_commands"])
    assert filled("onprem.yaml", texts()["ray/onprem.yaml"], tmp_path).stderr.count("\n") == 3


def test_the_walk_through_of_aws_fills_its_file(tmp_path: Path) -> None:
    answers = "aws() { echo 210987654321; }; image=ami-1a2b group=sg-1a2b files=fs-1a2b"
    text = filled_by_readme("aws.yaml", answers, tmp_path)
    nodes = yaml.safe_load(text)["available_node_types"].values()
    assert {node["node_config"]["ImageId"] for node in nodes} == {"ami-1a2b"}
    profiles = {node["node_config"]["IamInstanceProfile"]["Arn"] for node in nodes}
    assert all(":210987654321:" in arn for arn in profiles) and len(profiles) == 2


def test_the_head_may_start_and_end_nodes_of_its_own_cluster_alone() -> None:
    policies = re.findall(
        r"put-role-policy --role-name (\S+) --policy-name (\w+) --policy-document '(.*?)'",
        texts()["README.md"],
    )
    assert "FullAccess" not in texts()["README.md"]
    (nodes,) = [json.loads(text) for role, name, text in policies if name == "nodes"]
    cluster = documents("ray/aws.yaml")[0]["cluster_name"]
    for statement in nodes["Statement"]:
        actions = statement["Action"]
        if actions == ["ec2:Describe*"]:
            continue
        on_instances = "instance/*" in str(statement["Resource"]) or "*:*:*" in str(statement)
        condition = statement.get("Condition", {}).get("StringEquals", {})
        own = (
            {"aws:RequestTag/ray-cluster-name": cluster},
            {"aws:ResourceTag/ray-cluster-name": cluster},
        )
        assert condition in (*own, {"ec2:CreateAction": "RunInstances"}) or not on_instances
        assert "TerminateInstances" not in str(actions) or condition == own[1]


def test_the_launchers_install_what_their_autoscaler_needs() -> None:
    for name, package in (("aws", "boto3"), ("gcp", "google-api-python-client")):
        file = documents(f"ray/{name}.yaml")[0]
        assert f" {package}" in file["setup_commands"][0]
        apt = next(command for command in file["initialization_commands"] if "apt-get" in command)
        assert re.search(r"apt-get [^&]*update -q && sudo apt-get [^&]*install", apt)
        assert apt.count("DPkg::Lock::Timeout") == 2, "an image updates itself when it starts"
        assert subprocess.run(["bash", "-nc", apt]).returncode == 0


def test_start_parameters_of_kuberay_are_options_of_ray_start() -> None:
    from ray.scripts.scripts import start

    options = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    for spec in ray_cluster_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert set(group["rayStartParams"]) <= options
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_commands_of_mlflow_parse() -> None:
    from mlflow.cli import server

    calls = commands("mlflow", "server")
    assert {name for name, _ in calls} == {COMPOSE, "kubernetes/mlflow.yaml"}
    for _, arguments in calls:
        given = server.make_context("server", list(arguments[1:])).params
        assert given["app_name"] == "basic-auth"
        assert "*" not in given["allowed_hosts"] and "mlflow:5000" in given["allowed_hosts"].split(
            ","
        )
        assert given["disable_security_middleware"] is False


def test_login_of_mlflow_is_set_up_alike() -> None:
    config_map = next(manifest for manifest in manifests() if manifest["kind"] == "ConfigMap")[
        "data"
    ]["mlflow.ini"]
    assert (
        config_map.split()
        == re.sub(r"^#.*\n", "", texts()["docker/mlflow.ini"], flags=re.MULTILINE).split()
    )


# One cluster


def test_names_in_kubernetes_lead_somewhere() -> None:
    named = {(manifest["kind"], manifest["metadata"].get("name")) for manifest in manifests()}
    for template in pod_templates():
        spec = template["spec"]
        if "serviceAccountName" in spec:
            assert ("ServiceAccount", spec["serviceAccountName"]) in named
        mounted = {
            mount["name"]
            for container in spec["containers"]
            for mount in container.get("volumeMounts", [])
        }
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        assert mounted - {"data"} == set(volumes), "`data` is made by the StatefulSet"
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert (
                    "PersistentVolumeClaim",
                    volume["persistentVolumeClaim"]["claimName"],
                ) in named
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in named
    hosts = {
        host
        for name, text in texts().items()
        if name.startswith("kubernetes/")
        for host in re.findall(r"[/@ ](redis|mlflow|postgres):\d+", text)
    }
    assert hosts == {name for kind, name in named if kind == "Service"}
    assert {manifest["metadata"].get("namespace") for manifest in manifests()} == {None, "raylit"}


def test_nodes_that_may_go_have_time_to() -> None:
    for spec in ray_cluster_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            drain = {
                variable["name"]: variable.get("value") for variable in pod["containers"][0]["env"]
            }["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
            assert 0 < int(drain) < pod["terminationGracePeriodSeconds"]
            assert {"name": "shared-mem", "mountPath": "/dev/shm"} in pod["containers"][0][
                "volumeMounts"
            ]
    from ray._private import ray_constants

    grace = int(documents(COMPOSE)[0]["services"]["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace > ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S


def test_pods_are_not_moved_to_pack_nodes_tighter() -> None:
    wanted = {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }
    for spec in ray_cluster_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert wanted.items() <= group["template"]["metadata"]["annotations"].items()


def test_what_ray_exports_is_found_where_it_is() -> None:
    for spec in ray_cluster_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            ports = {
                port["name"]: port["containerPort"]
                for port in group["template"]["spec"]["containers"][0]["ports"]
            }
            found = group["template"]["metadata"]["annotations"]
            assert found["prometheus.io/port"] == str(ports["metrics"]) == "8080"
    for name, arguments in commands("ray", "start"):
        if not name.startswith("README"):
            assert "--metrics-export-port=8080" in arguments, name


def test_both_kinds_of_cluster_have_gpus() -> None:
    for spec in ray_cluster_specs():
        groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        assert set(groups) == {"cpu", "gpu"}
        (container,) = groups["gpu"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container["image"].endswith("-gpu")


@pytest.mark.long
def test_one_edit_changes_registry_sizes_and_times() -> None:
    """What `kubectl` itself makes of the overlays. Wants that program."""
    command = ["kubectl", "kustomize", str(CLUSTER / "kustomize/gke")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    made = list(yaml.safe_load_all(done.stdout))
    base = [one for one in manifests() if one["kind"] != "RayJob"]
    assert sorted(one["kind"] for one in made) == sorted(one["kind"] for one in base)
    images = set(re.findall(r"image: (registry\S+)", done.stdout))
    assert len(images) == 3 and all("/team/raylit" in image for image in images)
    (cluster,) = [one["spec"] for one in made if one["kind"] == "RayCluster"]
    assert [group["maxReplicas"] for group in cluster["workerGroupSpecs"]] == [16, 8]
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        env = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
        drain = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert drain < pod["terminationGracePeriodSeconds"] == 15, "of the 30 s of GKE's notice"
