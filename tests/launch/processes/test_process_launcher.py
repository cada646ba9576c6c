"""Fits in local processes, without Ray.

A start of new processes costs some seconds, so one fit answers as many questions as it can.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import raylit as pl
from raylit.core.job import Job
from raylit.errors import ConfigError, LaunchError, Terminated
from raylit.launch import Launcher
from raylit.launch.processes.launcher import (
    LEAVE_S,
    TORCHS_SIGNALS,
    ProcessLauncher,
    accelerator_for,
    check,
    ended,
    handing_on_signals,
    keeping_quiet,
    threads_each,
)
from raylit.testing import LauncherConformance, TinyModel
from raylit.testing.modules import RandomDataset
from tests import quiet
from tests.deadlines import stretched

FORKED: dict[str, Any] = {"devices": 2, "strategy": "ddp_fork"}


class TestForkedProcesses(LauncherConformance):
    trainer_arguments = FORKED
    num_ranks = 2

    @pytest.fixture
    def make(self) -> Callable[[], Launcher]:
        return ProcessLauncher


@pytest.mark.long
class TestNewProcesses(LauncherConformance):
    trainer_arguments = {"num_workers": 2, "launcher": "local"}  # noqa: RUF012
    num_ranks = 2

    @pytest.fixture
    def make(self) -> Callable[[], Launcher]:
        return ProcessLauncher


@pytest.mark.long
class TestOneForkedProcess(LauncherConformance):
    trainer_arguments = {"num_workers": 1, "strategy": "ddp_fork"}  # noqa: RUF012
    num_ranks = 1

    @pytest.fixture
    def make(self) -> Callable[[], Launcher]:
        return ProcessLauncher


trainer = partial(quiet.trainer, max_epochs=2, enable_checkpointing=None)


class Ends(TinyModel):
    """Its rank 1 ends, in some way, in the third step of training or when it predicts.

    Once, if there is a marker.
    """

    def __init__(self, how: str, marker: Path | None = None) -> None:
        super().__init__()
        self.how = how
        self.marker = marker

    def train_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 16), batch_size=2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 2:
            self.end_once()
        return super().training_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.end_once()
        return self(batch)

    def end_once(self) -> None:
        if self.global_rank != 1 or (self.marker is not None and self.marker.exists()):
            return
        if self.marker is not None:
            self.marker.touch()
        self.end()

    def end(self) -> None:
        if self.how == "raise":
            raise OddError("bad batch", 2)
        if self.how == "quit":
            raise SystemExit(3)
        if self.how == "exit":
            os._exit(7)
        os.kill(os.getpid(), signal.SIGKILL)


class OddError(Exception):
    """Wants other arguments than it hands to its base, so plain pickle could not bring it back."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")
        self.number = number


def test_new_processes_train_and_predict(tmp_path: Path) -> None:
    """Objects and numbers come home; nothing of Ray is loaded for it."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os
            import sys
            import torch
            import raylit as pl
            from raylit.testing import TinyModel

            class Net(TinyModel):  # of the main module, which runs once
                def on_fit_end(self):  # in one piece: both ranks write here
                    os.write(1, f"rank {self.global_rank} of {self.trainer.world_size}\\n".encode())

            print("once", flush=True)
            trainer = pl.Trainer(
                max_epochs=1, devices=2, strategy="ddp_spawn", accelerator="cpu", logger=False,
                enable_progress_bar=False, enable_model_summary=False,
            )
            model = Net()
            before = model.layer.weight.clone()
            result = trainer.fit(model)
            print(result.steps, torch.equal(before, model.layer.weight), trainer.world_size)
            print("ray" in sys.modules)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=stretched(120),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    lines = done.stdout.splitlines()
    assert sorted(lines) == sorted(["once", "rank 0 of 2", "rank 1 of 2", "2 False 2", "False"]), (
        done.stdout
    )


def test_an_exception_comes_with_the_traceback_of_its_rank(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(OddError, match="bad batch 2") as raised:
        trainer(tmp_path, **FORKED).fit(Ends("raise"))
    assert time.monotonic() - began < stretched(LEAVE_S), "the other rank noticed at once"
    assert raised.value.number == 2
    assert any("rank 1 of 2" in note and "step 2" in note for note in raised.value.__notes__)
    shown = str(raised.value.__cause__)
    assert "self.end()" in shown and "run_job" not in shown, "the user's lines, not raylit's"


class Outstanding(TinyModel):
    """Its rank 1 fails while a collective runs that rank 0, which hangs, never joins."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_rank == 1:
            self.work = torch.distributed.all_reduce(torch.ones(1), async_op=True)
            raise OddError("bad batch", 3)
        time.sleep(10 * stretched(LEAVE_S))


