"""The function of each worker.

It is apart from the code that starts the workers, so that they do not import that.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
import torch
from ray import cloudpickle

from raylit.checkpoint import find
from raylit.core.job import Job, Result
from raylit.engine.worker import run_job
from raylit.errors import Terminated
from raylit.launch.job_parts import checkpoint_folders, parts_of
from raylit.launch.on_ray import mailbox as remote
from raylit.launch.on_ray.by_value import Pickled
from raylit.launch.on_ray.failure import failure_of
from raylit.launch.on_ray.mailbox import Left
from raylit.launch.on_ray.preemption import Notice
from raylit.launch.on_ray.relay import RemoteScreen, echoing
from raylit.launch.on_ray.rescale import ElasticPlan
from raylit.launch.on_ray.validation import ValidationTasks
from raylit.launch.on_ray.variables import Variables
from raylit.launch.on_ray.watchdog import Watchdog
from raylit.parallel import choose_device
from raylit.runtime.messages import is_verbose
from raylit.runtime.rng import seed_everything

if TYPE_CHECKING:
    from raylit.launch.on_ray.watch import Where

SEED = "PL_GLOBAL_SEED"
ASK_EVERY_S = 0.1  # for the next job
END = "end"  # in the place of a job: there will be none

# What fails in a worker is looked at by a process without raylit.
cloudpickle.register_pickle_by_value(remote)


@dataclass
class Preempted:
    """Returned by a worker that left: a machine is to be taken away, or the driver ends the run."""


class WorkerMain:
    """The function of each worker; a class, so that its attributes are pickled with it.

    Attributes:
        screen: where rank 0 shows its progress.
        shows_prints: whether what is printed is shown there too.
        accelerator: what each rank computes on, as the launcher has chosen it.
        resources: what each worker reserves.
        variables: what the driver has set in its environment.
    """

    screen: RemoteScreen
    shows_prints: bool
    accelerator: str
    resources: dict[str, float]
    variables: Variables

    def __init__(self, job: Job) -> None:
        self.pickled = Pickled(job, parts_of(job))
        self.before = find.times_of(checkpoint_folders(job))
        self.seed = os.environ.get(SEED)

    def __call__(self) -> bytes | None:
        """Do the work of this worker.

        Returns the result of `do`, pickled, so that code that only hands it on need not know its
        class.
        """
        result = self.do()
        return None if result is None else packed(result)

    def do(self) -> Result | Preempted | None:
        """Do the work of this worker.

        Returns:
            Of rank 0, a Result; of every rank, Preempted if the workers were told to leave.

        Raises:
            WorkerFailure: carries what the user's code raised.
            Left: rank 0 of an elastic job has saved it, and all workers leave.
        """
        rank = int(os.environ["RANK"])
        notice = Notice(self.screen.mailbox if rank == 0 else None)
        if not is_verbose():
            # Ray lets through what it says of the credentials it found
            logging.getLogger("aiobotocore").setLevel(logging.WARNING)
        prints = echoing(self.screen, rank) if self.shows_prints else contextlib.nullcontext()
        with prints, self.variables.applied(tracking=rank == 0):
            try:
                job: Job = self.pickled.content()
                job.accelerator = self.accelerator
                job.display = self.screen
                job.preemption_notice = notice
                self.screen.started(_where(job, rank))
                if self.seed is not None:
                    # the same weights come from the driver; what is drawn during training (dropout)
                    # differs between ranks
                    seed_everything(int(self.seed) + rank, verbose=False)
                    os.environ[SEED] = self.seed
                plan: ElasticPlan | None = None
                if job.trainer.is_elastic:
                    plan = ElasticPlan(
                        int(os.environ["WORLD_SIZE"]),
                        job.trainer.num_workers,
                        self.screen if rank == 0 else None,
                    )
                    plan.adapt(job.trainer, job.module, job.fn)
                    job.rescale_plan = plan
                if job.fn == "fit":
                    if job.trainer.async_validation and rank == 0:
                        job.validation_starter = ValidationTasks(job)
                    # A file that may run code is loaded by the fit alone, not to see if it is whole
                    reads = None if job.weights_only is False else job.opened
                    # By the id of the job, not by times: another fit may have saved into the
                    # same folder while this one started
                    own = find.newest_of(job.id, checkpoint_folders(job), self.before, reads)
                    job.ckpt_path = own or job.ckpt_path
                if plan is not None and not (job.fn == "fit" and job.ckpt_path):
                    plan.tell("from the start")
                with Watchdog(job, self.screen, rank):
                    result = run_job(job)
            except BaseException as error:
                if isinstance(error, Terminated) and notice.given:
                    if job.rescale_plan is None:
                        return Preempted()
                    if rank != 0:
                        return None
                    raise Left(notice.why) from None
                raise failure_of(error) from None
            finally:
                self.screen.left(rank)
                self.screen.wait()
        return result if rank == 0 else None


@dataclass
class KeptWorkerMain:
    """The function of a worker that is kept: does one job after the other, as they are given.

    Attributes:
        screen: whose mailbox they come through.
    """

    screen: RemoteScreen

    def __call__(self) -> bytes | None:
        """Do jobs until there is none any more.

        Returns Preempted, pickled, if the workers were told to leave.
        """
        mailbox = self.screen.mailbox
        number = 0
        seed = os.environ.get(SEED)
        rank = int(os.environ["RANK"])
        size = int(os.environ["WORLD_SIZE"])
        while True:
            latest, given = ray.get(mailbox.next_job.remote(number))
            if given is None:
                time.sleep(ASK_EVERY_S)
                continue
            if given == END:
                return None
            work: WorkerMain = ray.get(given[0])
            result = work.do()
            if isinstance(result, Preempted):
                return packed(result)
            # In a list, so that Ray hands on the reference and not the value
            ray.get(
                mailbox.did.remote(
                    latest, rank, size, [ray.put(packed(result))] if rank == 0 else None
                )
            )
            number = latest
            # Else the model of this job would be in memory beside that of the next
            del work, result
            os.environ.pop(SEED, None)  # of this job
            os.environ.update({SEED: seed} if seed is not None else {})
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def packed(result: Result | Preempted | None) -> bytes:
    """Return the result of a job, pickled, but for attributes of callbacks that cannot be."""
    if isinstance(result, Result) and result.state is not None:
        for callback in result.state["callbacks"]:
            callback.leave_behind(cloudpickle.dumps)
    return bytes(cloudpickle.dumps(result))


def _where(job: Job, rank: int) -> Where:
    """Return the place of a worker, as the driver tells it."""
    address = ray.util.get_node_ip_address()
    device = choose_device(
        job.accelerator or job.trainer.accelerator, int(os.environ["LOCAL_RANK"])
    )
    return {
        "rank": rank,
        "size": int(os.environ["WORLD_SIZE"]),
        "node": f"{address} ({socket.gethostname()})",
        "device": str(device),
    }
