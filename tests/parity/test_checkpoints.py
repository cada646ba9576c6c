"""What a checkpoint holds, going on from one, and files one package writes and the other reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit
from tests.lazy import lightning
from tests.parity.harness import (
    files,
    loader,
    model_class,
    parity,
    plain,
    quiet,
    rows,
    seen,
    seen_after,
    traced_objects,
    trainer,
)

# What only raylit writes, and what is the same in all files of a version
ADDED = (
    "raylit",
    "pytorch-lightning_version",
)


def scheduled(pl: Any, *, by_hand: bool = False, interval: str = "epoch") -> Any:
    """A model with an optimizer that has state, a scheduler and hyperparameters."""

    class Scheduled(model_class(pl)):  # type: ignore[misc]
        def __init__(self, width: int = 3, rate: float = 0.05) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.automatic_optimization = not by_hand
            self.dropout = torch.nn.Identity()
            self.extra = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if by_hand:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.rate)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "interval": interval},
            }

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["extra"] = self.trainer.global_step

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.extra = checkpoint["extra"]

    return Scheduled


def saving_at(pl: Any, hook: str, path: Path, step: int) -> Any:
    """A callback that saves the run in one hook, at one step."""

    def save(self: Any, trainer: Any, *args: Any) -> None:
        if trainer.global_step == step and not path.exists() and not trainer.sanity_checking:
            trainer.save_checkpoint(path)

    return type("Saves", (pl.callbacks.Callback,), {hook: save})()


def contents(path: Path) -> dict[str, Any]:
    """A checkpoint without what only one of the two writes."""
    return {
        key: value for key, value in torch.load(path, weights_only=True).items() if key not in ADDED
    }


def counters(loops: dict[str, Any]) -> dict[str, Any]:
    """The entry `loops` without counters that nobody reads.

    Batches of validation, and steps of schedulers within the epoch.
    """
    fit_loop = {
        key: value
        for key, value in loops["fit_loop"].items()
        if key != "epoch_loop.val_loop.batch_progress"
    }
    fit_loop["epoch_loop.scheduler_progress"] = fit_loop["epoch_loop.scheduler_progress"]["total"]
    return {"fit_loop": fit_loop, "all": sorted(loops)}


HOOKS = [
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_validation_end",
    "on_train_epoch_start",
    "on_train_end",
]


@parity
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"val_check_interval": 2}, {"accumulate_grad_batches": 2, "limit_train_batches": 8}],
)
@pytest.mark.parametrize("by_hand", [False, True])
def test_contents(
    pl: Any, tmp_path: Path, hook: str, arguments: dict[str, Any], by_hand: bool
) -> Any:
    if by_hand and arguments.get("accumulate_grad_batches"):
        arguments = {}
    path = tmp_path / "one.ckpt"
    step = 8 if hook == "on_train_end" else 4
    one = trainer(
        pl, tmp_path, callbacks=[saving_at(pl, hook, path, step)], max_epochs=2, **arguments
    )
    one.fit(
        scheduled(pl, by_hand=by_hand, interval="step")(),
        loader(8 if arguments.get("limit_train_batches") else 4),
        loader(2),
    )
    found = contents(path)
    return {**found, "loops": counters(found["loops"])}


@parity
def test_weights_only(pl: Any, tmp_path: Path) -> Any:
    one = trainer(pl, tmp_path)
    one.fit(scheduled(pl)(), loader(2))
    one.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    return {
        key: value for key, value in contents(tmp_path / "weights.ckpt").items() if key != "loops"
    }


@parity
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"monitor": "val_loss", "save_top_k": 2, "filename": "{epoch}-{val_loss:.3f}"},
        {"save_last": True},
        {"every_n_train_steps": 3, "save_top_k": -1},
        {"save_weights_only": True},
        {"monitor": "train_loss", "save_on_train_epoch_end": True, "mode": "max"},
    ],
    ids=lambda arguments: "-".join(arguments) or "none",
)
def test_files_of_model_checkpoint(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> Any:
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "here", **arguments)
    one = trainer(pl, tmp_path, callbacks=[saver], max_epochs=3)
    one.fit(scheduled(pl)(), loader(4), loader(2))
    found = {name: contents(tmp_path / name) for name in files(tmp_path)}
    for one_file in found.values():
        one_file["loops"] = counters(one_file["loops"])
    return {
        "found": found,
        "best": saver.best_model_path,
        "last": saver.last_model_path,
        "score": saver.best_model_score,
    }


@parity
def test_the_default_place(pl: Any, tmp_path: Path) -> Any:
    one = trainer(pl, tmp_path, logger=True, enable_checkpointing=True)
    one.fit(scheduled(pl)(), loader(2), loader(1))
    without = trainer(pl, tmp_path, enable_checkpointing=True)
    without.fit(scheduled(pl)(), loader(2), loader(1))
    return {"files": files(tmp_path)}


# ---- going on ----


def resumed(
    pl: Any,
    root: Path,
    hook: str,
    step: int,
    *,
    by_hand: bool = False,
    interval: str = "step",
    data: Any = None,
    **arguments: Any,
) -> Any:
    """Fit, save in a hook; fit again from there. Returns what both fits left."""
    path = root / "one.ckpt"
    arguments = {
        "max_epochs": 3,
        "logger": True,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        **arguments,
    }
    full = trainer(pl, root, callbacks=[saving_at(pl, hook, path, step)], **arguments)
    model = scheduled(pl, by_hand=by_hand, interval=interval)
    full.fit(model(), loader(4), loader(2))
    calls: list[Any] = []

    class Watch(pl.Callback):  # type: ignore[misc]
        def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
            calls.append(["epoch", trainer.current_epoch, trainer.global_step])

        def on_train_batch_start(
            self, trainer: Any, module: Any, batch: Any, batch_idx: int
        ) -> None:
            calls.append(["batch", batch_idx, trainer.global_step])

        def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
            calls.append(["end", trainer.current_epoch, trainer.global_step])

        def on_validation_start(self, trainer: Any, *args: Any) -> None:
            calls.append(["validation", trainer.sanity_checking, trainer.global_step])

    again, fresh = trainer(pl, root / "again", callbacks=[Watch()], **arguments), model()
    again.fit(fresh, loader(4), loader(2), ckpt_path=path)
    states = [
        [one.state_dict() for one in again.optimizers],
        [one.scheduler.state_dict() for one in again.lr_scheduler_configs],
    ]
    before = (
        ("callback_metrics", "logged_metrics")
        if hook == "on_train_end" or "check_val_every_n_epoch" in arguments
        else ()
    )
    return {
        "calls": calls,
        "extra": fresh.extra,
        "full": seen_after(full),
        "states": states,
        **seen_after(again, *before),
    }


@parity
@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_end", "on_train_end"])
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_going_on_after_an_epoch(pl: Any, tmp_path: Path, hook: str, interval: str) -> Any:
    more = {"max_epochs": 2} if hook == "on_train_end" else {}
    return resumed(pl, tmp_path, hook, 8, interval=interval, **more)


@parity
@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_end"])
@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {"val_check_interval": 2},
        {"check_val_every_n_epoch": 2},
        {"limit_train_batches": 3},
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_going_on_with(
    pl: Any, tmp_path: Path, hook: str, by_hand: bool, arguments: dict[str, Any]
) -> Any:
    if by_hand and ("accumulate_grad_batches" in arguments or "gradient_clip_val" in arguments):
        arguments = {}  # which are errors then
    steps_per_epoch = {"limit_train_batches": 3, "accumulate_grad_batches": 2}.get(
        next(iter(arguments), ""), 4
    )
    return resumed(pl, tmp_path, hook, 2 * steps_per_epoch, by_hand=by_hand, **arguments)


@parity
@pytest.mark.parametrize("ckpt_path", ["best", "last"])
def test_going_on_from(pl: Any, tmp_path: Path, ckpt_path: str) -> Any:
    saver = pl.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss", mode="max", save_last=True)
    one = trainer(pl, tmp_path, callbacks=[saver], max_epochs=2)
    one.fit(scheduled(pl)(), loader(3), loader(2))
    one.fit_loop.max_epochs = 4
    model = scheduled(pl)()
    one.fit(model, loader(3), loader(2), ckpt_path=ckpt_path)
    return {
        "path": one.ckpt_path,
        "files": files(tmp_path),
        "extra": model.extra,
        **seen_after(one),
    }


@parity
def test_there_is_nothing_left_to_do(pl: Any, tmp_path: Path) -> Any:
    one = trainer(pl, tmp_path, max_epochs=2)
    one.fit(scheduled(pl)(), loader(2), loader(1))
    one.save_checkpoint(tmp_path / "one.ckpt")
    trace: list[Any] = []
    module, data, callback = traced_objects(
        pl, trace, scheduled(pl), train=loader(2), val=loader(1)
    )
    again = trainer(pl, tmp_path, max_epochs=2, callbacks=[callback], num_sanity_val_steps=0)
    again.fit(module, datamodule=data, ckpt_path=tmp_path / "one.ckpt")
    return {"trace": trace, **seen_after(again, "callback_metrics", "logged_metrics")}


@parity
def test_going_on_with_more_epochs(pl: Any, tmp_path: Path) -> Any:
    saver = pl.callbacks.ModelCheckpoint(tmp_path)
    one = trainer(pl, tmp_path, callbacks=[saver], max_epochs=2)
    one.fit(scheduled(pl)(), loader(4), loader(2))
    again, model = (
        trainer(pl, tmp_path, callbacks=[pl.callbacks.ModelCheckpoint(tmp_path)], max_epochs=4),
        scheduled(pl)(),
    )
    again.fit(model, loader(4), loader(2), ckpt_path=saver.best_model_path)
    return {"files": files(tmp_path), **seen_after(again)}


@parity
def test_last_without_a_checkpoint_begins_anew(pl: Any, tmp_path: Path) -> Any:
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "none", save_last=True)
    one = trainer(pl, tmp_path, callbacks=[saver])
    one.fit(scheduled(pl)(), loader(2), ckpt_path="last")
    return {"files": files(tmp_path), **seen(one)}


# ---- from one to the other ----


PLACES = [
    ("on_train_epoch_start", 8),
    ("on_train_epoch_end", 8),
    ("on_validation_end", 8),
    ("on_train_batch_start", 4),
    ("on_train_batch_start", 7),
    ("on_before_backward", 6),
    ("on_after_backward", 6),
    ("on_before_optimizer_step", 7),
    ("on_train_batch_end", 6),
    ("on_train_batch_end", 8),
]


@pytest.mark.parametrize(("hook", "step"), PLACES)
@pytest.mark.parametrize("by_hand", [False, True])
def test_either_package_goes_on_from_the_others_file(
    tmp_path: Path, hook: str, step: int, by_hand: bool
) -> None:
    """raylit ends with the weights of the fit that wrote the file.

    Lightning goes on from raylit's file as it does from its own.
    """
    arguments, full, found = {"max_epochs": 3, "num_sanity_val_steps": 0}, [], {}
    with quiet():
        for writer in (lightning.pytorch, raylit):
            path = tmp_path / f"{writer.__name__}.ckpt"
            torch.manual_seed(1)
            one = trainer(
                writer, tmp_path, callbacks=[saving_at(writer, hook, path, step)], **arguments
            )
            one.fit(scheduled(writer, by_hand=by_hand)(), loader(4), loader(2))
            full.append(
                plain(
                    [one.lightning_module.state_dict(), one.global_step, one.current_epoch],
                    tmp_path,
                )
            )
            for reader in (lightning.pytorch, raylit):
                again, model = (
                    trainer(reader, tmp_path, **arguments),
                    scheduled(reader, by_hand=by_hand)(),
                )
                again.fit(model, loader(4), loader(2), ckpt_path=path)
                rates = [group["lr"] for group in again.optimizers[0].param_groups]
                left = [
                    model.state_dict(),
                    again.global_step,
                    again.current_epoch,
                    model.extra,
                    rates,
                ]
                found[writer, reader] = plain(left, tmp_path)
    assert full[0] == full[1] == found[raylit, raylit][:3] == found[lightning.pytorch, raylit][:3]
    assert found[raylit, raylit] == found[lightning.pytorch, raylit]
    assert found[raylit, lightning.pytorch] == found[lightning.pytorch, lightning.pytorch]


@pytest.mark.parametrize("writer", [lightning.pytorch, raylit], ids=["by lightning", "by raylit"])
@pytest.mark.parametrize(
    "reader", [lightning.pytorch, raylit], ids=["read by lightning", "read by raylit"]
)
def test_either_package_makes_a_module_of_the_others_file(
    tmp_path: Path, writer: Any, reader: Any
) -> None:
    with quiet():
        one, model = trainer(writer, tmp_path), scheduled(writer)(rate=0.01)
        one.fit(model, loader(2))
        one.save_checkpoint(tmp_path / "one.ckpt")
        made = scheduled(reader).load_from_checkpoint(tmp_path / "one.ckpt")
    assert dict(made.hparams) == {"width": 3, "rate": 0.01}
    assert plain(made.state_dict(), tmp_path) == plain(model.state_dict(), tmp_path)


@pytest.mark.parametrize("writer", [lightning.pytorch, raylit], ids=["by lightning", "by raylit"])
def test_either_package_evaluates_the_others_file(tmp_path: Path, writer: Any) -> None:
    with quiet():
        one = trainer(writer, tmp_path)
        one.fit(scheduled(writer)(), loader(2))
        one.save_checkpoint(tmp_path / "one.ckpt")
        found = [
            trainer(reader, tmp_path).test(
                scheduled(reader)(), loader(3), ckpt_path=tmp_path / "one.ckpt", verbose=False
            )
            for reader in (lightning.pytorch, raylit)
        ]
    assert found[0] == found[1] != []


def test_the_rows_of_a_fit_that_goes_on_are_those_of_one_that_never_stopped(tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    with quiet():
        arguments = {
            "max_epochs": 2,
            "logger": True,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
        }
        torch.manual_seed(1)
        full = trainer(
            raylit,
            tmp_path,
            callbacks=[saving_at(raylit, "on_train_batch_end", path, 3)],
            **arguments,
        )
        full.fit(scheduled(raylit)(), loader(4), loader(2))
        again = trainer(raylit, tmp_path / "again", **arguments)
        again.fit(scheduled(raylit)(), loader(4), loader(2), ckpt_path=path)
    assert (
        [row for row in rows(full) if int(row["step"]) >= 3]
        == [row for row in rows(again) if int(row["step"]) >= 3]
        != []
    )


@parity
def test_the_states_of_callbacks(pl: Any, tmp_path: Path) -> Any:
    class Counts(pl.Callback):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.name, self.count, self.loaded = name, 0, None

        @property
        def state_key(self) -> str:
            return f"Counts-{self.name}"

        def on_train_batch_end(self, *args: Any) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count, "tensor": torch.tensor([1.0])}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

        def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint[f"of {self.name}"] = sorted(checkpoint.get("callbacks", {}))

        def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
            self.loaded = checkpoint[f"of {self.name}"]

    path = tmp_path / "one.ckpt"
    one = trainer(pl, tmp_path, callbacks=[Counts("a"), Counts("b")], max_epochs=1)
    one.fit(model_class(pl)(), loader(3))
    one.save_checkpoint(path)
    again = trainer(pl, tmp_path, callbacks=[Counts("b"), Counts("a")], max_epochs=2)
    again.fit(model_class(pl)(), loader(3), ckpt_path=path)
    found = torch.load(path, weights_only=True)
    stored = {
        "callbacks": found["callbacks"],
        "keys": sorted(key for key in found if key not in ADDED),
    }
    return {"found": [[one.name, one.count, one.loaded] for one in again.callbacks], **stored}


@parity
@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_what_an_evaluation_loads(pl: Any, tmp_path: Path, fn: str, weights_only: bool) -> Any:
    class Watch(pl.Callback):  # type: ignore[misc]
        found: list[str] = []  # noqa: RUF012

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.found.append("load_state_dict")

        def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
            self.found.append("on_load_checkpoint")

        def state_dict(self) -> dict[str, Any]:
            return {"x": 1}

    Watch.found = []
    one, model = trainer(pl, tmp_path, callbacks=[Watch()]), scheduled(pl)()
    one.fit(model, loader(2))
    one.save_checkpoint(tmp_path / "one.ckpt", weights_only=weights_only)
    fresh = scheduled(pl)()
    other = trainer(pl, tmp_path, callbacks=[Watch()])
    getattr(other, fn)(fresh, loader(1), ckpt_path=tmp_path / "one.ckpt")
    return {"found": Watch.found, "extra": fresh.extra, **seen(other, fresh)}


@parity
def test_a_module_of_an_open_file(pl: Any, tmp_path: Path) -> Any:
    one = trainer(pl, tmp_path)
    one.fit(scheduled(pl)(rate=0.5), loader(2))
    one.save_checkpoint(tmp_path / "one.ckpt")
    found = []
    with (tmp_path / "one.ckpt").open("rb") as file:
        for source in (file, io.BytesIO((tmp_path / "one.ckpt").read_bytes())):
            module = scheduled(pl).load_from_checkpoint(source)
            found.append([module.hparams.rate, dict(module.state_dict())])
    return found


@parity
def test_a_file_that_is_not_there(pl: Any, tmp_path: Path) -> Any:
    """`except FileNotFoundError` catches it, whatever looks for it."""
    missing = tmp_path / "none.ckpt"
    calls = {
        fn: getattr(trainer(pl, tmp_path), fn) for fn in ("fit", "validate", "test", "predict")
    }
    found = {}
    for fn, call in calls.items():
        try:
            call(scheduled(pl)(), loader(1), ckpt_path=missing)
        except FileNotFoundError:
            found[fn] = "FileNotFoundError"
    try:
        scheduled(pl).load_from_checkpoint(missing)
    except FileNotFoundError:
        found["load_from_checkpoint"] = "FileNotFoundError"
    return found
