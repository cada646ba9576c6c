"""The checks of `python -m tests.gpu`, in the order of the table.

Each returns its rows. What is slow, or differs from one machine to the next, is judged on a GPU
alone: on a CPU the same code runs with less of everything.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from tests.benchmarks.step import WORK, Batch, Batches, quiet
from tests.gpu.work import Conv

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ACCELERATOR = "gpu" if CUDA else "cpu"
ABSENT = ("ray", "mlflow", "pyarrow", "jsonargparse")
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
WORKS: dict[str, Any] = {"mlp": WORK["mlp"], "conv": Conv, "gpt2": WORK["transformer"]}


@dataclass
class Row:
    """A line of the table.

    Attributes:
        check: the name of the check.
        what: what was measured.
        found: in words.
        wanted: in words; "" if it is not judged.
        holds: whether it is as wanted.
    """

    check: str
    what: str
    found: str
    wanted: str = ""
    holds: bool = True


# ---- what is trained ----


class Net(pl.LightningModule):
    """A model of the benchmarks, which logs its loss in all ways that cost nothing at once."""

    def __init__(self, work: Any, logs: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.work, self.logs = work, logs
        self.net = work.net()
        self.dropout = nn.Dropout(dropout)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        loss: Tensor = self.dropout(self.work.loss(self.net, batch).expand(8)).mean()
        if self.logs:
            self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            self.log("number", 3.0)  # on the CPU, beside the others
            self.log_dict({"twice": 2 * loss, "constant": 1.0}, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return SGD with momentum, which has a state."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def fit(
    module: pl.LightningModule, data: Any, folder: Path, ckpt_path: Any = None, **more: Any
) -> pl.Trainer:
    """Fit quietly on the device; returns the Trainer."""
    arguments = {"max_epochs": 1, "accelerator": ACCELERATOR, "devices": 1, **QUIET, **more}
    trainer = pl.Trainer(default_root_dir=folder, **arguments)
    with quiet():
        trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def weights(module: nn.Module) -> Tensor:
    """Return all weights in one vector, on the CPU in float64."""
    return torch.cat([one.detach().cpu().double().flatten() for one in module.parameters()])


def some(work: Any, number: int) -> list[Batch]:
    """Return the same batches at each call."""
    generator = torch.Generator().manual_seed(1)
    return [work.batch(generator) for _ in range(number)]


def loader(batches: list[Batch]) -> Any:
    """Return what reads batches as they are; a list of tuples would be many loaders."""
    return DataLoader(batches, batch_size=None, pin_memory=CUDA)  # type: ignore[arg-type]


# ---- right ----


def results(folder: Path, small: bool) -> Iterator[Row]:
    """Weights after some steps are those of float32 on the CPU, as near as the precision allows."""
    for name in ("mlp", "conv"):
        work = WORKS[name]
        batches = some(work, 6 if small else 20)
        reference = Net(work)
        start = weights(reference)
        fit(reference, loader(batches), folder, accelerator="cpu")
        way = (weights(reference) - start).norm()
        # a CPU has no scaler, and takes bf16 for 16-mixed
        for precision, most in (
            ("32-true", 2e-3),
            ("bf16-mixed", 0.25),
            ("16-mixed", 0.05 if CUDA else 0.25),
        ):
            module = Net(work)
            trainer = fit(module, loader(batches), folder, precision=precision)
            distance = float((weights(module) - weights(reference)).norm() / way)
            scaled = trainer.scaler is not None
            wanted_scaler = CUDA and precision == "16-mixed"
            yield Row(
                "results",
                f"{name}, {precision}{', scaler' if scaled else ''}",
                f"{distance:.1e} of the way off",
                f"< {most:.0e}",
                distance < most and scaled == wanted_scaler,
            )
        pair = [Net(work) for _ in range(2)]
        for module in pair:
            fit(module, loader(batches), folder, deterministic=True)
        equal = torch.equal(weights(pair[0]), weights(pair[1]))
        yield Row("results", f"{name}, deterministic, twice", _equal(equal), "bit-equal", equal)


def resume(folder: Path, small: bool) -> Iterator[Row]:
    """A fit that goes on, with dropout of the device and a scaler, ends as if never stopped."""

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(folder / "cut.ckpt")

    x, y = (torch.cat(parts) for parts in zip(*some(WORKS["mlp"], 8), strict=True))
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        for accumulate in (1, 2):
            ends = []
            for ckpt_path in (None, folder / "cut.ckpt"):
                module = Net(WORKS["mlp"], logs=True, dropout=0.3)
                torch.manual_seed(3 if ckpt_path is None else 4)
                loader = DataLoader(TensorDataset(x, y), 32, shuffle=True, pin_memory=CUDA)
                trainer = fit(
                    module,
                    loader,
                    folder,
                    ckpt_path,
                    max_epochs=2,
                    precision=precision,
                    accumulate_grad_batches=accumulate,
                    deterministic=True,
                    callbacks=[Saves()] if ckpt_path is None else [],
                )
                ends.append((weights(module), trainer.callback_metrics["loss_epoch"]))
            equal = all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
            what = f"dropout, {precision}{', accumulating' * (accumulate > 1)}"
            yield Row("resume", what, _equal(equal), "bit-equal", equal)


def ranks(folder: Path, small: bool) -> Iterator[Row]:
    """DDP and FSDP of one rank, in a process group of the device, train as without."""
    work = WORKS["mlp"]
    batches = some(work, 6)
    plain = Net(work)
    fit(plain, loader(batches), folder)
    store = f"file://{folder}/store"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if CUDA else "gloo", init_method=store, rank=0, world_size=1
    )
    try:
        for strategy in ("ddp", "fsdp"):
            module = Net(work)
            fit(module, loader(batches), folder, strategy=strategy)
            equal = torch.equal(weights(module), weights(plain))
            yield Row(
                "ranks", f"{strategy}, through the Trainer", _equal(equal), "bit-equal", equal
            )
        for name, wrapped in _wrapped(work):
            optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01, momentum=0.9)
            for x, y in batches:
                loss = wrapped((x.to(DEVICE), y.to(DEVICE)), 0)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            whole = [
                getattr(one, "full_tensor", lambda one=one: one)() for one in wrapped.parameters()
            ]
            found = torch.cat([one.detach().cpu().double().flatten() for one in whole])
            distance = float((found - weights(plain)).abs().max())
            yield Row("ranks", name, f"{distance:.1e} off", "< 1e-6", distance < 1e-6)
    finally:
        dist.destroy_process_group()


def _wrapped(work: Any) -> Iterator[tuple[str, nn.Module]]:
    """Give the module as the strategies wrap it on several ranks: alone they leave it."""
    from torch.distributed.fsdp import fully_shard

    from raylit.parallel import World
    from raylit.strategies import DDPStrategy

    class Calls(nn.Module):
        def __init__(self, module: Net) -> None:
            super().__init__()
            self.module = module

        def forward(self, batch: Batch, batch_idx: int) -> Tensor:
            return self.module.training_step(batch, batch_idx)

    world = World(DEVICE)
    yield "DistributedDataParallel", DDPStrategy().wrap(Net(work).to(DEVICE), world)
    mesh = dist.init_device_mesh(DEVICE.type, (1,))
    calls = Calls(Net(work).to(DEVICE))
    fully_shard(calls, mesh=mesh)
    yield "fully_shard", calls


def largest_batch(folder: Path, small: bool) -> Iterator[Row]:
    """BatchSizeFinder runs out of memory in earnest, comes back, and the fit goes on."""
    total = torch.cuda.mem_get_info()[0] if CUDA else 2**30
    per_sample = total // 40

    class Hungry(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = 1
            self.net = nn.Linear(2, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.net(batch[0]).new_zeros(len(batch[0]), per_sample // 4)
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.ones(512, 2)), self.batch_size)

    module = Hungry()
    finder = pl.callbacks.BatchSizeFinder(steps_per_trial=2, init_val=2)
    with _bounded_memory(None if CUDA else total):
        trainer = fit(module, None, folder, callbacks=[finder], max_steps=2)
    found = finder.optimal_batch_size
    yield Row("largest_batch", "of 40 that would fill the memory", str(found), "32", found == 32)
    yield Row(
        "largest_batch", "steps after it", str(trainer.global_step), "2", trainer.global_step == 2
    )


@contextlib.contextmanager
def _bounded_memory(most: int | None) -> Iterator[None]:
    """Let this process have so many bytes more than it has, so that the CPU's memory ends too."""
    if most is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# ---- nothing waits ----


