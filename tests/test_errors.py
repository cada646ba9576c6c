from __future__ import annotations

import pickle

import pytest

from raylit import errors
from raylit.errors import (
    MissingPackageError,
    RaylitError,
    Stopped,
    Terminated,
    TrainingSpikeException,
    did_you_mean,
)
from raylit.utilities.exceptions import MisconfigurationException


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigError", ValueError),
        ("DataError", ValueError),
        ("CheckpointError", RuntimeError),
        ("LaunchError", RuntimeError),
        ("MissingPackageError", ImportError),
        ("TrainingSpikeException", RuntimeError),
    ],
)
def test_every_error_is_raylits_and_pythons(name: str, builtin: type[Exception]) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, RaylitError)
    assert issubclass(kind, builtin)
    assert name in (errors.__doc__ or ""), "the tree in the docstring is whole"


def test_lightnings_name_for_a_config_error() -> None:
    assert MisconfigurationException is errors.ConfigError


@pytest.mark.parametrize(
    ("extra", "command"), [(None, "pip install optuna"), ("tune", "pip install 'raylit[tune]'")]
)
def test_a_missing_package_says_how_to_install_it_also_from_another_process(
    extra: str | None, command: str
) -> None:
    error = MissingPackageError("optuna", "search='optuna'", extra)
    assert (
        str(error)
        == f"search='optuna' needs the package optuna, which is not installed. Run: {command}"
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_spike_comes_whole_from_another_process() -> None:
    error = TrainingSpikeException(7)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert "batch 7" in str(error)


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("max_epoch", " Did you mean 'max_epochs'?"),
        ("max_epochs", " Did you mean 'max_epochs'?"),
        ("xyz", ""),
    ],
)
def test_the_nearest_name(word: str, answer: str) -> None:
    assert did_you_mean(word, ["min_epochs", "max_epochs", "max_steps"]) == answer


def test_exit_codes() -> None:
    assert (Terminated().code, Stopped().code) == (143, 0)
    assert not issubclass(Terminated, Exception), "a user's `except Exception` does not catch it"
