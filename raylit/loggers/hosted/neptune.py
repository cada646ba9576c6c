"""NeptuneLogger: metrics and hyperparameters at Neptune."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raylit.loggers.hosted.base import HostedLogger, flat
from raylit.runtime.aliases import Experiment

if TYPE_CHECKING:
    from raylit.core.callback import Checkpoint


class NeptuneLogger(HostedLogger):
    """Log to Neptune, https://neptune.ai; needs `pip install neptune`.

    Args:
        api_key: of the account. Default: NEPTUNE_API_TOKEN.
        project: `workspace/project`. Default: NEPTUNE_PROJECT.
        name: shown for the run.
        run: a run of the package's, if there is one already.
        log_model_checkpoints: whether checkpoints are sent as they are saved.
        prefix: the part of the run below which values stand.
        neptune_run_kwargs: further arguments of `neptune.init_run`, such as `mode="offline"`.

    Raises:
        MissingPackageError: the package neptune is not installed.

    Example:
        >>> trainer = Trainer(logger=NeptuneLogger(project="me/digits", mode="offline"))
    """

    PACKAGE = "neptune"
    LOGGER_JOIN_CHAR = "/"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        project: str | None = None,
        name: str | None = None,
        run: Experiment = None,
        log_model_checkpoints: bool | None = True,
        prefix: str = "training",
        **neptune_run_kwargs: Any,
    ) -> None:
        super().__init__(prefix, run)
        self._api_key = api_key
        self._project = project
        self._run_name = name
        self._log_checkpoints = log_model_checkpoints
        self._kwargs = neptune_run_kwargs
        self._id: str | None = self._kwargs.pop("with_id", None)

    @property
    def name(self) -> str | None:
        return self._run_name

    @property
    def version(self) -> str | None:
        """The id of the run; None before there is one."""
        return self._id

    def connect(self) -> Experiment:
        run = self.library().init_run(
            project=self._project,
            api_token=self._api_key,
            name=self._run_name,
            with_id=self._id,
            **self._kwargs,
        )
        self._id = run["sys/id"].fetch() if self._kwargs.get("mode") != "offline" else None
        return run

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name, value in self.named(metrics).items():
            self.experiment[name].append(value, step=step)

    def log_hyperparams(self, params: Mapping[str, object] | Namespace) -> None:
        self.experiment[f"{self._prefix}/hyperparams"] = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in flat(params).items()
        }

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        if self._log_checkpoints:
            for path, _ in self.new_files(checkpoint_callback):
                name = path.rpartition("/")[2]
                self.experiment[f"{self._prefix}/model/checkpoints/{name}"].upload(path)

    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            self._experiment[f"{self._prefix}/status"] = status
