"""What user code passes that is a little unusual.

That is hooks set to None, loggers of any class, configs of OmegaConf, subclasses of loggers.
"""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

import raylit
from raylit.core.hooks import HOOKS
from tests.lazy import lightning
from tests.parity.harness import parity, run
from tests.quiet import QUIET

TINY: dict[str, Any] = {
    **QUIET,
    "max_epochs": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 2,
    "limit_test_batches": 2,
    "limit_predict_batches": 2,
    "log_every_n_steps": 1,
}
BARE = {"logger": False, "enable_checkpointing": False}


def demos(pl: Any) -> Any:
    """Return the module of tiny models."""
    if pl is raylit:
        return raylit.demos.boring_classes
    return lightning.pytorch.demos.boring_classes


def logging_model(pl: Any) -> Any:
    class Logs(demos(pl).BoringModel):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("a", 1.0)
            return super().training_step(batch, batch_idx)

    return Logs()


# ---- hooks set to None ----


def outcome(pl: Any, root: Path, fn: str, hook: str) -> str:
    model = demos(pl).BoringModel()
    setattr(model, hook, None)
    saves = "checkpoint" in hook
    trainer = pl.Trainer(**TINY, logger=False, enable_checkpointing=saves, default_root_dir=root)
    try:
        getattr(trainer, fn)(model)
    except Exception:
        return "error"
    return f"{fn} {trainer.global_step}"


@pytest.mark.parametrize("hook", [name for name, hook in HOOKS.items() if "M" in hook.owners])
def test_a_hook_that_is_none_is_left_out(hook: str, tmp_path: Path) -> None:
    """Where Lightning goes on, so does raylit; where it fails for lack of a check, raylit may."""

    def every(pl: Any, root: Path) -> list[str]:
        own = [fn for fn in ("test", "predict") if fn in hook]
        return [outcome(pl, root, fn, hook) for fn in own or ("fit", "validate")]

    theirs = run(every, lightning.pytorch, tmp_path)
    ours = run(every, raylit, tmp_path)
    assert [one for one, other in zip(ours, theirs, strict=True) if one != other != "error"] == []
    if hook.endswith("_step") and hook not in ("optimizer_step", "lr_scheduler_step"):
        assert ours == theirs


@parity
def test_hooks_of_callbacks_that_are_none(pl: Any, tmp_path: Path) -> Any:
    callback = pl.Callback()
    callback.setup = callback.on_train_batch_end = callback.teardown = None
    trainer = pl.Trainer(**TINY, **BARE, callbacks=callback)
    trainer.fit(demos(pl).BoringModel())
    return trainer.global_step


# ---- loggers ----


class Duck:
    """Derives from nothing."""

    name, version, save_dir, log_dir, root_dir, experiment = "n", 3, None, None, None, None

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.seen.append((sorted(metrics), step))

    def log_graph(self, model: Any) -> None:
        self.seen.append("graph")

    def finalize(self, status: str) -> None:
        self.seen.append(status)

    def save(self) -> None: ...
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None: ...


@parity
def test_a_logger_of_no_logger_class(pl: Any, tmp_path: Path) -> Any:
    one, other = Duck(), Duck()
    trainer = pl.Trainer(**TINY, logger=[one, other], default_root_dir=tmp_path)
    trainer.fit(logging_model(pl))
    path = Path(trainer.checkpoint_callback.best_model_path).relative_to(tmp_path)
    return one.seen, one.seen == other.seen, trainer.logger is one, trainer.log_dir, path


def test_a_logger_with_log_metrics_alone(tmp_path: Path) -> None:
    class Rows:
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def log_metrics(self, *, metrics: dict[str, float], step: int) -> None:
            self.rows.append((dict(metrics), step))

    rows = Rows()
    trainer = raylit.Trainer(**TINY, logger=rows, default_root_dir=tmp_path)  # type: ignore[arg-type]
    trainer.fit(logging_model(raylit))
    assert rows.rows == [({"a": 1.0, "epoch": 0}, 0), ({"a": 1.0, "epoch": 0}, 1)]
    with pytest.raises(raylit.errors.ConfigError, match="no method log_metrics"):
        raylit.Trainer(logger=object())  # type: ignore[arg-type]


