"""What Ray costs.

Raylit on Ray Train beside a bare TorchTrainer, Lightning on Ray, and a hand-written loop under
torchrun.

    python -m tests.benchmarks.ray [--rounds 3] [--only start|step|death]

start: seconds from fit() to the first batch in two workers on a running cluster, everything
imported on the driver before; each in a driver of its own. step: milliseconds per step of two ranks
with DDP over gloo, one thread each: an MLP of 1 M parameters, a transformer of 20 M. death: seconds
from the SIGKILL of a worker to the next step after the restart.

Each round runs all, one after the other; the table has medians, and ratios to the first row within
a round.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[2]
WARM_UP = 5
SIZES = {"MLP 1 M": 600, "transformer 20 M": 40}  # and steps to take


def make_net(size: str) -> nn.Module:
    """The model, from 256 numbers to 256."""
    torch.manual_seed(0)
    if size == "MLP 1 M":
        return nn.Sequential(
            nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 256)
        )
    layer = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.Linear(256, 512), nn.TransformerEncoder(layer, 6), nn.Linear(512, 256))


class Stream:
    """Batches that lie in memory.

    Writes the median seconds from one to the next to `result`, on rank 0.

    Ranks must ask each other for each batch whether all have one: not every class with a length
    keeps to it.
    """

    def __init__(self, size: str, num_batches: int, result: str) -> None:
        shape = (32, 256) if size == "MLP 1 M" else (4, 16, 256)
        self.batches = [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(8)
        ]
        self.num_batches, self.result = num_batches, result

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        times = []
        for index in range(self.num_batches):
            times.append(time.perf_counter())
            if index == self.num_batches - 1 and os.environ.get("RANK", "0") == "0":
                steps = [
                    after - before
                    for before, after in zip(times[WARM_UP:-1], times[WARM_UP + 1 :], strict=True)
                ]
                Path(self.result).write_text(str(statistics.median(steps)))
            yield self.batches[index % 8]


class Batches(Stream, Sequence[torch.Tensor]):
    """The same as a sequence, whose length is certain.

    So is the length of a DataLoader over a data set with indices.
    """

    def __getitem__(self, index: Any) -> Any:
        return self.batches[index % 8]


def module(pl: Any, size: str, result: str = "", marker: str = "") -> Any:
    """The model as a LightningModule.

    Writes when its first batch came to `result`, and kills rank 1 in batch 20 once, if there is a
    `marker`.
    """

    class Net(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net(size)
            self.is_new = True

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            if self.is_new and result and self.global_rank == 0:
                Path(result).write_text(str(time.time()))
            self.is_new = False
            if marker and self.global_rank == 1 and batch_idx == 20 and not os.path.exists(marker):
                Path(marker).write_text(str(time.time()))
                os.kill(os.getpid(), signal.SIGKILL)
            return nn.functional.mse_loss(self.net(batch), batch)

        def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            if self.is_new and result and self.global_rank == 0:
                Path(result).write_text(str(time.time()))
            self.is_new = False

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Net()


def by_hand(size: str, num_batches: int, result: str, first: str = "") -> None:
    """The loop that everybody can write, in a process group that exists."""
    torch.set_num_threads(1)
    net = nn.parallel.DistributedDataParallel(make_net(size), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for batch in Batches(size, num_batches, result):
        if first and not os.path.exists(first) and os.environ["RANK"] == "0":
            Path(first).write_text(str(time.time()))
        loss = nn.functional.mse_loss(net(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def torchrun(size: str, num_batches: int, folder: Path) -> None:
    """The hand-written loop under torchrun; this process is one of its ranks or starts them."""
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
        by_hand(size, num_batches, str(folder / "step"))
        gc.collect()  # what still holds the group would abort the process when it ends
        torch.distributed.destroy_process_group()
        return
    command = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "tests.benchmarks.ray",
    ]
    subprocess.run(
        [sys.executable, "-m", *command, "--case", "torchrun", size, str(num_batches), str(folder)],
        check=True,
        cwd=ROOT,
    )


def torch_trainer(size: str, num_batches: int, folder: Path) -> None:
    """Ray's own trainer around the hand-written loop."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop() -> None:
        import raylit.launch.on_ray.launcher  # noqa: F401  the same imports

        by_hand(size, num_batches, str(folder / "step"), str(folder / "first"))

    ray.init(os.environ["RAY_ADDRESS"], logging_level="ERROR", log_to_driver=False)
    (folder / "began").write_text(str(time.time()))
    TorchTrainer(
        loop,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(folder)),
    ).fit()


