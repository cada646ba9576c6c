"""WandbLogger: metrics, hyperparameters and checkpoints at Weights & Biases."""

from __future__ import annotations

import os
import uuid
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from raylit.core.callback import Checkpoint
from raylit.errors import ConfigError
from raylit.loggers.hosted.base import HostedLogger
from raylit.runtime.aliases import Arguments, Experiment
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from torch import nn

STEP = "trainer/global_step"


class WandbLogger(HostedLogger):
    """Log to Weights & Biases, https://wandb.ai; needs `pip install wandb`.

    Args:
        name: shown for the run.
        save_dir: folder for the package's own files.
        version: id of the run, to go on with it.
        offline: whether values stay in files, for `wandb sync`.
        dir: the same as `save_dir`.
        id: the same as `version`.
        anonymous: whether to log without an account.
        project: where the run belongs. Default: WANDB_PROJECT, else `lightning_logs`.
        log_model: True sends the checkpoints at the end, `all` each as it is saved.
        experiment: a run of the package's, if there is one already.
        prefix: put before the names of metrics.
        checkpoint_name: of the artifact with the checkpoints. Default: `model-<id>`.
        add_file_policy: `mutable`: files are copied when they are sent; `immutable`: they are not.
        kwargs: further arguments of `wandb.init`, such as `entity`, `group` and `tags`.

    Raises:
        MissingPackageError: the package wandb is not installed.
        ConfigError: checkpoints are to be sent, which cannot be offline.

    Example:
        >>> trainer = Trainer(logger=WandbLogger(project="digits", offline=True))
    """

    PACKAGE = "wandb"

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,
        id: str | None = None,
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: Literal["all"] | bool = False,
        experiment: Experiment = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        add_file_policy: Literal["mutable", "immutable"] = "mutable",
        **kwargs: object,
    ) -> None:
        super().__init__(prefix, experiment)
        if offline and log_model:
            raise ConfigError(
                f"WandbLogger(log_model={log_model}, offline={offline}): checkpoints cannot be sent"
                " offline. Leave one of them out."
            )
        self._offline = offline
        self._log_model = log_model
        self._checkpoint_name = checkpoint_name
        self._saver: Checkpoint | None = None
        self.add_file_policy = add_file_policy
        self._wandb_init: Arguments = {
            "name": name,
            "project": project or os.environ.get("WANDB_PROJECT", "lightning_logs"),
            "dir": os.fspath(save_dir or dir or "."),
            "id": version or id,
            "resume": "allow",
            "anonymous": "allow" if anonymous else None,
            **kwargs,
        }

    @property
    def name(self) -> str | None:
        """The project."""
        project: str | None = self._wandb_init["project"]
        return project

    @property
    def version(self) -> str | None:
        """The id of the run; None before there is one."""
        found: str | None = self._wandb_init["id"]
        if found is None and self._experiment is not None:
            found = self._experiment.id
        return found

    @property
    def save_dir(self) -> str | None:
        folder: str | None = self._wandb_init["dir"]
        return folder

    def open(self, *, default_root_dir: str, tags: Mapping[str, str]) -> None:
        if self._experiment is None and self._wandb_init["id"] is None:
            # known to all processes, so that one that is started anew goes on with the run
            self._wandb_init["id"] = uuid.uuid4().hex[:8]

    def connect(self) -> Experiment:
        wandb = self.library()
        if self._offline:
            os.environ["WANDB_MODE"] = "offline"
        if wandb.run is not None:
            warn(
                "A run of wandb is in progress in this process, and this logger goes on with it."
                " Call wandb.finish() before, to have another one."
            )
            return wandb.run
        os.makedirs(self._wandb_init["dir"], exist_ok=True)
        settings = {name: value for name, value in self._wandb_init.items() if value is not None}
        run = wandb.init(**settings)
        if not self._wandb_init.get("sync_tensorboard"):
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP, step_sync=True)
        self._wandb_init["id"] = run.id
        return run

    def watch(
        self,
        model: nn.Module | Sequence[nn.Module],
        log: str | None = "gradients",
        log_freq: int = 100,
        log_graph: bool = True,
    ) -> None:
        """Have the package record gradients, parameters (`log`) and the graph of a model."""
        self.experiment.watch(model, log=log, log_freq=log_freq, log_graph=log_graph)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = self.named(metrics)
        if step is not None and not self._wandb_init.get("sync_tensorboard"):
            values[STEP] = step
        self.experiment.log(values)

    def log_hyperparams(self, params: Mapping[str, object] | Namespace) -> None:
        given = vars(params) if isinstance(params, Namespace) else dict(params)
        self.experiment.config.update(given, allow_val_change=True)

    def log_table(
        self,
        key: str,
        columns: Any = None,
        data: Any = None,
        dataframe: object = None,
        step: int | None = None,
    ) -> None:
        """Show a table.

        Args:
            key: its name.
            columns: names of the columns; or the table itself, as `LightningModule.log_table` hands
                it on with the step as `data`.
            data: rows.
            dataframe: a pandas DataFrame, instead of both.
            step: the x-axis.
        """
        if columns is not None and not isinstance(columns, list):
            names = list(columns)
            rows = [list(row) for row in zip(*(columns[name] for name in names), strict=True)]
            step = data
            columns = names
            data = rows
        table = self.library().Table(columns=columns, data=data, dataframe=dataframe)
        self._log_media(key, table, step)

    def log_text(self, key: str, columns: Any = None, *args: Any, **kwargs: Any) -> None:
        """Show a table of texts, as `log_table`; or a text under a name: `log_text(text, name)`."""
        if isinstance(columns, str):
            self.experiment.summary[columns] = key
        else:
            self.log_table(key, columns, *args, **kwargs)

    def log_image(
        self, key: str, images: object, step: int | None = None, **kwargs: Sequence[object]
    ) -> None:
        """Show images: tensors, arrays, pictures or paths.

        Args:
            key: their name.
            images: an image, or a list of them.
            step: the x-axis.
            kwargs: lists, one item for each image, such as `caption`.
        """
        several = images if isinstance(images, list) else [images]
        image = self.library().Image
        shown = [
            image(one, **{name: values[index] for name, values in kwargs.items()})
            for index, one in enumerate(several)
        ]
        self._log_media(key, shown, step)

    def _log_media(self, key: str, value: object, step: int | None) -> None:
        values = self.named({key: value})
        self.experiment.log(values if step is None else {**values, STEP: step})

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        if self._log_model == "all":
            self._send(checkpoint_callback)
        elif self._log_model:
            self._saver = checkpoint_callback

    def finalize(self, status: str) -> None:
        if status == "success" and self._saver is not None and self._experiment is not None:
            self._send(self._saver)

    def close(self, status: str) -> None:
        self._saver = None

    def _send(self, saver: Checkpoint) -> None:
        wandb = self.library()
        for path, aliases in self.new_files(saver):
            name = self._checkpoint_name or f"model-{self.experiment.id}"
            artifact = wandb.Artifact(name=name, type="model")
            artifact.add_file(path, name="model.ckpt", policy=self.add_file_policy)
            self.experiment.log_artifact(artifact, aliases=aliases)
