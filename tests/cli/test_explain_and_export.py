"""`raylit explain` and `raylit export`, on the checkpoint that `raylit fit` left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.lazy import mlflow

from .conftest import SETTINGS, Done, environment

CONFIG = ("--config", "configs/digits.yaml", "--ckpt_path", "best")
Raylit = Callable[..., Done]


@pytest.fixture
def raylit(
    trained: tuple[Path, Done], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Raylit:
    """`raylit.cli.main` in this process, in the folder of the fit."""
    from raylit.cli import main

    for name in SETTINGS:
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the command sets
        monkeypatch.delenv(name)
    monkeypatch.chdir(trained[0])

    def call(*args: str) -> Done:
        capfd.readouterr()
        code = main(list(args))
        return Done(code, *capfd.readouterr())

    return call


def shown(done: Done, name: str) -> str:
    """The value of one row of the summary."""
    found = re.search(rf"^{re.escape(name)} +(.+)$", done.out, re.MULTILINE)
    assert found, f"no {name} in\n{done}"
    return found[1]


def test_explain_writes_arrays_and_a_picture_and_keeps_them_beside_the_run(raylit: Raylit) -> None:
    flags = ("--method", "saliency", "--target", "label", "--output", "looked_at")
    done = raylit("explain", *CONFIG, *flags, "--sanity_check", "true")
    assert done.code == 0, done
    assert shown(done, "done") == "360 samples by saliency"
    assert re.fullmatch(r"rank correlation -?0\.\d+", shown(done, "randomized"))
    with np.load(shown(done, "arrays")) as arrays:
        assert arrays["attributions.images"].shape == (360, 1, 8, 8)
        assert arrays["targets"].max() == 9
    assert Path(shown(done, "picture")).read_bytes()[:4] == b"\x89PNG"

    run_id = shown(done, "in MLflow").removeprefix("beside the run ")
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["val_acc"] > 0.9
    step = torch.load(_best(), weights_only=True)["global_step"]
    names = [
        one.path for one in client.list_artifacts(run_id, f"explanations/saliency/step-{step:08}")
    ]
    assert [os.path.basename(name) for name in names] == ["arrays.npz", "picture.png"]
    assert len(client.search_runs([run.info.experiment_id])) == 1, "no run was made for it"


def test_export_writes_a_program_that_another_process_runs(raylit: Raylit) -> None:
    done = raylit("export", *CONFIG, "--path", "digits.pt2", "--num_batches", "2")
    assert done.code == 0, done
    assert "digits.pt2" in done.out
    assert float(shown(done, "parity").split()[0]) < 1e-5
    script = (
        "import sys, torch; program = torch.export.load('digits.pt2').module();"
        " print(tuple(program(torch.zeros(3, 1, 8, 8))[0].shape), 'raylit' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(3, 10) False"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("explain", *CONFIG, "--method", "saliancy"), "Did you mean 'saliency'"),
        (("explain", *CONFIG, "--target", "10"), "there is no output 10, forward returns 10"),
        (("explain", *CONFIG, "--layer", "conv9"), "no such layer"),
        (("explain", *CONFIG, "--num_steps", "0"), "num_steps=0"),
        (("explain", *CONFIG, "--output", "nowhere/it"), "there is no folder nowhere"),
        (("export", *CONFIG, "--format", "onyx"), "Did you mean 'onnx'"),
        (("export", *CONFIG, "--path", "configs"), "configs is a folder"),
        (("export", *CONFIG, "--tolerance", "0"), "must be above 0"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    raylit: Raylit, args: tuple[str, ...], message: str
) -> None:
    before = sorted(os.listdir("."))
    done = raylit(*args)
    assert done.code in (1, 2), done
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert sorted(os.listdir(".")) == before


def _best() -> Path:
    """Return the newest checkpoint: other tests of the session may have left some here."""
    found = [path for path in Path().rglob("*.ckpt") if "recovery" not in path.parts]
    return max(found, key=lambda path: path.stat().st_mtime)
