"""What a validation in a Ray task wants, and what it tells; whole fits: tests/validation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import raylit as pl
from raylit import ValidationConfig
from raylit.callbacks import EarlyStopping
from raylit.errors import ConfigError
from raylit.launch.on_ray.validation import Recorder, _takes_part, check_validation_room
from tests.quiet import QUIET


def check(has: dict[str, float], taken: dict[str, float], workers: Any, **config: Any) -> None:
    trainer = pl.Trainer(
        num_workers=workers, logger=False, async_validation=ValidationConfig(**config), **QUIET
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.cluster_resources", lambda: has)
        check_validation_room(trainer, taken)


@pytest.mark.parametrize(
    ("has", "workers", "config"),
    [
        ({"CPU": 3.0}, 2, {}),
        ({"CPU": 2.0}, 2, {"num_cpus": 0}),  # it shares theirs
        ({"CPU": 2.5}, 2, {"num_cpus": 0.5}),
        ({"CPU": 1.0}, 2, {}),  # the cluster is to grow, or there would be no workers
        ({"CPU": 3.0, "GPU": 1.0}, 2, {"num_gpus": 1}),
        ({"CPU": 3.0, "disk": 1.0}, 2, {"resources": {"disk": 1}}),
        ({"CPU": 3.0}, (1, 2), {}),
        ({"CPU": 1.0}, 0, {}),  # the fit runs in the driver, which reserves nothing
        ({}, 0, {"num_cpus": 0}),
    ],
)
def test_a_validation_that_fits_beside_the_workers(
    has: dict[str, float], workers: Any, config: dict[str, Any]
) -> None:
    check(has, {"CPU": 1.0} if workers else {}, workers, **config)


@pytest.mark.parametrize(
    ("has", "workers", "config", "said"),
    [
        ({"CPU": 2.0}, 2, {}, "wants 1 CPU, but beside the 2 workers the Ray cluster has 0"),
        ({"CPU": 2.5}, 2, {}, "wants 1 CPU, but beside the 2 workers the Ray cluster has 0.5"),
        ({"CPU": 9.0}, 2, {"num_gpus": 1}, "wants 1 GPU, but beside the 2 .* has 0:"),
        ({"CPU": 9.0}, 2, {"resources": {"größe": 2}}, "wants 2 größe, but .* has 0:"),
        ({"CPU": 4.0}, (1, 4), {}, "beside up to 4 workers the Ray cluster has 0"),
        ({"CPU": 3.0}, (1, 4), {}, "beside up to 4 workers the Ray cluster has 0"),
        ({}, 0, {}, "wants 1 CPU, but beside the 0 workers the Ray cluster has 0"),
    ],
)
def test_a_validation_that_would_never_begin_is_told_with_the_way_out(
    has: dict[str, float], workers: Any, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{said}.*ValidationConfig\(num_cpus=0\)"):
        check(has, {"CPU": 1.0} if workers else {}, workers, **config)


def test_what_is_left_to_the_last_tenth_is_enough() -> None:
    check({"CPU": 1.0}, {"CPU": 0.9}, 1, num_cpus=0.1)


class OnValidation(pl.Callback):
    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Of the user's own."""


class Inherits(OnValidation):
    """Has the hook from its base."""


class OnTraining(pl.Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Has nothing to do where nothing is trained."""


class Stops(EarlyStopping):
    """Decides by what comes back."""


@pytest.mark.parametrize(
    ("callback", "goes"),
    [
        (OnValidation(), True),
        (Inherits(), True),
        (OnTraining(), False),
        (Stops("val_loss"), False),
        (EarlyStopping("val_loss"), False),
        (pl.callbacks.LearningRateMonitor(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_callbacks_of_the_users_own_go_along_if_they_do_something_in_validation(
    callback: pl.Callback, goes: bool
) -> None:
    assert _takes_part(callback) is goes


def test_rows_say_who_has_sent_them() -> None:
    """The values of a hook are logged otherwise than those of the loop."""
    recorder = Recorder()
    recorder.metrics = metrics = SimpleNamespace(  # type: ignore[assignment]
        hook=None, in_batch=True, dataloader_idx=None
    )
    values = {"val_loss": float("nan")}
    recorder.log_metrics(values, 3)
    values["val_loss"] = 1.0
    metrics.in_batch, metrics.dataloader_idx = False, 1
    recorder.log_metrics(values)
    metrics.hook = "on_validation_epoch_end"
    recorder.log_metrics({}, 0)
    assert [(kind, loader, step) for kind, loader, _, step in recorder.rows] == [
        ("batch", 0, 3),
        ("end", 1, None),
        ("user", 1, 0),
    ]
    assert str(recorder.rows[0][2]) == "{'val_loss': nan}", "as it was when it was sent"
