from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator

from raylit.errors import ConfigError
from raylit.tune.schedule import check_together
from raylit.tune.spec import SweepSpec


class Population:
    """Trials of Ray Tune and their scheduler, without the processes that would train them."""

    def __init__(self, name: str, number: int) -> None:
        spec = SweepSpec.from_dict(
            {
                "metric": "val_loss",
                "space": {"model.lr": {"uniform": [0.0, 1.0]}},
                "scheduler": {
                    "name": name,
                    "perturbation_interval": 1,
                    "synch": True,
                    "log_config": False,
                },
            }
        )
        self.scheduler: Any = spec.make_scheduler(max_epochs=9)
        self.scheduler.set_search_properties("val_loss", "min")
        self.search_alg = BasicVariantGenerator()
        self.trials = [
            Trial("none", stub=True, config={"model.lr": 0.1 * one}) for one in range(number)
        ]
        for trial in self.trials:
            self.scheduler.on_trial_add(self, trial)

    def get_trials(self) -> list[Trial]:
        return self.trials

    def get_live_trials(self) -> list[Trial]:
        return [trial for trial in self.trials if not trial.is_finished()]

    def pause_trial(self, trial: Trial, should_checkpoint: bool) -> None:
        trial.set_status(Trial.PAUSED)

    def report(self, number: int, time: int) -> None:
        """Let a trial report, and pause if it is to wait for the others."""
        trial = self.trials[number]
        trial.set_status(Trial.RUNNING)
        result = {"training_iteration": time, "val_loss": float(number), "time_total_s": time}
        if self.scheduler.on_trial_result(self, trial, result) == "PAUSE":
            trial.set_status(Trial.PAUSED)

    def chosen(self) -> int | None:
        trial = self.scheduler.choose_trial_to_run(self)
        return None if trial is None else self.trials.index(trial)


@pytest.mark.parametrize("name", ["pbt", "pb2"])
@pytest.mark.parametrize("end", [Trial.ERROR, Trial.TERMINATED])
def test_a_population_does_not_wait_for_a_trial_that_is_gone(name: str, end: str) -> None:
    population = Population(name, 3)
    population.report(0, 1)
    population.report(1, 1)
    assert population.chosen() == 2
    population.trials[2].set_status(Trial.RUNNING)
    assert population.chosen() is None, "the third has still to report"
    population.trials[2].set_status(end)
    assert population.chosen() in (0, 1)
    population.report(0, 2)
    assert population.chosen() == 1, "the first waits for the second again"


def test_a_population_goes_on_after_one_trial_was_ahead(tmp_path: Path) -> None:
    """The other, which is worse, goes on from its checkpoint, and then none was behind."""
    population = Population("pbt", 2)
    population.report(0, 2)
    manager = population.trials[0].run_metadata.checkpoint_manager
    manager._latest_checkpoint_result = _TrainingResult(Checkpoint(str(tmp_path)), {})
    population.report(1, 1)
    assert population.scheduler._trial_state[population.trials[1]].last_train_time == 2
    assert population.chosen() is not None


@pytest.mark.parametrize(("name", "known"), [("pbt", "PopulationBasedTraining"), ("pb2", "PB2")])
def test_messages_name_the_class_that_ray_has(name: str, known: str) -> None:
    scheduler = Population(name, 1).scheduler
    search = SweepSpec.from_dict(
        {"metric": "a", "space": {"model.lr": {"uniform": [0, 1]}}, "search": "optuna"}
    ).make_search()
    with pytest.raises(ConfigError, match=f"scheduler: {known} draws"):
        check_together(search, scheduler)
