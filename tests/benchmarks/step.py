"""What a step of training costs: raylit and other frameworks, as ratios to the hand-written loop.

    python -m tests.benchmarks.step [--steps 3000] [--rounds 5] [--model mlp|transformer] [--only
    raylit]

A small model (an MLP 10-32-1, 32 samples a batch) shows the cost of the framework itself; a
transformer, on a GPU of the size of GPT-2 small and in bf16, what is left of it where steps are
long. All loops read the same batches, which lie in memory, on one thread, and on a GPU if there is
one. Each round runs every loop once, one after the other, so that a busy machine slows all of them;
the table has the medians over the rounds. The time is taken by the batches as they are read: from
one that follows some steps to warm up, to the last; before both a GPU has to have done all that it
was given.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ACCELERATOR = {"cuda": "gpu", "cpu": "cpu"}[DEVICE.type]
Batch = tuple[torch.Tensor, torch.Tensor]


class Transformer(nn.Module):
    """A language model: on a GPU with the sizes of GPT-2 small, on a CPU tiny.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """

    VOCABULARY, LENGTH, SAMPLES, WIDTH, HEADS, LAYERS = (
        (50257, 1024, 8, 768, 12, 12) if DEVICE.type == "cuda" else (100, 16, 2, 32, 2, 2)
    )

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = (
            nn.Embedding(self.VOCABULARY, self.WIDTH),
            nn.Embedding(self.LENGTH, self.WIDTH),
        )
        layer = nn.TransformerEncoderLayer(
            self.WIDTH,
            self.HEADS,
            4 * self.WIDTH,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, self.LAYERS, nn.LayerNorm(self.WIDTH), enable_nested_tensor=False
        )
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(self.LENGTH))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden = self.words(words) + self.places.weight[: words.size(1)]
        hidden = self.layers(hidden, mask=self.mask, is_causal=True)
        return nn.functional.linear(hidden, self.words.weight)  # the same weights in and out


class Mlp:
    """The small model and its data."""

    warm_up, precision = 100, None

    @staticmethod
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))

    @staticmethod
    def batch(generator: torch.Generator) -> Batch:
        return torch.randn(32, 10, generator=generator), torch.randn(32, 1, generator=generator)

    @staticmethod
    def loss(net: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.mse_loss(net(batch[0]), batch[1])


class Language:
    """The transformer and its data."""

    warm_up, precision = 10, "bf16-mixed"

    @staticmethod
    def net() -> nn.Module:
        torch.manual_seed(0)
        return Transformer()

    @staticmethod
    def batch(generator: torch.Generator) -> Batch:
        words = torch.randint(
            Transformer.VOCABULARY,
            (Transformer.SAMPLES, Transformer.LENGTH + 1),
            generator=generator,
        )
        return words[:, :-1].contiguous(), words[:, 1:].contiguous()

    @staticmethod
    def loss(net: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(net(batch[0]).flatten(0, 1), batch[1].flatten())


WORK: dict[str, Any] = {"mlp": Mlp, "transformer": Language}
net = Mlp.net


class Batches:
    """The batches of one epoch, which note the seconds that a step took between two of them."""

    def __init__(self, num_batches: int, work: Any = Mlp) -> None:
        generator = torch.Generator().manual_seed(0)
        self.work = work
        self.batches = [work.batch(generator) for _ in range(64)]
        if DEVICE.type == "cuda":
            self.batches = [(x.pin_memory(), y.pin_memory()) for x, y in self.batches]
        self.num_batches = num_batches
        self.seconds_per_step = float("nan")
        self.data: Any = self  # what a Trainer is given

    def now(self) -> float:
        """The time, once the device has nothing left to do."""
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        return self.noted(self.batches)

    def noted(self, items: list[Any]) -> Iterator[Any]:
        """Give one item for each batch, over and over, and note the time."""
        start, warm_up = self.now(), self.work.warm_up
        for index in range(self.num_batches):
            if index == warm_up:
                start = self.now()
            if index == self.num_batches - 1:  # nobody need ask for one more than there are
                self.seconds_per_step = (self.now() - start) / (index - warm_up)
            yield items[index % len(items)]


class InLoader(Batches):
    """The same samples in a `DataLoader(TensorDataset(...))`, as many users have them."""

    def __init__(self, num_batches: int, work: Any = Mlp) -> None:
        super().__init__(num_batches, work)
        x, y = (torch.cat(parts) for parts in zip(*self.batches, strict=True))
        self.size = len(self.batches[0][0])
        self.data = DataLoader(TensorDataset(x, y), batch_sampler=Noted(self))

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.data)


class Noted(Sampler[list[int]]):
    """Gives the indices of the batches, and notes when they were asked for."""

    def __init__(self, batches: InLoader) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return self.batches.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batches.size
        starts = range(0, len(self.batches.batches) * size, size)
        return self.batches.noted([list(range(start, start + size)) for start in starts])


class Terminal(io.StringIO):
    """A terminal that nobody looks at: progress bars draw, and nothing is kept."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


