"""The cursor: whatever was saved where, a fit goes on with what comes next, and nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import raylit as pl
from raylit.callbacks import Callback, ModelCheckpoint
from raylit.core.progress import IDLE
from raylit.errors import CheckpointError, ConfigError, DataError
from tests.ranks import run_on_two_ranks

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
schedules = torch.optim.lr_scheduler
KINDS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: {"scheduler": schedules.ExponentialLR(o, 0.9), "interval": "step"},
    "epoch": lambda o: {"scheduler": schedules.MultiStepLR(o, [1, 2])},
    "plateau by epoch": lambda o: {
        "scheduler": schedules.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.5),
        "monitor": "val_loss",
    },
    "plateau by step": lambda o: {
        "scheduler": schedules.ReduceLROnPlateau(o, factor=0.9, patience=0, threshold=0.5),
        "monitor": "val_loss",
        "interval": "step",
        "strict": False,
    },
}
HOOKS = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
)


class Net(pl.LightningModule):
    """Dropout, values of every kind, schedulers of the kinds it is given."""

    def __init__(self, *kinds: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
        self.kinds = kinds

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [KINDS[kind](optimizer) for kind in self.kinds]


class Saves(Callback):
    """Saves at each call of a hook, as often as it comes."""

    def __init__(self, hook: str, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []
        setattr(self, hook, self.save)

    def save(self, trainer: pl.Trainer, *args: Any) -> None:
        self.files.append(self.folder / f"{len(self.files)}.ckpt")
        trainer.save_checkpoint(self.files[-1])


def data(number: int = 5, shuffle: bool = False) -> DataLoader[Any]:
    x = torch.linspace(-1, 1, 12 * number).reshape(4 * number, 3)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 4, shuffle=shuffle)


def fit(
    module: Any, *callbacks: Callback, batches: Any = None, ckpt_path: Any = None, **arguments: Any
) -> pl.Trainer:
    pl.seed_everything(3 if ckpt_path is None else 99, verbose=False)
    trainer = pl.Trainer(callbacks=[*callbacks], **{**QUIET, "max_epochs": 3, **arguments})
    trainer.fit(module, batches or data(), data(2), ckpt_path=ckpt_path)
    return trainer


def end(trainer: pl.Trainer, module: Any) -> dict[str, Any]:
    run = trainer.run
    assert run is not None
    return {
        "weights": [value.tolist() for value in module.state_dict().values()],
        "lrs": [group["lr"] for group in trainer.optimizers[0].param_groups],
        "schedulers": [
            {name: value for name, value in vars(one.scheduler).items() if name == "last_epoch"}
            for one in trainer.lr_scheduler_configs
        ],
        "progress": trainer.progress.state_dict(),
        "metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
    }


def goes_on_from_everywhere(folder: Path, hook: str, every: int, **arguments: Any) -> None:
    kinds = arguments.pop("kinds")
    whole = Net(*kinds)
    saves = Saves(hook, folder)
    expected = end(fit(whole, saves, **arguments), whole)
    assert saves.files
    for path in saves.files[::every]:
        module = Net(*kinds)
        assert end(fit(module, ckpt_path=path, **arguments), module) == expected, path.stem


@pytest.mark.parametrize("hook", HOOKS)
def test_saved_in_any_hook(tmp_path: Path, hook: str) -> None:
    goes_on_from_everywhere(tmp_path, hook, 4, kinds=KINDS, val_check_interval=2)


@pytest.mark.parametrize("hook", ["on_after_backward", "on_before_optimizer_step"])
def test_saved_with_gradients(tmp_path: Path, hook: str) -> None:
    """Within a batch and a window, whose batches are trained on once, and clipped once."""
    arguments = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1, "max_epochs": 2}
    goes_on_from_everywhere(tmp_path, hook, 1, kinds=("step",), **arguments)


@pytest.mark.parametrize("hook", ["on_before_zero_grad", "on_before_backward"])
def test_saved_before_there_are_gradients(
    tmp_path: Path, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is trained on anew; that it then counts twice in the logged values is said."""
    saves = Saves(hook, tmp_path)
    with pytest.warns(UserWarning, match=f"saved within a batch, in {hook}"):
        fit(Net(), saves, max_epochs=1)
    trainer = fit(Net(), ckpt_path=saves.files[2], max_epochs=1)
    assert (trainer.global_step, trainer.progress.total_batches) == (5, 5)


