from __future__ import annotations

import inspect
import logging
import math
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.callbacks import EarlyStopping, ModelCheckpoint
from raylit.callbacks.monitors.early_stopping import EarlyStoppingReason, judge
from raylit.errors import ConfigError
from tests.callbacks.both import batches, both, scripted
from tests.lazy import lightning
from tests.quiet import UNLOGGED

NAN, INF = math.nan, math.inf
WORSE_AFTER_4 = [0.9, 0.8, 0.7, 0.6, *[0.65] * 30]
NOISY = [0.9, 0.95, 0.85, 0.86, 0.87, 0.84, *[0.9] * 30]


def case(values: list[float], trainer: dict[str, Any] | None = None, **arguments: Any) -> Any:
    return pytest.param(
        values, trainer or {}, arguments, id=f"{values[:5]} {arguments} {trainer or ''}"
    )


CASES = [
    case(WORSE_AFTER_4),
    case(WORSE_AFTER_4, patience=1),
    case(WORSE_AFTER_4, patience=0),
    case(WORSE_AFTER_4, patience=5),
    case(NOISY, patience=2),
    case(NOISY, patience=3),
    case(NOISY, min_delta=0.05),
    case(NOISY, min_delta=0.2, patience=2),
    case([0.5] * 20),
    case([-value for value in NOISY], mode="max"),
    case([-value for value in NOISY], mode="max", min_delta=0.05, patience=2),
    case([0.5, NAN, 0.4, 0.3]),
    case([0.5, NAN, 0.4, NAN, NAN, *[0.3] * 20], check_finite=False, patience=2),
    case([0.5, INF, 0.4]),
    case([0.5, 0.4, -INF], check_finite=False),
    case([0.5, 0.4, 0.3, 0.2, 0.1], stopping_threshold=0.25),
    case([0.5, 0.25, 0.3], stopping_threshold=0.25),
    case([0.5, 0.6, 0.9], mode="max", stopping_threshold=0.8),
    case([0.5, 0.6, 0.9], divergence_threshold=0.8),
    case([0.5, 0.4, 0.1], mode="max", divergence_threshold=0.2),
    case([0.5, 0.9, NAN], stopping_threshold=0.1, divergence_threshold=0.8),
    case(WORSE_AFTER_4, check_on_train_epoch_end=True, patience=2),
    case(WORSE_AFTER_4, check_on_train_epoch_end=False, patience=2),
    case(WORSE_AFTER_4, {"val_check_interval": 2}, patience=2),
    case(WORSE_AFTER_4, {"val_check_interval": 2}, check_on_train_epoch_end=True, patience=2),
    case(WORSE_AFTER_4, {"check_val_every_n_epoch": 2}, patience=2),
    case(WORSE_AFTER_4, {"min_epochs": 9}, patience=1),
    case([0.5, 0.6, 0.4, 0.3, 0.2, *[0.1] * 10], {"min_epochs": 4}, patience=1),
    case(WORSE_AFTER_4, {"min_steps": 30}, patience=1),
    case([0.5, 0.6], {"fast_dev_run": True}, patience=0),
]


def stop(
    framework: Any,
    root: Path,
    values: list[float],
    trainer: dict[str, Any],
    arguments: dict[str, Any],
) -> dict[str, Any]:
    """Fit for at most 12 epochs; return where it stopped and what the callback holds."""
    callback = framework.callbacks.EarlyStopping("val_loss", **arguments)
    done = framework.Trainer(
        **{
            "max_epochs": 12,
            "callbacks": callback,
            "enable_checkpointing": False,
            "default_root_dir": root,
            **UNLOGGED,
            **trainer,
        }
    )
    done.fit(scripted(framework, values + [values[-1]] * 40), batches(), batches(2))
    names = (
        "stopped_epoch",
        "wait_count",
        "best_score",
        "patience",
        "min_delta",
        "stopping_reason_message",
        "state_key",
    )
    held = {name: getattr(callback, name) for name in names}
    # Lightning has the sign the wrong way round
    if callback.stopping_reason.name == "DIVERGENCE_THRESHOLD":
        callback.stopping_reason_message = held["stopping_reason_message"] = re.sub(
            "[<>]", "", callback.stopping_reason_message
        )
    return {
        **held,
        "reason": callback.stopping_reason.name,
        "epoch": done.current_epoch,
        "step": done.global_step,
        "state": callback.state_dict(),
    }


@pytest.mark.parametrize(("values", "trainer", "arguments"), CASES)
def test_stops_where_lightning_stops(
    values: Any, trainer: Any, arguments: Any, tmp_path: Path
) -> None:
    ours, theirs = both(
        lambda framework, root: stop(framework, root, values, trainer, arguments), tmp_path
    )
    assert ours == theirs


def test_signature_is_that_of_lightning() -> None:
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (EarlyStopping, lightning.pytorch.callbacks.EarlyStopping)
    )
    assert [(p.name, p.default) for p in ours.values()] == [
        (p.name, p.default) for p in theirs.values()
    ]


