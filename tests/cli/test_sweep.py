from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zlib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from raylit.cli import sweep
from raylit.cli.config import CommandReader, parse
from raylit.cli.source import ConfigSource
from raylit.cli.sweep import ConfigRecipe, _plain
from raylit.errors import ConfigError
from raylit.runtime.masked_config import mask_config
from raylit.tune import SweepResult, SweepSpec
from raylit.tune.record import FILE
from raylit.tune.result import TrialResult
from raylit.tune.space import read_space
from tests.deadlines import stretched
from tests.lazy import mlflow, ray

from .conftest import LAB, Done, environment, run_raylit

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
            (
                "sweep.yaml, line 5: data.batch_size: 'gird' is no word of a space. Did you mean"
                " 'grid'?"
            ),
        ),
        (
            "data.batch_size: {grid: [32, 442]}",
            "data.batch_size: {uniform: [8, 64]}",
            "sweep.yaml, line 5: data.batch_size is ",
        ),
        (
            "max_concurrent",
            "max_concurent",
            (
                "sweep.yaml, line 7: A sweep has no setting 'max_concurent'. Did you mean"
                " 'max_concurrent'?"
            ),
        ),
        (
            "model.lr",
            "lr",
            "sweep.yaml, line 4: The key 'lr' of the space does not say whose argument it is.",
        ),
        (
            "mode: min",
            "mod: max",
            "sweep.yaml, line 2: metric has no key 'mod'. Did you mean 'mode'?",
        ),
        (
            "trainer.max_epochs: 3",
            "trainer.callbacks.EarlyStoping.patience: 3",
            "sweep.yaml, line 6: trainer.callbacks.EarlyStoping: the config has no such one.",
        ),
        (
            "model.lr: {choice: [0.05, 0.000001]}",
            "model: {choice: [{class_path: lab.Net, init_args: {lrr: {uniform: [0, 1]}}}]}",
            "sweep.yaml, line 4: model.init_args.lrr: Net has no argument 'lrr'.",
        ),
        (
            "max_concurrent: 2",
            "resources: {cpu: 1}",
            "sweep.yaml, line 7: resources: 'cpu': did you mean 'CPU'?",
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


def test_a_flag_that_fixes_what_is_swept_is_refused(main: Callable[..., Done], lab: Path) -> None:
    (lab / "sweep.yaml").write_text(SWEEP)
    done = main("tune", *GOOD, "--model.lr", "0.1", "--sweep", "sweep.yaml")
    assert done.code == 2
    assert "--model.lr fixes what the sweep varies (sweep.yaml, line 4)" in done.err


def recipe(*args: str) -> ConfigRecipe:
    given = [*GOOD, *args]
    return ConfigRecipe(
        _plain(parse("tune", given)), given, ".", ConfigSource("sweep.yaml", {}), CommandReader()
    )


def test_values_that_fit_are_accepted(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(lab)
    space = {
        "model.lr": ray.tune.loguniform(1e-6, 1),
        "model.width": ray.tune.randint(1, 9),
        "data.batch_size": ray.tune.grid_search([1, 2]),
        "model.encoder": None,
    }
    recipe().check(space)
    recipe("--model=lab.Activated").check(
        {"model.activation": ray.tune.choice(["torch.nn.ReLU", "torch.nn.Tanh"])}
    )
    with pytest.raises(ConfigError, match=r"sweep.yaml: model.width is 8.\d+, but must be int"):
        recipe().check({"model.width": ray.tune.uniform(8.1, 8.9)})


def test_each_trial_makes_objects_of_its_own(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(lab)
    (lab / "stopping.yaml").write_text(
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: val_loss,"
        " divergence_threshold: .inf}}]}"
    )
    args = (
        "--model.encoder=torch.nn.LayerNorm",
        "--model.encoder.normalized_shape=4",
        "--optimizer=SGD",
        "--optimizer.lr=0.5",
        "--config=stopping.yaml",
    )
    make = ray.cloudpickle.loads(ray.cloudpickle.dumps(recipe(*args)))
    one = make({"model.lr": 0.5, "trainer.callbacks.EarlyStopping.patience": 9})
    other = make({"model.lr": 0.25, "model.encoder.eps": 0.125, "optimizer.lr": 0.75})
    assert (one.model.lr, other.model.lr) == (0.5, 0.25)
    assert one.model.net[0] is not other.model.net[0]
    assert (one.model.net[2].eps, other.model.net[2].eps) == (1e-5, 0.125)
    assert other.model.hparams["encoder"]["init_args"]["eps"] == 0.125
    assert one.model.configure_optimizers().defaults["lr"] == 0.5
    assert other.model.configure_optimizers().defaults["lr"] == 0.75
    assert one.trainer.early_stopping_callback.patience == 9
    assert one.trainer.early_stopping_callback.divergence_threshold == math.inf
    assert other.trainer.early_stopping_callback.patience == 3
    chosen = make(read_space({"model": {"class_path": "lab.Bare", "init_args": {"width": 6}}}))
    assert type(chosen.model).__name__ == "Bare" and chosen.model.net[0].out_features == 6


def test_texts_stay_what_they_are_beside_others(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(lab)
    (lab / "lab.py").write_text(
        LAB + "class Tagged(Activated):\n"
        "    def __init__(self, tags: dict[str, str] | None = None, **kwargs):\n"
        "        super().__init__(**kwargs)\n        self.tags = tags\n"
    )
    make = recipe("--model=lab.Tagged", "--model.tags={kept: y, a: x}")
    texts = {"model.name": "off", "model.tags.a": "1.10", "model.tags.b": "null"}
    model = make({**texts, "model.lr": math.inf}).model
    assert (model.name, model.lr) == ("off", math.inf)
    assert model.tags == {"kept": "y", "a": "1.10", "b": "null"}
    # a script's config, whose class is told
    (lab / "own.yaml").write_text("model: {width: 6}\n")
    told = recipe("--model=lab.Tagged", "--config=own.yaml")
    told.check({"model.name": ray.tune.choice(["off", "1.10"])})


def test_the_fit_after_a_sweep_has_the_secrets_of_its_config(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also though the kept config of the best trial has none."""
    monkeypatch.syspath_prepend(lab)
    (lab / "lab.py").write_text(
        LAB + "class Keyed(Net):\n    def __init__(self, api_key: str, **kwargs):\n"
        "        super().__init__(**kwargs)\n        print('made with', api_key, self.lr)\n"
    )
    keyed = recipe("--model=lab.Keyed", "--model.api_key=hunter2", "--trainer.logger=false")
    best = TrialResult("trial-000", {"model.lr": 0.5}, score=1.0, epoch=0)
    spec = SweepSpec({"model.lr": 0.5}, metric="val_loss", mode="min", seed=3)
    result = SweepResult(spec, [best], best_config="best.yaml")
    result.best_values = best.config
    (lab / "best.yaml").write_text(mask_config(keyed.best_config(best.config, 3)))
    options = Namespace(retrain="train", behind_retrain=["--trainer.limit_train_batches=1"])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        sweep._retrain(keyed, result, options, CommandReader())
    assert "made with hunter2 0.5" in said.getvalue()
    assert "raylit test --config best.yaml" in said.getvalue()


@pytest.mark.ray
@pytest.mark.slow
def test_tune_runs_the_trials_of_the_sweep_file(
    lab: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab)
    monkeypatch.syspath_prepend(lab)
    (lab / "sweep.yaml").write_text(
        SWEEP.replace("{choice: [0.05, 0.000001]}", "{grid: [0.05, 0.000001]}").replace(
            "{grid: [32, 442]}", "64"
        )
    )
    logger = ("--trainer.logger=MLFlowLogger", "--trainer.logger.experiment_name=swept")
    done = run_raylit(
        lab,
        "tune",
        *GOOD,
        *logger,
        *("--sweep", "sweep.yaml", "--ray.address", ray_cluster),
        *("--retrain", "--trainer.max_epochs", "4"),
    )
    assert done.code == 0, done
    assert "--trainer.max_epochs is not used: sweep.yaml, line 6 gives 3" in done.err
    assert "val_loss" in done.out and "model.lr" in done.out.replace("\n", "")
    assert "--model.lr=0.05 --data.batch_size=64 --trainer.max_epochs=3" in done.out, (
        "the higher rate is the better one"
    )
    sweep, retrained = done.out.split("next ", 1)
    assert "importance" not in sweep, "two trials cannot tell"
    fit = retrained.splitlines()[0].split()
    assert fit[:3] == ["raylit", "fit", "--config"]
    assert "4 epochs, 56 steps" in retrained, "2 x 442 rows in batches of 64, 4 times"
    assert fit[-2:] == ["--ray.address", ray_cluster], "on the same cluster"
    best = parse("fit", fit[2:-2]).values
    assert (best.model.init_args.lr, best.trainer.max_epochs) == (0.05, 3)
    client = mlflow.MlflowClient(f"sqlite:///{lab}/mlflow.db")
    experiment = client.get_experiment_by_name("swept")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    trials = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) == 4 and sorted(float(run.data.params["lr"]) for run in trials) == [
        0.000001,
        0.05,
    ]
    epochs = {len(client.get_metric_history(run.info.run_id, "val_loss")) for run in trials}
    assert epochs == {3}, "trainer.max_epochs of the space wins over the flag"
    view = next(
        experiment.tags[key] for key in experiment.tags if key.startswith("mlflow.sharedViewState.")
    )
    packed = base64.b64decode(view.removeprefix("deflate;"))
    (chart,) = json.loads(zlib.decompress(packed))["compareRunCharts"]
    assert (chart["selectedParams"], chart["selectedMetrics"]) == (["model.lr"], ["val_loss"])
    shared = next(key for key in experiment.tags if key.startswith("mlflow.sharedViewState."))
    assert f"viewStateShareKey={shared.rpartition('.')[2]}" in sweep


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (("--auto", "--sweep", "sweep.yaml"), "--auto makes the sweep file that --sweep names."),
        (("--budget", "1h", "--sweep", "sweep.yaml"), "--budget belongs to --auto."),
        (("--average", "3", "--sweep", "sweep.yaml"), "--average belongs to --auto."),
        (("--auto", "--budget", "soon"), "--budget soon: give a time such as 10m."),
        (("--auto", "--average", "0"), "--average 0: give how many, at least 1."),
        (("--sweep", "sweep.yaml", "--retrain", "trian"), "Did you mean 'train'?"),
        (("--sweep", "sweep.yaml", "--retrain", "--trainer.max_epoch", "3"), "max_epochs"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    main: Callable[..., Done], lab: Path, flags: tuple[str, ...], wanted: str
) -> None:
    (lab / "sweep.yaml").write_text(SWEEP)
    done = main("tune", *GOOD, *flags)
    assert done.code == 2
    assert wanted in done.err and done.err.count("\n") == 1, done.err
    assert not (lab / "auto.yaml").exists() and not (lab / "raylit_runs").exists()


@pytest.mark.ray
@pytest.mark.long
def test_the_line_that_goes_on_with_a_sweep_runs_as_it_stands(lab: Path, ray_cluster: str) -> None:
    (lab / "sweep.yaml").write_text(
        "space: {model.lr: {uniform: [0.01, 0.1]}}\nmetric: val_loss\ntrials: 9\n"
    )
    flags = [*GOOD, "--trainer.max_epochs=9", "--model.delay_s=0.05", "--ray.address", ray_cluster]
    flags += ["--sweep", "sweep.yaml", "--sweep.trials", "2", "--retrain", "train"]
    process = subprocess.Popen(
        [sys.executable, "-m", "raylit", "tune", *flags, "--model.width=5"],
        cwd=lab,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + stretched(60)
        while not list(lab.rglob("epoch=*.ckpt")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=stretched(60))
    finally:
        process.kill()
    assert process.returncode == 130, (out, err)
    (line,) = [one.strip() for one in err.splitlines() if one.startswith("  raylit tune ")]
    assert f" --ray.address {ray_cluster} --retrain train --model.width=5" in line
    done = run_raylit(lab, *shlex.split(line)[1:])
    assert done.code == 0 and "Resuming: " in done.err, done
    table, _, rest = done.out.partition("best ")
    assert len(re.findall(r"trial-00\d .* finished", done.out)) == 2 and "next " in rest, table


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(stretched(300))
def test_auto_makes_a_sweep_file_and_tests_the_best_in_its_own_run(
    digits: Path, tmp_path: Path, ray_cluster: str
) -> None:
    here = tmp_path / "here"
    for name in ("configs", "examples"):
        shutil.copytree(digits / name, here / name)
    flags = ("--config", "configs/digits.yaml", "--trainer.default_root_dir", str(tmp_path))
    done = run_raylit(
        here, "tune", "--auto", *flags, "--budget", "60s", "--ray.address", ray_cluster
    )
    assert done.code == 0, done
    assert (here / "auto.yaml").is_file()
    found = re.search(r"^test +(trial-\d+): .*test_acc ([\d.]+)$", done.out, re.MULTILINE)
    assert found and float(found[2]) > 0.9, done
    assert not (here / "mlflow.db").exists(), "all is in the store of the sweep"
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    ids = [one.experiment_id for one in client.search_experiments()]
    tested = [one for one in client.search_runs(ids) if "test_acc" in one.data.metrics]
    assert [one.info.run_name for one in tested] == [found[1]]
    assert f"{tested[0].data.metrics['test_acc']:.4g}" == found[2]


def test_resume_without_a_name_is_the_newest_that_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ends = {"first": "killed", "second": None, "third": "success", "fourth": "left"}
    for number, (name, end) in enumerate(ends.items()):
        folder = tmp_path / "raylit_runs" / name
        folder.mkdir(parents=True)
        lines = [{"sweep": {"sweep": "lr"}}] + ([{"closed": end}] if end else [])
        record = folder / FILE
        record.write_text("\n".join(map(json.dumps, lines)) + "\n")
        os.utime(record, (1e9 + number, 1e9 + number))
        (folder / "config.yaml").write_text("{}")
        if name != "fourth":  # one that was run in Python
            (folder / "sweep.yaml").write_text("{}")
    assert sweep._newest_left([]) == os.path.join("raylit_runs", "second")
    root = ["--trainer.max_epochs", "3", "--trainer.default_root_dir", str(tmp_path)]
    assert sweep._newest_left(root) == str(tmp_path / "raylit_runs" / "second")
    args, file = sweep._files_of("first", root)
    assert args == ["--config", str(tmp_path / "raylit_runs/first/config.yaml"), *root]
    assert file == str(tmp_path / "raylit_runs/first/sweep.yaml")
    with pytest.raises(ConfigError, match=r"no sweep in .* is left to go on with"):
        sweep._newest_left(["--trainer.default_root_dir=elsewhere"])