@pytest.mark.parametrize("arguments", [FORKED, {"devices": 2, "strategy": "ddp_spawn"}])
def test_a_rank_that_fails_does_not_wait_for_a_collective_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    monkeypatch.setattr("raylit.launch.processes.launcher.LEAVE_S", 2.0)
    with pytest.raises(OddError, match="bad batch 3"):
        trainer(tmp_path, **arguments).fit(Outstanding())


class Leaves(TinyModel):
    """Ends its process as if all were well."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        os._exit(0)


def test_ranks_that_leave_without_a_word_are_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="no rank left a result"):
        trainer(tmp_path, **FORKED).fit(Leaves())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kill", "rank 1 was ended by SIGKILL"),
        ("exit", "rank 1 ended itself with exit code 7"),  # as a library of C may do
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [FORKED, pytest.param({"devices": 2, "strategy": "ddp_spawn"}, marks=pytest.mark.long)],
    ids=["forked", "new"],
)
def test_a_killed_rank_is_said_and_started_again(
    tmp_path: Path, arguments: dict[str, Any], how: str, said: str
) -> None:
    with pytest.raises(LaunchError, match=rf"{said}.*max_failures=1"):
        trainer(tmp_path, **arguments).fit(Ends(how))
    model = Ends(how, tmp_path / "marker")
    saver = pl.callbacks.RecoveryCheckpoint(every_n_steps=1)
    again = trainer(tmp_path, **arguments, max_failures=1, callbacks=saver)
    with pytest.warns(UserWarning, match="Restart 1, from the newest checkpoint"):
        result = again.fit(model)
    assert (result.epochs, result.steps) == (2, 8)


def test_a_prediction_starts_again_from_the_start(tmp_path: Path) -> None:
    model = Ends("exit", tmp_path / "marker")
    with pytest.warns(UserWarning, match="Restart 1, from the start: LaunchError"):
        predictions = trainer(tmp_path, **FORKED, max_failures=1).predict(model)
    assert predictions


SIGNALLED = """
import sys, time
import raylit as pl
from raylit.testing import TinyModel

class Slow(TinyModel):
    def training_step(self, batch, batch_idx):
        time.sleep(0.05)
        if self.global_rank == 0 and self.global_step == 3:
            open("running", "w").close()
        return super().training_step(batch, batch_idx)

pl.Trainer(
    max_epochs=-1, devices=2, strategy="ddp_fork", accelerator="cpu", logger=False,
    enable_progress_bar=False, enable_model_summary=False,
).fit(Slow())
"""


def ranks_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_signal_saves_and_ends_all_ranks(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Also one that this process cannot hand on, since it is dead."""
    process = subprocess.Popen(
        [sys.executable, "-c", SIGNALLED], cwd=tmp_path, start_new_session=True
    )
    end = time.monotonic() + stretched(90)
    while not (tmp_path / "running").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    ranks = ranks_of(process.pid)
    process.send_signal(number)
    found = process.wait(timeout=stretched(60))
    assert found in (code, -number) if number == signal.SIGINT else found == code
    end = time.monotonic() + stretched(60)
    while not all(map(gone, ranks)):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert list(tmp_path.rglob("recovery/*.ckpt"))


