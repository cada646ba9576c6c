"""Runs a job in processes of this machine, started by torch's own launcher."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, PContext, start_processes

from raylit.checkpoint import find
from raylit.core.job import Job, Result
from raylit.errors import ConfigError, LaunchError, Terminated
from raylit.launch.job_parts import checkpoint_folders, origin_of_restart, parts_of
from raylit.launch.processes.carried import failures_in, num_failed, result_in
from raylit.launch.processes.rank import JOB, SEED, SETTINGS, RankSettings, be_forked
from raylit.launch.processes.screen import drawing
from raylit.runtime import beforehand
from raylit.runtime.messages import info, warn

POLL_S = 0.05
PATIENT_SIGNALS = 2  # the second ends ranks at once, where they can; one more kills them
ARRIVES_S = 2.0  # for the word of a rank that has ended
LEAVE_S = 30.0  # for the other ranks, once one has failed
HANDED_ON = (signal.SIGTERM, signal.SIGINT)
TORCHS_SIGNALS = "TORCHELASTIC_SIGNALS_TO_HANDLE"
_quiet_lock = threading.Lock()
_found_by_quiet_fits: list[tuple[bool, str | None]] = []  # one for each fit that runs
RANK_MAIN = "raylit.launch.processes.rank"


class ProcessLauncher:
    """Starts `num_workers` processes on this machine, without Ray: a rank each.

    Of `Trainer(launcher="local")` and of the strategies `ddp_spawn`, `ddp_fork` and `ddp_notebook`.
    Forked processes have the objects of this one as they are; new ones get them pickled. Neither
    runs the user's script again. Ctrl-C and SIGTERM are handed on to all of them, which save and
    end; if this process is killed they do so too.
    """

    def launch(self, job: Job) -> Result:
        """See `Launcher.launch`."""
        trainer = job.trainer
        check(job)
        job.returns_state = True
        job.accelerator = accelerator_for(trainer.accelerator, trainer.use_gpu, trainer.num_workers)
        before = find.times_of(checkpoint_folders(job))
        allowed = getattr(trainer.max_failures, "max_failures", trainer.max_failures)
        # Before the first start: what cannot be sent is no failure of a rank
        content = None if trainer.start_method == "fork" else pickled(job)
        num_failures = 0
        while True:
            with tempfile.TemporaryDirectory(prefix="raylit-") as name:
                folder = Path(name)
                try:
                    with drawing(folder) as draws:
                        return self._run(job, content, before, folder, draws)
                except Exception as error:
                    num_failures += 1
                    if num_failures > allowed != -1:
                        raise
                    first = str(error).partition("\n")[0]
                    warn(
                        f"Restart {num_failures}, {origin_of_restart(job)}:"
                        f" {type(error).__name__}: {first}"
                    )

    def _run(
        self, job: Job, content: bytes | None, before: dict[str, float], folder: Path, draws: bool
    ) -> Result:
        """Start the ranks, wait for them, and return rank 0's result.

        Args:
            job: what they are to do.
            content: the job as it is sent to new processes; None: they are forked.
            before: the checkpoints that were there.
            folder: for the files of this job.
            draws: whether this process draws rank 0's progress.

        Raises:
            LaunchError: a rank died without a word.
            BaseException: what the user's code raised.
        """
        settings = RankSettings(
            size=job.trainer.num_workers,
            parent=os.getpid(),
            timeout_s=job.trainer.strategy.timeout_s(),
            backend=job.trainer.strategy.process_group_backend,
            seed=os.environ.get(SEED),
            before=before,
            search_path=tuple(os.path.abspath(path) for path in sys.path),
            imports=beforehand.modules(),
            draws=draws,
        )
        with handing_on_signals() as signals, keeping_quiet():
            context = start(job, content, settings, folder)
            signals.watch()  # torch's launcher has set handlers of its own
            try:
                died = wait(context, folder, signals)
            finally:
                context.close(signal.SIGKILL)
        result = result_in(folder)
        failures = failures_in(folder)
        for failure in failures:
            died.pop(failure.rank, None)
        if result is not None and not failures and not died:
            return result
        own = [failure for failure in failures if not failure.is_consequence]
        if own:  # others were then ended for it, some by force
            own[0].raise_original()
        if signals.received:
            signals.raise_again()
        told = [f"rank {rank} {ended(code)}" for rank, code in sorted(died.items())]
        if not told and failures:
            failures[0].raise_original()
        raise LaunchError(
            f"The processes ended without finishing ({'; '.join(told) or 'no rank left a result'})."
            " Trainer(max_failures=1) has them started again, a fit from its newest checkpoint."
        )


def check(job: Job) -> None:
    """Refuse a job that these processes cannot do, before any is started.

    Raises:
        ConfigError: with the argument to change.
    """
    trainer = job.trainer
    if trainer.async_validation is not None:
        raise ConfigError(
            "async_validation runs in Ray tasks, and launcher='local' starts no Ray. Leave one of"
            " them out."
        )
    if trainer.start_method == "fork" and torch.cuda.is_initialized():
        raise ConfigError(
            "strategy='ddp_fork' and 'ddp_notebook' fork this process, which has used CUDA already:"
            " CUDA does not work in a forked process. Start it anew and touch no GPU before"
            f" Trainer.{job.fn} (torch.cuda.is_available() is allowed), or use"
            " strategy='ddp_spawn'."
        )


def accelerator_for(accelerator: str, use_gpu: bool | None, size: int) -> str:
    """Return the accelerator of the ranks: a GPU each, or where that was left open, the CPU.

    Raises:
        ConfigError: GPUs were asked for, and there are fewer than ranks.
    """
    num_gpus = torch.cuda.device_count()
    wanted = use_gpu or accelerator in ("gpu", "cuda")
    if wanted and num_gpus < size:
        raise ConfigError(
            f"{size} processes want a GPU each, and this machine has {num_gpus}. Use"
            f" devices={max(num_gpus, 1)}, or accelerator='cpu'."
        )
    if use_gpu is False or accelerator == "cpu" or num_gpus < size:
        return "cpu"
    return "gpu"


def start(job: Job, content: bytes | None, settings: RankSettings, folder: Path) -> PContext:
    """Start the ranks."""
    envs = {
        rank: {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(settings.size),
            "LOCAL_WORLD_SIZE": str(settings.size),
            "NODE_RANK": "0",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_each(settings.size))),
        }
        for rank in range(settings.size)
    }
    logs = DefaultLogsSpecs(log_dir=str(folder))
    info(f"Starting {settings.size} local processes.")
    sys.stdout.flush()
    sys.stderr.flush()
    if content is None:
        sent = copy.copy(job)
        args: dict[int, tuple[object, ...]] = {
            rank: (sent, settings, folder, rank) for rank in range(settings.size)
        }
        return start_processes("raylit", be_forked, args, envs, logs, start_method="fork")
    (folder / SETTINGS).write_bytes(pickle.dumps(settings))
    (folder / JOB).write_bytes(content)
    command = {rank: ("-m", RANK_MAIN, str(folder), str(rank)) for rank in range(settings.size)}
    return start_processes("raylit", sys.executable, command, envs, logs)


def threads_each(size: int) -> int:
    """Return how many threads each rank is to compute with."""
    return max(1, (os.cpu_count() or 1) // size)


def pickled(job: Job) -> bytes:
    """Return a job, pickled: classes from `__main__` and notebooks by value, others by name.

    Raises:
        ConfigError: it cannot be.
    """
    try:
        return bytes(cloudpickle.dumps(job))
    except Exception as error:  # pickling runs the code of user's classes
        culprits = [name for name, part in parts_of(job).items() if not _can_be_pickled(part)]
        raise ConfigError(
            f"{', '.join(culprits) or 'The job'} cannot be sent to the processes: {error}. Make"
            " open files, connections, locks and generators where they are used, in setup() or on"
            " first use, rather than in __init__; or use strategy='ddp_fork', which sends nothing."
        ) from error


def _can_be_pickled(part: object) -> bool:
    try:
        cloudpickle.dumps(part)
    except Exception:  # as above
        return False
    return True


class Signals:
    """The signals that this process got while ranks run.

    Attributes:
        received: their numbers, in order.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.handed_on = 0

    def watch(self) -> None:
        """Take signals from now on, where this thread may."""
        if threading.current_thread() is threading.main_thread():
            for number in HANDED_ON:
                signal.signal(number, self.receive)

    def receive(self, number: int, frame: object) -> None:
        """Take one; a handler."""
        self.received.append(number)

    def hand_on(self, context: PContext) -> None:
        """Send the new ones to all ranks."""
        for number in self.received[self.handed_on :]:
            for pid in context.pids().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self.handed_on = len(self.received)

    def raise_again(self) -> None:
        """Raise here the exception that the last signal stands for."""
        if self.received[-1] == signal.SIGTERM:
            raise Terminated
        raise KeyboardInterrupt


