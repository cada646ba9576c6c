"""What users reach for beside the loop.

Attributes of the Trainer, trial runs, and `lightning.pytorch.utilities`.
"""

from __future__ import annotations

import argparse
import importlib
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.parity.harness import describe, errors, files, loader, model_class, parity, seen, trainer


def module_of(pl: Any, path: str) -> Any:
    return importlib.import_module(f"{pl.__name__}.{path}")


# ---- the Trainer ----

TOUCHED = [
    "num_devices",
    "device_ids",
    "world_size",
    "num_nodes",
    "distributed_sampler_kwargs",
    "scaler",
    "precision",
]


@parity
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_where_and_how_it_runs(pl: Any, tmp_path: Path, precision: str) -> Any:
    found: list[Any] = []

    class Touches(model_class(pl)):  # type: ignore[misc]
        def touch(self, where: str) -> None:
            one = self.trainer
            found.append(
                [where, *(getattr(one, name) for name in TOUCHED), one.precision_plugin.precision]
            )
            strategy = one.strategy
            ranks = [
                strategy.global_rank,
                strategy.local_rank,
                strategy.world_size,
                strategy.is_global_zero,
            ]
            found.append(
                [
                    str(strategy.root_device),
                    *ranks,
                    strategy.broadcast({"a": 1}),
                    strategy.reduce(torch.tensor(3)),
                ]
            )
            strategy.barrier()
            found.append(
                [
                    strategy.lightning_module is self,
                    strategy.model is one.model,
                    [type(each).__name__ for each in strategy.optimizers],
                ]
            )
            found.append(
                [
                    strategy.reduce_boolean_decision(True),
                    strategy.reduce_boolean_decision(False, all=False),
                    strategy.all_gather(torch.ones(2)),
                ]
            )
            stage = one.state.stage
            found.append(
                [
                    one.state.fn == "fit",
                    describe(one.state.fn),
                    describe(stage),
                    describe(one.state.status),
                    one.state.stopped,
                ]
            )
            found.append(
                [
                    stage is not None and stage.evaluating,
                    stage and stage.dataloader_prefix,
                    str(one.state.fn),
                ]
            )

        def on_train_start(self) -> None:
            self.touch("train start")

        def on_validation_start(self) -> None:
            self.touch("validation start")

        def on_test_start(self) -> None:
            self.touch("test start")

        def on_predict_start(self) -> None:
            self.touch("predict start")

    one, model = trainer(pl, tmp_path, precision=precision, max_epochs=1), Touches()
    before = [
        [getattr(one, name) for name in TOUCHED],
        one.precision_plugin.precision,
        describe(one.state.status),
        one.state.fn,
    ]
    one.fit(model, loader(1), loader(1))
    after = [
        one.state.stage,
        describe(one.state.status),
        one.state.finished,
        one.state.stopped,
        describe(one.state.fn),
    ]
    one.test(model, loader(1))
    one.predict(model, loader(1))
    return {"before": before, "found": found, "after": after}


@parity
def test_states_are_names(pl: Any, tmp_path: Path) -> Any:
    states = module_of(pl, "trainer.states")
    found: list[Any] = [
        [member.name, member.value, str(member)]
        for kind in ("TrainerFn", "RunningStage", "TrainerStatus")
        for member in getattr(states, kind)
    ]
    fit = states.TrainerFn.FITTING
    found.append(
        [
            fit == "FIT",
            fit == "test",
            fit != "fit",
            fit == states.TrainerFn("fit"),
            fit in {"fit": 1},
            states.TrainerFn.from_str("fitting").value,
        ]
    )
    found.append(
        [
            states.TrainerFn.from_str("test", source="value").name,
            states.TrainerFn.from_str("test", source="any").name,
        ]
    )
    with pytest.raises(ValueError, match="nothing"):
        states.TrainerFn.from_str("nothing")
    clip = pl.utilities.GradClipAlgorithmType
    return {
        "found": found,
        "clip": [
            clip.supported_types(),
            clip.supported_type("NORM"),
            clip.supported_type("x"),
            clip.NORM == "norm",
        ],
    }


