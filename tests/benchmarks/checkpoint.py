"""What saving costs.

How long training waits, how long until the file is durable, how much memory it takes.

    python -m tests.benchmarks.checkpoint [--megabytes 200 1000] [--rounds 5] [--folder FOLDER]

The state is that of a model trained with momentum, half weights and half optimizer. All ways of
saving are measured in turns within fits that are under way, in one process, and the medians are
shown: in seconds, and as a ratio to `torch.save` of the same state.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import pytorch as lightning
from lightning.pytorch.plugins import AsyncCheckpointIO
from torch import nn
from torch.utils.data import DataLoader

import raylit
from raylit.engine.state import dump
from tests.benchmarks.step import quiet

Timing = tuple[float, float]  # seconds that training waited, and until the file was there
NUM_PARAMETERS = 16


def model(pl: Any, megabytes: int) -> Any:
    """Return a module whose weights and momentum take so much together."""

    class Net(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            size = megabytes * 1_000_000 // 4 // 2 // NUM_PARAMETERS
            self.parts = nn.ParameterList(torch.randn(size) for _ in range(NUM_PARAMETERS))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return sum(part.sum() for part in self.parts) * batch.mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)

    return Net()


def within_a_fit(
    pl: Any, megabytes: int, folder: Path, measure: Callable[[Any], None], **arguments: Any
) -> None:
    """Call `measure(trainer)` after the second batch of a fit."""

    class Measures(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                measure(trainer)

    settings = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        **arguments,
    }
    callbacks = [Measures(), *settings.pop("callbacks", ())]
    trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, default_root_dir=folder, **settings)
    trainer.fit(model(pl, megabytes), DataLoader(torch.randn(2, 1, 4), batch_size=None))


def timed(wait: Callable[[], Any], then: Callable[[], Any] = lambda: None) -> Timing:
    """Return how long `wait` took, and it and `then` together."""
    started = time.perf_counter()
    wait()
    waited = time.perf_counter() - started
    then()
    return waited, time.perf_counter() - started


def peak_bytes() -> int:
    """Return the most memory that this process has had since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def reset_peak() -> None:
    """Let the memory there is be the most there was."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(megabytes: int, rounds: int, root: Path) -> tuple[dict[str, Timing], float]:
    """Return the medians of each way to save, and how many copies a recovery checkpoint takes.

    The copies are those of the state in memory.
    """
    found: dict[str, list[Timing]] = {}
    copies: list[float] = []

    def note(name: str, timing: Timing) -> None:
        found.setdefault(name, []).append(timing)

    def by_raylit(trainer: Any) -> None:
        run, recovery = trainer._run, trainer.callbacks[-2]
        assert isinstance(recovery, raylit.callbacks.RecoveryCheckpoint)
        for number in range(rounds + 1):  # the first warms up the disk, and the memory that is kept
            state, path = dump(run), root / "plain.ckpt"
            reset_peak()
            before = peak_bytes()
            background = timed(lambda: recovery.save(run), lambda: recovery._writer.wait())  # type: ignore[union-attr]
            copies.append((peak_bytes() - before) / (megabytes * 1e6))
            rows = {
                "torch.save": timed(lambda state=state, path=path: torch.save(state, path)),
                "torch.save and fsync": timed(lambda state=state, path=path: durable(state, path)),
                "raylit, RecoveryCheckpoint": background,
                "raylit, save_checkpoint": timed(
                    lambda: trainer.save_checkpoint(root / "raylit.ckpt")
                ),
            }
            for name, timing in rows.items() if number else ():
                note(name, timing)

    def by_lightning(trainer: Any) -> None:
        for number in range(rounds + 1):
            timing = timed(lambda: trainer.save_checkpoint(root / "lightning.ckpt"))
            if number:
                note("Lightning, save_checkpoint", timing)

    def in_background(trainer: Any) -> None:
        for number in range(rounds + 1):
            io = trainer.strategy.checkpoint_io
            timing = timed(
                lambda number=number: trainer.save_checkpoint(root / f"async{number % 2}.ckpt"),
                lambda io=io: io.teardown(),
            )
            if number:
                note("Lightning, AsyncCheckpointIO", timing)
            io._ensure_setup()

    recovery = raylit.callbacks.RecoveryCheckpoint(root / "recovery", every_s=None)
    saver = raylit.callbacks.ModelCheckpoint(root / "kept", save_top_k=0)
    with quiet():
        within_a_fit(raylit, megabytes, root, by_raylit, callbacks=[recovery, saver])
        within_a_fit(lightning, megabytes, root, by_lightning, enable_checkpointing=False)
        within_a_fit(
            lightning,
            megabytes,
            root,
            in_background,
            enable_checkpointing=False,
            plugins=[AsyncCheckpointIO()],
        )
    medians = {
        name: (statistics.median(w for w, _ in rows), statistics.median(t for _, t in rows))
        for name, rows in found.items()
    }
    return medians, max(copies)


def durable(state: Any, path: Path) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            medians, copies = measure(megabytes, arguments.rounds, Path(folder))
        base = medians["torch.save"][0]
        print(f"{f'a state of {megabytes} MB':30}  training waits         until durable")
        for name, (waited, total) in medians.items():
            print(
                f"{name:30}  {waited:7.3f} s  {waited / base:6.3f}  {total:7.3f} s "
                f" {total / base:6.3f}"
            )
        print(f"{'memory beside the state':30}  {copies:.2f} copies\n")


if __name__ == "__main__":
    main()
