"""CometLogger: metrics and hyperparameters at Comet."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from raylit.loggers.hosted.base import HostedLogger, flat

if TYPE_CHECKING:
    from raylit.runtime.aliases import Batch, Experiment


class CometLogger(HostedLogger):
    """Log to Comet, https://www.comet.com; needs `pip install comet-ml`.

    Args:
        api_key: of the account. Default: COMET_API_KEY or the package's config.
        workspace: where the project is.
        project: where the experiment belongs.
        experiment_key: of an experiment to go on with.
        mode: `get`, `create` or `get_or_create`.
        online: False keeps values in files, for `comet upload`.
        prefix: put before the names of metrics.
        kwargs: arguments of `comet_ml.ExperimentConfig`, such as `name` and `tags`.

    Raises:
        MissingPackageError: the package comet_ml is not installed.

    Example:
        >>> trainer = Trainer(logger=CometLogger(project="digits", online=False))
    """

    PACKAGE = "comet_ml"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        workspace: str | None = None,
        project: str | None = None,
        experiment_key: str | None = None,
        mode: Literal["get_or_create", "get", "create"] | None = None,
        online: bool | None = None,
        prefix: str = "",
        **kwargs: object,
    ) -> None:
        super().__init__(prefix)
        self._api_key = api_key
        self._project = project
        self._key = experiment_key
        self._arguments = {
            "workspace": workspace,
            "project": project,
            "mode": mode,
            "online": online,
        }
        self._kwargs = kwargs

    @property
    def name(self) -> str | None:
        """The project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The key of the experiment; None before there is one."""
        return self._key

    def connect(self) -> Experiment:
        comet = self.library()
        experiment = comet.start(
            api_key=self._api_key,
            experiment_key=self._key,
            experiment_config=comet.ExperimentConfig(**self._kwargs),
            **self._arguments,
        )
        self._key = experiment.get_key()
        experiment.log_other("Created from", "raylit")
        return experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = self.named(metrics)
        epoch = values.pop("epoch", None)
        self.experiment.log_metrics(values, step=step, epoch=epoch)

    def log_hyperparams(self, params: Mapping[str, object] | Namespace) -> None:
        self.experiment.log_parameters(flat(params))

    def log_graph(self, model: object, input_array: Batch = None) -> None:
        self.experiment.set_model_graph(graph=str(model))

    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            self._experiment.flush()
