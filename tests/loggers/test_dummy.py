"""What takes the place of loggers in a dry run, and on ranks that write nothing."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from raylit.loggers.dummy import DummyExperiment, DummyLogger, Logger, rank_zero_experiment
from raylit.testing import TinyModel
from tests.quiet import trainer


def test_an_experiment_has_every_method_and_none_does_anything() -> None:
    experiment = DummyExperiment()
    assert experiment.add_scalar("loss", 1.0, global_step=3) is None  # type: ignore[func-returns-value]
    assert experiment[0]["images"].add_image("x", object()) is None  # type: ignore[func-returns-value]
    experiment["config/lr"] = 0.1  # as users of Neptune write
    assert vars(experiment) == {}, "what is set is not kept"


@pytest.mark.parametrize("kind", [DummyExperiment, DummyLogger])
def test_it_travels_to_other_processes(kind: type[Any]) -> None:
    """A `__getattr__` that answers to every name would also answer pickle and copy."""
    for other in (pickle.loads(pickle.dumps(kind())), copy.copy(kind()), copy.deepcopy(kind())):
        assert type(other) is kind
        assert other.anything(1, two=2) is None
    for name in ("__array__", "__torch_function__", "__iter__", "__html__"):
        assert not hasattr(kind(), name)  # else numpy, torch and notebooks took it for theirs


def test_a_logger_takes_whatever_loggers_take_and_keeps_nothing() -> None:
    logger = DummyLogger()
    assert isinstance(logger, Logger)
    assert (logger.name, logger.version, logger.save_dir, logger.log_dir) == ("", "", None, None)
    logger.open(default_root_dir="/nowhere", tags={"a": "b"})
    logger.log_metrics({"loss": float("nan")}, step=1)
    logger.log_metrics({"loss": 0.5})
    logger.log_hyperparams({"lr": 0.1}, metrics={"hp": 0})
    logger.log_image(key="samples", images=[object()])  # of W&B's, which no Logger has
    assert logger[3] is logger
    logger[0].experiment.add_image("x", None)
    assert logger.experiment is logger.experiment
    logger.save()
    logger.finalize("success")
    logger.close("success")
    assert logger.state_dict() == {}


def test_hyperparameters_are_a_mapping_and_no_method() -> None:
    """Callers go through `hparams_initial` of every logger."""
    assert dict(DummyLogger().hparams_initial) == {}


class Draws(TinyModel):
    """Logs in every way that a user may, to a logger that it takes for TensorBoard's."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logger: Any = self.logger
        logger.experiment.add_histogram("weights", batch, self.global_step)
        logger.watch(self)
        self.log_text("note.txt", "hello")
        return super().training_step(batch, batch_idx)


def test_a_module_that_logs_by_hand_runs_with_it(tmp_path: Path) -> None:
    fitted = trainer(tmp_path, logger=[DummyLogger()])
    fitted.fit(Draws())
    assert fitted.global_step == 4
    assert "val_loss" in fitted.callback_metrics
    assert not list(tmp_path.rglob("*.*"))


class Connects:
    """A logger whose connection may be opened once, by rank 0."""

    connections = 0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The connection."""
        self.connections += 1
        return f"connection {self.connections}"

    @rank_zero_experiment
    def connect(self) -> Any:
        """Return a connection that nobody has."""
        raise ConnectionError("no route")


@pytest.mark.parametrize("rank", ["1", "17"])
def test_other_ranks_get_an_experiment_that_does_nothing(
    monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    logger = Connects()
    assert logger.experiment == "connection 1"
    monkeypatch.setenv("RANK", rank)  # as launchers do, also once the logger is made
    assert isinstance(logger.experiment, DummyExperiment)
    assert isinstance(logger.connect(), DummyExperiment)
    assert logger.connections == 1
    monkeypatch.setenv("RANK", "0")
    assert logger.experiment == "connection 2"
    with pytest.raises(ConnectionError, match="no route"):
        logger.connect()


def test_a_decorated_experiment_keeps_its_name_and_text() -> None:
    assert Connects.connect.__name__ == "connect"
    assert Connects.connect.__doc__ == "Return a connection that nobody has."
