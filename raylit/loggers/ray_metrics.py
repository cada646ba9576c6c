"""RayMetricsLogger: the newest values as metrics of Ray, for Prometheus and Grafana."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from raylit.core.logger import Logger, number_of
from raylit.runtime.messages import warn_once

if TYPE_CHECKING:
    from ray.util.metrics import Gauge


class RayMetricsLogger(Logger):
    """Export the newest values of a run with the metrics that Ray's nodes show to Prometheus.

    Each value that is logged becomes the gauge `ray_raylit_metric` with the labels `run` and
    `metric`, as do `step` and raylit's own measurements (`perf/`, `optim/`). NaN is not exported.
    It keeps no history: use it beside a logger that does. Without Ray in the process, as in a fit
    with `num_workers=0` outside Ray, nothing is exported, and one warning says so.

    Args:
        run: the label `run`; None makes one of the time at which the run begins.

    Raises:
        ValueError: `run` is empty.

    Example:
        >>> trainer = Trainer(logger=[CSVLogger("logs"), RayMetricsLogger(run="digits")])
    """

    def __init__(self, run: str | None = None) -> None:
        if run == "":
            raise ValueError(
                'RayMetricsLogger(run=""): the label of a run has at least one letter.'
            )
        self._run = run
        self._gauge: Gauge | None = None

    @property
    def name(self) -> None:
        """None: nothing is kept in folders."""
        return

    @property
    def version(self) -> str | None:
        """The label `run`; None before the run has begun."""
        return self._run

    @property
    def measured_groups(self) -> tuple[str, ...]:
        """True: measurements of raylit's own are exported too."""
        return ("perf", "optim")

    def open(self, *, default_root_dir: str, tags: Mapping[str, str]) -> None:
        """Choose the label of the run, where none was given."""
        if self._run is None:
            self._run = tags.get("raylit.trial") or datetime.now().strftime("fit-%Y%m%d-%H%M%S")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Set the gauges to the newest values."""
        import ray

        if not ray.is_initialized():
            warn_once(
                "RayMetricsLogger exports nothing: Ray does not run in this process. Train on Ray"
                " workers (num_workers=1 or more), or call ray.init() before.",
                key="ray_metrics_without_ray",
            )
            return
        values = dict(metrics) if step is None else {**metrics, "step": step}
        gauge = self._opened()
        for name, value in values.items():
            number = number_of(name, value, "RayMetricsLogger")
            if number is not None:
                gauge.set(number, {"run": self._run or "", "metric": str(name)})

    def log_hyperparams(self, params: Mapping[str, object]) -> None:
        """Do nothing: hyperparameters are no numbers that change."""

    def config_arguments(self) -> dict[str, object]:
        """Return the arguments but the label, which is of one run alone."""
        return {}

    def _opened(self) -> Gauge:
        if self._gauge is None:
            from ray.util.metrics import Gauge

            self._gauge = Gauge(
                "raylit_metric",
                "The newest value of a metric of a run of raylit.",
                tag_keys=("run", "metric"),
            )
        return self._gauge

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_gauge": None}
