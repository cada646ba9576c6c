"""Where raylit differs from Lightning on purpose.

Each test is one row of the tables in docs/coming-from-lightning.md, and shows both.
"""

from __future__ import annotations

import dataclasses
import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

import raylit
from tests.lazy import lightning, torchmetrics
from tests.parity.harness import (
    Rows,
    describe,
    files,
    loader,
    model_class,
    packages,
    quiet,
    run,
    stream,
    trainer,
)
from tests.parity.test_checkpoints import saving_at, scheduled
from tests.parity.test_finetuning import with_backbone
from tests.parity.test_spike_detection import outcome
from tests.parity.test_stochastic_weight_averaging import net


def both(scenario: Any, tmp_path: Path) -> tuple[Any, Any]:
    """What Lightning and what raylit make of it."""
    return run(scenario, lightning.pytorch, tmp_path), run(scenario, raylit, tmp_path)


def test_fit_returns_a_result(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        saver = pl.callbacks.ModelCheckpoint(root, monitor="val_loss")
        returned = trainer(pl, root, callbacks=[saver]).fit(model_class(pl)(), loader(2), loader(1))
        if returned is None:
            return None
        return (
            sorted(returned.metrics),
            returned.best_model_path == saver.best_model_path,
            returned.steps,
            len(returned.history),
        )

    assert both(scenario, tmp_path) == (None, [["train_loss", "val_loss"], True, 4, 2])


def test_a_fit_stopped_in_an_epoch_goes_on_at_the_next_batch(tmp_path: Path) -> None:
    """Lightning begins the data of the epoch anew, and reads its first batches again."""

    def scenario(pl: Any, root: Path) -> Any:
        path, batches = root / "one.ckpt", []

        class Watch(pl.Callback):  # type: ignore[misc]
            def on_train_batch_start(
                self, trainer: Any, module: Any, batch: Any, batch_idx: int
            ) -> None:
                batches.append(batch)

        model = scheduled(pl)
        trainer(
            pl,
            root,
            callbacks=[Watch(), saving_at(pl, "on_train_batch_end", path, 3)],
            max_epochs=1,
        ).fit(model(), loader(5))
        trainer(pl, root, callbacks=[Watch()], max_epochs=1).fit(model(), loader(5), ckpt_path=path)
        return batches

    theirs, ours = both(scenario, tmp_path)
    assert ours[5:] == ours[3:5]
    assert theirs[5:] == theirs[0:2]


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [
        ("on_train_epoch_start", {"max_epochs": 3}),
        ("on_train_epoch_end", {"max_epochs": 3, "max_steps": 5}),
    ],
)
def test_a_fit_that_goes_on_ends_as_one_that_never_stopped(
    tmp_path: Path, hook: str, arguments: dict[str, Any]
) -> None:
    """Lightning takes a fit saved at the start of an epoch for one that had trained it.

    It then ends too early, before max_steps.
    """

    def scenario(pl: Any, root: Path) -> Any:
        path, model = root / "one.ckpt", scheduled(pl)
        full = trainer(pl, root, callbacks=[saving_at(pl, hook, path, 4)], **arguments)
        full.fit(model(), loader(2), loader(1))
        again = trainer(pl, root, num_sanity_val_steps=0, **arguments)
        again.fit(model(), loader(2), loader(1), ckpt_path=path)
        return [full.global_step, again.global_step]

    theirs, ours = both(scenario, tmp_path)
    assert ours[0] == ours[1] == theirs[0]
    assert theirs[1] < ours[1]


