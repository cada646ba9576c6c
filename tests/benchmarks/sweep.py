"""What a trial of a sweep costs.

    python -m tests.benchmarks.sweep [--trials 24] [--rounds 1] [--only NAME] [--immediate 0]

An MLP on scikit-learn's digits, one epoch a trial, two trials at a time on one Ray cluster, each
with a checkpoint and a run of MLflow: raylit; a function trainable of Ray Tune with Lightning, in a
new process each and with `reuse_actors`; a TorchTrainer in each trial, with Lightning (a quarter of
the trials, at least four); two processes with a hand-written loop that one study of Optuna gives
values.

Each round runs all, one after the other. A trial's seconds are those from the end of the second
trial to that of the last, by the number between; the ratio is to raylit's in the same round.

`--immediate N` runs N trials that report at once instead, with and without MLflow, with the memory
of the driver.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LR = (1e-4, 1e-1)
EXPERIMENT = "sweep"
WIDTHS = [32, 64, 128]


def load() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """The digits, 1,500 to train on and the rest to validate on."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32) / 16
    y = torch.tensor(y)
    train = DataLoader(TensorDataset(x[:1500], y[:1500]), 32, shuffle=True)
    return train, DataLoader(TensorDataset(x[1500:], y[1500:]), 64)


def make_net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def ended(folder: str) -> None:
    """Note that a trial has ended."""
    with open(os.path.join(folder, "ends"), "a") as file:
        file.write(f"{time.time()}\n")


def make_module(pl: Any) -> type[Any]:
    """The module, for Lightning or raylit."""

    class Digits(pl.LightningModule):  # type: ignore[misc]
        def __init__(self, lr: float = 0.001, width: int = 32) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = make_net(width)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("val_loss", loss)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)

    return Digits


# ---- raylit ----


def with_raylit(folder: str, trials: int) -> None:
    import raylit as pl

    class Ends(pl.Callback):
        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            ended(folder)

    class Data(pl.LightningDataModule):
        def setup(self, stage: str) -> None:
            self.train, self.val = load()

        def train_dataloader(self) -> Any:
            return self.train

        def val_dataloader(self) -> Any:
            return self.val

    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=folder,
        logger=pl.MLFlowLogger(EXPERIMENT, tracking_uri=f"sqlite:///{folder}/mlflow.db"),
        callbacks=[Ends()],
        num_sanity_val_steps=0,
    )
    pl.Tuner(trainer).sweep(
        make_module(pl),
        Data,
        space={"model.lr": {"loguniform": list(LR)}, "model.width": {"choice": WIDTHS}},
        metric="val_loss",
        num_samples=trials,
        max_concurrent=2,
        seed=1,
    )


# ---- Ray Tune with Lightning ----


