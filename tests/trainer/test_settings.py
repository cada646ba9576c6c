from __future__ import annotations

import inspect
import os
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raylit as pl
from raylit import Trainer
from raylit.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    ProgressBar,
    RecoveryCheckpoint,
    Timer,
)
from raylit.errors import ConfigError
from raylit.runtime import determinism
from raylit.testing.modules import TinyModel
from raylit.trainer import settings


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None, None, 1, "cpu"), (0, 0)),
        ((None, "auto", 1, "cpu"), (0, 0)),
        ((None, 1, 1, "cpu"), (0, 0)),
        ((None, 2, 1, "cpu"), (2, 2)),
        ((None, "3", 1, "cpu"), (3, 3)),
        ((None, [0, 1], 2, "gpu"), (4, 4)),
        ((None, "0,1", 1, "gpu"), (2, 2)),
        ((None, None, 2, "cpu"), (2, 2)),
        ((0, None, 1, "cpu"), (0, 0)),
        ((5, None, 1, "cpu"), (5, 5)),
        (((1, 4), None, 1, "cpu"), (1, 4)),
        (([2, 3], None, 1, "cpu"), (2, 3)),
        (((2, 2), None, 1, "cpu"), (2, 2)),
    ],
)
def test_number_of_workers(arguments: tuple[Any, ...], expected: tuple[int, int]) -> None:
    assert settings.number_of_workers(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 2, 1, "cpu"), "was given together with"),
        ((2, None, 2, "cpu"), "was given together with"),
        ((-1, None, 1, "cpu"), "num_workers=-1"),
        (
            ((0, 2), None, 1, "cpu"),
            r"num_workers=\(0, 2\): give a whole number .* or two, .*num_workers=\(1, 4\)",
        ),
        (((3, 2), None, 1, "cpu"), r"num_workers=\(3, 2\)"),
        (((1, 2, 3), None, 1, "cpu"), r"num_workers=\(1, 2, 3\)"),
        (((1, 2.0), None, 1, "cpu"), r"num_workers=\(1, 2.0\)"),
        (((True, 2), None, 1, "cpu"), r"num_workers=\(True, 2\)"),
        (((1, 2), 2, 1, "cpu"), "was given together with"),
        ((None, 0, 1, "cpu"), "devices=0 names no device"),
        ((None, [], 1, "cpu"), "names no device"),
        ((None, "many", 1, "cpu"), "devices='many'"),
        ((None, "a,b", 1, "cpu"), "devices='a,b'"),
        ((None, 1, 0, "cpu"), "num_nodes=0"),
    ],
)
def test_numbers_of_workers_that_are_none(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings.number_of_workers(*arguments)


@pytest.mark.parametrize(
    ("devices", "accelerator", "expected"),
    [
        ([1], "gpu", (1,)),
        ("1,", "auto", (1,)),
        ([1, 0], "cuda", (1, 0)),
        ([0, 1], "gpu", None),
        ("0,1", "gpu", None),
        (2, "gpu", None),
        ("2", "gpu", None),
        ([1], "cpu", None),
    ],
)
def test_gpus_by_their_numbers(devices: Any, accelerator: str, expected: Any) -> None:
    assert settings.gpus_of(devices, accelerator) == expected


def test_ray_chooses_the_gpus_of_its_workers() -> None:
    with pytest.raises(ConfigError, match=r"devices=2, .*CUDA_VISIBLE_DEVICES"):
        Trainer(devices=[2, 3], accelerator="gpu", logger=False)
    local = Trainer(devices=[2, 3], accelerator="gpu", launcher="local", logger=False)
    assert (local.num_workers, local.gpus, local.device_ids) == (2, (2, 3), [2, 3])
    with pytest.raises(ConfigError, match="must be unique"):
        Trainer(devices=[1, 1], logger=False)


@pytest.mark.parametrize("value", [True, -1, 1.5, -0.1, 1.0001])
def test_limits_that_are_none(value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"limit_val_batches={value}"):
        settings.limit("limit_val_batches", value)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, 1.0), (0, 0), (0.0, 0.0), (1, 1), (1.0, 1.0), (7, 7)]
)
def test_the_type_of_a_limit_is_kept(value: Any, expected: Any) -> None:
    found = settings.limit("x", value)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "every", "expected"),
    [
        (None, 1, (1.0, None)),
        (0.25, 1, (0.25, None)),
        (10, None, (10, None)),
        ("00:00:01:30", 1, (1.0, 90.0)),
        (timedelta(minutes=2), 1, (1.0, 120.0)),
        ({"hours": 1}, 1, (1.0, 3600.0)),
    ],
)
def test_when_to_validate(value: Any, every: int | None, expected: Any) -> None:
    assert settings.validation_interval(value, every) == expected


@pytest.mark.parametrize(("value", "every"), [(1.5, 1), (-1, 1), (True, 1), (0.5, None), (1, 0)])
def test_intervals_that_are_none(value: Any, every: int | None) -> None:
    with pytest.raises(ConfigError):
        settings.validation_interval(value, every)