@contextlib.contextmanager
def handing_on_signals() -> Iterator[Signals]:
    """Context in which SIGTERM and Ctrl-C do nothing here but are kept, to be handed on."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.getsignal(number) for number in HANDED_ON}
    signals.watch()
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def keeping_quiet() -> Iterator[None]:
    """Context in which torch's launcher logs nothing of processes that fail: this module says it.

    It also handles no signal but SIGTERM, of which it has to have one. Fits in several threads may
    overlap: the last that ends puts back what the first has found.
    """
    torchs = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    with _quiet_lock:
        found = (torchs.disabled, os.environ.get(TORCHS_SIGNALS))
        _found_by_quiet_fits.append(_found_by_quiet_fits[0] if _found_by_quiet_fits else found)
        torchs.disabled = True
        os.environ[TORCHS_SIGNALS] = "SIGTERM"
    try:
        yield
    finally:
        with _quiet_lock:
            was_disabled, signals = _found_by_quiet_fits.pop()
            if not _found_by_quiet_fits:
                torchs.disabled = was_disabled
                os.environ.pop(TORCHS_SIGNALS, None)
                if signals is not None:
                    os.environ[TORCHS_SIGNALS] = signals


def wait(context: PContext, folder: Path, signals: Signals) -> dict[int, int]:
    """Wait until all ranks have ended.

    Once one has failed, the others get some time to notice, and are ended then.

    Returns:
        The exit codes of those that ended otherwise than well, by rank.
    """
    failed_at: float | None = None
    left_at: float | None = None
    while True:
        done = context.wait(0)
        if done is not None:
            return {rank: one.exitcode for rank, one in done.failures.items()}
        if num_failed(folder) == len(context.pids()):
            return {}
        signals.hand_on(context)
        if len(signals.received) > PATIENT_SIGNALS:
            return {}
        if failed_at is None and num_failed(folder):
            failed_at = time.monotonic()
        # Torch's launcher waits for ever for forked ranks that user code ended with os._exit(0);
        # whoever has finished is known to it a moment later.
        if left_at is None and all(map(has_left, context.pids().values())):
            left_at = time.monotonic()
        if left_at is not None and time.monotonic() - left_at > ARRIVES_S:
            return {}
        if failed_at is not None and time.monotonic() - failed_at > LEAVE_S:
            return {}
        time.sleep(POLL_S)


def has_left(pid: int) -> bool:
    """Tell whether a child of this process has ended; its exit code is left for its waiter."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # it was waited for


def ended(code: int) -> str:
    """Return in words how a process ended by itself or was."""
    if code >= 0:
        return f"ended itself with exit code {code}, in the midst of its work"
    known = {int(one): one.name for one in signal.Signals}
    name = known.get(-code, f"signal {-code}")  # Python names not all of the real-time signals
    return f"was ended by {name}" + (
        ", perhaps because this machine was out of memory" if name == "SIGKILL" else ""
    )
