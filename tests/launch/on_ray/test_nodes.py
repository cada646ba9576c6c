"""What the driver asks the other nodes of a cluster."""

from __future__ import annotations

import pytest

from raylit.launch.on_ray import nodes
from tests.lazy import ray

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_a_node_that_is_gone_is_left_out() -> None:
    """Ray lists it for some time after its end."""
    here, gone = ray.get_runtime_context().get_node_id(), ray.NodeID.from_random().hex()
    with pytest.warns(
        UserWarning,
        match=(
            r"The nodes 192\.0\.2\.9 of the Ray cluster do not answer; it is not known what"
            r" they see"
        ),
    ):
        assert nodes._ask({here: "here", gone: "192.0.2.9"}, nodes._exist, ["/", "/nowhere"]) == {
            here: [True, False]
        }


def test_what_goes_wrong_on_a_node_is_raised() -> None:
    here = ray.get_runtime_context().get_node_id()
    with pytest.raises(TypeError):
        nodes._ask({here: "here"}, nodes._exist, [None])  # type: ignore[list-item]
