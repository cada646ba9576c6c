from __future__ import annotations

import inspect
import logging
import math
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from raylit.callbacks import ModelCheckpoint
from raylit.errors import ConfigError
from tests.callbacks.both import batches, both, fit_with, scripted
from tests.lazy import lightning
from tests.quiet import UNLOGGED

NAN, INF = math.nan, math.inf
FALLING = [1.0 - step / 20 for step in range(40)]
UPS_AND_DOWNS = [0.5, 0.7, 0.3, 0.6, 0.2, 0.2, 0.9, 0.1] * 5


def case(
    trainer: dict[str, Any] | None = None,
    val: list[float] | None = UPS_AND_DOWNS,
    train: list[float] | None = None,
    **checkpoint: Any,
) -> Any:
    return pytest.param(
        trainer or {},
        val,
        train,
        checkpoint,
        id=" ".join(f"{k}={v}" for k, v in {**checkpoint, **(trainer or {})}.items()) or "default",
    )


CASES = [
    case(),
    case(save_top_k=-1),
    case(save_top_k=0),
    case(save_top_k=0, save_last=True),
    case(save_last=True),
    case(save_last="link"),
    case(save_last=True, save_top_k=-1, every_n_epochs=2),
    case(save_last="link", save_top_k=1, monitor="val_loss"),
    case(save_last=True, save_top_k=1, monitor="val_loss"),
    case(monitor="val_loss"),
    case(monitor="val_loss", mode="max"),
    case(monitor="val_loss", save_top_k=2),
    case(monitor="val_loss", save_top_k=2, mode="max", filename="{epoch}-{val_loss:.2f}"),
    case(monitor="val_loss", save_top_k=-1, filename="{val_loss:.1f}"),  # equal names: -v1
    case(monitor="val_loss", save_top_k=2, filename="{val_loss:.0f}"),
    case(monitor="val_loss", save_top_k=2, filename="same", enable_version_counter=False),
    case(monitor="val_loss", save_top_k=3, val=[NAN, 0.5, NAN, 0.4, NAN, NAN]),
    case(monitor="val_loss", save_top_k=2, mode="max", val=[NAN, INF, 0.5, -INF, 0.4, NAN]),
    case(filename="sub/{epoch:02d}-{step}-{missing:.1f}"),
    case(
        filename="epoch{epoch:03d}-loss{val_loss:.3f}", auto_insert_metric_name=False, save_top_k=-1
    ),
    case(filename="{epoch}-{epoch_extra}-{val_loss}", save_top_k=-1),
    case(every_n_epochs=2, save_top_k=-1),
    case(every_n_epochs=3),
    case(every_n_epochs=0, save_last=True),
    case(every_n_train_steps=3, save_top_k=-1),
    case(every_n_train_steps=3, save_last=True),
    case(every_n_train_steps=5, save_top_k=-1, save_last="link"),
    case({"accumulate_grad_batches": 3}, every_n_train_steps=2, save_top_k=-1),
    case(every_n_train_steps=2, monitor="train_loss", save_top_k=2, train=FALLING),
    case(
        every_n_train_steps=2,
        monitor="train_loss",
        save_top_k=2,
        mode="max",
        save_last=True,
        train=UPS_AND_DOWNS,
    ),
    case({"val_check_interval": 2}, every_n_train_steps=2, monitor="val_loss", save_top_k=-1),
    case({"val_check_interval": 0.5}, monitor="val_loss", save_top_k=3),
    case({"val_check_interval": 2}, save_top_k=-1),
    case({"val_check_interval": 2}, save_top_k=-1, every_n_epochs=2),
    case(
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        monitor="val_loss",
        save_top_k=-1,
        save_last=True,
    ),
    case({"check_val_every_n_epoch": 2}, save_top_k=-1),
    case({"check_val_every_n_epoch": 2}, save_top_k=-1, save_on_train_epoch_end=True),
    case(
        {"check_val_every_n_epoch": 2, "max_epochs": 5},
        every_n_train_steps=4,
        monitor="val_loss",
        save_top_k=-1,
        save_last=True,
    ),
    case(save_on_train_epoch_end=False, monitor="val_loss", save_top_k=2),
    case(save_on_train_epoch_end=False, every_n_train_steps=4, monitor="val_loss", save_top_k=-1),
    case({"limit_val_batches": 0}, save_top_k=-1),
    case({"limit_val_batches": 0}, save_on_train_epoch_end=False),
    case({"max_steps": 6}, save_last=True),
    case({"max_steps": 0}, save_last=True),
    case({"fast_dev_run": 2}, every_n_train_steps=1),
    case(train_time_interval=timedelta(seconds=0), save_top_k=-1),
    case(train_time_interval=timedelta(hours=1), save_last=True),
    case(save_weights_only=True),
]