def test_callbacks_come_with_the_defaults_and_checkpoints_last() -> None:
    class Own(Callback):
        pass

    found = settings.make_callbacks(
        [ModelCheckpoint(), Own()], "00:00:00:10", None, None, False, False
    )
    assert [type(callback) for callback in found] == [
        Own,
        Timer,
        ProgressBar,
        RecoveryCheckpoint,
        ModelCheckpoint,
    ]
    assert settings.make_callbacks(Own(), None, False, False, False, False)[0].__class__ is Own


def test_a_callback_of_lightning_is_told_apart() -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    with pytest.raises(ConfigError, match="import raylit as pl"):
        settings.make_callbacks(
            [lightning.callbacks.EarlyStopping("x")], None, False, False, False, False
        )


def test_what_is_set_for_the_process_is_checked() -> None:
    with pytest.raises(ConfigError, match="deterministic='perhaps'"):
        determinism.apply("perhaps", None)
    before = torch.backends.cudnn.benchmark
    determinism.apply(None, None)
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.parametrize(("value", "expected"), [(False, 0), (True, 1), (5, 5)])
def test_a_trial_run(value: Any, expected: int) -> None:
    assert settings.fast_dev_run(value) == expected


def test_clipping() -> None:
    assert settings.clipping(None, None) == (None, None)
    assert settings.clipping(1, "NORM") == (1, "norm")
    with pytest.raises(ConfigError, match="Use 'norm' or 'value'"):
        settings.clipping(1.0, "both")
    with pytest.raises(TypeError, match="gradient_clip_val='1'"):
        settings.clipping("1", None)


def test_results_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    settings.print_results(
        "test",
        [{"acc/dataloader_idx_0": 0.5, "all": 1.0}, {"acc/dataloader_idx_1": 0.25, "all": 1.0}],
    )
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["acc", "0.5", "0.25"] in rows
    assert ["all", "1", "1"] in rows
    settings.print_results("test", [{}])
    assert capsys.readouterr().out == ""


def test_storage_path_is_where_the_files_of_a_run_go(tmp_path: Path) -> None:
    shared = pl.Trainer(storage_path=str(tmp_path / "nfs"), max_epochs=1)
    assert shared.default_root_dir == str(tmp_path / "nfs")
    bucket = pl.Trainer(
        storage_path="memory://bucket",
        default_root_dir=tmp_path,
        max_epochs=1,
        enable_model_summary=False,
    )
    bucket.fit(TinyModel())
    assert bucket.checkpoint_callback.best_model_path.startswith(
        "memory://bucket/lightning_logs/version_0/checkpoints/"
    )
    again = pl.Trainer(
        storage_path="memory://bucket",
        default_root_dir=tmp_path,
        max_epochs=2,
        enable_model_summary=False,
    )
    again.fit(TinyModel(), ckpt_path="last")
    assert again.ckpt_path.endswith(
        "bucket/lightning_logs/version_0/checkpoints/epoch=0-step=4.ckpt"
    )


class Watches(pl.Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen = (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
        )


def test_determinism_holds_where_the_job_runs_and_no_longer(tmp_path: Path) -> None:
    """As in a Ray worker, where the Trainer is not made, but unpickled."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    undo = determinism.apply(True, True)
    watches = Watches()
    sent = pickle.dumps(
        pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            deterministic=True,
            benchmark=True,
            callbacks=[watches],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
    )
    undo()
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before
    trainer = pickle.loads(sent)
    trainer.fit(TinyModel())
    assert next(one for one in trainer.callbacks if isinstance(one, Watches)).seen == (True, True)
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before


@pytest.mark.parametrize("argument", ["default_root_dir", "storage_path"])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file", "it is a file"),
        ("file/below/it", "file is a file"),
        ("link", "it is a link to nowhere"),
    ],
)
def test_a_folder_that_is_a_file(argument: str, path: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    arguments: dict[str, Any] = {argument: str(tmp_path / path), "max_epochs": 1}
    for num_workers in (0, 2):
        with pytest.raises(ConfigError, match=f"{argument}=.*{words}.*Give another path"):
            pl.Trainer(num_workers=num_workers, **arguments)


@pytest.mark.parametrize(
    "same", [{"devices": "auto"}, {"devices": 1}, {"devices": "1", "num_nodes": 1}, {}]
)
def test_words_of_lightning_that_say_nothing_stand_beside_num_workers(
    same: dict[str, Any],
) -> None:
    assert pl.Trainer(num_workers=2, logger=False, **same).num_workers == 2


def test_only_what_says_another_number_is_named() -> None:
    with pytest.raises(ConfigError, match=r"together with devices=3: .* Delete devices=3;"):
        pl.Trainer(num_workers=2, devices=3, logger=False)
    with pytest.raises(ConfigError, match=r"together with num_nodes=2: .* Delete num_nodes=2;"):
        pl.Trainer(num_workers=2, devices="auto", num_nodes=2, logger=False)


def test_the_registry_of_lightnings_cloud_is_left_out() -> None:
    pl.Trainer(model_registry=None, logger=False)
    with pytest.raises(ConfigError, match=r"model_registry='team/x'.*not part of raylit"):
        pl.Trainer(model_registry="team/x", logger=False)


OF_NO_ARGUMENT = [["a"], {"a": 1}, object(), b"x", lambda: 1, [["a"]], Path, float("nan"), -7.5]


@pytest.mark.parametrize("name", inspect.signature(Trainer).parameters)
def test_a_value_of_another_type_is_a_config_error(name: str) -> None:
    """Whatever is given: what is not taken is told with its argument's name, before the start."""
    for value in OF_NO_ARGUMENT:
        try:
            Trainer(**{"max_epochs": 1, "logger": False, name: value})
        except ConfigError as error:
            assert name in str(error) or "The duration" in str(error)
        else:
            assert name in TAKE_MORE, (name, value)


# {"a": 1} names a resource; nan and -7.5 bound gradients from where they are used
TAKE_MORE = ("resources_per_worker", "gradient_clip_val", "compile")


def test_the_name_of_a_logger_is_none() -> None:
    with pytest.raises(ConfigError, match=r"logger='wandb' is a text\. Give a logger"):
        Trainer(max_epochs=1, logger="wandb")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["benchmark", "inference_mode", "detect_anomaly"])
