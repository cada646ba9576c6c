"""The disk of this node, as far as the other nodes of a cluster see it.

The folders that a run writes to, and the user's code.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypedDict, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylit.errors import ConfigError, LaunchError, MissingPackageError
from raylit.launch.on_ray.by_value import Code
from raylit.runtime.messages import warn
from raylit.runtime.storage import unwritable

T = TypeVar("T")

ASK_S = 60.0  # how long a node may take to answer; it may have to start a process first


class Output(TypedDict):
    """Arguments of `ray.init` that say which of Ray's own lines are shown."""

    logging_level: int
    log_to_driver: bool


def check_shared(folders: Iterable[str]) -> None:
    """Find out, before any worker starts, whether all nodes see the folders that a run writes to.

    Find out also whether they can write to its URLs.

    Raises:
        ConfigError: some do not.
    """
    others = other_nodes()
    folders = list(folders)
    _check_urls([folder for folder in folders if "://" in folder])
    local = list(
        dict.fromkeys(os.path.abspath(folder) for folder in folders if "://" not in folder)
    )
    if not others or not local:
        return
    name = f".raylit-{uuid.uuid4().hex[:8]}"
    missing = [path for folder in local for path in missing_folders(folder)]
    # A file of our own: a folder of this name may be there on each node's own disk
    for folder in local:
        os.makedirs(folder, exist_ok=True)
        Path(folder, name).touch()
    try:
        found = _ask(others, _exist, [os.path.join(folder, name) for folder in local])
    finally:
        for folder in local:
            Path(folder, name).unlink(missing_ok=True)
        for path in sorted(missing, key=len, reverse=True):
            with contextlib.suppress(OSError):  # another run has begun to use it
                os.rmdir(path)
    for index, folder in enumerate(local):
        blind = [others[node] for node, sees in found.items() if not sees[index]]
        if blind:
            raise ConfigError(
                f"The run would write to {folder}, which the node{'s' if len(blind) > 1 else ''}"
                f" {', '.join(blind)} of the Ray cluster cannot see: its workers could neither save"
                " nor resume. Give a folder that all nodes mount, such as NFS:"
                " Trainer(storage_path='/mnt/shared/runs'), or a URL:"
                " Trainer(storage_path='s3://bucket/runs')."
            )


def missing_folders(folder: str) -> list[str]:
    """Return the folders on the way to a folder that are not there, the innermost first."""
    found = []
    while not os.path.exists(folder):
        found.append(folder)
        folder = os.path.dirname(folder)
    return found


def _check_urls(urls: list[str]) -> None:
    """Find out whether processes on the nodes can write to URLs.

    They have the environment of `ray start` and not of this process.

    Raises:
        ConfigError: some cannot.
    """
    # One of each bucket
    places = list({url.partition("://")[2].partition("/")[0]: url for url in urls}.values())
    nodes = _nodes() if places else {}
    for node, problems in _ask(nodes, _problems, places).items():
        for url, problem in zip(places, problems, strict=True):
            if problem:
                raise ConfigError(
                    f"This process can write to {url}, but workers on the node {nodes[node]} of the"
                    f" Ray cluster cannot: {problem}. They have the environment in which `ray"
                    " start` was called there: set such variables before, on every node, or use"
                    " the cloud's identities."
                )


def without_code() -> list[str]:
    """Return the addresses of the nodes that do not see the folders with the user's code."""
    others = other_nodes()
    found = _ask(others, _exist, list(Code.here().folders.values()))
    return [others[node] for node, sees in found.items() if not all(sees)]


def connect_with_code(address: str, arguments: Output) -> None:
    """Connect to a cluster again, now with the code.

    Raises:
        LaunchError: the folders with the code are too large.
    """
    code = Code.here()
    ray.shutdown()
    try:
        ray.init(address=address, runtime_env=code.runtime_env, **arguments)
    except (ValueError, RuntimeError) as error:
        raise LaunchError(
            f"{' and '.join(code.folders)} is not on all nodes of the Ray cluster and cannot be"
            f" sent to them: {error}. Start from a folder that holds code only, name what is data"
            " in a .gitignore there, or mount the folder on all nodes."
        ) from error


def other_nodes() -> dict[str, str]:
    """Return the nodes besides this one on which workers may run, by id, with their addresses."""
    here = ray.get_runtime_context().get_node_id()
    return {node: address for node, address in _nodes().items() if node != here}


def _nodes() -> dict[str, str]:
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    }


def _ask(
    nodes: dict[str, str], question: Callable[[list[str]], list[T]], paths: list[str]
) -> dict[str, list[T]]:
    """Return for each node its answer to a question about paths.

    Nodes that do not answer are left out with a warning.
    """
    look = ray.remote(num_cpus=0, max_retries=0)(question)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            paths
        ): node
        for node in nodes
    }
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=ASK_S) if asked else ([], [])
    answers = {}
    for ref in done:
        try:
            answers[asked[ref]] = ray.get(ref)
        except ray.exceptions.RayTaskError:  # raylit is not installed there, it may be
            raise
        except ray.exceptions.RayError:
            # A node that has just died, which Ray lists until it notices
            late.append(ref)
    if late:
        warn(
            f"The nodes {', '.join(nodes[asked[ref]] for ref in late)} of the Ray cluster do not"
            " answer; it is not known what they see."
        )
    return answers


def _exist(paths: list[str]) -> list[bool]:
    return [os.path.exists(path) for path in paths]


def _problems(urls: list[str]) -> list[str | None]:
    try:
        return [unwritable(url) for url in urls]
    except MissingPackageError as error:
        return [str(error)] * len(urls)