def module(pl: Any, work: Any, logs: bool) -> Any:
    """The model as a LightningModule, which logs its loss or does not."""

    class Net(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = work.net()

        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            loss: torch.Tensor = work.loss(self.net, batch)
            if logs:
                self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Net()


def by_hand(batches: Batches, folder: Path) -> None:
    """The loop that everybody can write."""
    work = batches.work
    model = work.net().to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in batches:
        if DEVICE.type == "cuda":
            batch = batch[0].to(DEVICE, non_blocking=True), batch[1].to(DEVICE, non_blocking=True)
        if work.precision is None:
            loss = work.loss(model, batch)
        else:
            with torch.autocast(DEVICE.type, torch.bfloat16):
                loss = work.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def by_hand_everything(batches: Batches, folder: Path) -> None:
    """The same, with all that "everything" asks for written out, as cheaply as it can be.

    No framework's step can cost less than this one.
    """
    import csv

    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run_id = client.create_run(client.create_experiment("step")).info.run_id
    work = batches.work
    model = work.net().to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    values: list[torch.Tensor] = []
    weights: list[int] = []
    rows: list[dict[str, float]] = []
    metrics: list[Metric] = []
    total, samples, slowest, next_picture = 0.0, 0, 0.0, 0.0
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", "loss_step", "lr"])
        for step, batch in enumerate(batches):
            start = time.perf_counter()
            if DEVICE.type == "cuda":
                batch = (
                    batch[0].to(DEVICE, non_blocking=True),
                    batch[1].to(DEVICE, non_blocking=True),
                )
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=work.precision is not None):
                loss = work.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.detach().clone())
            weights.append(len(batch[0]))
            samples += len(batch[0])
            slowest = max(slowest, time.perf_counter() - start)
            if (step + 1) % 50 == 0:
                row = {
                    "step": step,
                    "loss_step": values[-1].item(),
                    "lr": optimizer.param_groups[0]["lr"],
                }
                rows.append(row)
                metrics += [
                    Metric(name, value, int(time.time() * 1000), step)
                    for name, value in row.items()
                ]
            if (step + 1) % 100 == 0:
                total += float((torch.stack(values).cpu() * torch.tensor(weights)).sum())
                writer.writerows(rows)
                file.flush()
                values, weights, rows = [], [], []
            if time.monotonic() >= next_picture:
                sys.stdout.write(f"\r{step + 1}/{batches.num_batches} loss {float(loss):.4f}")
                next_picture = time.monotonic() + 0.2
    client.log_batch(run_id, metrics)
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "loss": total / samples,
            "slowest": slowest,
        },
        folder / "last.ckpt",
    )


def with_fabric(batches: Batches, folder: Path) -> None:
    """Lightning Fabric, which leaves the loop to the user."""
    import lightning

    work = batches.work
    fabric = lightning.Fabric(accelerator=ACCELERATOR, devices=1, precision=work.precision)
    fabric.launch()
    model = work.net()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.01))
    for batch in batches:
        loss = work.loss(model, fabric.to_device(batch) if DEVICE.type == "cuda" else batch)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()


def with_accelerate(batches: Batches, folder: Path) -> None:
    """Accelerate, likewise."""
    from accelerate import Accelerator
    from accelerate.utils import send_to_device

    work = batches.work
    accelerator = Accelerator(
        cpu=DEVICE.type == "cpu", mixed_precision="no" if work.precision is None else "bf16"
    )
    model = work.net()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
    for batch in batches:
        loss = work.loss(
            model,
            send_to_device(batch, DEVICE, non_blocking=True) if DEVICE.type == "cuda" else batch,
        )
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()