def files(root: Path) -> list[str]:
    found = [file.relative_to(root) for file in root.rglob("*") if file.is_file()]
    return sorted(str(file).partition(".tfevents")[0] for file in found)


@pytest.mark.parametrize("kind", ["CSVLogger", "TensorBoardLogger"])
@parity
def test_a_logger_with_its_own_name_and_version(pl: Any, tmp_path: Path, kind: str) -> Any:
    class Own(getattr(pl.loggers, kind)):  # type: ignore[misc]
        @property
        def name(self) -> str:
            return "own"

        @property
        def version(self) -> str:
            return "v7"

    logger = Own(tmp_path)
    pl.Trainer(**TINY, logger=logger, default_root_dir=tmp_path).fit(logging_model(pl))
    return files(tmp_path), logger.log_dir, logger.root_dir


@parity
def test_a_version_that_is_there_begins_anew(pl: Any, tmp_path: Path) -> Any:
    """With a warning, without a Trainer and with one; a second fit of the same logger goes on."""
    path = tmp_path / "t" / "version_0" / "metrics.csv"
    for name in "ab":
        logger = pl.loggers.CSVLogger(tmp_path, name="t", version=0)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            logger.log_metrics({name: 0.5}, step=1)
            logger.save()
    alone = path.read_text().split()
    for _ in range(2):
        logger = pl.loggers.CSVLogger(tmp_path, name="t", version=0)
        trainer = pl.Trainer(**TINY, logger=logger, enable_checkpointing=False)
        trainer.fit(logging_model(pl))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(logging_model(pl))
    said = [str(one.message).partition(" /")[0] for one in told]
    return alone, said, path.read_text().split()


@parity
def test_a_graph_without_a_trainer(pl: Any, tmp_path: Path) -> Any:
    class Net(demos(pl).BoringModel):  # type: ignore[misc]
        example_input_array = torch.zeros(1, 32)

        def forward(self, x: Any) -> Any:
            return self.layer(x)

    logger = pl.loggers.TensorBoardLogger(tmp_path, log_graph=True)
    logger.log_graph(Net())
    logger.log_graph(Net(), torch.ones(2, 32))
    logger.save()
    return files(tmp_path)


# ---- the data that finders leave, samplers, views ----


class Sized:
    """A model whose batch size and learning rate can be searched for."""

    def __new__(cls, pl: Any) -> Any:
        random = demos(pl).RandomDataset

        class Net(demos(pl).BoringModel):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.lr, self.batch_size = 0.1, 2

            def train_dataloader(self) -> Any:
                return DataLoader(random(32, 64), batch_size=self.batch_size)

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=self.lr)

        return Net()


@parity
def test_the_data_can_be_looked_at_after_a_search(pl: Any, tmp_path: Path) -> Any:
    found = []
    for search, arguments in (
        ("scale_batch_size", {"max_trials": 2}),
        ("scale_batch_size", {"max_trials": 0}),
        ("lr_find", {"num_training": 4}),
        ("lr_find", {"num_training": 4, "min_lr": 1.0, "max_lr": 0.5}),
    ):
        model = Sized(pl)
        trainer = pl.Trainer(**TINY, **BARE, default_root_dir=tmp_path)
        result = getattr(pl.tuner.Tuner(trainer), search)(model, **arguments)
        found.append(result if isinstance(result, int) else len(result.results["lr"]))
        found.append(trainer.train_dataloader.batch_size)
        trainer.fit(model)
        found.append((trainer.train_dataloader.batch_size, trainer.global_step))
    return found


@parity
def test_samplers_are_told_the_epoch_in_evaluation(pl: Any, tmp_path: Path) -> Any:
    class Tells(SequentialSampler):
        seen: set[int]

        def set_epoch(self, epoch: int) -> None:
            self.seen.add(epoch)

    class Net(demos(pl).BoringModel):  # type: ignore[misc]
        def val_dataloader(self) -> Any:
            data = demos(pl).RandomDataset(32, 4)
            sampler = Tells(data)
            sampler.seen = seen
            return DataLoader(data, sampler=sampler)

        train_dataloader = test_dataloader = predict_dataloader = val_dataloader

    found = {}
    for fn in ("fit", "validate", "test", "predict"):
        seen: set[int] = set()
        trainer = pl.Trainer(**{**TINY, "max_epochs": 2}, **BARE, default_root_dir=tmp_path)
        getattr(trainer, fn)(Net())
        found[fn] = sorted(seen)
    return found