def lightning_on_ray(size: str, num_batches: int, folder: Path) -> None:
    """Lightning with Ray's adapters."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop() -> None:
        import lightning.pytorch as pl
        from ray.train.lightning import (
            RayDDPStrategy,
            RayLightningEnvironment,
            RayTrainReportCallback,
            prepare_trainer,
        )

        torch.set_num_threads(1)
        off = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        plugins, callbacks = [RayLightningEnvironment()], [RayTrainReportCallback()]
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            strategy=RayDDPStrategy(),
            plugins=plugins,
            callbacks=callbacks,
            **off,
        )
        prepare_trainer(trainer).fit(
            module(pl, size, str(folder / "first")),
            Batches(size, num_batches, str(folder / "step")),
        )

    ray.init(os.environ["RAY_ADDRESS"], logging_level="ERROR", log_to_driver=False)
    (folder / "began").write_text(str(time.time()))
    TorchTrainer(
        loop,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(folder)),
    ).fit()


def raylit_trainer(folder: Path, **more: Any) -> Any:
    """A Trainer with two workers on the cluster, connected."""
    import raylit as pl
    import raylit.launch.on_ray.launcher
    from raylit.launch.on_ray.cluster import connect

    connect(num_cpus=2)
    off: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(num_workers=2, max_epochs=1, default_root_dir=folder, **{**off, **more})


def raylit_fit(
    size: str, num_batches: int, folder: Path, then: str = "", batches_class: type[Stream] = Batches
) -> None:
    """raylit; if `then`, what is timed is a second fit, or a test after the fit."""
    import raylit as pl

    trainer = raylit_trainer(folder)
    net, batches = (
        module(pl, size, str(folder / "first")),
        batches_class(size, num_batches, str(folder / "step")),
    )
    if then:
        trainer.fit(net, batches)
        trainer = raylit_trainer(folder)
    (folder / "began").write_text(str(time.time()))
    if then == "test":
        trainer.test(net, batches, verbose=False)
    else:
        trainer.fit(net, batches)


def raylit_kept(size: str, num_batches: int, folder: Path, then: str) -> None:
    """raylit, on workers that did a fit before."""
    import raylit as pl

    with pl.keep_workers():
        raylit_fit(size, num_batches, folder, then)


def raylit_death(size: str, num_batches: int, folder: Path) -> None:
    """raylit, one of whose workers is killed."""
    import raylit as pl

    saver = pl.callbacks.ModelCheckpoint(folder / "checkpoints", every_n_train_steps=10)
    trainer = raylit_trainer(folder, callbacks=[saver], enable_checkpointing=None, max_failures=1)
    net = module(pl, size, str(folder / "first"), str(folder / "began"))
    trainer.fit(net, Batches(size, num_batches, str(folder / "step")))


Case = Callable[[str, int, Path], None]
CASES: dict[str, dict[str, Case]] = {
    "start": {
        "bare TorchTrainer": torch_trainer,
        "raylit": raylit_fit,
        "raylit, a second fit": lambda size, number, folder: raylit_fit(
            size, number, folder, "fit"
        ),
        "raylit, test after fit": lambda size, number, folder: raylit_fit(
            size, number, folder, "test"
        ),
        "kept: a second fit": lambda size, number, folder: raylit_kept(size, number, folder, "fit"),
        "kept: test after fit": lambda size, number, folder: raylit_kept(
            size, number, folder, "test"
        ),
        "Lightning on Ray": lightning_on_ray,
    },
    "step": {
        "torchrun": torchrun,
        "bare TorchTrainer": torch_trainer,
        "raylit": raylit_fit,
        "raylit, from a stream": lambda size, number, folder: raylit_fit(
            size, number, folder, batches_class=Stream
        ),
        "Lightning on Ray": lightning_on_ray,
    },
    "death": {"raylit": raylit_death},
}


def measure(kind: str, size: str, name: str, num_batches: int, address: str) -> float:
    """Run one case in a driver of its own; return the seconds it is about."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {
            "RAY_ADDRESS": address,
            "OMP_NUM_THREADS": "1",
            "RAYLIT_PROGRESS": "none",
            "PYTHONPATH": str(ROOT),
        }
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.benchmarks.ray",
            "--case",
            f"{kind}/{name}",
            size,
            str(num_batches),
            folder,
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stdout}{done.stderr}")
        if kind == "step":
            return float(Path(folder, "step").read_text())
        return float(Path(folder, "first").read_text()) - float(Path(folder, "began").read_text())


def table(kind: str, size: str, num_batches: int, num_rounds: int, address: str) -> str:
    """The medians as lines, and the ratios to the first row of the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES[kind]}
    for number in range(num_rounds):
        for name, times in seconds.items():
            times.append(measure(kind, size, name, num_batches, address))
        print(f"{kind}, {size}: round {number + 1} of {num_rounds}", file=sys.stderr)
    unit, factor = ("ms/step", 1e3) if kind == "step" else ("seconds", 1.0)
    lines = [f"{kind + ', ' + size:28}{unit:>10}{'ratio':>8}   range"]
    base = next(iter(seconds.values()))
    for name, times in seconds.items():
        ratios = sorted(one / first for one, first in zip(times, base, strict=True))
        lines.append(
            f"{name:28}{statistics.median(times) * factor:10.2f}{statistics.median(ratios):8.3f}  "
            f" {ratios[0]:.3f} to {ratios[-1]:.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Start a cluster and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each case is run")
    parser.add_argument("--only", default="", help="only this table: start, step or death")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        name, size, num_batches, folder = arguments.case
        kind, _, which = name.partition("/")
        (torchrun if kind == "torchrun" else CASES[kind][which])(
            size, int(num_batches), Path(folder)
        )
        return
    import ray

    ray.init(address="local", num_cpus=4, logging_level="ERROR", log_to_driver=False)
    address = ray.get_runtime_context().gcs_address
    for kind in CASES:
        if arguments.only in ("", kind):
            for size, num_batches in SIZES.items() if kind == "step" else [("MLP 1 M", 60)]:
                print(
                    table(kind, size, num_batches, arguments.rounds, address),
                    end="\n\n",
                    flush=True,
                )


if __name__ == "__main__":
    main()
