"""ModelCheckpoint: saves the run while it goes on, and keeps the best."""

from __future__ import annotations

import math
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from raylit.callbacks.checkpoints.alone import write_alone
from raylit.callbacks.checkpoints.scheduled_checkpoint import ScheduledCheckpoint
from raylit.checkpoint import folder, naming
from raylit.core.callback import SavedCheckpoints, default_folder
from raylit.core.logger import as_loggers
from raylit.errors import ConfigError, NotSavedError, Terminated
from raylit.runtime import storage
from raylit.runtime.aliases import StateDict
from raylit.runtime.kinds import check_kinds
from raylit.runtime.messages import info, warn, warn_once

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

Metrics = dict[str, Tensor]
# Of the files in `dirpath`: a callback that saves elsewhere does not take them over
OF_FOLDER = (
    "best_model_score",
    "best_k_models",
    "kth_best_model_path",
    "kth_value",
    "last_model_path",
)
STATE = ("monitor", "best_model_path", "current_score", "dirpath", *OF_FOLDER)


class ModelCheckpoint(ScheduledCheckpoint):
    """Saves checkpoints after epochs, steps or some time, and keeps the best `save_top_k`.

    Rank 0's metrics decide which checkpoints are saved and under which names. A new file is written
    before an old one is deleted; the file that this run goes on from and files elsewhere are never
    deleted. Nothing is saved in a fast dev run, in the sanity check, before the first step, or
    twice at one step.

    Args:
        dirpath: folder or fsspec URL. None: `<save_dir>/<name>/version_<version>/checkpoints` of
            the first logger, or without a logger `checkpoints` in the Trainer's `default_root_dir`.
        filename: template of the names: `{epoch}`, `{step}` and any logged metric, with a format if
            wanted: `{epoch}-{val_loss:.2f}`. A "/" makes folders. None: `{epoch}-{step}`.
        monitor: the metric to go by. None: the newest is the best.
        verbose: whether to say what was saved and what was not good enough.
        save_last: True also keeps the newest checkpoint as `last.ckpt`: a second name of the same
            file, if it was saved under another one too. "link" makes `last.ckpt` a symbolic link to
            the newest.
        save_top_k: how many to keep; -1: all, 0: none. Without `monitor` -1, 0 or 1.
        save_on_exception: whether to save when an exception ends the run.
        save_weights_only: whether to leave out what only a continued training needs.
        mode: `min` if a lower metric is better, `max` if a higher one is.
        auto_insert_metric_name: whether `{epoch}` becomes `epoch=3` or `3`.
        every_n_train_steps: save after every n optimizer steps. With `monitor`, a save that has to
            wait for a first value is made after the validation that comes next; likewise one at the
            last batch of an epoch waits for the value of its own epoch.
        train_time_interval: save when this time has passed since the last time it did.
        every_n_epochs: save in every n-th epoch; the default, with n = 1, if neither steps nor a
            time are given. Only one of the three.
        save_on_train_epoch_end: True saves at the end of the epoch, False after validation. None:
            after validation, if it does not run exactly once per epoch.
        enable_version_counter: whether a name that is taken gets `-v1`, `-v2`, ... appended; else
            the file is replaced.

    Attributes:
        best_model_path: path of the best checkpoint (without `monitor`: of the newest); "" if there
            is none.
        best_model_score: its value of the metric.
        best_k_models: path to value of those kept.
        kth_best_model_path: path of the worst of those kept, once there are `save_top_k`.
        kth_value, current_score: its value, and that of the newest that was good enough.
        last_model_path: path of the `last` checkpoint; "" if there is none.

    Raises:
        ConfigError: arguments are out of range or contradict each other; while training, if
            `monitor` was not logged by the first validation.

    Example:
        >>> best = ModelCheckpoint(
        ...     monitor="val_loss", filename="{epoch}-{val_loss:.3f}", save_top_k=3, save_last=True
        ... )
        >>> result = Trainer(callbacks=[best]).fit(model, datamodule=data)
        >>> best.best_model_path, best.best_model_score
    """

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1

    _is_alone = False  # whether rank 0 saves without waiting for the others, after an exception

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
    ) -> None:
        check_kinds(ModelCheckpoint.__init__, locals())
        super().__init__(
            monitor,
            every_n_train_steps,
            train_time_interval,
            every_n_epochs,
            save_on_train_epoch_end,
        )
        self.mode = mode
        self.verbose = verbose
        self.filename = filename
        self.dirpath = self._given_dirpath = folder.absolute(dirpath) if dirpath else None
        self.save_last = save_last
        self.save_top_k = save_top_k
        self.save_on_exception = save_on_exception
        self.save_weights_only = save_weights_only
        self.auto_insert_metric_name = auto_insert_metric_name
        self._enable_version_counter = enable_version_counter
        self._check_arguments()
        self.best_model_path = ""
        self.best_model_score: Tensor | None = None
        self.best_k_models: dict[str, Tensor] = {}
        self.kth_best_model_path = ""
        self.kth_value = torch.tensor(self._worst)
        self.current_score: Tensor | None = None
        self.last_model_path = ""
        self._last_checkpoint_saved = ""

    def _check_arguments(self) -> None:
        if self.mode not in ("min", "max"):
            raise ConfigError(
                f"ModelCheckpoint(mode={self.mode!r}) is not known. Use 'min' if a lower metric is"
                " better, 'max' if a higher one is."
            )
        if self.save_last not in (None, True, False, "link"):
            raise ConfigError(
                f"ModelCheckpoint(save_last={self.save_last!r}) is not known. Use True, False or"
                " 'link'."
            )
        if self.save_top_k < -1:
            raise ConfigError(
                f"ModelCheckpoint(save_top_k={self.save_top_k}): give how many checkpoints to keep,"
                " or -1 for all."
            )
        if self.monitor is None and self.save_top_k > 1:
            raise ConfigError(
                f"ModelCheckpoint(save_top_k={self.save_top_k}) cannot tell which are best. Name a"
                " metric, as in monitor='val_loss', or keep all with save_top_k=-1."
            )

    @property
    def state_key(self) -> str:
        return self._generate_state_key(
            monitor=self.monitor,
            mode=self.mode,
            every_n_train_steps=self._every_n_train_steps,
            every_n_epochs=self._every_n_epochs,
            train_time_interval=self._train_time_interval,
        )

    @property
    def saves_on_exception(self) -> bool:
        return self.save_on_exception

    def saved_checkpoints(self) -> SavedCheckpoints:
        score = self.best_model_score
        return SavedCheckpoints(
            self.best_model_path or None,
            None if score is None else float(score),
            self.last_model_path or self._last_checkpoint_saved or None,
        )

    # ---- when ----

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        self._in_fit = stage == "fit"
        if stage == "predict":  # saves nothing, and to ask loggers for a folder would begin a run
            return
        self.dirpath = trainer.world.broadcast_object(self.resolve_dirpath(trainer))
        if self.save_last == "link" and storage.is_url(self.dirpath):
            raise ConfigError(
                "ModelCheckpoint(save_last='link') needs local files, but dirpath is"
                f" {self.dirpath}. Use save_last=True."
            )
        # Asked now: else a folder that cannot be written to would be found after an epoch
        if stage == "fit" and not trainer.fast_dev_run:
            problem = trainer.world.broadcast_object(
                storage.unwritable(self.dirpath) if trainer.is_global_zero else None
            )
            if problem:
                raise NotSavedError(
                    f"Checkpoints cannot be written to {self.dirpath}: {problem}. Set another"
                    " ModelCheckpoint(dirpath=...)."
                )
            if trainer.is_global_zero:
                folder.remove_unfinished(self.dirpath)
        start = os.path.dirname(trainer.ckpt_path or "")
        # A fit that goes on from its own recovery checkpoint is not warned of its folder
        if os.path.basename(start) == "recovery":
            start = os.path.dirname(start)
        is_new = stage == "fit" and start != self.dirpath
        if (
            is_new
            and trainer.is_global_zero
            and self.save_top_k != 0
            and folder.listing(self.dirpath)
        ):
            warn(f"The folder for checkpoints, {self.dirpath}, is not empty.")

    def _save_at_step(self, trainer: RunningTrainer) -> None:
        metrics = self._monitor_candidates(trainer)
        # After steps `last` is renewed even if the value was not good enough, as in Lightning
        if not self._save_topk_checkpoint(trainer, metrics):
            self._save_last_checkpoint(trainer, metrics)

    def _save_at_epoch(self, trainer: RunningTrainer, is_due: bool) -> None:
        metrics = self._monitor_candidates(trainer)
        saved = is_due and self._save_topk_checkpoint(trainer, metrics)
        # As Lightning: after an epoch `last` is renewed with a checkpoint only, but for a link
        if not saved and self.save_last == "link" and self._last_checkpoint_saved:
            self._save_last_checkpoint(trainer, metrics)

    def on_train_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self._is_outdated and not self._should_skip_saving_checkpoint(trainer):
            with self._forgiving(trainer):
                self._save_changed(trainer)
        # As in Lightning: there is a `last` also if nothing was due or good enough
        elif self.save_last and not self._last_checkpoint_saved and not trainer.fast_dev_run:
            with self._forgiving(trainer):
                self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self._settle(trainer)

    def _save_changed(self, trainer: RunningTrainer) -> None:
        """Save the weights that a callback gave to the module at the end.

        They are the newest, but have no value of the metric: no checkpoint that is kept for its
        value makes room for them.
        """
        # When training has ended, `current_epoch` counts the last epoch too
        ended = trainer.current_epoch - 1
        own = naming.fields(trainer.callback_metrics, ended, trainer.global_step)
        metrics = dict(trainer.world.broadcast_object(own))
        if self.monitor is None and self.save_top_k != 0:
            self._save_none_monitor_checkpoint(trainer, metrics)
        elif self.save_last:
            self._save_last_checkpoint(trainer, metrics)

    def on_exception(
        self, trainer: RunningTrainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if (
            not self.save_on_exception
            or self.dirpath is None
            or self._should_skip_saving_checkpoint(trainer)
        ):
            return
        # Else this rank may be the only one to come here: it asks nothing of the others
        is_everywhere = isinstance(exception, Terminated)
        if not is_everywhere and (trainer.strategy.shards or not trainer.is_global_zero):
            return
        metrics = self._local_metrics(trainer)
        path = self.format_checkpoint_name(metrics)
        self._is_alone = not is_everywhere and trainer.world.size > 1
        with self._forgiving(trainer):
            if self.save_last:
                last = self._free_path(
                    metrics, self.CHECKPOINT_NAME_LAST, self.last_model_path, path
                )
                self._save_under_two_names(trainer, path, last)
            else:
                self._save_checkpoint(trainer, path)
            info(
                f"A {type(exception).__name__} was raised ({exception}); the run was saved to"
                f" {path}."
            )
        self._is_alone = False  # the exception may be caught, and another fit begin

    # ---- what ----

    def check_monitor_top_k(self, trainer: RunningTrainer, current: Tensor | None = None) -> bool:
        """Tell whether a checkpoint with this value of the metric is to be kept."""
        if current is None:
            return False
        if self.save_top_k == -1 or len(self.best_k_models) < self.save_top_k:
            return True
        worst = self.best_k_models.get(self.kth_best_model_path, self._worst)
        return self.save_top_k > 0 and bool(
            current < worst if self.mode == "min" else current > worst
        )

    @property
    def _worst(self) -> float:
        return math.inf if self.mode == "min" else -math.inf

    def _save_topk_checkpoint(self, trainer: RunningTrainer, metrics: Metrics) -> bool:
        """Save, if it is good enough, and with it `last`; returns whether it was."""
        if self.save_top_k == 0:
            return False
        if self.monitor is None:
            self._save_none_monitor_checkpoint(trainer, metrics)
            return True
        return self._save_monitor_checkpoint(trainer, metrics)

    def _save_none_monitor_checkpoint(self, trainer: RunningTrainer, metrics: Metrics) -> None:
        """Save, since the newest is the best."""
        path = self._path(trainer, metrics, None, self.best_model_path)
        replaced = self.best_model_path
        # Before saving, because it is part of what is saved
        self.best_model_path = path
        self._save_with_last(trainer, path, metrics)
        if self.save_top_k == 1:
            self._replace(trainer, replaced, path)

    def _save_monitor_checkpoint(self, trainer: RunningTrainer, metrics: Metrics) -> bool:
        """Save, if the metric is good enough; returns whether it was."""
        assert self.monitor is not None
        if self.monitor not in metrics:
            text = (
                f"ModelCheckpoint watches {self.monitor!r}, which was not logged. Logged so far:"
                f" {', '.join(map(repr, metrics))}. Log it with self.log({self.monitor!r}, ...), or"
                " change monitor."
            )
            if trainer.has_validated:
                raise ConfigError(text)
            warn_once(text)
        current = metrics.get(self.monitor)
        if current is not None and self.check_monitor_top_k(trainer, current):
            self._update_best_and_save(current, trainer, metrics)
            return True
        if self.verbose:
            self._say(metrics, f"{self.monitor!r} was not in top {self.save_top_k}")
        return False

    def _update_best_and_save(
        self, current: Tensor, trainer: RunningTrainer, metrics: Metrics
    ) -> None:
        # No comparison with NaN is true: it would never be the worst, and never be replaced
        if torch.isnan(current):
            current = torch.tensor(self._worst)
        replaced = ""
        if len(self.best_k_models) == self.save_top_k:
            replaced = self.kth_best_model_path
            del self.best_k_models[replaced]
        path = self._path(trainer, metrics, None, replaced)
        self.current_score = current
        self.best_k_models[path] = current
        worst, best = (max, min) if self.mode == "min" else (min, max)
        if self.save_top_k in (-1, len(self.best_k_models)):
            self.kth_best_model_path = worst(self.best_k_models, key=self.best_k_models.__getitem__)
            self.kth_value = self.best_k_models[self.kth_best_model_path]
        self.best_model_path = best(self.best_k_models, key=self.best_k_models.__getitem__)
        self.best_model_score = self.best_k_models[self.best_model_path]
        if self.verbose:
            num_kept = len(self.best_k_models) if self.save_top_k == -1 else self.save_top_k
            values = f"{self.monitor!r} reached {current:0.5f} (best {self.best_model_score:0.5f})"
            self._say(metrics, f"{values}, saving model to {path!r} as top {num_kept}")
        self._save_with_last(trainer, path, metrics)
        # Last, so that a fit killed at any moment has left a whole checkpoint
        self._replace(trainer, replaced, path)

    @staticmethod
    def _say(metrics: Metrics, text: str) -> None:
        info(f"Epoch {int(metrics['epoch'])}, global step {int(metrics['step'])}: {text}")

    def _monitor_candidates(self, trainer: RunningTrainer) -> Metrics:
        """Return rank 0's metrics, so that all ranks do the same, whatever each has logged."""
        return dict(trainer.world.broadcast_object(self._local_metrics(trainer)))

    @staticmethod
    def _local_metrics(trainer: RunningTrainer) -> Metrics:
        return naming.fields(trainer.callback_metrics, trainer.current_epoch, trainer.global_step)

    # ---- where ----

    def config_arguments(self) -> dict[str, object]:
        return {"dirpath": self._given_dirpath}

    def resolve_dirpath(self, trainer: RunningTrainer) -> str:
        """Return the folder for checkpoints.

        The one given, else below the Trainer's storage URL, the folder of the first logger or the
        Trainer's.
        """
        return default_folder(trainer) if self.dirpath is None else self.dirpath

    def format_checkpoint_name(
        self,
        metrics: dict[str, Any],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """Return the path of a checkpoint with these metrics.

        Args:
            metrics: numbers or tensors with one element; one that is missing counts as 0.
            filename: a template other than the callback's.
            ver: number to append, as in `-v1`.
            prefix: put in front, joined by "-".

        Example:
            >>> ModelCheckpoint(filename="{epoch}-{val_loss:.2f}").format_checkpoint_name(
            ...     {"epoch": 2, "val_loss": 0.1234}
            ... )
            'epoch=2-val_loss=0.12.ckpt'
        """
        template = filename or self.filename or f"{{epoch}}{self.CHECKPOINT_JOIN_CHAR}{{step}}"
        name = naming.fill(
            template,
            metrics,
            shows_names=self.auto_insert_metric_name,
            equals=self.CHECKPOINT_EQUALS_CHAR,
        )
        parts = [*([] if prefix is None else [prefix]), name, *([] if ver is None else [f"v{ver}"])]
        return os.path.join(
            self.dirpath or "", self.CHECKPOINT_JOIN_CHAR.join(parts) + self.FILE_EXTENSION
        )

    def file_exists(self, filepath: str | os.PathLike[str], trainer: RunningTrainer) -> bool:
        """Tell whether there is a file, as rank 0 sees it. To be called on all ranks."""
        return trainer.world.from_zero(lambda: folder.exists(os.fspath(filepath)), NotSavedError)

    def _path(
        self, trainer: RunningTrainer, metrics: Metrics, template: str | None, own: str, *taken: str
    ) -> str:
        """Return the path for the next checkpoint, as rank 0 found it."""
        return trainer.world.from_zero(
            lambda: self._free_path(metrics, template, own, *taken), NotSavedError
        )

    def _free_path(self, metrics: Metrics, template: str | None, own: str, *taken: str) -> str:
        """Return the first version of a name that is free, or is `own`, which may be replaced."""
        path = self.format_checkpoint_name(metrics, template)
        if not self._enable_version_counter:
            return path
        stem = path.removesuffix(self.FILE_EXTENSION)
        names = naming.versions(stem, join=self.CHECKPOINT_JOIN_CHAR, start=self.STARTING_VERSION)
        candidates = (name + self.FILE_EXTENSION for name in names)
        return next(
            one for one in candidates if one == own or not (one in taken or folder.exists(one))
        )

    # ---- files ----

    def _save_checkpoint(self, trainer: RunningTrainer, filepath: str) -> None:
        """Write the run to a file; to be overridden by those who write more beside it."""
        if self._is_alone and trainer.run is not None:
            write_alone(trainer, filepath, self.save_weights_only)
        else:
            trainer.save_checkpoint(filepath, self.save_weights_only)
        self._last_global_step_saved = trainer.global_step
        self._is_outdated = False
        self._last_checkpoint_saved = filepath
        self._tell_loggers(trainer)

    def _save_with_last(self, trainer: RunningTrainer, filepath: str, metrics: Metrics) -> None:
        """Write the run to a file and, if wanted, let `last` be the same."""
        if self.save_last:
            last = self._path(
                trainer, metrics, self.CHECKPOINT_NAME_LAST, self.last_model_path, filepath
            )
            self._replace(trainer, self._save_under_two_names(trainer, filepath, last), last)
        else:
            self._save_checkpoint(trainer, filepath)

    def _save_under_two_names(self, trainer: RunningTrainer, filepath: str, last: str) -> str:
        """Write the run to a file that has `last` as its second name.

        Returns the `last` before it.
        """
        # before saving, because it is part of what is saved
        replaced = self.last_model_path
        self.last_model_path = last
        self._save_checkpoint(trainer, filepath)
        self._give_second_name(trainer, filepath, last)
        if self.save_last != "link":
            self._last_checkpoint_saved = last
        self._tell_loggers(trainer)
        return replaced

    def _save_last_checkpoint(self, trainer: RunningTrainer, metrics: Metrics) -> None:
        """Let `last` be the run as it is now; with "link", the newest checkpoint."""
        if not self.save_last:
            return
        last = self._path(trainer, metrics, self.CHECKPOINT_NAME_LAST, self.last_model_path)
        replaced = self.last_model_path
        self.last_model_path = last
        if self.save_last == "link" and self._last_checkpoint_saved and self.save_top_k != 0:
            self._give_second_name(trainer, self._last_checkpoint_saved, last)
        else:
            self._save_checkpoint(trainer, last)
        self._replace(trainer, replaced, last)

    def _give_second_name(self, trainer: RunningTrainer, path: str, name: str) -> None:
        if trainer.checkpoint_io is not None and self.save_last != "link":
            # Where the first is, and whether it is there yet, only the CheckpointIO knows
            self._save_checkpoint(trainer, name)
            return

        def link() -> None:
            folder.give_second_name(path, name, symbolic=self.save_last == "link")

        if self._is_alone:
            link()
        else:
            trainer.world.from_zero(link, NotSavedError)

    def _tell_loggers(self, trainer: RunningTrainer) -> None:
        if trainer.is_global_zero:
            for logger in as_loggers(trainer.loggers):
                logger.after_save_checkpoint(self)

    def _should_remove_checkpoint(
        self, trainer: RunningTrainer, previous: str, current: str
    ) -> bool:
        """Tell whether `previous`, replaced by `current`, is this callback's to delete."""
        resumed_from = trainer.ckpt_path or ""
        own = self.dirpath or ""
        # `ckpt_path` may be relative, and must be known again: that file is never deleted
        if not storage.is_url(previous):
            previous, current, resumed_from, own = map(
                os.path.abspath, (previous, current, resumed_from, own)
            )
        return previous not in (current, resumed_from) and previous.startswith(f"{own}/")

    def _replace(self, trainer: RunningTrainer, previous: str, current: str) -> None:
        """Delete `previous`, which `current` replaces, if it is this callback's. On all ranks."""
        if previous and self._should_remove_checkpoint(trainer, previous, current):
            self._remove_checkpoint(trainer, previous)

    def _remove_checkpoint(self, trainer: RunningTrainer, filepath: str) -> None:
        """Delete a checkpoint, on rank 0; to be overridden by those who keep more beside it."""
        if trainer.is_global_zero:
            remove = (
                folder.remove
                if trainer.checkpoint_io is None
                else (trainer.checkpoint_io.remove_checkpoint)
            )
            remove(filepath)

    def to_yaml(self, filepath: str | os.PathLike[str] | None = None) -> None:
        """Write paths and values of the checkpoints kept to a file.

        By default to `best_k_models.yaml` in `dirpath`.
        """
        import yaml

        text = yaml.dump({path: value.item() for path, value in self.best_k_models.items()})
        storage.write_text(
            os.fspath(filepath or os.path.join(self.dirpath or "", "best_k_models.yaml")), text
        )

    # ---- state ----

    def state_dict(self) -> StateDict:
        return {
            name: dict(value) if isinstance(value := getattr(self, name), dict) else value
            for name in STATE
        }

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.best_model_path = state_dict["best_model_path"]
        before = state_dict.get("dirpath", self.dirpath)
        if before != self.dirpath and self._in_fit:
            warn(
                f"ModelCheckpoint now saves to {self.dirpath!r}, but the checkpoint comes from"
                f" {before!r}. It goes on with best_model_path alone and counts its best"
                f" checkpoints anew; to go on with them, set dirpath={before!r}."
            )
        for name in OF_FOLDER if before == self.dirpath else ():
            setattr(self, name, state_dict.get(name, getattr(self, name)))