def fit(pl: Any, logs: bool, everything: bool) -> Callable[[Batches, Path], None]:
    """A fit with `pl`, which is raylit or Lightning.

    Bare, with one log, or with all that users switch on.
    """

    def run(batches: Batches, folder: Path) -> None:
        settings: dict[str, Any] = {
            "max_epochs": 1,
            "accelerator": ACCELERATOR,
            "devices": 1,
            "precision": batches.work.precision,
            "default_root_dir": folder,
            "enable_model_summary": False,
        }
        if not everything:
            settings |= {
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
            }
        else:
            mlflow = pl.loggers.MLFlowLogger(
                "step",
                tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
                artifact_location=str(folder / "mlruns"),
            )
            settings["logger"] = [pl.loggers.CSVLogger(str(folder)), mlflow]
            settings["callbacks"] = [
                pl.callbacks.ModelCheckpoint(),
                pl.callbacks.LearningRateMonitor(),
                *users_callbacks(pl),
            ]
        pl.Trainer(**settings).fit(module(pl, batches.work, logs), batches.data)

    return run


def users_callbacks(pl: Any) -> list[Any]:
    """Three callbacks as users write them."""

    class Counts(pl.Callback):  # type: ignore[misc]
        samples = 0

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.samples += len(batch[0])

    class Times(pl.Callback):  # type: ignore[misc]
        start = slowest = 0.0

        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            self.start = time.perf_counter()

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.slowest = max(self.slowest, time.perf_counter() - self.start)

    class Epochs(pl.Callback):  # type: ignore[misc]
        losses: list[float]

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.losses = [
                *getattr(self, "losses", []),
                float(trainer.callback_metrics["loss_epoch"]),
            ]

    return [Counts(), Times(), Epochs()]


def loops() -> dict[str, Callable[[Batches, Path], None]]:
    """All loops to compare, by name."""
    import lightning.pytorch

    import raylit

    found: dict[str, Callable[[Batches, Path], None]] = {
        "by hand": by_hand,
        "Fabric": with_fabric,
        "Accelerate": with_accelerate,
    }
    found["by hand, everything"] = by_hand_everything
    for name, pl in (("Lightning", lightning.pytorch), ("raylit", raylit)):
        found[name] = fit(pl, logs=False, everything=False)
        found[f"{name}, one log"] = fit(pl, logs=True, everything=False)
        found[f"{name}, everything"] = fit(pl, logs=True, everything=True)
    found["by hand, DataLoader"] = by_hand
    for name, pl in (("Lightning", lightning.pytorch), ("raylit", raylit)):
        found[f"{name}, DataLoader"] = fit(pl, logs=False, everything=False)
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, messages and progress bars go to a terminal that nobody looks at."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(Terminal()),
        contextlib.redirect_stderr(Terminal()),
    ):
        warnings.simplefilter("ignore")
        yield
    logging.disable(level)


def measure(
    num_steps: int, num_rounds: int, only: str = "", model: str = "mlp"
) -> dict[str, list[float]]:
    """Return the seconds per step of each loop, one for each round."""
    torch.set_num_threads(1)
    chosen = {
        name: loop for name, loop in loops().items() if only in name or name.startswith("by hand")
    }
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for number in range(num_rounds):
        for name, loop in chosen.items():
            kind = InLoader if name.endswith("DataLoader") else Batches
            batches = kind(num_steps, WORK[model])
            with tempfile.TemporaryDirectory() as folder, quiet():
                loop(batches, Path(folder))
            seconds[name].append(batches.seconds_per_step)
        print(f"round {number + 1} of {num_rounds}", file=sys.stderr)
    return seconds


def table(seconds: dict[str, list[float]]) -> str:
    """The medians as lines.

    Microseconds per step, the ratio to the hand-written loop of the same round, and the ratio's
    range.
    """
    lines = [f"{'loop':24}{'us/step':>9}{'ratio':>8}   range"]
    for name, times in seconds.items():
        ratios = sorted(one / base for one, base in zip(times, seconds["by hand"], strict=True))
        lines.append(
            f"{name:24}{statistics.median(times) * 1e6:9.1f}{statistics.median(ratios):8.3f}  "
            f" {ratios[0]:.3f} to {ratios[-1]:.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3000, help="batches of a loop")
    parser.add_argument("--rounds", type=int, default=5, help="how often each loop is run")
    parser.add_argument(
        "--only",
        default="",
        help="only the loops with this in their name, and the hand-written ones",
    )
    parser.add_argument("--model", default="mlp", choices=WORK, help="what is trained")
    arguments = parser.parse_args()
    print(table(measure(arguments.steps, arguments.rounds, arguments.only, arguments.model)))