@pytest.mark.parametrize("value", [1, 0, np.bool_(True)])
def test_flags_that_are_numbers_stay_flags(name: str, value: Any) -> None:
    before = torch.backends.cudnn.benchmark
    try:
        Trainer(max_epochs=1, logger=False, **{name: value})
    finally:
        torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize(
    "make",
    [
        lambda value: ModelCheckpoint(dirpath=value),
        lambda value: ModelCheckpoint(save_top_k=value),
        lambda value: ModelCheckpoint(every_n_epochs=value),
        lambda value: EarlyStopping(value),
        lambda value: EarlyStopping("val_loss", patience=value),
        lambda value: pl.CSVLogger(value),
        lambda value: pl.MLFlowLogger(tracking_uri=value),
        lambda value: pl.Tuner(value),
        lambda value: pl.seed_everything(value),
        lambda value: TinyModel.load_from_checkpoint(value),
        lambda value: Trainer(max_epochs=1, logger=False).fit(value),
        lambda value: Trainer(max_epochs=1, logger=False).fit(TinyModel(), datamodule=value),
        lambda value: Trainer(max_epochs=1, logger=False).fit(TinyModel(), ckpt_path=value),
        lambda value: Trainer(max_epochs=1, logger=False).save_checkpoint(value),
    ],
    ids=range(14),
)
def test_a_value_that_cannot_be_meant_is_a_config_error(make: Any) -> None:
    for value in (["a"], {"a": 1}, b"x", lambda: 1):
        with pytest.raises(ConfigError):
            make(value)


def test_a_number_is_no_file_that_is_open() -> None:
    """`open(True)` would be the standard output, and close it."""
    for value in (True, 1):
        with pytest.raises(ConfigError, match="no path"):
            TinyModel.load_from_checkpoint(value)  # type: ignore[arg-type]
    assert os.fstat(1)


@pytest.mark.parametrize("text", ["data.csv", b"data"])
def test_a_text_is_no_data(text: Any) -> None:
    trainer = Trainer(max_epochs=1, logger=False)
    for fit in (lambda: trainer.fit(TinyModel(), text), lambda: trainer.test(TinyModel(), text)):
        with pytest.raises(ConfigError, match="would read its letters"):
            fit()


def test_an_interval_of_time_is_told_by_its_own_name() -> None:
    with pytest.raises(ConfigError, match=r"`Trainer\(val_check_interval='1h'\)` is not a valid"):
        pl.Trainer(max_epochs=1, val_check_interval="1h")


def test_deepspeed_is_answered_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="DeepSpeed is not part of raylit; 'fsdp' shards"):
        pl.Trainer(max_epochs=1, strategy="deepspeed_stage_2")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpus", "Write accelerator='gpu' with devices=, or num_workers="),
        ("resume_from_checkpoint", r"Write trainer.fit\(model, ckpt_path=...\)"),
        ("max_epoch", "Did you mean 'max_epochs'"),
        ("colour", r"\Z"),
    ],
)
def test_an_argument_that_there_is_not_is_told_what_there_is(name: str, words: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'.*{words}") as told:
        Trainer(**{name: 1})
    assert isinstance(told.value, ConfigError)


def test_what_lightning_once_had_is_not_had_today() -> None:
    assert not settings.INSTEAD.keys() & inspect.signature(Trainer).parameters.keys()


def test_accumulation_by_epoch_is_a_callback() -> None:
    with pytest.raises(TypeError, match=r"GradientAccumulationScheduler\(scheduling={0: 2}\)"):
        Trainer(accumulate_grad_batches={0: 2})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1"):
        Trainer(accumulate_grad_batches=[2])  # type: ignore[arg-type]