def fit_with_lightning(config: dict[str, Any], folder: str, **settings: Any) -> float:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import MLFlowLogger

    train, val = load()
    place = tempfile.mkdtemp(dir=folder)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=place,
        logger=MLFlowLogger(EXPERIMENT, tracking_uri=f"sqlite:///{folder}/mlflow.db"),
        callbacks=[ModelCheckpoint(place)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(make_module(pl)(**config), train, val)
    ended(folder)
    return float(trainer.callback_metrics["val_loss"])


def make_store(folder: str) -> None:
    """Make MLflow's database: one that two processes make at once is broken."""
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{folder}/mlflow.db").create_experiment(EXPERIMENT)


def tuned(trainable: Any, folder: str, trials: int, reuse: bool) -> None:
    from ray import tune

    make_store(folder)
    tune.Tuner(
        trainable,
        param_space={"lr": tune.loguniform(*LR), "width": tune.choice(WIDTHS)},
        tune_config=tune.TuneConfig(
            metric="val_loss",
            mode="min",
            num_samples=trials,
            max_concurrent_trials=2,
            reuse_actors=reuse,
        ),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    ).fit()


def with_tune(folder: str, trials: int, reuse: bool = False) -> None:
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        tune.report({"val_loss": fit_with_lightning(config, folder)})

    tuned(trial, folder, trials, reuse)


def with_tune_reusing(folder: str, trials: int) -> None:
    with_tune(folder, trials, reuse=True)


def with_torch_trainer(folder: str, trials: int) -> None:
    import ray.train
    from ray import tune
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def loop(config: dict[str, Any]) -> None:
        loss = fit_with_lightning(
            config, folder, strategy=RayDDPStrategy(), plugins=[RayLightningEnvironment()]
        )
        ray.train.report({"val_loss": loss})

    def trial(config: dict[str, Any]) -> None:
        TorchTrainer(
            loop,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                name=f"train-{tune.get_context().get_trial_id()}",
                storage_path=folder,
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    tuned(tune.with_resources(trial, {"CPU": 0.01}), folder, trials, False)


# ---- by hand ----


def work(folder: str, tasks: Any, results: Any) -> None:
    """One process: trains with the values it is given, saves and records as the others do."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    torch.set_num_threads(1)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    while True:
        task = tasks.get()
        if task is None:
            return
        number, config = task
        run_id = client.create_run(experiment.experiment_id).info.run_id
        train, val = load()
        net = make_net(config["width"])
        optimizer = torch.optim.Adam(net.parameters(), lr=config["lr"])
        losses: list[Metric] = []
        for step, (x, y) in enumerate(train):
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 49:
                losses.append(Metric("loss", float(loss), int(time.time() * 1000), step))
        with torch.no_grad():
            sums = [(nn.functional.cross_entropy(net(x), y), len(y)) for x, y in val]
        value = float(sum(loss * size for loss, size in sums) / sum(size for _, size in sums))
        losses.append(Metric("val_loss", value, int(time.time() * 1000), len(train)))
        torch.save(
            {"model": net.state_dict(), "optimizer": optimizer.state_dict()},
            os.path.join(folder, f"{number}.ckpt"),
        )
        params = [Param(key, str(one)) for key, one in config.items()]
        client.log_batch(run_id, losses, params)
        client.set_terminated(run_id)
        ended(folder)
        results.put((number, value))


def by_hand(folder: str, trials: int) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make_store(folder)
    context = multiprocessing.get_context("spawn")
    tasks: Any = context.Queue()
    results: Any = context.Queue()
    workers = [context.Process(target=work, args=(folder, tasks, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    asked: dict[int, Any] = {}

    def give() -> None:
        trial = study.ask()
        asked[trial.number] = trial
        lr = trial.suggest_float("lr", *LR, log=True)
        tasks.put((trial.number, {"lr": lr, "width": trial.suggest_categorical("width", WIDTHS)}))

    give()
    give()
    for done in range(trials):
        number, value = results.get()
        study.tell(asked.pop(number), value)
        if done + len(asked) + 1 < trials:
            give()
    for _ in workers:
        tasks.put(None)
    for worker in workers:
        worker.join()


WAYS: dict[str, Callable[[str, int], None]] = {
    "raylit": with_raylit,
    "two processes by hand, Optuna": by_hand,
    "Tune and Lightning, reuse_actors": with_tune_reusing,
    "Tune and Lightning": with_tune,
    "TorchTrainer in a trial": with_torch_trainer,
}


def measure(way: str, trials: int) -> tuple[float, float]:
    """Return seconds a trial beyond the first two, and of the whole."""
    number = max(4, trials // 4) if way == "TorchTrainer in a trial" else trials
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        WAYS[way](folder, number)
        whole = time.time() - began
        ends = sorted(float(line) for line in Path(folder, "ends").read_text().split())
    assert len(ends) == number, (way, len(ends))
    return (ends[-1] - ends[1]) / (number - 2), whole


def rss_mb() -> float:
    """Return the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def immediate(trials: int) -> None:
    """Print what trials cost that report at once."""
    import raylit as pl
    from raylit.testing.modules import BoringModel

    class Immediate(BoringModel):  # type: ignore[misc]
        def __init__(self, width: int = 1) -> None:
            super().__init__()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss["loss"] if isinstance(loss, dict) else loss)
            return loss

    print(f"{trials} trials of one batch{'':14}  s/trial  first half  second half  driver +MB")
    for with_mlflow in (False, True):
        with tempfile.TemporaryDirectory() as folder:

            class Ends(pl.Callback):
                def __init__(self, place: str) -> None:
                    self.place = place

                def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
                    ended(self.place)

            uri = f"sqlite:///{folder}/mlflow.db"
            trainer = pl.Trainer(
                max_epochs=1,
                limit_train_batches=1,
                limit_val_batches=0,
                accelerator="cpu",
                default_root_dir=folder,
                logger=pl.MLFlowLogger(EXPERIMENT, tracking_uri=uri) if with_mlflow else False,
                callbacks=[Ends(folder)],
                enable_checkpointing=False,
            )
            before = rss_mb()
            pl.Tuner(trainer).sweep(
                Immediate,
                space={"model.width": {"randint": [1, 1000]}},
                metric="loss",
                num_samples=trials,
                max_concurrent=2,
                seed=1,
            )
            ends = sorted(float(line) for line in Path(folder, "ends").read_text().split())
            half = trials // 2
            each = (ends[-1] - ends[1]) / (trials - 2)
            first = (ends[half] - ends[1]) / (half - 1)
            second = (ends[-1] - ends[half]) / (trials - 1 - half)
            name = "with MLflow" if with_mlflow else "without MLflow"
            more = rss_mb() - before
            print(
                f"{name:<38}  {each:7.3f}  {first:10.3f}  {second:11.3f}  {more:10.0f}", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=list(WAYS))
    parser.add_argument("--immediate", type=int, default=0)
    options = parser.parse_args()
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    from raylit.launch.on_ray.cluster import connect

    # Ray's default of 15 starves workers where other processes run too
    os.environ.setdefault("RAY_worker_niceness", "0")
    connect(num_cpus=4)
    if options.immediate:
        immediate(options.immediate)
        return
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        for way in [options.only] if options.only else WAYS:
            found.setdefault(way, []).append(measure(way, options.trials))
    reference = [each for each, _ in next(iter(found.values()))]
    print(f"{'way':<34}  s/trial   ratio  whole s")
    for way, rounds in found.items():
        each = statistics.median(one for one, _ in rounds)
        ratios = [one / other for (one, _), other in zip(rounds, reference, strict=True)]
        whole = statistics.median(one for _, one in rounds)
        print(f"{way:<34}  {each:7.3f}  {statistics.median(ratios):6.2f}  {whole:7.1f}")


if __name__ == "__main__":
    main()
