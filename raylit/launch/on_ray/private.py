"""Ray's private API: everything that raylit takes from it, since any release of Ray may move it.

Ray Train has no public way to name the resources that a run reserves, to ask how many workers an
elastic run should have, or to end a run from outside; Ray has none to ask which nodes are being
drained, or whether a cluster can grow. Written against Ray 2.60;
`tests/launch/on_ray/test_private.py` fails first when a release moves something.

Parts of this run in processes of Ray that do not import raylit (see `mailbox.py`), so nothing of
raylit is imported here, and nothing of Ray's state is kept in a global: it would be pickled along.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import ray
from ray._common import network_utils
from ray._private import ray_constants, services
from ray._raylet import PlacementGroupID
from ray.experimental import internal_kv
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import _is_preemption_failure
from ray.train.v2._internal.execution.preemption import PreemptionWatcher
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import (
    DefaultPlacementGroupHandle,
)
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from ray.train._internal.base_worker_group import BaseWorkerGroup as BaseWorkerGroup
    from ray.train.v2._internal.execution.context import TrainRunContext as TrainRunContext
    from ray.train.v2._internal.execution.scaling_policy import ScalingDecision as ScalingDecision
    from ray.train.v2._internal.execution.worker_group import WorkerGroupContext
    from ray.train.v2._internal.execution.worker_group import (
        WorkerGroupPollStatus as WorkerGroupPollStatus,
    )
    from ray.train.v2._internal.execution.worker_group import WorkerGroupState as WorkerGroupState
    from ray.train.v2.api.callback import RayTrainCallback
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.train.v2.api.result import Result
    from ray.train.v2.torch.torch_trainer import TorchTrainer
    from ray.tune import Trainable
else:  # the same, but mypy does not see that it is Ray Train 2
    from ray.train.torch import TorchTrainer

__all__ = [
    "DefaultFailurePolicy",
    "ElasticScalingPolicy",
    "FailureDecision",
    "NoopDecision",
    "ResizeDecision",
]

# Ray Train's own: what removes the groups that `remove_groups` removes, at the price of a process
# more for each run, and what serves Ray Datasets, of which the workers get none.
NOT_NEEDED = ("PlacementGroupCleanerCallback", "DatasetsCallback")
# Where the autoscaler writes what it does, every 5 s; `ray status` reads it there.
AUTOSCALER_STATUS = "__autoscaling_status"

ActorHandle: TypeAlias = Any  # Ray's, whose own type has no methods: each is called by `.remote()`


def is_preemption(error: TrainingFailedError) -> bool:
    """Tell whether Ray counts a failure by `max_preemption_failures` rather than `max_failures`."""
    return bool(_is_preemption_failure(error))


class ReservedGroup(TypedDict):
    """Resources that are reserved together, as far as it is asked of them."""

    name: str
    state: str
    bundles: dict[int, dict[str, float]]
    bundles_to_node_id: dict[int, str]


class NamedGroups(WorkerGroup):
    """Workers whose reserved resources carry the name of their run.

    Ray Train leaves them without a name, so that the resources of two runs of one process could
    only be told apart by amount and time; then the end of one run took the other's workers along.
    """

    def _create_placement_group(
        self, scaling_config: object, worker_group_context: WorkerGroupContext
    ) -> DefaultPlacementGroupHandle:
        context = worker_group_context
        run = self._train_run_context.run_config.name
        made = placement_group(
            bundles=[context.resources_per_worker] * context.num_workers,
            strategy=context.placement_strategy,
            # Ray wants names to be unique, also among those that are gone
            name=f"{run}/{uuid.uuid4().hex[:8]}",
            bundle_label_selector=context.label_selector,
        )
        return DefaultPlacementGroupHandle(made)


class WatchedFromHere(PreemptionCallback):
    """Watches in this process for nodes that go away: Ray starts one more process for each run.

    That one would take 1.5 s of CPU time to import Ray Train and hold 200 MB.
    """

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Watch the nodes of these workers, instead of those of the ones before."""
        self._stop_watcher()
        ranks: dict[str, list[int]] = {}
        actors = {}
        for worker in worker_group.get_workers():
            rank = worker.distributed_context.world_rank
            ranks.setdefault(worker.metadata.node_id, []).append(rank)
            actors[rank] = worker.actor
        self._watcher: Any = PreemptionWatcher(ranks, self._poll_interval_s, actors)

    def _stop_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher._stop_event.set()
            self._watcher = None


class NamedTrainController(TrainController):
    """Ray Train's controller, with workers that `groups` finds, and no process beside it."""

    worker_group_cls = NamedGroups

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._worker_group_callbacks_to_propagate = [
            WatchedFromHere() if type(one) is PreemptionCallback else one
            for one in self._worker_group_callbacks_to_propagate
        ]