@pytest.mark.long
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("interval", [1.0, 2, 0.4])
@pytest.mark.parametrize("reloads", [0, 1, 2])
@pytest.mark.parametrize("kinds", [(kind,) for kind in KINDS], ids=str)
def test_saved_anywhere(
    tmp_path: Path, hook: str, accumulate: int, interval: Any, reloads: int, kinds: Any
) -> None:
    goes_on_from_everywhere(
        tmp_path,
        hook,
        1,
        kinds=kinds,
        val_check_interval=interval,
        accumulate_grad_batches=accumulate,
        reload_dataloaders_every_n_epochs=reloads,
    )


def test_saved_while_a_scheduler_steps(tmp_path: Path) -> None:
    """Those before it are not stepped again, and those after it are."""

    class Saving(Net):
        saves = True

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            super().lr_scheduler_step(scheduler, metric)
            path = tmp_path / f"{self.trainer.progress.scheduler_steps}.ckpt"
            if self.saves and not path.exists():
                self.trainer.save_checkpoint(path)

    whole = Saving(*KINDS)
    expected = end(fit(whole, val_check_interval=2), whole)
    files = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem))
    for path in files[::5]:
        module = Saving(*KINDS)
        module.saves = False
        found = end(fit(module, val_check_interval=2, ckpt_path=path), module)
        del found["progress"]["scheduler_steps"]  # of the one that saved, a hook it was still in
        assert found == {
            **expected,
            "progress": {
                name: value
                for name, value in expected["progress"].items()
                if name != "scheduler_steps"
            },
        }, path.stem


@pytest.mark.parametrize("number", [8, 6, 4])
def test_an_epoch_that_has_become_shorter_or_longer_ends_like_any_other(
    tmp_path: Path, number: int
) -> None:
    class Once(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    fit(Net("epoch"), Once(), batches=data(8), max_epochs=1)
    module = Net("epoch")
    trainer = fit(module, batches=data(number), ckpt_path=tmp_path / "x.ckpt", max_epochs=2)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2
    assert (trainer.current_epoch, trainer.progress.at) == (2, IDLE)


def test_a_validation_after_a_fit_is_not_part_of_it(tmp_path: Path) -> None:
    module = Net()
    trainer = fit(module, max_epochs=1)
    trainer.validate(module, data(2), verbose=False)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = fit(Net(), ckpt_path=tmp_path / "x.ckpt", max_epochs=2)
    assert again.progress.log_steps == again.progress.steps == 10


def test_a_checkpoint_beyond_the_limit_is_an_error(tmp_path: Path) -> None:
    fit(Net()).save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match=r"Trainer\(max_epochs=1\).*max_epochs of at least 3"):
        fit(Net(), ckpt_path=tmp_path / "x.ckpt", max_epochs=1)
    assert fit(Net(), ckpt_path=tmp_path / "x.ckpt", max_epochs=3).global_step == 15


# ---- what became of a batch ----


class ByHand(Net):
    """Two optimizers stepped by hand: wrapped, or as torch has them."""

    def __init__(self, raw: bool = False, save: Path | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.raw, self.save = raw, save
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch_idx)
        optimizer: Any = self.optimizers()
        optimizer = optimizer.optimizer if self.raw else optimizer
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()
        if self.save is not None and self.trainer.global_step == 2:
            self.trainer.save_checkpoint(self.save)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("raw", [False, True])
def test_a_batch_that_has_stepped_is_not_trained_on_again(tmp_path: Path, raw: bool) -> None:
    path = tmp_path / "x.ckpt"
    whole, rest = ByHand(raw, path), ByHand(raw)
    fit(whole, max_epochs=1)
    trainer = fit(rest, max_epochs=1, ckpt_path=path)
    assert rest.seen == [2, 3, 4]
    assert trainer.global_step == 5


