"""fit, validate, test and predict as a user runs them, each in a process of its own."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import yaml

from tests.actors import left_of_fits
from tests.deadlines import stretched
from tests.lazy import mlflow

from .conftest import Done, environment, run_raylit

CONFIG = ("--config", "configs/digits.yaml")
Trained = tuple[Path, Done]


def shown(done: Done, name: str) -> str:
    """The value of one row of the summary."""
    found = re.search(rf"^{re.escape(name)} +(.+)$", done.out, re.MULTILINE)
    assert found, f"no {name} in\n{done}"
    return found[1]


def newest_run(folder: Path, experiment: str) -> mlflow.entities.Run:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"])[0]


def test_fit_trains_and_says_what_came_out(trained: Trained) -> None:
    folder, done = trained
    assert done.code == 0, done
    assert "raylit fit: LitDigits on DigitsData, up to 15 epochs, in this process (cpu)" in done.err
    assert float(shown(done, "best val_acc")) >= 0.97
    assert re.fullmatch(r"\d+ epochs, \d+ steps in .+", shown(done, "done"))
    checkpoint = folder / shown(done, "checkpoint")
    assert torch.load(checkpoint, weights_only=True)["global_step"] > 0
    assert (
        shown(done, "next")
        == f"raylit test --config configs/digits.yaml --ckpt_path {shown(done, 'checkpoint')}"
    )
    assert shown(done, "look at it").startswith("raylit ui ")


def test_fit_is_recorded_in_mlflow_with_its_config(trained: Trained) -> None:
    folder, done = trained
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run_id = shown(done, "look at it").partition("/runs/")[2].partition("?")[0]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["width"] == "32"
    history = client.get_metric_history(run_id, "val_acc")
    assert len(history) > 3
    assert max(metric.value for metric in history) == pytest.approx(
        float(shown(done, "best val_acc")), abs=1e-6
    )
    kept = [path for path in Path(urlsplit(run.info.artifact_uri).path).parent.rglob("config.yaml")]
    assert len(kept) == 1
    assert yaml.safe_load(kept[0].read_text())["model"]["init_args"] == {
        "width": 32,
        "lr": 0.003,
        "dropout": 0.1,
    }


def test_validate_finds_the_value_of_the_best_checkpoint(trained: Trained) -> None:
    folder, fitted = trained
    done = run_raylit(
        folder,
        "validate",
        *CONFIG,
        "--ckpt_path",
        "best",
        "--trainer.logger",
        "false",
        "--trainer.callbacks",
        "null",
    )
    assert done.code == 0, done
    found = re.search(r"│ val_acc +│ ([\d.]+)", done.out)
    assert found, done
    assert float(found[1]) == pytest.approx(float(shown(fitted, "best val_acc")), abs=1e-5)


def test_test_and_predict_agree_on_the_checkpoint(trained: Trained) -> None:
    folder, fitted = trained
    checkpoint = shown(fitted, "checkpoint")
    tested = run_raylit(folder, *shown(fitted, "next").split()[1:])
    assert tested.code == 0, tested
    found = re.search(r"│ test_acc +│ ([\d.]+)", tested.out)
    assert found, tested
    predicted = run_raylit(
        folder, "predict", *CONFIG, "--ckpt_path", checkpoint, "--output", "predictions.pt"
    )
    assert predicted.code == 0, predicted
    assert shown(predicted, "done") == "360 predictions in 2 batches"
    assert shown(predicted, "kept in").startswith("predictions.pt")
    classes = torch.cat(torch.load(folder / "predictions.pt", weights_only=True))
    order = torch.utils.data.random_split(
        range(1797), [1077, 360, 360], torch.Generator().manual_seed(0)
    )[2].indices  # type: ignore[arg-type,var-annotated]
    from sklearn.datasets import load_digits

    labels = torch.tensor(load_digits(return_X_y=True)[1])[order]
    accuracy = (classes == labels).float().mean().item()
    assert accuracy > 0.95
    assert accuracy == pytest.approx(float(found[1]), abs=1e-5)


def test_a_checkpoint_brings_the_arguments_of_its_model(
    lab: Path, main: Callable[..., Done]
) -> None:
    (lab / "net.yaml").write_text(
        "model: {class_path: lab.Net, init_args: {width: 4}}\ndata: lab.Diabetes\ntrainer:"
        " {max_epochs: 1}\n"
    )
    fitted = main(
        "fit",
        "--config",
        "net.yaml",
        "--model.width",
        "9",
        "--model.encoder=torch.nn.LayerNorm",
        "--model.encoder.normalized_shape=9",
    )
    assert fitted.code == 0, fitted
    checkpoint = shown(fitted, "checkpoint")
    assert main("validate", "--config", "net.yaml", "--ckpt_path", checkpoint).code == 0
    kept = yaml.safe_load((lab / "lightning_logs/version_1/config.yaml").read_text())
    assert kept["model"]["init_args"]["width"] == 9 and kept["model"]["init_args"]["encoder"][
        "class_path"
    ].endswith("LayerNorm")
    clash = main(
        "validate", "--config", "net.yaml", "--ckpt_path", checkpoint, "--model.width", "4"
    )
    assert clash.code == 2 and "size mismatch" in clash.err, "a flag wins over the checkpoint"


def test_predict_says_when_nothing_is_kept(lab: Path) -> None:
    done = run_raylit(lab, "predict", "--model", "lab.Net", "--data", "lab.Diabetes")
    assert done.code == 0, done
    assert shown(done, "done") == "442 predictions in 2 batches"
    assert shown(done, "kept in") == "nothing: give --output FILE.pt to keep them"


def test_an_evaluation_that_logs_nothing_says_so(lab: Path) -> None:
    done = run_raylit(lab, "test", "--model", "lab.Net", "--data", "lab.Diabetes")
    assert done.code == 0, done
    assert "Nothing was logged: call self.log in Net.test_step." in done.out


@contextlib.contextmanager
def started(folder: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A long fit that has saved its first checkpoint; it is gone afterwards, whatever happens."""
    flags = (
        "--model=lab.Net",
        "--data=lab.Diabetes",
        "--model.delay_s=0.02",
        "--trainer.max_epochs=500",
        "--trainer.enable_model_summary=false",
    )
    logger = ("--trainer.logger=MLFlowLogger", "--trainer.logger.experiment_name=long")
    command = [sys.executable, "-m", "raylit", "fit", *flags, *logger, *args]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + stretched(150)
        while not list(folder.rglob("*.ckpt")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        pytest.param(signal.SIGINT, 130, "Interrupted.", marks=pytest.mark.long),
        (signal.SIGTERM, 143, "Terminated."),
    ],
)
def test_a_fit_that_is_ended_by_a_signal_can_be_gone_on_with(
    lab: Path, number: signal.Signals, code: int, said: str
) -> None:
    with started(lab) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=stretched(60))
    assert process.returncode == code, (out, err)
    assert err.rstrip().endswith(said)
    assert "Traceback" not in err
    assert newest_run(lab, "long").info.status == "KILLED"
    found = re.search(r"Go on with:\n  raylit (fit .+ --resume)$", err, re.MULTILINE)
    assert found, err
    epochs = (
        max(int(path.name.split("=")[1].split("-")[0]) for path in lab.rglob("epoch=*.ckpt")) + 1
    )
    again = run_raylit(
        lab, *found[1].split(), "--model.delay_s=0", f"--trainer.max_epochs={epochs + 1}"
    )
    assert again.code == 0, again
    assert "from mlruns" in again.err and shown(again, "done").startswith(
        f"{epochs + 1} epochs, {14 * (epochs + 1)} steps"
    )