@parity
def test_settings_and_data_as_they_read(pl: Any, tmp_path: Path) -> Any:
    bare: dict[str, Any] = {**TINY, **BARE, "default_root_dir": tmp_path}
    trial = [pl.Trainer(**bare, fast_dev_run=value).fast_dev_run for value in (True, 1, 0, 7)]
    data = demos(pl).BoringDataModule()
    before = str(data)
    data.setup("fit")
    trainer = pl.Trainer(**bare)
    trainer.datamodule = data
    sanity = []
    for arguments in ({}, {"num_sanity_val_steps": -1}, {"limit_val_batches": 0.1}):
        one = pl.Trainer(**{**bare, "limit_val_batches": 1.0, **arguments})
        one.fit(demos(pl).BoringModel())
        sanity.append(one.num_sanity_val_batches)
    return [repr(one) for one in trial], before, str(data), trainer.datamodule is data, sanity


# ---- hyperparameters ----


@parity
def test_a_file_of_hyperparameters_that_is_missing(pl: Any, tmp_path: Path) -> Any:
    class Net(demos(pl).BoringModel):  # type: ignore[misc]
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

    trainer = pl.Trainer(**TINY, logger=False, default_root_dir=tmp_path)
    trainer.fit(Net(width=7))
    path = trainer.checkpoint_callback.best_model_path
    with pytest.warns(RuntimeWarning, match=r"(?i)missing"):
        made = Net.load_from_checkpoint(path, hparams_file=tmp_path / "no.yaml")
    with pytest.raises(ValueError, match="yaml"):
        Net.load_from_checkpoint(path, hparams_file=tmp_path / "no.txt")
    return made.hparams.width


def test_configs_of_omegaconf_come_back_as_such(tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf")

    class Net(raylit.testing.BoringModel):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.save_hyperparameters(config)
            self.size = config.sizes[0]

    class Named(raylit.testing.BoringModel):
        def __init__(self, other: int, config: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()

    config = omegaconf.OmegaConf.create({"sizes": [4, {"a": 1}], "twice": "${sizes.0}"})
    for model in (Net(config), Named(3, config=config)):
        trainer = raylit.Trainer(**TINY, logger=False, default_root_dir=tmp_path)
        trainer.fit(model)
        path = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
        torch.load(path, weights_only=True)
        loaded = type(model).load_from_checkpoint(path)
        found = loaded.hparams if isinstance(model, Net) else loaded.hparams.config
        assert isinstance(found, omegaconf.DictConfig)
        assert (found.sizes[1].a, found.twice) == (1, 4)


def test_a_text_in_a_checkpoint_is_no_interpolation() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    from raylit.core import omega

    made = omega.restored({"config": {"a": "${oc.env:HOME}"}}, [["config"], ["gone"]])
    assert isinstance(made["config"], omegaconf.DictConfig)
    assert made["config"].a == "${oc.env:HOME}"


@parity
def test_two_prunings(pl: Any, tmp_path: Path) -> Any:
    model = demos(pl).BoringModel()
    which: dict[str, Any] = {"parameters_to_prune": [(model.layer, "weight")], "amount": 0.25}
    callbacks = [
        pl.callbacks.ModelPruning("l1_unstructured", apply_pruning=lambda e: not e % 2, **which),
        pl.callbacks.ModelPruning("random_unstructured", apply_pruning=lambda e: e % 2, **which),
    ]
    arguments: dict[str, Any] = {**TINY, "max_epochs": 2, "default_root_dir": tmp_path}
    trainer = pl.Trainer(**arguments, logger=False, callbacks=callbacks)
    with contextlib.suppress(UserWarning):
        trainer.fit(model)
    return int((model.layer.weight == 0).sum()), trainer.current_epoch
