"""`Trainer(barebones=True)`, and arguments of the Trainer that come from the environment."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest

import raylit
from tests.parity.harness import errors, files, loader, model_class, parity, seen, traced_objects
from tests.parity.test_settings import READ, plain_value

# ---- barebones ----


def bare(pl: Any, root: Path, **arguments: Any) -> Any:
    return pl.Trainer(
        **{
            "barebones": True,
            "accelerator": "cpu",
            "max_epochs": 2,
            "default_root_dir": root,
            **arguments,
        }
    )


@parity
def test_barebones_leaves_out_what_costs_speed(pl: Any, tmp_path: Path) -> Any:
    trace: list[Any] = []
    model, data, watch = traced_objects(
        pl, trace, train=loader(3), val=loader(2), test=loader(2), predict=loader(1)
    )
    one = bare(pl, tmp_path, callbacks=[watch], accumulate_grad_batches=2, val_check_interval=2)
    one.fit(model, datamodule=data)
    found = {
        "fit": seen(one, model),
        "validate": one.validate(model, datamodule=data),
        "test": one.test(model, datamodule=data),
    }
    predicted = one.predict(model, datamodule=data)
    read = {
        name: plain_value(getattr(one, name))
        for name in [*READ, "barebones", "loggers", "checkpoint_callbacks", "progress_bar_callback"]
    }
    return {
        "trace": trace,
        "predicted": predicted,
        "files": files(tmp_path, "**/*"),
        "number": len(one.callbacks),
        **found,
        **read,
    }


@parity
@pytest.mark.parametrize(
    "where", ["training_step", "validation_step", "on_fit_start", "predict_step", "callback"]
)
def test_barebones_warns_of_what_is_logged(pl: Any, tmp_path: Path, where: str) -> Any:
    """Also where logging is an error otherwise."""

    class Logs(model_class(pl)):  # type: ignore[misc]
        def loss(self, batch: Any) -> Any:
            return self(batch).mean()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if where == "training_step":
                self.log("a", 1.0)
                self.log_dict({"b": 2.0, "c": 3.0})
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            if where == "validation_step":
                self.log("a", 1.0)

        def on_fit_start(self) -> None:
            if where == "on_fit_start":
                self.log("a", 1.0)

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            if where == "predict_step":
                self.log("a", 1.0)
            return batch

    class Watch(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, *args: Any) -> None:
            if where == "callback":
                self.log("a", 1.0)

    one, model = bare(pl, tmp_path, max_epochs=1, callbacks=[Watch()]), Logs()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one.fit(model, loader(2), loader(1))
        one.predict(model, loader(1))
    said = [warning.category.__name__ for warning in caught if "barebones" in str(warning.message)]
    return {"said": said, **seen(one, model)}


ASKED: list[dict[str, Any]] = [
    {"enable_checkpointing": True},
    {"logger": True},
    {"logger": []},
    {"enable_progress_bar": True},
    {"log_every_n_steps": 5},
    {"enable_model_summary": True},
    {"num_sanity_val_steps": 2},
    {"num_sanity_val_steps": -1},
    {"fast_dev_run": True},
    {"fast_dev_run": 3},
    {"detect_anomaly": True},
    {"profiler": "simple"},
]


@errors
@pytest.mark.parametrize("arguments", ASKED, ids=str)
def test_barebones_refuses_what_it_leaves_out(
    pl: Any, tmp_path: Path, arguments: dict[str, Any]
) -> Any:
    bare(pl, tmp_path, **arguments)


@pytest.mark.parametrize("arguments", ASKED, ids=str)
def test_barebones_names_both_arguments(tmp_path: Path, arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError) as error:
        bare(raylit, tmp_path, **arguments)
    assert f"Trainer(barebones=True, {name}={value!r})" in str(error.value)


@parity
def test_what_barebones_allows_because_it_is_off(pl: Any, tmp_path: Path) -> Any:
    off = {
        "enable_checkpointing": False,
        "logger": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 0,
        "enable_model_summary": False,
    }
    one = bare(
        pl,
        tmp_path,
        **off,
        num_sanity_val_steps=0,
        fast_dev_run=0,
        detect_anomaly=False,
        profiler=None,
    )
    one.fit(model_class(pl)(), loader(2), loader(1))
    return seen(one)


@errors
def test_a_callback_that_needs_a_logger_in_barebones(pl: Any, tmp_path: Path) -> Any:
    bare(pl, tmp_path, callbacks=[pl.callbacks.LearningRateMonitor()]).fit(
        model_class(pl)(), loader(2)
    )


# ---- the environment ----

VARIABLES: dict[str, str] = {
    "MAX_EPOCHS": "3",
    "MIN_EPOCHS": "1",
    "LIMIT_TRAIN_BATCHES": "0.5",
    "LIMIT_VAL_BATCHES": "1",
    "VAL_CHECK_INTERVAL": "1.0",
    "GRADIENT_CLIP_VAL": "0.1",
    "GRADIENT_CLIP_ALGORITHM": "value",
    "ACCUMULATE_GRAD_BATCHES": "2",
    "NUM_SANITY_VAL_STEPS": "0",
    "PRECISION": "bf16-mixed",
    "ENABLE_PROGRESS_BAR": "False",
    "ENABLE_MODEL_SUMMARY": "False",
    "ENABLE_CHECKPOINTING": "False",
    "LOGGER": "False",
    "MAX_TIME": "00:01:00:00",
    "ACCELERATOR": "cpu",
    "DETERMINISTIC": "None",
    "DEVICES": "1",
    "CHECK_VAL_EVERY_N_EPOCH": "2",
    "LOG_EVERY_N_STEPS": "",
    "NO_SUCH_ARGUMENT": "7",
}
VALUES = [name for name in READ if name != "min_epochs"] + ["precision", "barebones"]


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("PL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def of_environment(pl: Any, root: Path, **arguments: Any) -> Any:
    one = pl.Trainer(default_root_dir=root, **arguments)
    one.fit(model_class(pl)(), loader(4), loader(2))
    read = {name: plain_value(getattr(one, name)) for name in VALUES}
    return {
        **read,
        **seen(one),
        "timer": any(isinstance(callback, pl.callbacks.Timer) for callback in one.callbacks),
        "files": files(root),
    }


@parity
def test_arguments_from_the_environment(pl: Any, tmp_path: Path) -> Any:
    # The harness restores the environment
    os.environ.update({f"PL_TRAINER_{name}": value for name, value in VARIABLES.items()})
    return of_environment(pl, tmp_path)


@parity
def test_arguments_that_are_given_win_over_the_environment(pl: Any, tmp_path: Path) -> Any:
    os.environ.update({f"PL_TRAINER_{name}": value for name, value in VARIABLES.items()})
    return of_environment(
        pl,
        tmp_path,
        max_epochs=1,
        limit_train_batches=1.0,
        gradient_clip_val=None,
        precision="32-true",
        max_time=None,
    )


@parity
def test_a_variable_is_read_as_python(pl: Any, tmp_path: Path) -> Any:
    found = {}
    for name, value in [
        ("MAX_TIME", "{'minutes': 1}"),
        ("LIMIT_TRAIN_BATCHES", "2"),
        ("LIMIT_TRAIN_BATCHES", "1.0"),
        ("MAX_STEPS", "0b11"),
        ("BAREBONES", "True"),
        ("FAST_DEV_RUN", "2"),
        ("CHECK_VAL_EVERY_N_EPOCH", "None"),
        ("DEVICES", "'auto'"),
    ]:
        os.environ[f"PL_TRAINER_{name}"] = value
        more = (
            {}
            if name == "BAREBONES"
            else {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        )
        one = pl.Trainer(
            default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, val_check_interval=1, **more
        )
        found[f"{name}={value}"] = [
            [plain_value(getattr(one, name)), type(getattr(one, name)).__name__]
            for name in VALUES
            if name != "fast_dev_run"
        ]
        del os.environ[f"PL_TRAINER_{name}"]
    return found


@parity
def test_a_subclass_has_variables_of_its_own(pl: Any, tmp_path: Path) -> Any:
    class Mine(pl.Trainer):  # type: ignore[misc]
        def __init__(self, max_epochs: int = 4, **kwargs: Any) -> None:
            super().__init__(max_epochs=max_epochs, **kwargs)

    found = []
    for variable in ("PL_TRAINER_MAX_STEPS", "PL_TRAINER_MAX_EPOCHS", "PL_MINE_MAX_EPOCHS"):
        os.environ[variable] = "2"
        one = Mine(default_root_dir=tmp_path, accelerator="cpu", logger=False)
        found.append([one.max_steps, one.fit_loop.max_epochs])
        del os.environ[variable]
    return {"found": found}


BAD = {
    "MAX_EPOCHS": ["abc", "-2", "[1]"],
    "MAX_STEPS": ["many"],
    "LIMIT_TRAIN_BATCHES": ["half", "1.5"],
    "PRECISION": ["33"],
    "DEVICES": ["nothing"],
    "ACCUMULATE_GRAD_BATCHES": ["0"],
    "GRADIENT_CLIP_VAL": ["'1'"],
    "ENABLE_PROGRESS_BAR": ["false"],
    "CALLBACKS": ["EarlyStopping"],
    "LOGGER": ["csv"],
    "MIN_STEPS": ["abc"],
    "ACCELERATOR": ["coal"],
    "PROFILER": ["nothing"],
    "DETECT_ANOMALY": ["yes"],
    "MAX_TIME": ["12"],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts]
)
def test_a_bad_variable_is_named(
    tmp_path: Path, variables: pytest.MonkeyPatch, name: str, text: str
) -> None:
    variables.setenv(f"PL_TRAINER_{name}", text)
    with pytest.raises((ValueError, TypeError)) as error:
        raylit.Trainer(default_root_dir=tmp_path)
    assert f"PL_TRAINER_{name}={text}" in str(error.value)


def test_an_error_that_no_variable_has_to_do_with_names_none(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("PL_TRAINER_MAX_EPOCHS", "abc")
    with pytest.raises(ValueError, match="devices") as error:
        raylit.Trainer(max_epochs=1, devices=0)
    assert "PL_TRAINER" not in str(error.value)