def run_case(
    framework: Any,
    root: Path,
    trainer: dict[str, Any],
    val: Any,
    train: Any,
    checkpoint: dict[str, Any],
) -> dict[str, Any]:
    """Fit; return what the callback holds, and what the files hold."""
    callback = framework.callbacks.ModelCheckpoint(dirpath=root / "ckpt", **checkpoint)
    fit_with(framework, root, callback, trainer, val, train)
    return {
        "files": contents(root / "ckpt", callback.state_key),
        "callback": callback.state_dict(),
        "key": callback.state_key,
    }


def contents(folder: Path, key: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.ckpt")):
        saved = torch.load(path, weights_only=False)
        state = saved.get("callbacks", {}).get(key, {})
        state.pop("last_model_path", None)  # see test_last_and_best_are_one_file
        found[str(path.relative_to(folder))] = {
            "epoch": saved["epoch"],
            "global_step": saved["global_step"],
            "state_dict": saved["state_dict"],
            "callback": state,
            "keys": sorted(saved.keys() - {"raylit"}),
            "link": os.readlink(path) if path.is_symlink() else None,
        }
    return found


@pytest.mark.parametrize(("trainer", "val", "train", "checkpoint"), CASES)
def test_files_and_state_are_those_of_lightning(
    trainer: Any, val: Any, train: Any, checkpoint: Any, tmp_path: Path
) -> None:
    ours, theirs = both(
        lambda framework, root: run_case(framework, root, trainer, val, train, checkpoint), tmp_path
    )
    assert ours == theirs


def texts_of(framework: Any, caplog: pytest.LogCaptureFixture, action: Any) -> list[str]:
    """Return what was said through `logging` while `action` ran."""
    caplog.clear()
    logger = logging.getLogger("raylit")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO):
            action()
    finally:
        logger.removeHandler(caplog.handler)
    return [record.getMessage() for record in caplog.records]


def test_what_verbose_says_is_what_lightning_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def scenario(framework: Any, root: Path) -> list[str]:
        callback = framework.callbacks.ModelCheckpoint(
            root, monitor="val_loss", verbose=True, save_top_k=2
        )
        said = texts_of(
            framework, caplog, lambda: fit_with(framework, root, callback, {}, [0.5, 0.4, 0.6, 0.3])
        )
        return [text for text in said if "global step" in text]

    ours, theirs = both(scenario, tmp_path)
    assert len(ours) == 4
    assert ours == theirs


@pytest.mark.parametrize(
    "arguments",
    [
        {"save_top_k": -2},
        {"save_top_k": 2},
        {"mode": "middle"},
        {"every_n_train_steps": -1},
        {"every_n_epochs": -1},
        {"every_n_epochs": 1, "every_n_train_steps": 1},
        {"every_n_epochs": 1, "train_time_interval": timedelta(seconds=1)},
    ],
    ids=str,
)
def test_arguments_that_lightning_refuses_are_refused(arguments: Any) -> None:
    with pytest.raises(lightning.pytorch.utilities.exceptions.MisconfigurationException):
        lightning.pytorch.callbacks.ModelCheckpoint(**arguments)
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        ModelCheckpoint(**arguments)