@parity
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_init_module(pl: Any, tmp_path: Path, precision: str) -> Any:
    with trainer(pl, tmp_path, precision=precision).init_module():
        made = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = torch.get_rng_state()
    with trainer(pl, tmp_path, precision=precision).init_module(empty_init=True):
        empty = nn.Linear(3, 2)
    drawn = not torch.equal(state, torch.get_rng_state())
    return {
        "made": made.state_dict(),
        "empty": [str(empty.weight.dtype), tuple(empty.weight.shape), drawn],
        "after": torch.ones(1),
        "rng": torch.rand(1),
    }


@errors
@pytest.mark.parametrize("plugins", [["16-mixed"], object()])
def test_plugins(pl: Any, tmp_path: Path, plugins: Any) -> Any:
    trainer(pl, tmp_path, plugins=plugins)


@parity
@pytest.mark.parametrize("plugins", [None, []])
def test_no_plugins(pl: Any, tmp_path: Path, plugins: Any) -> Any:
    return [trainer(pl, tmp_path, plugins=plugins).precision]


# ---- trial runs ----


@parity
@pytest.mark.parametrize("logger", [True, False])
def test_a_trial_run_has_a_logger_that_writes_nothing(pl: Any, tmp_path: Path, logger: bool) -> Any:
    found: list[Any] = []

    class Writes(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            found.append([type(one).__name__ for one in self.loggers])
            if logger:
                experiment = self.logger.experiment
                experiment.add_scalar("loss", 1.0)
                experiment["key"] = 1
                experiment[0].add_image("image", torch.ones(3))
                self.logger.log_image("image", [1])
                self.logger[0].experiment.log({"a": 1})
                self.logger.log_metrics({"a": 1.0}, step=3)
                self.logger.log_hyperparams({"a": 1})
                found.append(
                    [
                        self.logger.name,
                        self.logger.version,
                        self.logger.save_dir,
                        self.trainer.log_dir,
                    ]
                )
            return super().training_step(batch, batch_idx)

    saver = pl.callbacks.ModelCheckpoint(monitor="val_loss")
    rates = [pl.callbacks.LearningRateMonitor()] if logger else []
    one = trainer(pl, tmp_path, logger=logger, fast_dev_run=2, callbacks=[saver, *rates])
    one.fit(Writes(), loader(4), loader(3))
    returned = [
        one.validate(Writes(), loader(3)),
        one.test(Writes(), loader(3)),
        len(one.predict(Writes(), loader(3))),
    ]
    return {"found": found, "returned": returned, "files": files(tmp_path, "**/*.*"), **seen(one)}


@parity
@pytest.mark.parametrize("overfit_batches", [1, 0.5, 3])
def test_a_trial_run_that_overfits(pl: Any, tmp_path: Path, overfit_batches: Any) -> Any:
    one = trainer(pl, tmp_path, fast_dev_run=2, overfit_batches=overfit_batches)
    one.fit(model_class(pl)(), loader(4), loader(4))
    return {
        "batches": [
            one.num_training_batches,
            one.num_val_batches,
            one.limit_train_batches,
            one.limit_test_batches,
        ],
        **seen(one),
    }


@parity
def test_a_logger_of_ones_own(pl: Any, tmp_path: Path) -> Any:
    base = module_of(pl, "loggers.logger")
    calls: list[Any] = []

    class Mine(base.Logger):  # type: ignore[misc,name-defined]
        @property
        def name(self) -> str:
            return "mine"

        @property
        def version(self) -> str:
            return "1"

        @property
        @base.rank_zero_experiment
        def experiment(self) -> Any:
            return calls

        @pl.utilities.rank_zero_only
        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            calls.append(["hyperparams", dict(params)])

        @pl.utilities.rank_zero_only
        def log_metrics(self, metrics: Any, step: int) -> None:
            calls.append(["metrics", dict(metrics), step])

        @pl.utilities.rank_zero_only
        def finalize(self, status: str) -> None:
            calls.append(["finalize", status])

    class Model(model_class(pl)):  # type: ignore[misc]
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()

        def on_train_start(self) -> None:
            self.logger.experiment.append("experiment")

    one = trainer(pl, tmp_path, logger=Mine(), log_every_n_steps=1)
    one.fit(Model(), loader(2), loader(1))
    return {"calls": calls, "loggers": [one.logger.name, len(one.loggers)]}


# ---- after a fit ----


@parity
@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_an_evaluation_leaves_the_fit_as_it_was(pl: Any, tmp_path: Path, fn: str) -> Any:
    class Adam(model_class(pl)):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    one, model = trainer(pl, tmp_path), Adam()
    one.fit(model, loader(3), loader(2))
    getattr(one, fn)(model, loader(4, seed=2))
    one.save_checkpoint(tmp_path / "one.ckpt")
    left = [len(one.optimizers), len(one.lr_scheduler_configs), one.train_dataloader is None]
    again, fresh = trainer(pl, tmp_path, max_epochs=4, num_sanity_val_steps=0), Adam()
    again.fit(fresh, loader(3), loader(2), ckpt_path=tmp_path / "one.ckpt")
    return {"left": left, "states": again.optimizers[0].state_dict(), **seen(again)}


# ---- utilities ----


@parity
def test_attribute_dicts(pl: Any, tmp_path: Path) -> Any:
    made = pl.utilities.AttributeDict({"a": 1, "long name": [2]}, b=3)
    made.c = 4
    made["d"] = 5
    del made.b
    with pytest.raises(AttributeError):
        _ = made.missing
    return {
        "dict": dict(made),
        "a": made.a,
        "text": repr(made),
        "empty": repr(pl.utilities.AttributeDict()),
    }


@parity
def test_hyperparameters_are_forgotten(pl: Any, tmp_path: Path) -> Any:
    class Net(model_class(pl)):  # type: ignore[misc]
        def __init__(self, a: int = 1, b: int = 2, c: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.remove_ignored_hparams(["a", "unknown"])

    class Data(pl.LightningDataModule):  # type: ignore[misc]
        def __init__(self, d: int = 4) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.remove_ignored_hparams(["d"])

    keys = [
        owner.CHECKPOINT_HYPER_PARAMS_TYPE for owner in (pl.LightningModule, pl.LightningDataModule)
    ]
    return {
        "left": dict(Net().hparams),
        "data": dict(Data().hparams),
        "keys": keys,
        "mesh": Net().device_mesh,
    }


class Moves:
    def to(self, device: Any) -> Any:
        self.device = str(device)


@parity
def test_moving_data(pl: Any, tmp_path: Path) -> Any:
    thing = Moves()
    moved = pl.utilities.move_data_to_device(
        {"a": torch.ones(1), "b": [thing, (torch.zeros(2), "x", 3, None)]}, "cpu"
    )
    return {"moved": [moved["a"], moved["b"][0] is thing, thing.device, moved["b"][1]]}


@parity
def test_what_can_be_pickled(pl: Any, tmp_path: Path) -> Any:
    values = [
        1,
        "a",
        torch.ones(1),
        lambda: 1,
        argparse.Namespace(a=1),
        nn.Linear(1, 1),
        (i for i in ()),
        open,
        type("Local", (), {})(),
    ]
    return [pl.utilities.is_picklable(value) for value in values]


@parity
def test_shared_parameters(pl: Any, tmp_path: Path) -> Any:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.third = (
                nn.Linear(2, 2),
                nn.Linear(2, 2),
                nn.Sequential(nn.Linear(2, 2)),
            )
            self.other.weight = self.third[0].weight = self.one.weight
            self.third[0].bias = self.one.bias

    model = Tied()
    shared = pl.utilities.find_shared_parameters(model)
    model.other.weight = nn.Parameter(torch.zeros(2, 2))
    found = [
        shared,
        pl.utilities.find_shared_parameters(model),
        pl.utilities.find_shared_parameters(nn.Linear(1, 1)),
    ]
    back = pl.utilities.set_shared_parameters(model, shared)
    return {"found": found, "same": back is model, "tied": model.other.weight is model.one.weight}


@parity
def test_counting_operations(pl: Any, tmp_path: Path) -> Any:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    measure = pl.utilities.measure_flops
    return [
        measure(model, lambda: model(x)),
        measure(model, lambda: model(x), lambda out: out.sum()),
    ]


@parity
def test_random_states_are_kept(pl: Any, tmp_path: Path) -> Any:
    seeding = module_of(pl, "utilities.seed")
    pl.seed_everything(3)
    with seeding.isolate_rng():
        inside = [torch.rand(1), random.random(), np.random.rand()]
    with seeding.isolate_rng(include_cuda=False):
        again = [torch.rand(1), random.random(), np.random.rand()]
    return {
        "inside": inside,
        "again": again,
        "after": [torch.rand(1), random.random(), np.random.rand()],
    }


@parity
@pytest.mark.parametrize("ranks", [1, 2, 1000])
def test_how_many_workers_are_suggested(pl: Any, tmp_path: Path, ranks: int) -> Any:
    with pytest.raises(ValueError, match="local_world_size"):
        pl.utilities.suggested_max_num_workers(0)
    return [pl.utilities.suggested_max_num_workers(ranks)]


@parity
def test_what_is_overridden(pl: Any, tmp_path: Path) -> Any:
    is_overridden = module_of(pl, "utilities.model_helpers").is_overridden

    class Data(pl.LightningDataModule):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return []

    class Watch(pl.Callback):  # type: ignore[misc]
        def on_train_end(self, trainer: Any, pl_module: Any) -> None: ...

    class Child(model_class(pl)):  # type: ignore[misc]
        pass

    found = [
        is_overridden(name, Child())
        for name in (
            "training_step",
            "test_dataloader",
            "on_train_start",
            "configure_optimizers",
            "backward",
        )
    ]
    found += [is_overridden(name, Data()) for name in ("train_dataloader", "val_dataloader")]
    found += [is_overridden(name, Watch()) for name in ("on_train_end", "on_fit_end")]
    found += [
        is_overridden("setup", None),
        is_overridden("training_step", Child(), model_class(pl)),
        is_overridden("forward", Child(), nn.Module),
    ]
    for arguments in (("setup", object()), ("layer", Child())):
        with pytest.raises(ValueError, match="parent"):
            is_overridden(*arguments)
    return found


@parity
def test_memory(pl: Any, tmp_path: Path) -> Any:
    memory = module_of(pl, "utilities.memory")
    memory.garbage_collection_cuda()
    texts = [
        "CUDA out of memory. Tried",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. x",
        "DefaultCPUAllocator: can't allocate memory",
        "out of memory",
    ]
    told = [memory.is_oom_error(RuntimeError(text)) for text in texts] + [
        memory.is_oom_error(ValueError(texts[0]))
    ]
    x = torch.ones(1, requires_grad=True)
    detached = memory.recursive_detach({"a": x * 2, "b": [x, {"c": x}], "d": 3}, to_cpu=True)
    return {
        "told": told,
        "detached": detached,
        "grad": [detached["a"].requires_grad, detached["b"][1]["c"].requires_grad],
    }


@parity
def test_warnings_on_rank_zero(pl: Any, tmp_path: Path) -> Any:
    rank_zero, possible = (
        module_of(pl, "utilities.rank_zero"),
        module_of(pl, "utilities.warnings").PossibleUserWarning,
    )
    cache = rank_zero.WarningCache()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            cache.warn("once")
            cache.deprecation("deprecated")
            cache.info("info")
        rank_zero.rank_zero_warn("warned")
        rank_zero.rank_zero_debug("nothing is seen of it")
        warnings.warn("possible", possible, stacklevel=1)
        pl.utilities.disable_possible_user_warnings()
        warnings.warn("ignored", possible, stacklevel=1)
    kinds = [[str(one.message), issubclass(one.category, DeprecationWarning)] for one in said]
    return {"said": kinds, "possible": issubclass(possible, UserWarning), "held": sorted(cache)}


@parity
def test_exceptions(pl: Any, tmp_path: Path) -> Any:
    exceptions = module_of(pl, "utilities.exceptions")
    sigterm = exceptions.SIGTERMException
    return [
        issubclass(sigterm, SystemExit),
        issubclass(exceptions.MisconfigurationException, Exception),
    ]


@parity
def test_a_boring_model(pl: Any, tmp_path: Path) -> Any:
    boring = module_of(pl, "demos.boring_classes")
    one = trainer(
        pl, tmp_path, max_epochs=1, limit_train_batches=2, limit_val_batches=1, limit_test_batches=1
    )
    model = boring.BoringModel()
    one.fit(model, datamodule=boring.BoringDataModule())
    dataset = boring.RandomDataset(4, 3)
    return {
        "step": one.global_step,
        "tested": one.test(model),
        "dataset": [len(dataset), tuple(dataset[0].shape)],
        "training": model.training,
    }
