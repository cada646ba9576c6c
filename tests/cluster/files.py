"""The files in cluster/, read once: as text, as YAML documents, and the commands they contain."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
COMPOSE = "docker/compose.yaml"


@cache
def texts() -> dict[str, str]:
    """Name below cluster/ to text of every file there that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "cluster"]
    names = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {
        name.removeprefix("cluster/"): (ROOT / name).read_text()
        for name in names
        if (ROOT / name).exists()
    }


class Loader(yaml.CSafeLoader):
    """YAML as Go reads it, which refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(set(keys)) == len(keys), f"twice in one mapping, at {node.start_mark}: {keys}"
        return super().construct_mapping(node, deep)


Loader.add_constructor(
    "tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True)
)


def documents(name: str) -> list[Any]:
    """Return the documents of a YAML file."""
    return list(yaml.load_all(texts()[name], Loader))


def manifests() -> list[dict[str, Any]]:
    """Return every object of Kubernetes in cluster/kubernetes/."""
    return [
        document
        for name in texts()
        if name.startswith("kubernetes/")
        for document in documents(name)
        if document["kind"] != "Kustomization"  # says how others are changed, and is none itself
    ]


def ray_cluster_specs() -> list[dict[str, Any]]:
    """Return the specs of Ray clusters, the RayJob's own among them."""
    found = {
        manifest["kind"]: manifest["spec"]
        for manifest in manifests()
        if manifest["apiVersion"] == "ray.io/v1"
    }
    return [found["RayCluster"], found["RayJob"]["rayClusterSpec"]]


def pod_templates() -> list[dict[str, Any]]:
    """Return the templates of all pods, KubeRay's among them."""
    templates = [
        manifest["spec"]["template"]
        for manifest in manifests()
        if manifest["kind"] in ("Deployment", "StatefulSet")
    ]
    for spec in ray_cluster_specs():
        templates += [
            spec["headGroupSpec"]["template"],
            *(group["template"] for group in spec["workerGroupSpecs"]),
        ]
    templates += [
        manifest["spec"]["submitterPodTemplate"]
        for manifest in manifests()
        if manifest["kind"] == "RayJob"
    ]
    return templates


def walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every leaf of a YAML document with the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner, path)
    else:
        yield path, value


def constraints() -> dict[str, str]:
    """Return name to version of cluster/constraints.txt."""
    lines = [
        line.split("==")
        for line in texts()["constraints.txt"].splitlines()
        if "==" in line and not line.startswith("#")
    ]
    return {name: version for name, version in lines}


def commands(program: str, subcommands: str) -> list[tuple[str, list[str]]]:
    """Return (file, arguments) of each call of a program in cluster/.

    In code blocks, in headers, as a list or a text in YAML.

    Args:
        program: a regular expression.
        subcommands: what the first argument may be, likewise.
    """
    call = re.compile(rf"(?:^|[\s'(/=]){program} ((?:{subcommands})\b[^'\"`\n&|;>#)]*)")
    found = []
    for name, text in texts().items():
        if name == "README.md":
            text = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
        pieces = [re.sub(r"\\\n#?\s*", " ", text)]
        if name.endswith(".yaml"):
            # a command may go over several lines there, or be a list; what else is in the text are
            # comments
            pieces = re.findall(r"^#.*", pieces[0], re.MULTILINE)
            for document in documents(name):
                pieces += [
                    " ".join(value.split())
                    for _, value in walk(document)
                    if isinstance(value, str) and "\n" not in value
                ]
                pieces += [" ".join(map(str, parts)) for parts in lists(document)]
        found += [
            (name, arguments.split()) for piece in pieces for arguments in call.findall(piece)
        ]
    return found


def lists(value: Any) -> Iterator[list[Any]]:
    """Yield the lists of plain values in a YAML document."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from lists(inner)
    elif isinstance(value, list):
        if all(isinstance(part, (str, int)) for part in value):
            yield value
        for inner in value:
            yield from lists(inner)


def shell_commands() -> list[list[str]]:
    """Return the words of each command in the README's code blocks."""
    found: list[list[str]] = []
    for block in re.findall(r"```bash\n(.*?)```", texts()["README.md"], re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = next(
                    (
                        index
                        for index, word in enumerate(words)
                        if word in ("&&", "|", "&", ">") or word.endswith(";")
                    ),
                    len(words),
                )
                found.append(words[:end])
                words = words[end + 1 :]
    return found
