"""The main module of a started rank, and the function of a forked one."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import torch

from raylit.checkpoint import find
from raylit.core.job import Job
from raylit.engine.signals import terminating
from raylit.engine.worker import run_job
from raylit.launch.job_parts import checkpoint_folders
from raylit.launch.processes.carried import leave_failure, leave_result
from raylit.launch.processes.screen import SentScreen
from raylit.parallel import choose_device
from raylit.parallel.meeting import joined
from raylit.runtime import beforehand
from raylit.runtime.processes import end_with
from raylit.runtime.rng import seed_everything

SEED = "PL_GLOBAL_SEED"
SETTINGS, JOB = "settings", "job"  # files that the parent leaves
MEETING = "meeting"  # the one through which ranks find each other


@dataclass(frozen=True)
class RankSettings:
    """Settings that the parent gives all ranks beside the job.

    Attributes:
        size: how many they are.
        parent: id of the process that has started them.
        timeout_s: how long they wait for one that hangs.
        backend: torch's name of what carries collectives, or None for the usual one.
        seed: that was set, or None.
        before: the checkpoints that were there, see `checkpoint.find.newest_of`.
        search_path: where Python looks for modules.
        imports: modules to import before all others.
        draws: whether the parent draws the progress of rank 0.
    """

    size: int
    parent: int
    timeout_s: float
    backend: str | None
    seed: str | None
    before: dict[str, float]
    search_path: tuple[str, ...]
    imports: tuple[str, ...]
    draws: bool


def main() -> None:
    """Be one rank of a job in a new process.

    The arguments are the folder of the job's files, and the rank.
    """
    folder = Path(sys.argv[1])
    rank = int(sys.argv[2])
    settings: RankSettings = pickle.loads((folder / SETTINGS).read_bytes())
    try:
        save_and_end_with(settings.parent)
        sys.path.extend(path for path in settings.search_path if path not in sys.path)
        beforehand.use(settings.imports)
        job: Job = cloudpickle.loads((folder / JOB).read_bytes())
    except BaseException as error:
        leave_failure(folder, error, rank)
        raise SystemExit(1) from None
    be_rank(job, settings, folder, rank)


def be_forked(job: Job, settings: RankSettings, folder: Path, rank: int) -> None:
    """Be one rank of a job in a process that was forked."""
    os.setsid()  # Ctrl-C reaches the parent alone, which hands it on
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent's are not for this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    save_and_end_with(settings.parent)
    # threads that the parent's had are not here, and OpenMP would wait for them
    torch.set_num_threads(1)
    # as they travel: they begin anew on rank 0
    job.trainer.loggers = cloudpickle.loads(cloudpickle.dumps(job.trainer.loggers))
    has_failed = not be_rank(job, settings, folder, rank)
    if has_failed or os.getppid() != settings.parent:
        # Torch's launcher would have it wait for the other ranks, or for a parent that is gone;
        # and they for it, in a collective, as long as its sockets are open
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if has_failed else 1)


def be_rank(job: Job, settings: RankSettings, folder: Path, rank: int) -> bool:
    """Do the work of one rank, and leave its result or the exception that ended it.

    Returns:
        Whether it was done.
    """
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)  # else one that C++ aborts ends without a word
    try:
        if settings.seed is not None:
            # the same weights come from the parent; what is drawn during training (dropout) differs
            # between ranks
            seed_everything(int(settings.seed) + rank, verbose=False)
            os.environ[SEED] = settings.seed
        if job.fn == "fit":
            reads = None if job.weights_only is False else job.opened
            own = find.newest_of(job.id, checkpoint_folders(job), settings.before, reads)
            job.ckpt_path = own or job.ckpt_path
        accelerator = job.accelerator or job.trainer.accelerator
        device = choose_device(accelerator, rank, job.trainer.gpus)
        group = joined(
            str(folder / MEETING), rank, settings.size, device, settings.backend, settings.timeout_s
        )
        if rank == 0 and settings.draws:
            job.display = SentScreen(folder)
        with terminating(), group:
            result = run_job(job)
            if rank == 0:
                leave_result(folder, result)
    except BaseException as error:
        leave_failure(folder, error, rank)
        return False
    return True


def save_and_end_with(parent: int) -> None:
    """Have this process save and end when its parent dies, of whatever."""
    if not end_with(parent, signal.SIGTERM):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
