from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raylit.cli.config import parse
from raylit.cli.source import Source
from raylit.cli.sweep import Component, check_space
from raylit.errors import ConfigError
from tests.lazy import mlflow, ray

from .conftest import Done, run_raylit

GOOD = (
    "--model",
    "lab.Net",
    "--data",
    "lab.Diabetes",
    "--trainer.max_epochs",
    "2",
    "--trainer.enable_progress_bar",
    "false",
)
SWEEP = """\
name: widths
metric: {name: val_loss, mode: min}
space:
  model.lr: {choice: [0.05, 0.000001]}
  data.batch_size: {grid: [32, 442]}
  trainer.max_epochs: 3
max_concurrent: 2
"""


@pytest.mark.parametrize(
    ("right", "wrong", "wanted"),
    [
        (
            "model.lr",
            "model.lrr",
            "sweep.yaml, line 4: model.lrr: Net has no argument 'lrr'. Did you mean 'model.lr'?",
        ),
        ("0.000001", "slow", "sweep.yaml, line 4: model.lr is 'slow', but must be float."),
        (
            "[32, 442]",
            "[32, many]",
            "sweep.yaml, line 5: data.batch_size is 'many', but must be int.",
        ),
        (
            "max_epochs",
            "max_epoch",
            (
                "sweep.yaml, line 6: trainer.max_epoch: Trainer has no argument 'max_epoch'. Did"
                " you mean 'trainer.max_epochs'?"
            ),
        ),
        (
            "grid:",
            "gird:",
            "sweep.yaml: data.batch_size: 'gird' is no word of a space. Did you mean 'grid'?",
        ),
        (
            "data.batch_size: {grid: [32, 442]}",
            "data.batch_size: {uniform: [8, 64]}",
            "sweep.yaml, line 5: data.batch_size is ",
        ),
        (
            "max_concurrent",
            "max_concurent",
            "sweep.yaml: A sweep has no setting 'max_concurent'. Did you mean 'max_concurrent'?",
        ),
        (
            "model.lr",
            "optimizer.lr",
            "The key 'optimizer.lr' of the space does not say whose argument it is.",
        ),
    ],
)
def test_a_sweep_file_is_checked_against_the_config(
    main: Callable[..., Done], lab: Path, right: str, wrong: str, wanted: str
) -> None:
    assert right in SWEEP
    (lab / "sweep.yaml").write_text(SWEEP.replace(right, wrong))
    done = main("tune", *GOOD, "--sweep", "sweep.yaml")
    assert done.code == 2
    assert wanted in done.err and done.err.count("\n") == 1, done.err


def test_values_that_fit_are_accepted(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(lab)
    space = {
        "model.lr": ray.tune.loguniform(1e-6, 1),
        "model.width": ray.tune.randint(1, 9),
        "data.batch_size": ray.tune.grid_search([1, 2]),
        "model.encoder": None,
    }
    check_space(parse("tune", GOOD), list(GOOD), Source("sweep.yaml", {}), space)
    with pytest.raises(ConfigError, match=r"sweep.yaml: model.width is 8.\d+, but must be int"):
        check_space(
            parse("tune", GOOD),
            list(GOOD),
            Source("sweep.yaml", {}),
            {"model.width": ray.tune.uniform(8.1, 8.9)},
        )


def test_each_trial_makes_objects_of_its_own(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(lab)
    encoder = (
        "--model.encoder=torch.nn.LayerNorm",
        "--model.encoder.normalized_shape=4",
        "--optimizer=SGD",
        "--optimizer.lr=0.5",
    )
    factory = ray.cloudpickle.loads(
        ray.cloudpickle.dumps(Component(parse("tune", [*GOOD, *encoder]), "model"))
    )
    one, other = factory(lr=0.5), factory(lr=0.25, **{"encoder.eps": 0.125})
    assert (one.lr, other.lr) == (0.5, 0.25)
    assert one.net[0] is not other.net[0]
    assert (one.net[2].eps, other.net[2].eps) == (1e-5, 0.125)
    assert other.hparams["encoder"]["init_args"]["eps"] == 0.125
    assert one.configure_optimizers().defaults["lr"] == 0.5


@pytest.mark.ray
@pytest.mark.slow
def test_tune_runs_the_trials_of_the_sweep_file(lab: Path, ray_cluster: str) -> None:
    (lab / "sweep.yaml").write_text(
        SWEEP.replace("{choice: [0.05, 0.000001]}", "{grid: [0.05, 0.000001]}").replace(
            "{grid: [32, 442]}", "64"
        )
    )
    logger = ("--trainer.logger=MLFlowLogger", "--trainer.logger.experiment_name=swept")
    done = run_raylit(
        lab, "tune", *GOOD, *logger, "--sweep", "sweep.yaml", "--ray.address", ray_cluster
    )
    assert done.code == 0, done
    assert "val_loss" in done.out and "model.lr" in done.out.replace("\n", "")
    assert "--model.lr=0.05 --data.batch_size=64 --trainer.max_epochs=3" in done.out, (
        "the higher rate is the better one"
    )
    client = mlflow.MlflowClient(f"sqlite:///{lab}/mlflow.db")
    experiment = client.get_experiment_by_name("swept")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    trials = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) == 3 and sorted(float(run.data.params["lr"]) for run in trials) == [
        0.000001,
        0.05,
    ]
    epochs = {len(client.get_metric_history(run.info.run_id, "val_loss")) for run in trials}
    assert epochs == {3}, "trainer.max_epochs of the space wins over the flag"