class TrainRun(TorchTrainer):
    """A run of Ray Train that can be aborted from outside, and that Ctrl-C ends as Python says.

    Ray's own handler would end the process, with exit code 1 and without a word.
    """

    _controller: ActorHandle = None
    policies: Mapping[str, object] = MappingProxyType({})  # in the place of Ray's own

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        """Leave out those for whose sake each run would start one more process."""
        made = super()._create_default_callbacks()
        return [callback for callback in made if type(callback).__name__ not in NOT_NEEDED]

    def _initialize_and_run_controller(self, **arguments: object) -> Result:
        """Do as Ray does, but remember the controller, and leave Ctrl-C to Python."""
        here: Any = NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        env = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}
        actor = ray.remote(num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": env})(
            NamedTrainController
        )
        self._controller = actor.remote(**{**arguments, **self.policies})
        ray.get(self._controller.run.remote())
        result: Result = ray.get(self._controller.get_result.remote())
        # Its process ends with its last handle. The traceback of an exception, which a notebook
        # keeps, leads to this object.
        self._controller = None
        return result

    def abort(self, timeout_s: float) -> None:
        """Stop the workers and the controller that holds their resources."""
        controller = self._controller
        self._controller = None
        if controller is None:
            return
        try:
            ray.get(controller.abort.remote(), timeout=timeout_s)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
            return  # how it ends
        except ray.exceptions.GetTimeoutError:
            ray.kill(controller)


def groups(run: str = "") -> dict[str, ReservedGroup]:
    """Return the groups of resources that a run has reserved, by id; without a run, all there are.

    Each is as in `ray.util.placement_group_table`.
    """
    return {
        name: group
        for name, group in ray.util.placement_group_table().items()
        if group["name"].startswith(run) and group["state"] != "REMOVED"
    }


def remove_groups(run: str) -> None:
    """Free the resources that a run has reserved; workers that hold them end.

    Nobody else frees them if Ray Train's controller was killed.
    """
    for name in groups(run):
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def set_flag(key: bytes) -> None:
    """Set a flag in the store of the cluster's head, where every process of the cluster sees it."""
    internal_kv._internal_kv_put(key, b"1")


def is_flag_set(key: bytes) -> bool:
    """Tell whether any process has set a flag."""
    is_set: bool = internal_kv._internal_kv_exists(key)
    return is_set


def clear_flag(key: bytes) -> None:
    """Forget a flag."""
    internal_kv._internal_kv_del(key)


def number_next_checkpoint(trial: Trainable, number: int) -> None:
    """Give the next checkpoint that a trial of Ray Tune saves a number of our own.

    Ray counts them, but not one whose trial was paused before its driver heard of it: the next has
    the same number then, and is written over it, though another trial may have been told to go on
    from there.
    """
    storage = trial._storage
    if storage is not None:
        storage.current_checkpoint_index = number - 1  # saving adds 1


def draining_nodes() -> Collection[str]:
    """Return the ids of the nodes that are about to be taken away."""
    return ray._private.state.state.get_draining_nodes()


def free_resources() -> dict[str, dict[str, float]]:
    """Return the free resources of each node, by its id."""
    found: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()
    return found


def most_resources() -> dict[str, int] | None:
    """Return how much of everything the cluster's autoscaler may provide.

    None where it does not say: only that of KubeRay and Anyscale does.
    """
    state = ray._private.state.state
    found: dict[str, int] | None = state.get_max_resources_from_cluster_config()
    return found


def grows(wait_s: float = 0.0) -> bool | None:
    """Tell whether an autoscaler may add nodes to the cluster; None: nobody says.

    A cluster without one has a monitor that only mirrors its nodes, and makes up a type for each.

    Args:
        wait_s: how long to wait for the first word of it, which comes 5 s after the head starts.
    """
    if most_resources() is not None:
        return True
    until = time.monotonic() + wait_s
    while True:
        text = internal_kv._internal_kv_get(AUTOSCALER_STATUS)
        report = json.loads(text).get("autoscaler_report") if text else None
        types: dict[str, str] = (report or {}).get("node_type_mapping") or {}
        if types:
            return any(kind != f"node_{node}" for node, kind in types.items())
        if time.monotonic() >= until:
            return None
        time.sleep(0.2)


def dashboard_url() -> str | None:
    """Return the address of the cluster's dashboard, without a scheme; None if it has none."""
    found: str | None = ray._private.worker.get_dashboard_url()
    return found


def running_cluster() -> str | None:
    """Return the `host:port` of a Ray cluster that runs on this machine, or None."""
    found: list[str] = sorted(services.find_gcs_addresses())
    return found[0] if found else None


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Context in which a cluster that is started listens on this machine alone, as on macOS.

    Ray decides by a variable that it has read when it was imported. Processes of the cluster
    inherit the variable, so that drivers of Ray jobs find the cluster where it listens.
    """
    before = os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
    was_enabled = ray_constants.ENABLE_RAY_CLUSTER
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was_enabled
        os.environ.pop(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
        if before is not None:
            os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = before


def own_address() -> str:
    """Return the address of this machine that Ray takes a loopback address for."""
    # its types leave out what it imports
    found: str = network_utils.node_ip_address_from_perspective()  # type: ignore[attr-defined]
    return found


def send_token() -> None:
    """Have Ray send the token that `ray start --head` asks for once a token file exists.

    By itself it does so only where it starts a cluster.
    """
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available,
    )

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


# Its logger tells every user of tokens how to switch them off.
TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"

# What the dashboard takes in one request, such as the files of a job.
MAX_UPLOAD_BYTES: int = ray_constants.DASHBOARD_CLIENT_MAX_SIZE