@pytest.mark.ray
def test_fit_on_ray_workers(lab: Path, ray_cluster: str) -> None:
    flags = (
        "--model=lab.Net",
        "--data=lab.Diabetes",
        "--trainer.max_epochs=2",
        "--trainer.logger=MLFlowLogger",
        "--trainer.logger.experiment_name=two",
    )
    done = run_raylit(lab, "fit", *flags, "--trainer.num_workers=2", "--ray.address", ray_cluster)
    assert done.code == 0, done
    assert f"in 2 Ray workers of the cluster {ray_cluster}" in done.err
    assert shown(done, "done").startswith("2 epochs, 14 steps"), (
        "each of two workers takes half of 14 batches"
    )
    assert (lab / shown(done, "checkpoint")).is_file()
    assert f" --ray.address {ray_cluster} " in shown(done, "next"), "the same cluster"
    run = newest_run(lab, "two")
    assert run.info.status == "FINISHED" and run.data.metrics["val_loss"] < 1.5
    assert len(list(lab.rglob("config.yaml"))) == 1


@pytest.mark.parametrize(
    "launcher", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.long])]
)
def test_an_error_in_a_worker_shows_the_users_lines(
    lab: Path, launcher: str, ray_cluster: str
) -> None:
    there = ("--trainer.launcher=local",) if launcher == "local" else ("--ray.address", ray_cluster)
    flags = (
        "--model=lab.Broken",
        "--data=lab.Diabetes",
        "--model.at=step",
        "--trainer.num_workers=2",
        "--trainer.max_epochs=1",
    )
    done = run_raylit(lab, "fit", *flags, *there)
    assert done.code == 1, done
    shown_files = re.findall(
        r'File ".*?([^/]+)", line \d+, in (\w+)', done.err.partition("Traceback, your code only")[2]
    )
    assert shown_files == [("lab.py", "training_step"), ("lab.py", "deeper")]
    assert "RuntimeError: mat1 and mat2" in done.err


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "Terminated.")],
)
def test_a_signal_ends_a_fit_on_ray_workers(
    lab: Path, ray_cluster: str, number: signal.Signals, code: int, said: str
) -> None:
    with started(lab, "--trainer.num_workers=2", "--ray.address", ray_cluster) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=stretched(60))
    assert process.returncode == code, (out, err)
    assert err.rstrip().endswith(said)
    assert f"--ray.address {ray_cluster} --resume\n" in err, "it goes on in the same place"
    assert newest_run(lab, "long").info.status == "KILLED"
    assert left_of_fits(ray_cluster) == []