def test_save_last_is_checked() -> None:
    with pytest.raises(ConfigError, match="save_last='latest'"):
        ModelCheckpoint(save_last="latest")  # type: ignore[arg-type]


def test_signature_and_constants_are_those_of_lightning() -> None:
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (ModelCheckpoint, lightning.pytorch.callbacks.ModelCheckpoint)
    )
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]
    for name in (
        "CHECKPOINT_JOIN_CHAR",
        "CHECKPOINT_EQUALS_CHAR",
        "CHECKPOINT_NAME_LAST",
        "FILE_EXTENSION",
        "STARTING_VERSION",
    ):
        assert getattr(ModelCheckpoint, name) == getattr(
            lightning.pytorch.callbacks.ModelCheckpoint, name
        )


@pytest.mark.parametrize(
    ("template", "metrics", "more"),
    [
        (None, {"epoch": 3, "step": 10}, {}),
        ("{epoch:03d}-{val/loss:.2f}", {"epoch": 3, "val/loss": 0.126}, {}),
        ("{a}-{ab}-{abc}", {"a": 1, "ab": 2, "abc": 3}, {}),
        ("{ab}-{a}", {"a": 1, "ab": 2}, {"ver": 2, "prefix": "test"}),
        ("{missing:d}", {}, {}),
        ("no field", {}, {"ver": 1}),
        ("{val.loss:5.1e}", {"val.loss": torch.tensor(0.000123)}, {}),
        ("{train loss:.1f}", {"train loss": 2.0}, {}),
        ("{epoch}", {"epoch": torch.tensor(3)}, {"filename": "{epoch:02d}-other"}),
    ],
)
@pytest.mark.parametrize("auto_insert", [True, False])
def test_names_are_those_of_lightning(
    template: Any, metrics: Any, more: Any, auto_insert: bool, tmp_path: Path
) -> None:
    names = [
        kind(tmp_path, template, auto_insert_metric_name=auto_insert).format_checkpoint_name(
            dict(metrics), **more
        )
        for kind in (ModelCheckpoint, lightning.pytorch.callbacks.ModelCheckpoint)
    ]
    assert names[0] == names[1]


def test_class_attributes_change_names(tmp_path: Path) -> None:
    def scenario(framework: Any, root: Path) -> list[str]:
        class Mine(framework.callbacks.ModelCheckpoint):  # type: ignore[misc]
            CHECKPOINT_JOIN_CHAR = "_"
            CHECKPOINT_EQUALS_CHAR = ":"
            CHECKPOINT_NAME_LAST = "{epoch}-newest"
            FILE_EXTENSION = ".pt"
            STARTING_VERSION = 5

        for _ in range(2):
            fit_with(framework, root, Mine(root / "ckpt", save_last=True), {"max_epochs": 1}, None)
        return sorted(os.listdir(root / "ckpt"))

    ours, theirs = both(scenario, tmp_path)
    assert ours == [
        "epoch:0-newest.pt",
        "epoch:0-newest_v5.pt",
        "epoch:0_step:4.pt",
        "epoch:0_step:4_v5.pt",
    ]
    assert ours == theirs


def test_logged_epoch_and_step_name_the_file(tmp_path: Path) -> None:
    def scenario(framework: Any, root: Path) -> list[str]:
        model = scripted(framework, epoch=7.0, step=99.0)
        callback = framework.callbacks.ModelCheckpoint(root / "ckpt")
        framework.Trainer(max_epochs=1, callbacks=callback, default_root_dir=root, **UNLOGGED).fit(
            model, batches(), batches(2)
        )
        return sorted(os.listdir(root / "ckpt"))

    ours, theirs = both(scenario, tmp_path)
    assert ours == ["epoch=7-step=99.ckpt"]
    assert ours == theirs