@pytest.mark.parametrize("values", [NOISY, [0.5, 0.4, NAN], [0.5, 0.1]])
@pytest.mark.parametrize("rank_zero_only", [True, False])
def test_what_verbose_says_is_what_lightning_says(
    values: Any, rank_zero_only: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def scenario(framework: Any, root: Path) -> list[str]:
        caplog.clear()
        logging.getLogger("raylit").addHandler(caplog.handler)
        with caplog.at_level(logging.INFO):
            arguments = {
                "verbose": True,
                "log_rank_zero_only": rank_zero_only,
                "stopping_threshold": 0.2,
            }
            stop(framework, root, values, {}, arguments)
        logging.getLogger("raylit").removeHandler(caplog.handler)
        return [
            record.getMessage() for record in caplog.records if "val_loss" in record.getMessage()
        ]

    ours, theirs = both(scenario, tmp_path)
    assert len(ours) >= 2
    assert ours == theirs


def fit(callback: Any, root: Path, values: list[float], **trainer: Any) -> pl.Trainer:
    done = pl.Trainer(
        **{"max_epochs": 12, "callbacks": callback, "default_root_dir": root, **UNLOGGED, **trainer}
    )
    ckpt_path = trainer.pop("ckpt_path", None)
    done.fit(scripted(pl, values), batches(), batches(2), ckpt_path=ckpt_path)
    return done


def test_a_metric_that_is_not_logged(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError,
        match=r"watches 'val_los', which was not logged. Logged so far: 'val_loss'.*strict=False",
    ):
        fit(EarlyStopping("val_los"), tmp_path, [0.5] * 20, max_epochs=2)
    with pytest.warns(RuntimeWarning, match="'val_los', which was not logged"):
        done = fit(
            EarlyStopping("val_los", strict=False, verbose=True), tmp_path, [0.5] * 20, max_epochs=2
        )
    assert done.current_epoch == 2


def test_a_metric_that_comes_later_is_an_error_as_in_lightning(tmp_path: Path) -> None:
    def scenario(framework: Any, root: Path) -> None:
        with pytest.raises(RuntimeError, match="val_loss"):
            stop(
                framework,
                root,
                [0.5],
                {"check_val_every_n_epoch": 2},
                {"check_on_train_epoch_end": True},
            )

    both(scenario, tmp_path)


def test_the_mode_is_checked() -> None:
    with pytest.raises(ConfigError, match="mode='auto'"):
        EarlyStopping("val_loss", mode="auto")


def test_the_count_goes_on_after_a_resumption(tmp_path: Path) -> None:
    def scenario(framework: Any, root: Path) -> list[Any]:
        found = []
        path = None
        for max_epochs, patience in ((3, 3), (20, 50)):  # the stored patience counts
            stopping = framework.callbacks.EarlyStopping("val_loss", patience=patience)
            saver = framework.callbacks.ModelCheckpoint(root / "ckpt")
            trainer = framework.Trainer(
                max_epochs=max_epochs,
                callbacks=[stopping, saver],
                default_root_dir=root,
                **UNLOGGED,
            )
            values = [0.5, 0.6, 0.6] if path is None else [0.6] * 30
            trainer.fit(scripted(framework, values), batches(), batches(2), ckpt_path=path)
            path = saver.best_model_path
            found += [trainer.current_epoch, stopping.state_dict()]
        return found

    ours, theirs = both(scenario, tmp_path)
    assert ours[2] == 4
    assert ours == theirs


def test_a_second_fit_may_go_on(tmp_path: Path) -> None:
    callback = EarlyStopping("val_loss", patience=1)
    trainer = fit(callback, tmp_path, [0.5, 0.6], enable_checkpointing=False)
    assert (trainer.current_epoch, callback.stopped_epoch) == (2, 1)
    trainer.fit(scripted(pl, [0.4, 0.3, 0.35]), batches(), batches(2))
    assert (trainer.current_epoch, callback.stopped_epoch) == (5, 4)


def test_the_checkpoint_of_the_last_epoch_knows_of_the_stop(tmp_path: Path) -> None:
    callback = EarlyStopping("val_loss", patience=1)
    fit([callback, ModelCheckpoint(tmp_path / "ckpt")], tmp_path, [0.5, 0.6])
    saved = torch.load(next((tmp_path / "ckpt").iterdir()), weights_only=True)["callbacks"][
        callback.state_key
    ]
    assert (saved["stopped_epoch"], saved["wait_count"]) == (1, 1)


def test_the_state_travels() -> None:
    callback = EarlyStopping("val_loss", patience=1, mode="max")
    callback._decide(torch.tensor(0.5))
    callback._decide(torch.tensor(0.4))
    copy = EarlyStopping("other")
    copy.__dict__.update(pickle.loads(pickle.dumps(callback.__getstate__())))
    assert copy.state_dict() == callback.state_dict()
    assert copy.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED


@pytest.mark.parametrize(
    ("current", "best", "arguments", "reason", "improved"),
    [
        (0.3, 0.4, {}, "NOT_STOPPED", True),
        (0.4, 0.4, {}, "NOT_STOPPED", False),
        (0.35, 0.4, {"min_delta": 0.1}, "NOT_STOPPED", False),
        (0.5, 0.4, {"wait_count": 2}, "PATIENCE_EXHAUSTED", False),
        (NAN, 0.4, {}, "NON_FINITE_METRIC", False),
        (NAN, 0.4, {"check_finite": False}, "NOT_STOPPED", False),
        (0.1, 0.4, {"stopping_threshold": 0.2}, "STOPPING_THRESHOLD", False),
        (0.9, 0.4, {"divergence_threshold": 0.8}, "DIVERGENCE_THRESHOLD", False),
        (0.5, 0.4, {"mode": "max"}, "NOT_STOPPED", True),
    ],
)
def test_the_decision_from_numbers_alone(
    current: float, best: float, arguments: Any, reason: str, improved: bool
) -> None:
    assert judge(current, best, **{"wait_count": 0, **arguments}) == (
        EarlyStoppingReason[reason],
        improved,
    )
