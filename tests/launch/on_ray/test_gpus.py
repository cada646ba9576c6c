"""`accelerator="auto"` on a cluster that says it has GPUs, as far as it goes without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deadlines import stretched

ROOT = Path(__file__).parents[3]

# Imported by the workers with the module's class: there torch then says that it sees the GPUs that
# Ray has given to the worker.
PRETENDED = """
import os
import ray
import torch
from raylit.testing import TinyModel

def take(index):
    visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    free = ray.available_resources().get("GPU", 0)
    with open(f"rank-{os.environ['RANK']}", "w") as file:
        file.write(f"GPU {visible[index]}, {free:g} left")

if "RANK" in os.environ:
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    torch.cuda.set_device = take

class Net(TinyModel):
    pass
"""
SCRIPT = """
import sys
import ray
import raylit as pl
import {module} as given

ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
num_workers = int(sys.argv[1])
trainer = pl.Trainer(
    num_workers=num_workers, max_steps=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, default_root_dir="out",
)
trainer.fit(given.Net())
"""


def run(folder: Path, module: str, num_workers: int) -> tuple[int, str]:
    (folder / "script.py").write_text(SCRIPT.format(module=module))
    done = subprocess.run(
        [sys.executable, "script.py", str(num_workers)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"},
        capture_output=True,
        text=True,
        timeout=stretched(120),
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.ray
def test_each_worker_has_a_gpu_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "pretended.py").write_text(PRETENDED)
    code, said = run(tmp_path, "pretended", 2)
    assert "accelerator='auto': the Ray cluster has a GPU for each of 2 workers." in said
    assert "Starting 2 Ray workers, each with 1 CPU, 1 GPU." in said
    seen = {path.read_text() for path in tmp_path.glob("rank-?")}
    assert seen == {"GPU 0, 0 left", "GPU 1, 0 left"}, said
    # the ranks then meet by NCCL, which torch for CPUs does not have: no further without a GPU
    assert code == 1 and "NCCL" in said


@pytest.mark.long
@pytest.mark.ray
def test_fewer_gpus_than_workers_and_gpus_that_torch_does_not_see(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("from raylit.testing import TinyModel as Net\n")
    code, said = run(tmp_path, "plain", 3)
    assert "has 2 GPUs for 3 workers, so they get CPUs only" in said
    assert "rank 2 on cpu" in said and code == 0
    code, said = run(tmp_path, "plain", 1)
    assert "the Ray cluster has a GPU for 1 worker." in said
    assert code == 1 and "PyTorch finds no such device here" in said