def test_no_sanity_check_when_a_fit_goes_on(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        path, checks = root / "one.ckpt", []

        class Watch(pl.Callback):  # type: ignore[misc]
            def on_sanity_check_start(self, trainer: Any, module: Any) -> None:
                checks.append(trainer.global_step)

        model = scheduled(pl)
        trainer(
            pl, root, callbacks=[saving_at(pl, "on_train_epoch_end", path, 2)], max_epochs=1
        ).fit(model(), loader(2), loader(1))
        trainer(pl, root, callbacks=[Watch()], max_epochs=2).fit(
            model(), loader(2), loader(1), ckpt_path=path
        )
        return checks

    assert both(scenario, tmp_path) == ([2], [])


def test_a_checkpoint_loads_without_running_code(tmp_path: Path) -> None:
    """Objects are pickled in a part of their own, with a warning.

    Lightning pickles all of the file, and torch then refuses it.
    """

    class Setting:
        pass

    def scenario(pl: Any, root: Path) -> Any:
        class Net(model_class(pl)):  # type: ignore[misc]
            def __init__(self, width: int, setting: Any) -> None:
                super().__init__()
                self.save_hyperparameters()

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "Setting", Setting)
            Setting.__qualname__, Setting.__module__ = "Setting", __name__
            one = trainer(pl, root, max_epochs=1)
            one.fit(Net(3, Setting()), loader(1))
            one.save_checkpoint(root / "one.ckpt")
        try:
            return torch.load(root / "one.ckpt", weights_only=True)["hyper_parameters"]
        except Exception as error:
            return type(error).__name__

    theirs, ours = both(scenario, tmp_path)
    assert (theirs, ours) == ("UnpicklingError", {"width": 3})


