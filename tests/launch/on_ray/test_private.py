"""Ray's private API is where `private.py` looks for it, and nowhere else in raylit."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import raylit
from raylit.launch.on_ray import private
from tests.lazy import ray

ROOT = Path(raylit.__file__).parent
PRIVATE = ("ray._", "ray.train.v2._internal", "ray.tune.impl", "ray.autoscaler._")


def private_names(path: Path) -> list[str]:
    """What of Ray's private API a module takes, by imports and by attributes."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
    return [name for name in found if name.startswith(PRIVATE)]


def test_one_place_for_ray_s_private_api() -> None:
    places = {
        path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if private_names(path)
    }
    assert places == {"launch/on_ray/private.py"}


@pytest.mark.ray
def test_what_a_run_reserves_is_known_by_its_name(ray_cluster: str) -> None:
    from ray.util.placement_group import placement_group

    ours = placement_group([{"CPU": 1.0}], name="fit-one/0")
    others = placement_group([{"CPU": 1.0}], name="fit-two/0")
    assert ours.wait(20) and others.wait(20)
    assert set(private.groups("fit-one")) == {ours.id.hex()}
    private.remove_groups("fit-one")
    assert not private.groups("fit-one")
    assert set(private.groups("fit-two")) == {others.id.hex()}
    private.remove_groups("fit-two")


@pytest.mark.ray
def test_what_is_asked_of_a_cluster(ray_cluster: str) -> None:
    node = ray.get_runtime_context().get_node_id()
    assert not private.draining_nodes()
    assert private.free_resources()[node]["CPU"] <= 4
    assert ":" in (private.dashboard_url() or "")
    assert (private.running_cluster() or "").rpartition(":")[2].isdigit()