def syncs(folder: Path, small: bool) -> Iterator[Row]:
    """Between two flushes no step makes the host wait for the device, with logging on."""

    class Watch(pl.Callback):
        def on_train_batch_start(
            self, trainer: Any, module: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx in (6, 46):
                _sync_debug("error" if batch_idx == 6 else "default")

    for precision in ("32-true", "bf16-mixed"):
        batches = Batches(60, WORKS["mlp"])
        found = "none"
        try:
            fit(
                Net(WORKS["mlp"], logs=True),
                loader(batches.batches[:60]),
                folder,
                precision=precision,
                gradient_clip_val=1.0,
                logger=pl.CSVLogger(folder),
                log_every_n_steps=50,
                callbacks=[Watch(), pl.callbacks.LearningRateMonitor("step")],
            )
        except RuntimeError as error:
            found = str(error).splitlines()[0]
        finally:
            _sync_debug("default")
        yield Row("syncs", f"steps 7 to 46, {precision}", found, "none", found == "none")


def _sync_debug(mode: str) -> None:
    if CUDA:
        torch.cuda.set_sync_debug_mode(mode)


def overlap(folder: Path, small: bool) -> Iterator[Row]:
    """Batches in pinned memory are copied while the device computes: the slower of both counts."""
    megabytes = 1 if small else 512
    size = 64 if small else 8192
    number = 5 if small else 20

    class Copies(pl.LightningModule):
        def __init__(self, computes: bool) -> None:
            super().__init__()
            self.computes = computes
            self.weight = nn.Parameter(torch.randn(size, size) / size)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            with torch.no_grad():
                if self.computes:
                    torch.mm(self.weight, self.weight)
            return batch[:8].sum() * self.weight[0, 0]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    class Timed:
        def __init__(self, batch: Tensor) -> None:
            self.batch, self.seconds = batch, float("nan")

        def __len__(self) -> int:
            return number

        def __iter__(self) -> Iterator[Tensor]:
            started = 0.0
            for index in range(number):
                if index == 3:
                    started = _now()
                if index == number - 1:
                    self.seconds = (_now() - started) / (index - 3)
                yield self.batch

    def seconds(copies: bool, computes: bool) -> float:
        batch = torch.ones(megabytes * 2**18)
        batch = batch.pin_memory() if CUDA else batch
        timed = Timed(batch if copies else batch[:8].clone())
        fit(Copies(computes), timed, folder)
        return timed.seconds

    copy, compute, both = seconds(True, False), seconds(False, True), seconds(True, True)
    hidden = (copy + compute - both) / min(copy, compute)
    yield Row(
        "overlap",
        f"copy {copy * 1e3:.1f} ms, compute {compute * 1e3:.1f} ms, both {both * 1e3:.1f} ms",
        f"{hidden:.0%} of the shorter hidden",
        "> 60%" if CUDA else "",
        not CUDA or hidden > 0.6,
    )


def checkpoint(folder: Path, small: bool) -> Iterator[Row]:
    """A recovery checkpoint holds training up for less than a write of it."""
    work = WORKS["mlp" if small else "gpt2"]
    waits: list[float] = []

    class Measures(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step < 3:
                return
            recovery = next(
                one for one in trainer.callbacks if isinstance(one, pl.callbacks.RecoveryCheckpoint)
            )
            started = _now()
            recovery.save(trainer.run)
            waits.append(_now() - started)
            recovery._writer.wait()  # so that each begins with nothing under way
            started = time.perf_counter()
            trainer.save_checkpoint(folder / "whole.ckpt")
            whole.append(time.perf_counter() - started)

    whole: list[float] = []
    fit(
        Net(work),
        loader(some(work, 6)),
        folder,
        precision=work.precision,
        enable_checkpointing=True,
        callbacks=[
            Measures(),
            pl.callbacks.RecoveryCheckpoint(folder / "recovery", every_s=None),
            pl.callbacks.ModelCheckpoint(folder / "kept", save_top_k=0),
        ],
    )
    size = (folder / "whole.ckpt").stat().st_size
    blocked, written = statistics.median(waits), statistics.median(whole)
    yield Row(
        "checkpoint",
        f"{size / 1e6:.0f} MB, written in {written:.2f} s",
        f"training waits {blocked * 1e3:.0f} ms ({blocked / written:.0%})",
        "< 25%" if CUDA else "",
        not CUDA or blocked < 0.25 * written,
    )


# ---- speed and memory ----


def speed(folder: Path, small: bool) -> Iterator[Row]:
    """A step costs what it costs in a loop by hand, plain, compiled and with CUDA graphs."""
    most = {"mlp": 1.5, "conv": 1.1, "gpt2": 1.05}
    steps = {"mlp": 1500, "conv": 150, "gpt2": 30}
    eager = {"backend": "eager"}  # on the CPU: what torch.compile would make of it takes minutes
    modes: dict[str, Any] = {
        "plain": None,
        "compile": {} if CUDA else eager,
        "CUDA graphs": {"mode": "reduce-overhead"} if CUDA else eager,
    }
    for name, work in WORKS.items():
        for mode, options in modes.items():
            times: dict[str, list[float]] = {"by hand": [], "raylit": []}
            peaks = {"by hand": 0.0, "raylit": 0.0}
            number = work.warm_up + (10 if small else steps[name])
            # to compile takes most of the time of all checks
            for _ in range(1 if small or options is not None else 3):
                for who, loop in (("by hand", _by_hand), ("raylit", _by_raylit)):
                    batches = Batches(number, work)
                    _forget(compiled=options is not None)
                    with quiet():
                        loop(batches, folder, options)
                    times[who].append(batches.seconds_per_step)
                    peaks[who] = max(peaks[who], _peak())
            pairs = zip(times["raylit"], times["by hand"], strict=True)
            ratio = statistics.median(one / other for one, other in pairs)
            yield Row(
                "speed",
                f"{name}, {mode}, by hand {statistics.median(times['by hand']) * 1e3:.3f} ms",
                f"{ratio:.3f} of it",
                f"< {most[name]}" if CUDA else "",
                not CUDA or ratio < most[name],
            )
            if CUDA and mode == "plain":
                more = peaks["raylit"] / peaks["by hand"]
                yield Row(
                    "memory",
                    f"{name}, by hand {peaks['by hand'] / 1e6:.0f} MB at most",
                    f"{more:.3f} of it",
                    "< 1.05" if name == "gpt2" else "< 1.5",
                    more < (1.05 if name == "gpt2" else 1.5),
                )


def _by_hand(batches: Batches, folder: Path, compiled: dict[str, Any] | None) -> None:
    work = batches.work
    net = work.net().to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    call = net if compiled is None else torch.compile(net, **compiled)
    for x, y in batches:
        batch = x.to(DEVICE, non_blocking=True), y.to(DEVICE, non_blocking=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=work.precision is not None):
            loss = work.loss(call, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class Bare(Net):
    """The same, with nothing around the loss."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        loss: Tensor = self.work.loss(self.net, batch)
        return loss


def _by_raylit(batches: Batches, folder: Path, compiled: dict[str, Any] | None) -> None:
    more = {} if compiled is None else {"compile": compiled}
    fit(Bare(batches.work), batches, folder, precision=batches.work.precision, **more)


def _forget(compiled: bool) -> None:
    """Leave nothing of the run before: graphs, memory, the peak of it."""
    if compiled:
        torch.compiler.reset()
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak() -> float:
    return torch.cuda.max_memory_allocated() if CUDA else 0.0


def _now() -> float:
    """Return the time, once the device has nothing left to do."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def _equal(equal: bool) -> str:
    return "bit-equal" if equal else "different"


CHECKS: list[Callable[[Path, bool], Iterator[Row]]] = [
    results,
    resume,
    ranks,
    largest_batch,
    syncs,
    overlap,
    checkpoint,
    speed,
]


def run(small: bool, only: str) -> int:
    """Run the checks with `only` in their name and print the table; returns the exit code."""
    if not small and not CUDA:
        print("There is no GPU. Use --cpu to run the code of all checks without one.")
        return 1
    device = torch.cuda.get_device_name() if CUDA else "CPU"
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {device}")
    torch.set_num_threads(1)
    rows: list[Row] = []
    for check in (one for one in CHECKS if only in one.__name__):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.extend(check(Path(folder), small))
            except Exception as error:
                traceback.print_exc()
                text = f"{type(error).__name__}: {error}".splitlines()[0]
                rows.append(Row(check.__name__, "ended with", text[:60], "no error", False))
        print(f"{check.__name__}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    present = [name for name in ABSENT if name in sys.modules]
    found = ", ".join(present) or "none"
    rows.append(Row("imports", "of what is not needed", found, "none", not present))
    for row in rows:
        mark = "ok" if row.holds else "NOT"
        wanted = row.wanted or "not judged"
        print(f"{mark:4}{row.check:15}{row.what:58}{row.found:38}{wanted}")
    return 0 if rows[:-1] and all(row.holds for row in rows) else 1