def test_last_is_the_newest_checkpoint_of_any_name(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        def saver() -> Any:
            return pl.callbacks.ModelCheckpoint(root / "here")

        trainer(pl, root, callbacks=[saver()], max_epochs=1).fit(scheduled(pl)(), loader(2))
        one = trainer(pl, root, callbacks=[saver()], max_epochs=2)
        one.fit(scheduled(pl)(), loader(2), ckpt_path="last")
        return one.ckpt_path

    assert both(scenario, tmp_path) == (None, "ROOT/here/epoch=0-step=2.ckpt")


def test_a_loader_is_read_once_per_epoch(tmp_path: Path) -> None:
    """Lightning calls iter() twice where loaders are made anew.

    It starts their workers twice and draws random numbers twice.
    """

    def scenario(pl: Any, root: Path) -> Any:
        begun: list[int] = []

        class Counts(RandomSampler):
            def __iter__(self) -> Any:
                begun.append(1)
                return super().__iter__()

        class Net(model_class(pl)):  # type: ignore[misc]
            def train_dataloader(self) -> Any:
                rows = Rows(4)
                return DataLoader(rows, sampler=Counts(rows), batch_size=2)

        trainer(
            pl, root, max_epochs=3, reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0
        ).fit(Net())
        return len(begun)

    theirs, ours = both(scenario, tmp_path)
    assert ours == 3
    assert theirs >= ours


def test_a_child_may_log(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        class Outer(model_class(pl)):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.inner = model_class(pl)()

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return self.inner.training_step(batch, batch_idx)

        one = trainer(pl, root, max_epochs=1)
        try:
            one.fit(Outer(), loader(1))
        except Exception as error:
            return type(error).__name__
        return sorted(one.callback_metrics)

    assert both(scenario, tmp_path) == ("MisconfigurationException", ["train_loss"])


def test_a_metric_need_not_be_an_attribute_of_the_module(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        metric = torchmetrics.MeanMetric()

        class Net(model_class(pl)):  # type: ignore[misc]
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                metric(float(batch_idx))
                self.log("mean", metric, on_epoch=True)
                return self.loss(batch)

        one = trainer(pl, root, max_epochs=1)
        try:
            one.fit(Net(), loader(3))
        except Exception as error:
            return type(error).__name__
        return float(one.callback_metrics["mean"])

    assert both(scenario, tmp_path) == ("MisconfigurationException", 1.0)


def test_a_module_does_not_keep_the_trainer_that_is_gone(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        model = model_class(pl)()
        trainer(pl, root, max_epochs=1).fit(model, loader(2))
        gc.collect()
        return model.global_step

    assert both(scenario, tmp_path) == (2, 0)


def test_overfit_batches_that_is_a_whole_float(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        one = trainer(pl, root, max_epochs=1, overfit_batches=2.0)
        one.fit(model_class(pl)(), loader(5))
        return [one.overfit_batches, one.num_training_batches]

    assert both(scenario, tmp_path) == ([2, 5], [2, 2])


def test_hyperparameters_may_be_a_dataclass(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Config:
        x: int = 1

    def scenario(pl: Any, root: Path) -> Any:
        class Net(model_class(pl)):  # type: ignore[misc]
            def __init__(self, config: Config) -> None:
                super().__init__()
                self.save_hyperparameters(config)

        try:
            return dict(Net(Config(2)).hparams)
        except Exception as error:
            return type(error).__name__

    assert both(scenario, tmp_path) == ("ValueError", {"x": 2})


def test_values_of_several_loaders_can_be_seen_once_all_were_read(tmp_path: Path) -> None:
    """Over ranks they are reduced together, in one collective."""

    def scenario(pl: Any, root: Path) -> Any:
        found: list[Any] = []

        class Net(model_class(pl)):  # type: ignore[misc]
            def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Any:
                found.append(sorted(self.trainer.callback_metrics))
                self.log("loss", self.loss(batch))

        one = trainer(pl, root)
        one.validate(Net(), [loader(1), loader(1)], verbose=False)
        return [*found, sorted(one.callback_metrics)]

    all_of_them = ["loss/dataloader_idx_0", "loss/dataloader_idx_1"]
    theirs, ours = both(scenario, tmp_path)
    assert theirs == [[], all_of_them[:1], all_of_them]
    assert ours == [[], [], all_of_them]


@pytest.mark.parametrize("fn", ["validate", "test"])
def test_an_evaluation_returns_a_dict_for_every_loader(tmp_path: Path, fn: str) -> None:
    """Lightning leaves out loaders that gave nothing, but for the first.

    So the place in the list does not tell the loader.
    """

    def scenario(pl: Any, root: Path) -> Any:
        class Net(model_class(pl)):  # type: ignore[misc]
            def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
                self.log("idx", float(dataloader_idx))

            test_step = validation_step

        return getattr(trainer(pl, root), fn)(
            Net(), [loader(0), loader(1), loader(0), loader(1)], verbose=False
        )

    theirs, ours = both(scenario, tmp_path)
    assert ours == [{}, {"idx/dataloader_idx_1": 1.0}, {}, {"idx/dataloader_idx_3": 3.0}]
    assert theirs == [{}, {"idx/dataloader_idx_1": 1.0}, {"idx/dataloader_idx_3": 3.0}]


def test_on_a_cpu_a_batch_is_not_moved(tmp_path: Path) -> None:
    """It is where it has to be.

    Lightning walks through every batch and calls `to` of what is in it.
    """

    class Moves:
        moves = 0

        def to(self, device: Any, *args: Any, **kwargs: Any) -> Any:
            Moves.moves += 1
            return self

    def scenario(pl: Any, root: Path) -> Any:
        class Net(model_class(pl)):  # type: ignore[misc]
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return self.loss(torch.ones(1, 4))

        Moves.moves = 0
        trainer(pl, root, max_epochs=1).fit(
            Net(), DataLoader([Moves(), Moves()], batch_size=None, collate_fn=lambda one: one)
        )
        return Moves.moves

    assert both(scenario, tmp_path) == (2, 0)


def test_ctrl_c_is_a_keyboard_interrupt(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        class Net(model_class(pl)):  # type: ignore[misc]
            def on_train_epoch_end(self) -> None:
                raise KeyboardInterrupt

        one = trainer(pl, root)
        with pytest.raises(BaseException) as raised:
            one.fit(Net(), loader(1))
        return type(raised.value).__name__, one.interrupted

    theirs, ours = both(scenario, tmp_path)
    assert theirs[0] == "SystemExit"
    assert ours == ["KeyboardInterrupt", True]


def test_the_limits_are_known_before_a_fit(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        found = [
            pl.Trainer(logger=False, default_root_dir=root, accelerator="cpu", **given)
            for given in ({}, {"max_steps": 3}, {"min_steps": 1})
        ]
        return [[one.max_epochs, one.min_epochs] for one in found]

    theirs, ours = both(scenario, tmp_path)
    assert ours == [[1000, 0], [-1, 0], [1000, 1]]
    assert theirs == [[None, None], [None, None], [None, None]]


def test_every_evaluation_of_a_closure_counts_in_the_values_of_an_epoch(tmp_path: Path) -> None:
    """In an epoch's first batch Lightning keeps the last evaluation only, in the others all."""

    def scenario(pl: Any, root: Path) -> Any:
        class Net(model_class(pl)):  # type: ignore[misc]
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                self.log("ones", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
                return self.loss(batch)

            def on_before_zero_grad(self, optimizer: Any) -> None:
                self.log("other", 1.0)

            def configure_optimizers(self) -> Any:
                return torch.optim.LBFGS(self.parameters(), max_iter=2, lr=0.01)

        one = trainer(pl, root, max_epochs=1)
        one.fit(Net(), loader(3))
        return float(one.callback_metrics["ones"])

    theirs, ours = both(scenario, tmp_path)
    assert ours == 6.0
    assert theirs == 5.0


def test_a_batch_that_is_none_goes_to_training_step(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        class Net(model_class(pl)):  # type: ignore[misc]
            got: list[bool] = []  # noqa: RUF012

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                self.got.append(batch is None)
                return None if batch is None else self.loss(batch)

        Net.got = []
        data = DataLoader([torch.ones(2, 4), None], batch_size=None, collate_fn=lambda one: one)
        trainer(pl, root, max_epochs=1).fit(Net(), data)
        return Net.got

    assert both(scenario, tmp_path) == ([False], [False, True])


def test_the_default_logger_writes_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with quiet():
        assert type(raylit.Trainer(default_root_dir=tmp_path).logger).__name__ == "CSVLogger"


def test_an_exception_in_validation_leaves_no_eval_mode_behind(tmp_path: Path) -> None:
    """In Lightning the module stays in eval mode, in which a later fit of it then trains."""

    def scenario(pl: Any, root: Path) -> Any:
        model = model_class(pl)()
        model.layer.eval()  # frozen by the user: stays so
        modes = []

        class Fails(pl.Callback):  # type: ignore[misc]
            def on_validation_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
                modes.append([module.training, module.layer.training, module.dropout.training])
                raise OverflowError

        one = trainer(pl, root, callbacks=[Fails()], num_sanity_val_steps=0)
        with pytest.raises(OverflowError):
            one.fit(model, loader(2), loader(1))
        return [*modes, [model.training, model.layer.training, model.dropout.training]]

    theirs, ours = both(scenario, tmp_path)
    assert theirs == [[False] * 3, [False] * 3]
    assert ours == [[False] * 3, [True, False, True]]


def test_errors_say_where_they_happened(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        class Net(model_class(pl)):  # type: ignore[misc]
            def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
                if batch_idx == 1:
                    raise ZeroDivisionError("the user's")

        with pytest.raises(ZeroDivisionError, match="the user's") as raised:
            trainer(pl, root).fit(Net(), loader(3))
        return getattr(raised.value, "__notes__", [])

    theirs, ours = both(scenario, tmp_path)
    assert theirs == []
    assert ours == ["(raylit) rank 0 of 1, epoch 0, batch_idx 1, step 2, in train"]


def test_a_validation_that_was_due_when_the_checkpoint_was_saved_is_made_up_for(
    tmp_path: Path,
) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        path, calls = root / "one.ckpt", []

        class Watch(pl.Callback):  # type: ignore[misc]
            def on_validation_start(self, trainer: Any, module: Any) -> None:
                calls.append(trainer.global_step)

        model, limits = (
            scheduled(pl),
            {
                "max_epochs": 1,
                "val_check_interval": 2,
                "num_sanity_val_steps": 0,
            },
        )
        trainer(pl, root, callbacks=[saving_at(pl, "on_train_batch_end", path, 2)], **limits).fit(
            model(), loader(4), loader(1)
        )
        trainer(pl, root, callbacks=[Watch()], **limits).fit(
            model(), loader(4), loader(1), ckpt_path=path
        )
        return calls

    assert both(scenario, tmp_path) == ([4], [2, 4])


def test_a_compiled_model_may_log(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        class Logs(model_class(pl)):  # type: ignore[misc]
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = self(batch).square().mean()
                self.log("train_loss", loss)
                return loss

        torch._dynamo.reset()
        one = trainer(pl, root)
        try:
            one.fit(torch.compile(Logs(), backend="eager"), loader(3))
        except Exception as error:
            return [type(error).__name__]
        return ["train_loss" in one.callback_metrics, one.global_step > 0]

    theirs, ours = both(scenario, tmp_path)
    assert theirs == ["InternalTorchDynamoError"]
    assert ours == [True, True]


def test_weight_averaging_that_begins_late(tmp_path: Path) -> None:
    """Until then Lightning validates and saves the weights of before the fit.

    It ends with them if averaging never began.
    """

    def scenario(pl: Any, root: Path) -> Any:
        average = pl.callbacks.EMAWeightAveraging(update_starting_at_step=1000)
        saver = pl.callbacks.ModelCheckpoint(root)
        model = model_class(pl)()
        before = model.layer.weight.clone()
        trainer(pl, root, callbacks=[average, saver], max_epochs=1).fit(model, loader(4), loader(1))
        saved = torch.load(saver.best_model_path, weights_only=True)
        return [
            torch.equal(before, weight)
            for weight in (model.layer.weight, saved["state_dict"]["layer.weight"])
        ]

    assert both(scenario, tmp_path) == ([True, True], [False, False])


def test_weight_averaging_tests_the_average_of_a_checkpoint(tmp_path: Path) -> None:
    """The Trainer that has fitted loads a checkpoint for test.

    Lightning takes the weights of training from it.
    """

    def scenario(pl: Any, root: Path) -> Any:
        saver, model = pl.callbacks.ModelCheckpoint(root), model_class(pl)()
        one = trainer(pl, root, callbacks=[pl.callbacks.WeightAveraging(), saver], max_epochs=1)
        one.fit(model, loader(4), loader(1))
        one.test(model, loader(1), ckpt_path=saver.best_model_path, verbose=False)
        saved = torch.load(saver.best_model_path, weights_only=True)
        return [
            torch.equal(model.layer.weight, saved[key]["layer.weight"])
            for key in ("state_dict", "current_model_state")
        ]

    assert both(scenario, tmp_path) == ([False, True], [True, False])


def test_accumulation_by_epoch_goes_on_within_an_epoch(tmp_path: Path) -> None:
    """Lightning accumulates nothing in the rest of that epoch."""

    def scenario(pl: Any, root: Path) -> Any:
        path, model, steps = root / "one.ckpt", scheduled(pl), []
        for callbacks, ckpt_path in (
            ([saving_at(pl, "on_train_batch_end", path, 1)], None),
            ([], path),
        ):
            one = trainer(
                pl,
                root,
                callbacks=[pl.callbacks.GradientAccumulationScheduler({0: 2}), *callbacks],
                max_epochs=1,
            )
            one.fit(model(), loader(6), ckpt_path=ckpt_path)
            steps.append(one.global_step)
        return steps

    theirs, ours = both(scenario, tmp_path)
    assert ours == [3, 3]
    assert theirs[1] > 3


def test_finetuning_that_goes_on(tmp_path: Path) -> None:
    """Lightning freezes again what was unfrozen before the checkpoint."""

    def scenario(pl: Any, root: Path) -> Any:
        saver, model = pl.callbacks.ModelCheckpoint(root), with_backbone(pl)
        trainer(pl, root, callbacks=[pl.callbacks.BackboneFinetuning(1), saver]).fit(
            model(), loader(3)
        )
        again = model()
        trainer(pl, root, callbacks=[pl.callbacks.BackboneFinetuning(1)], max_epochs=3).fit(
            again, loader(3), ckpt_path=saver.best_model_path
        )
        return again.backbone[0].weight.requires_grad

    assert both(scenario, tmp_path) == (False, True)


def test_finetuning_of_parameters_with_equal_values(tmp_path: Path) -> None:
    """Lightning takes them for the same; those of new batch norms are all alike."""

    def scenario(pl: Any, root: Path) -> Any:
        one, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
        return len(
            pl.callbacks.BaseFinetuning.filter_on_optimizer(torch.optim.SGD([one], lr=0.1), [other])
        )

    theirs, ours = both(scenario, tmp_path)
    assert (theirs, ours) == (0, 1)


def test_stochastic_weight_averaging_ends_with_the_mean(tmp_path: Path) -> None:
    """Lightning takes a step in the epoch for batch norm.

    Its gradients are those of the one before if there is no validation to clear them.
    """

    def scenario(pl: Any, root: Path) -> Any:
        begins: list[Any] = []

        class Watch(pl.Callback):  # type: ignore[misc]
            def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
                begins.append(module.layer.weight.detach().clone())

        model = net(pl)()
        one = trainer(
            pl,
            root,
            callbacks=[pl.callbacks.StochasticWeightAveraging(0.05, 1), Watch()],
            max_epochs=3,
        )
        one.fit(model, loader(4))
        return one.global_step, torch.allclose(model.layer.weight, torch.stack(begins[:3]).mean(0))

    assert both(scenario, tmp_path) == ([13, False], [12, True])


def test_stochastic_weight_averaging_that_never_began(tmp_path: Path) -> None:
    """Lightning ends with the weights from before the fit."""

    def scenario(pl: Any, root: Path) -> Any:
        model = model_class(pl)()
        before = model.layer.weight.clone()
        trainer(pl, root, callbacks=[pl.callbacks.StochasticWeightAveraging(0.05, 9)]).fit(
            model, loader(4)
        )
        return torch.equal(model.layer.weight, before)

    assert both(scenario, tmp_path) == (True, False)


def test_the_lottery_ticket_begins_again_each_time(tmp_path: Path) -> None:
    """On the CPU, Lightning begins again once.

    From then on training changes what it has kept of the weights.
    """

    def scenario(pl: Any, root: Path) -> Any:
        model = model_class(pl)()
        before = model.layer.weight.detach().clone()
        pruning = pl.callbacks.ModelPruning("l1_unstructured", amount=0.1)
        trainer(pl, root, callbacks=[pruning], max_epochs=3).fit(model, loader(4))
        left = model.layer.weight != 0
        return torch.equal(model.layer.weight[left], before[left])

    assert both(scenario, tmp_path) == (False, True)


def test_pruning_that_goes_on(tmp_path: Path) -> None:
    """Lightning forgets what was pruned.

    The weights grow again, and as many are pruned as the first time.
    """

    def scenario(pl: Any, root: Path) -> Any:
        zeros = []
        for epochs, ckpt_path in ((2, None), (3, root / "epoch=1.ckpt"), (3, None)):
            saver = pl.callbacks.ModelCheckpoint(root, filename="{epoch}", save_top_k=-1)
            pruning = pl.callbacks.ModelPruning(
                "l1_unstructured", amount=0.4, use_lottery_ticket_hypothesis=False
            )
            model = model_class(pl)()
            trainer(pl, root, callbacks=[pruning, saver], max_epochs=epochs).fit(
                model, loader(4), ckpt_path=ckpt_path
            )
            zeros.append(sum(int((one == 0).sum()) for one in model.parameters()))
        return zeros

    theirs, ours = both(scenario, tmp_path)
    assert ours[0] < ours[1] == ours[2] == theirs[2]
    assert theirs[1] < theirs[2]


def test_spike_detection_that_goes_on(tmp_path: Path) -> None:
    """Lightning cannot load what it has saved."""

    def scenario(pl: Any, root: Path) -> Any:
        saver = pl.callbacks.ModelCheckpoint(root)
        trainer(pl, root, callbacks=[pl.callbacks.SpikeDetection(), saver]).fit(
            model_class(pl)(), loader(2)
        )
        one = trainer(pl, root, callbacks=[pl.callbacks.SpikeDetection()], max_epochs=3)
        try:
            one.fit(model_class(pl)(), loader(2), ckpt_path=saver.best_model_path)
        except AttributeError:
            return "failed"
        return one.current_epoch

    assert both(scenario, tmp_path) == ("failed", 3)


def test_the_steps_of_data_without_a_length(tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for pl in packages():

        class Asks(model_class(pl)):  # type: ignore[misc]
            def on_train_start(self) -> None:
                found[type(self.trainer).__module__.split(".")[0]] = (
                    self.trainer.estimated_stepping_batches
                )

        with quiet():
            trainer(pl, tmp_path).fit(Asks(), stream(2))
    assert found == {"lightning": -1, "raylit": float("inf")}


def test_what_a_fit_goes_on_from_is_kept_without_asking(tmp_path: Path) -> None:
    """A fit that an exception ended half way goes on, with ckpt_path="last", where it was.

    Lightning begins anew.
    """

    def scenario(pl: Any, root: Path) -> Any:
        class Breaks(pl.Callback):  # type: ignore[misc]
            def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
                if trainer.global_step == 5:
                    raise RuntimeError("once")

        with pytest.raises(RuntimeError, match="once"):
            trainer(pl, root, callbacks=[Breaks()], enable_checkpointing=True).fit(
                model_class(pl)(), loader(8)
            )
        one = trainer(pl, root, enable_checkpointing=True)
        before: list[int] = []
        one.callbacks.append(
            type(
                "Notes",
                (pl.Callback,),
                {
                    "on_train_start": lambda self, trainer, module: before.append(
                        trainer.global_step
                    )
                },
            )()
        )
        one.fit(model_class(pl)(), loader(8), ckpt_path="last")
        return before

    assert both(scenario, tmp_path) == ([0], [5])


def test_a_full_disk_does_not_end_training(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        class Full(pl.Callback):  # type: ignore[misc]
            def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
                if trainer.global_step == 3:  # a file where the next checkpoint's folder is to be
                    shutil.rmtree(root / "kept")
                    (root / "kept").touch()

        saver = pl.callbacks.ModelCheckpoint(root / "kept", every_n_train_steps=2, save_top_k=-1)
        one = trainer(pl, root, callbacks=[Full(), saver], max_epochs=1)
        try:
            one.fit(model_class(pl)(), loader(6))
        except OSError:
            return "failed", one.global_step
        return "ended", one.global_step

    assert both(scenario, tmp_path) == (["failed", 4], ["ended", 6])


def test_a_prediction_leaves_the_loggers_alone(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        class Net(model_class(pl)):  # type: ignore[misc]
            def __init__(self, width: int = 3) -> None:
                super().__init__()
                self.save_hyperparameters()

        trainer(pl, root, logger=pl.loggers.CSVLogger(root, version=0)).predict(Net(), loader(1))
        return files(root, "**/*.*")

    assert both(scenario, tmp_path) == (["lightning_logs/version_0/hparams.yaml"], [])


def test_loaders_are_given_without_the_datamodule_of_before(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        class Data(pl.LightningDataModule):  # type: ignore[misc]
            def setup(self, stage: str) -> None:
                stages.append(describe(stage))

            def train_dataloader(self) -> Any:
                return loader(1)

        stages: list[str] = []
        one, model = trainer(pl, root), model_class(pl)()
        one.fit(model, datamodule=Data())
        one.test(model, loader(1), verbose=False)
        return stages

    assert both(scenario, tmp_path) == (["fit", "test"], ["fit"])


def test_a_step_with_an_iterator_accumulates_too(tmp_path: Path) -> None:
    """Lightning clears the gradients by the number of a batch before."""

    def scenario(pl: Any, root: Path) -> Any:
        class Net(model_class(pl)):  # type: ignore[misc]
            def training_step(self, dataloader_iter: Any) -> Any:
                return (self.layer(next(dataloader_iter)[0]) - 1).square().mean()

        class Plain(model_class(pl)):  # type: ignore[misc]
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return (self.layer(batch) - 1).square().mean()

        weights = []
        for kind in (Net, Plain):
            torch.manual_seed(0)
            model = kind()
            trainer(pl, root, accumulate_grad_batches=2).fit(model, loader(4))
            weights.append(model.layer.weight)
        return torch.equal(*weights)

    assert both(scenario, tmp_path) == (False, True)


def test_a_step_with_an_iterator_ends_the_data_within_an_accumulation(tmp_path: Path) -> None:
    """Its last gradients count. Lightning takes no step with them, and drops them unsaid."""

    def scenario(pl: Any, root: Path) -> Any:
        seen = []

        class Net(model_class(pl)):  # type: ignore[misc]
            def training_step(self, dataloader_iter: Any) -> Any:
                pairs = (next(dataloader_iter, None) for _ in range(2))
                return self.loss(torch.cat([one[0] for one in pairs if one is not None]))

            def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
                seen.append((self.trainer.global_step, self.trainer.is_last_batch))

        one = trainer(pl, root, max_epochs=1, accumulate_grad_batches=2)
        one.fit(Net(), loader(5))
        return seen

    theirs, ours = both(scenario, tmp_path)
    assert theirs == [[0, False], [1, False], [1, True]]
    assert ours == [[0, False], [1, False], [2, True]]


@pytest.mark.parametrize(
    "interval, arguments, stale",
    [
        ("step", {"val_check_interval": 2}, [2, 2, 4, 4, 4, 7, 7, 9, 9]),
        ("epoch", {"check_val_every_n_epoch": 2, "max_epochs": 4}, [10, 10, 20]),
    ],
    ids=["step", "epoch"],
)
def test_a_plateau_takes_no_value_twice(
    tmp_path: Path, interval: str, arguments: dict[str, Any], stale: list[int]
) -> None:
    """With strict=False, which is for validation that is rarer than the scheduler's steps.

    Lightning steps on the old value in between, and patience runs out on it.
    """

    def scenario(pl: Any, root: Path) -> Any:
        class Net(model_class(pl)):  # type: ignore[misc]
            def on_validation_epoch_end(self) -> None:
                self.log("validated_at", float(self.trainer.global_step))

            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
                scheduler = {
                    "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
                    "interval": interval,
                    "monitor": "validated_at",
                    "strict": False,
                }
                return {"optimizer": optimizer, "lr_scheduler": scheduler}

            def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
                steps.append(int(metric))

        steps: list[int] = []
        trainer(pl, root, **{"max_epochs": 2, **arguments}).fit(Net(), loader(5), loader(1))
        return steps

    assert both(scenario, tmp_path) == (stale, sorted(set(stale)))


def test_infinity_in_the_warm_up_of_spike_detection(tmp_path: Path) -> None:
    """It makes Lightning's mean infinite for a window: a value like any other is a jump then."""

    def scenario(pl: Any, root: Path) -> Any:
        losses = [1.0, float("inf"), 1.0, 1.0, 1.0, 1.1, 1.0, 1.0]
        detection = pl.callbacks.SpikeDetection(warmup=2, exclude_batches_path=root)
        return outcome(pl, root, losses, detection)["bad"]

    assert both(scenario, tmp_path) == ([4, 5], [])