def test_what_local_processes_cannot_do_is_said_before_they_start(tmp_path: Path) -> None:
    class Holds(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    with pytest.raises(ConfigError, match="num_nodes=2: local processes are on this machine"):
        pl.Trainer(num_nodes=2, devices=1, launcher="local")
    with pytest.raises(ConfigError, match="stay as many as they are"):
        pl.Trainer(num_workers=(1, 2), launcher="local")
    with pytest.raises(ConfigError, match=r"launcher='x' is not known"):
        pl.Trainer(launcher="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Leave one of them out"):
        pl.Trainer(launcher="ray", strategy="ddp_spawn")
    with pytest.raises(ConfigError, match="start_method='x' is not known"):
        pl.strategies.DDPStrategy(start_method="x")
    with pytest.raises(ConfigError, match="2 processes want a GPU each"):
        trainer(tmp_path, devices=2, strategy="ddp_fork", accelerator="gpu").fit(TinyModel())
    with (
        warnings.catch_warnings(),
        pytest.raises(ConfigError, match="Module cannot be sent"),
    ):
        warnings.filterwarnings("error", "Restart")  # no rank has failed
        trainer(tmp_path, devices=2, strategy="ddp_spawn", max_failures=2).fit(Holds())


def test_a_strategy_says_how_and_how_long(tmp_path: Path) -> None:
    seen = tmp_path / "seen"

    class Sees(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            group = torch.distributed.group.WORLD
            assert group is not None
            found = group._get_backend(torch.device("cpu")).options._timeout
            if trainer.is_global_zero:
                seen.write_text(f"{torch.distributed.get_backend()} {found}")

    strategy = pl.strategies.DDPStrategy(
        process_group_backend="gloo", timeout=timedelta(seconds=77), start_method="fork"
    )
    one = trainer(tmp_path, devices=2, strategy=strategy, callbacks=Sees(), max_epochs=1)
    one.fit(TinyModel())
    assert one.launcher == "local"
    assert seen.read_text() == "gloo 0:01:17"


def test_the_driver_can_save_what_came_home(tmp_path: Path) -> None:
    model = TinyModel()
    one = trainer(tmp_path, **{**FORKED, "max_epochs": 1})
    one.fit(model)
    with pytest.warns(UserWarning, match="without the state of optimizers"):
        one.save_checkpoint(tmp_path / "home.ckpt")
    loaded = TinyModel.load_from_checkpoint(tmp_path / "home.ckpt")
    assert torch.equal(loaded.layer.weight, model.layer.weight)


def test_an_exit_that_the_user_wants_is_no_failure_to_start_again_for(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(SystemExit) as raised:
        trainer(tmp_path, **FORKED, max_failures=3).fit(Ends("quit", marker))
    assert raised.value.code == 3 and marker.exists()


@pytest.mark.parametrize(
    ("accelerator", "use_gpu", "size", "num_gpus", "found"),
    [
        ("auto", None, 2, 0, "cpu"),
        ("auto", None, 2, 1, "cpu"),  # rather than a GPU for one of them
        ("auto", None, 2, 2, "gpu"),
        ("auto", False, 2, 2, "cpu"),
        ("cpu", None, 2, 2, "cpu"),
        ("auto", True, 2, 4, "gpu"),
        ("gpu", None, 2, 2, "gpu"),
        ("cuda", None, 1, 1, "gpu"),
        ("cuda", None, 2, 1, "devices=1"),
        ("gpu", None, 3, 2, "devices=2"),
        ("auto", True, 1, 0, "devices=1"),
    ],
)
def test_ranks_compute_on_a_gpu_each_or_none(
    monkeypatch: pytest.MonkeyPatch,
    accelerator: str,
    use_gpu: bool | None,
    size: int,
    num_gpus: int,
    found: str,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    if "devices" not in found:
        assert accelerator_for(accelerator, use_gpu, size) == found
        return
    with pytest.raises(ConfigError, match=f"this machine has {num_gpus}. Use {found}, or"):
        accelerator_for(accelerator, use_gpu, size)


def test_a_process_that_has_used_a_gpu_is_not_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    for arguments in (FORKED, {"devices": 2, "strategy": "ddp_notebook"}):
        with pytest.raises(ConfigError, match=r"before Trainer\.validate .*strategy='ddp_spawn'"):
            check(Job("validate", trainer(tmp_path, **arguments), TinyModel()))
    check(Job("fit", trainer(tmp_path, devices=2, strategy="ddp_spawn"), TinyModel()))


def test_validations_beside_training_want_ray(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="async_validation runs in Ray tasks"):
        trainer(tmp_path, **FORKED, async_validation=True).fit(TinyModel())


@pytest.mark.parametrize(
    ("cores", "size", "threads"), [(8, 2, 4), (8, 3, 2), (2, 5, 1), (1, 1, 1), (None, 2, 1)]
)
def test_cores_are_shared_by_the_ranks(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, size: int, threads: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert threads_each(size) == threads


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (1, "ended itself with exit code 1, in the midst"),
        (-signal.SIGKILL, "was ended by SIGKILL, perhaps because this machine was out of memory"),
        (-signal.SIGSEGV, "was ended by SIGSEGV"),
        (-(signal.SIGRTMIN + 1), f"was ended by signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_how_a_rank_ended_is_said_in_words(code: int, said: str) -> None:
    found = ended(code)
    assert found.startswith(said)
    assert ("memory" in found) is (code == -signal.SIGKILL)


class Ranks:
    """Processes that do nothing, as torch's launcher would tell of them."""

    def __init__(self, *processes: subprocess.Popen[bytes]) -> None:
        self.processes = processes

    def pids(self) -> dict[int, int]:
        return {rank: process.pid for rank, process in enumerate(self.processes)}


def test_signals_are_kept_and_handed_on_once_each_in_their_order() -> None:
    """Also to the ranks that are left, when one is gone; the handlers of before come back."""
    script = (
        "import signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [2, 15])\n"
        "print('ready', flush=True)\n"
        "for _ in range(2): print(int(signal.sigwait([2, 15])), flush=True)\n"
        "print(signal.sigtimedwait([2, 15], 0.2))\n"
    )
    gone = subprocess.Popen(["true"])
    gone.wait()
    rank = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert rank.stdout is not None
    own = lambda number, frame: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, own)
    try:
        assert rank.stdout.readline() == b"ready\n"
        context: Any = Ranks(gone, rank)
        with handing_on_signals() as signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)
                signals.hand_on(context)
                signals.hand_on(context)
                assert rank.stdout.readline() == b"%d\n" % number
            assert signals.received == [signal.SIGINT, signal.SIGTERM]
            with pytest.raises(Terminated):
                signals.raise_again()
            signals.receive(signal.SIGINT, None)
            with pytest.raises(KeyboardInterrupt):
                signals.raise_again()
        assert signal.getsignal(signal.SIGTERM) is own
        assert rank.stdout.read() == b"None\n"
    finally:
        signal.signal(signal.SIGTERM, before)
        rank.kill()
        rank.wait()


def test_in_a_thread_no_signal_is_touched() -> None:
    """Python allows it in the main thread alone."""
    found: list[Any] = []

    def launch() -> None:
        with handing_on_signals() as signals:
            signals.watch()
            found.extend([signal.getsignal(signal.SIGTERM), signals.received])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
    assert found == [before, []] and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("was", [None, "SIGHUP"])
def test_torchs_launcher_is_quiet_for_a_while(
    monkeypatch: pytest.MonkeyPatch, was: str | None
) -> None:
    monkeypatch.delenv(TORCHS_SIGNALS, raising=False)
    if was is not None:
        monkeypatch.setenv(TORCHS_SIGNALS, was)
    logger = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    with pytest.raises(KeyError, match="own"), keeping_quiet():
        assert logger.disabled and os.environ[TORCHS_SIGNALS] == "SIGTERM"
        raise KeyError("own")
    assert not logger.disabled and os.environ.get(TORCHS_SIGNALS) == was


def test_two_fits_in_threads_end_in_the_order_in_which_they_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(TORCHS_SIGNALS, raising=False)
    with contextlib.ExitStack() as second, keeping_quiet():  # which leaves first
        second.enter_context(keeping_quiet())
    assert TORCHS_SIGNALS not in os.environ
