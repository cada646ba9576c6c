"""What Prometheus would read from Ray's nodes, and whether the dashboard asks for it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import Tensor

import raylit as pl
from raylit.loggers import RayMetricsLogger
from raylit.testing.modules import TinyModel
from tests.deadlines import stretched

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^ray_raylit_metric\{(?P<labels>.*)\} (?P<value>\S+)$", re.MULTILINE)


class Model(TinyModel):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("acc@1 / %", float(self.global_step))
        return loss


def exported(run: str) -> dict[str, float]:
    """Return the newest value of each metric of a run, as Ray's nodes show them."""
    found = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            text = answer.read().decode()
        for line in LINE.finditer(text):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line["labels"]))
            if labels["run"] == run:
                found[labels["metric"]] = float(line["value"])
    return found


def wait_for(run: str, step: float) -> dict[str, float]:
    end = time.monotonic() + stretched(30)  # Ray's nodes collect every 10 s
    while (found := exported(run)).get("step") != step:
        assert time.monotonic() < end, found
        time.sleep(0.5)
    return found


@pytest.mark.ray
def test_the_newest_values_are_exported(ray_cluster: str, tmp_path: Path) -> None:
    trainer = pl.Trainer(
        logger=RayMetricsLogger("newest"),
        max_epochs=2,
        log_every_n_steps=2,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
    )
    trainer.fit(Model())
    last = trainer.global_step - 1
    found = wait_for("newest", last - (last + 1) % 2)
    assert found["acc@1 / %"] == found["step"]
    assert found["epoch"] == 1
    assert found["perf/step_time_s"] > 0
    assert found["optim/lr"] == trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.ray
def test_what_is_no_number_is_left_out(ray_cluster: str) -> None:
    logger = RayMetricsLogger("odd")
    odd: dict[Any, Any] = {"nan": math.nan, "": 0.0, "tensor": torch.tensor(2.0), 3: 1}
    with pytest.warns(
        UserWarning, match="RayMetricsLogger records numbers only, so the metric text = 'half'"
    ):
        logger.log_metrics({**odd, "text": "half"}, 7)
    found = wait_for("odd", 7)
    assert found == {"": 0, "tensor": 2, "3": 1, "step": 7}


def test_without_ray_one_warning_says_so(tmp_path: Path) -> None:
    code = (
        "import raylit as pl\n"
        "from raylit.loggers import RayMetricsLogger\n"
        "from raylit.testing.modules import TinyModel\n"
        "pl.Trainer(logger=RayMetricsLogger(), max_epochs=2, log_every_n_steps=1,"
        " enable_checkpointing=False).fit(TinyModel())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=stretched(120),
        check=True,
    )
    assert done.stderr.count("RayMetricsLogger exports nothing") == 1


def test_an_empty_label_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one letter"):
        RayMetricsLogger(run="")


def test_the_label_is_the_trials_or_tells_the_time(tmp_path: Path) -> None:
    logger, trial = RayMetricsLogger(), RayMetricsLogger()
    logger.open(default_root_dir=str(tmp_path), tags={})
    trial.open(default_root_dir=str(tmp_path), tags={"raylit.trial": "trial-007"})
    assert re.fullmatch(r"fit-\d{8}-\d{6}", str(logger.version))
    assert trial.version == "trial-007"


def test_the_dashboard_asks_for_what_there_is() -> None:
    """Each measurement that it names is one that raylit makes."""
    dashboard = json.loads((ROOT / "cluster/monitoring/raylit.json").read_text())
    made = (ROOT / "raylit/engine/monitor.py").read_text()
    expressions = [one["expr"] for panel in dashboard["panels"] for one in panel["targets"]]
    named = {
        name.removesuffix(".*")
        for expression in expressions
        for names in re.findall(r'metric=~"([^"]*)"', expression)
        for name in names.split("|")
    } - {"step"}
    assert len(named) == 9
    assert [name for name in named if f'"{name}' not in made] == []