def test_steps_of_raw_optimizers_count(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    module = ByHand(raw=True)
    trainer = fit(module, saver, max_epochs=2, enable_checkpointing=True)
    assert trainer.global_step == 10
    assert len(list(tmp_path.glob("*.ckpt"))) == 2
    module.optimizers().optimizer.step()  # type: ignore[union-attr]
    assert trainer.global_step == 10, "after the fit nobody counts"


@pytest.mark.parametrize("where", ["validation_step", "on_validation_epoch_start"])
def test_a_validation_that_is_ended_leaves_train_mode(where: str) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    module = Net()
    setattr(module, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(module)
    assert all(one.training for one in module.modules())


def test_an_optimizer_step_that_trains_nothing_is_an_error() -> None:
    class Forgets(Net):
        def optimizer_step(self, epoch: Any, batch_idx: Any, optimizer: Any, closure: Any) -> None:
            optimizer.step()

    class Skips(Net):
        def optimizer_step(self, epoch: Any, batch_idx: Any, optimizer: Any, closure: Any) -> None:
            closure()

    with pytest.raises(ConfigError, match=r"Forgets\.optimizer_step did not call its closure"):
        fit(Forgets())
    assert fit(Skips(), max_epochs=1).global_step == 5


class Strict(torch.optim.SGD):
    """Calls its closure without gradients, as transformers' Adafactor does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure()
        super().step()
        return loss


@pytest.mark.parametrize("by_hand", [False, True])
def test_closures_run_with_gradients(by_hand: bool) -> None:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not by_hand

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if not by_hand:
                return super().training_step(batch, batch_idx)
            optimizer: Any = self.optimizers()

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure)
            return None

        def configure_optimizers(self) -> Any:
            return Strict(self.parameters(), lr=0.1)

    module = Model()
    before = module.net[0].weight.detach().clone()
    assert fit(module, max_epochs=1).global_step == 5
    assert not torch.equal(before, module.net[0].weight)


# ---- data that ends ----


class Fewer(IterableDataset[Any]):
    """Says more samples than it has."""

    def __iter__(self) -> Iterator[Any]:
        return ((torch.ones(3), torch.ones(1)) for _ in range(16))

    def __len__(self) -> int:
        return 20


def test_an_epoch_that_ends_early_does_what_is_due_at_its_end(
    recwarn: pytest.WarningsRecorder,
) -> None:
    validated: list[int] = []

    class Notes(Callback):
        def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
            validated.append(trainer.global_step)

    module = Net("step", "epoch")
    trainer = fit(
        module, Notes(), batches=DataLoader(Fewer(), 4), max_epochs=2, accumulate_grad_batches=3
    )
    assert trainer.global_step == 4, "the rest of an accumulation steps"
    assert validated == [2, 4]
    assert [one.scheduler.last_epoch for one in trainer.lr_scheduler_configs] == [4, 2]
    assert [one for one in recwarn if "4 of 5 batches" in str(one.message)]


def test_data_that_is_used_up_ends_the_fit() -> None:
    batches = ((torch.ones(2, 3), torch.ones(2, 1)) for _ in range(4))
    with pytest.raises(DataError, match="read once"):
        fit(Net(), batches=batches, max_epochs=-1, max_steps=100)


def test_a_step_that_reads_two_batches_validates() -> None:
    validated: list[int] = []

    class Reads(Net):
        def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
            return sum(self.loss(next(dataloader_iter)[0]) for _ in range(2))

        def on_validation_end(self) -> None:
            validated.append(self.global_step)

    fit(Reads(), batches=data(6), max_epochs=2)
    assert validated == [3, 6]


class WantsToStop(Callback):
    """Asks in epoch 0 for a stop, which `min_epochs` puts off."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            trainer.should_stop = True


@pytest.mark.parametrize(
    ("hook", "waiting"),  # the saves between the wish and the end
    [
        ("on_train_batch_end", slice(1, 9)),
        ("on_validation_end", slice(0, 1)),
        ("on_train_epoch_end", slice(0, 1)),
    ],
)
def test_a_stop_that_waits_for_its_minimum_is_not_forgotten(
    tmp_path: Path, hook: str, waiting: slice
) -> None:
    limits = {"min_epochs": 2, "max_epochs": 6}
    saves = Saves(hook, tmp_path)
    module = Net("step", "epoch")
    whole = fit(module, WantsToStop(), saves, **limits)
    assert whole.current_epoch == 2
    for file in saves.files[waiting]:
        again = Net("step", "epoch")
        assert end(fit(again, ckpt_path=file, **limits), again) == end(whole, module), file


def test_a_fit_that_has_stopped_may_be_gone_on_with(tmp_path: Path) -> None:
    limits = {"min_epochs": 1, "max_epochs": 3}
    fit(Net(), WantsToStop(), **limits).save_checkpoint(tmp_path / "x.ckpt")
    assert fit(Net(), ckpt_path=tmp_path / "x.ckpt", **limits).current_epoch == 3


# ---- what does not fit the checkpoint ----


class Other(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [KINDS[kind](optimizer) for kind in self.kinds]


def test_another_optimizer_is_named(tmp_path: Path) -> None:
    fit(Other(), max_epochs=1).save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"another than the optimizer Adam .*betas"):
        fit(Net(), ckpt_path=tmp_path / "x.ckpt")


OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in {"Optimizer", "SparseAdam"}
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_of_torchs_optimizers_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    class Own(Net):
        def configure_optimizers(self) -> Any:
            kind = getattr(torch.optim, name)
            matrices = [one for one in self.parameters() if one.ndim == 2]
            return kind(matrices if name == "Muon" else self.parameters(), lr=0.01)

    torch.manual_seed(1)
    start = Own().state_dict()
    whole, begun, ended = Own(), Own(), Own()
    for one in (whole, begun):
        one.load_state_dict(start)
    fit(whole, max_epochs=2)
    fit(begun, max_epochs=1).save_checkpoint(tmp_path / "x.ckpt")
    fit(ended, max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    assert all(
        torch.equal(value, ended.state_dict()[key]) for key, value in whole.state_dict().items()
    )


@pytest.mark.parametrize(("before", "after"), [(("step",), ()), ((), ("step", "epoch"))])
def test_another_number_of_schedulers_is_told(tmp_path: Path, before: Any, after: Any) -> None:
    fit(Net(*before), max_epochs=1).save_checkpoint(tmp_path / "x.ckpt")
    text = f"holds {len(before)} learning-rate schedulers, but .* returned {len(after)}"
    with pytest.warns(UserWarning, match=text):
        fit(Net(*after), ckpt_path=tmp_path / "x.ckpt")


def test_milestones_are_counted_again(tmp_path: Path) -> None:
    fit(Net("epoch"), max_epochs=1).save_checkpoint(tmp_path / "x.ckpt")
    trainer = fit(Net("epoch"), ckpt_path=tmp_path / "x.ckpt")
    assert isinstance(trainer.lr_scheduler_configs[0].scheduler.milestones, Counter)


class Shaped(torch.optim.lr_scheduler.LRScheduler):
    """Keeps a function that it was given, as SWALR of torch 2.6 does, and so in its state."""

    def __init__(self, optimizer: Any, shape: Any) -> None:
        self.shape = shape
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return [rate * self.shape(self.last_epoch) for rate in self.base_lrs]


@pytest.mark.parametrize("is_part", [False, True])
def test_a_scheduler_that_keeps_a_function_goes_on(tmp_path: Path, is_part: bool) -> None:
    class Own(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
            shaped: Any = Shaped(optimizer, lambda epoch: 0.5**epoch)
            if is_part:
                kept = torch.optim.lr_scheduler.ConstantLR(optimizer, 0.3)
                both = [kept, shaped]
                shaped = torch.optim.lr_scheduler.SequentialLR(optimizer, both, milestones=[1])
            return [optimizer], [shaped]

    whole, begun, ended = Own(), Own(), Own()
    fit(whole)
    fit(begun, max_epochs=2).save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)["lr_schedulers"]
    assert stored and "shape" not in str(stored)
    trainer = fit(ended, ckpt_path=tmp_path / "x.ckpt")
    assert all(
        torch.equal(value, ended.state_dict()[key]) for key, value in whole.state_dict().items()
    )
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.05


@pytest.mark.parametrize("target", ["plain", "compiled"])
@pytest.mark.parametrize("source", ["plain", "compiled"])
def test_a_compiled_part_has_the_names_of_the_part(
    tmp_path: Path, source: str, target: str
) -> None:
    class Model(Net):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.save_hyperparameters()
            if how == "compiled":
                self.net = torch.compile(self.net, backend="eager")  # type: ignore[assignment]

    module = Model(source)
    fit(module, max_epochs=1).save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert list(stored) == list(Net().state_dict())
    loaded = Model.load_from_checkpoint(tmp_path / "x.ckpt", how=target)
    assert all(map(torch.equal, loaded.parameters(), module.parameters()))
    assert fit(Model(target), ckpt_path=tmp_path / "x.ckpt", max_epochs=2).global_step == 10


# ---- on two ranks ----


class Thaws(Callback):
    """Unfreezes a layer in the middle of an epoch."""

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 1:
            module.net[0].requires_grad_(True)


class ThawsInStep(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.net[0].requires_grad_(True)
        return super().training_step(batch, batch_idx)


class Slower(Net):
    """Trains at another pace on each rank."""

    def on_train_batch_end(self, *args: Any) -> None:
        import time

        time.sleep(0.01 * self.global_rank)


class Validations(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self.steps.append(trainer.global_step)


def on_a_rank(folder: str) -> dict[str, Any]:
    module = Net()
    module.net[0].requires_grad_(False)
    fit(module, Thaws(), batches=data(8), max_epochs=1)
    frozen = ThawsInStep()
    frozen.net[0].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"unfrozen net\.0\.weight, net\.0\.bias"):
        fit(frozen)
    validations = Validations()
    fit(
        Slower(),
        validations,
        batches=data(100),
        max_epochs=1,
        val_check_interval={"milliseconds": 100},
    )
    return {
        "weights": [value.tolist() for value in module.state_dict().values()],
        "validated": validations.steps,
    }


def test_ranks_stay_in_step(tmp_path: Path) -> None:
    """Parameters unfrozen in mid-epoch are synchronized; all ranks validate at the same time."""
    one, other = run_on_two_ranks(on_a_rank, tmp_path)
    assert one == other
    assert one["validated"]
