"""Tuner: searches before training.

For a learning rate, for a batch size, for the best of many fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Unpack

from torch.utils._pytree import tree_leaves

from raylit.callbacks import BatchSizeFinder, LearningRateFinder
from raylit.callbacks.finders.learning_rate_finder import LRFinderResult, attribute_name
from raylit.check.check import generators_kept
from raylit.core.datamodule import GivenData, LightningDataModule
from raylit.core.hparams import holders_of, set_value
from raylit.core.module import LightningModule
from raylit.engine.run import STAGE_OF, restore_modes, submodule_modes
from raylit.errors import ConfigError, DataError, WrongTypeError, did_you_mean, foreign_hint
from raylit.loggers.dummy import DummyLogger
from raylit.runtime.aliases import Loaders
from raylit.runtime.rng import isolated
from raylit.trainer import driver
from raylit.trainer.trainer import Trainer

if TYPE_CHECKING:
    from raylit.tune.result import SweepResult
    from raylit.tune.spec import SweepSettings, SweepSpec


class Tuner:
    """Searches with the settings of a Trainer.

    Args:
        trainer: searches run as its fits do; each trial of a sweep is a fit with its arguments, in
            one process.

    Example:
        >>> tuner = Tuner(Trainer(max_epochs=10))
        >>> tuner.lr_find(model, datamodule=data).plot(suggest=True)
        >>> tuner.scale_batch_size(model, datamodule=data)
        >>> sweep = tuner.sweep(
        ...     LitDigits,
        ...     DigitsData,
        ...     space={"model.lr": tune.loguniform(1e-4, 1e-1)},
        ...     metric="val_loss",
        ...     num_samples=20,
        ... )
    """

    def __init__(self, trainer: Trainer) -> None:
        if not isinstance(trainer, Trainer):
            raise WrongTypeError(
                f"Tuner({trainer!r}): give the Trainer with which models are to be tried."
                f"{foreign_hint(trainer)}"
            )
        self.trainer = trainer

    def lr_find(
        self,
        model: LightningModule,
        train_dataloaders: GivenData = None,
        val_dataloaders: GivenData = None,
        dataloaders: GivenData = None,
        datamodule: LightningDataModule | None = None,
        method: str = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> LRFinderResult | None:
        """Train a little with a rising learning rate, to suggest one.

        Nothing but the model's attribute is changed.

        Args:
            model: the model.
            train_dataloaders: as in `Trainer.fit`.
            val_dataloaders: as in `Trainer.fit`.
            dataloaders: for methods other than fit, so for none.
            datamodule: the data, instead of loaders.
            method: `fit`.
            min_lr: learning rate of the first step.
            max_lr: learning rate of the last.
            num_training: number of steps; fewer if training ends before.
            mode: how it rises: `exponential` or `linear`.
            early_stop_threshold: end the search when the smoothed loss is more than so many times
                the best. None: do not.
            update_attr: whether to set the model's attribute to the suggestion.
            attr_name: name of that attribute or hyperparameter. Default: `lr` or `learning_rate`.

        Returns:
            What was found: `suggestion()`, `plot()` and `results`; None in a fast dev run
            (`fast_dev_run`).

        Raises:
            ConfigError: an argument is wrong, there is no such attribute, or more than one
                optimizer.
        """
        if method != "fit":
            raise ConfigError(
                f"lr_find(method={method!r}): a learning rate matters in training only. Leave it"
                " out."
            )
        finder = LearningRateFinder(
            min_lr, max_lr, num_training, mode, early_stop_threshold, update_attr, attr_name
        )
        self._search(
            finder, model, method, train_dataloaders, val_dataloaders, dataloaders, datamodule
        )
        # The worker has set that of its copy
        if finder.optimal_lr is not None and update_attr and self.trainer.num_workers:
            lr = finder.optimal_lr.suggestion()
            name = attribute_name(attr_name, model, self.trainer.datamodule)
            if lr is not None:
                set_value(holders_of(name, model, self.trainer.datamodule), name, lr)
        return finder.optimal_lr

    def scale_batch_size(
        self,
        model: LightningModule,
        train_dataloaders: GivenData = None,
        val_dataloaders: GivenData = None,
        dataloaders: GivenData = None,
        datamodule: LightningDataModule | None = None,
        method: str = "fit",
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> int | None:
        """Find the largest batch size for which the memory suffices.

        Nothing but the attribute of that name is changed.

        Args:
            model: the model.
            train_dataloaders: a LightningDataModule, instead of `datamodule`; the size of loaders
                cannot be changed.
            val_dataloaders: as in `Trainer.fit`.
            dataloaders: for methods other than fit, a LightningDataModule.
            datamodule: the data.
            method: `fit`, `validate`, `test` or `predict`.
            mode: `power` doubles the size until the memory is full; `binsearch` then halves the
                distance between what fits and what does not.
            steps_per_trial: steps with each size.
            init_val: the first size.
            max_trials: sizes to try; of `binsearch`, sizes that fit.
            batch_arg_name: attribute or hyperparameter, of the model or the datamodule, that is the
                batch size.
            margin: part of the size that is given back in the end, as a reserve; for `binsearch`.
            max_val: largest size.

        Returns:
            The size; None in a fast dev run.

        Raises:
            ConfigError: an argument is wrong, there is no such attribute, loaders were given
                directly, or the Trainer has several workers.
        """
        if self.trainer.num_workers:
            raise ConfigError(
                "scale_batch_size finds out what fits in this process, but the Trainer has"
                f" num_workers={self.trainer.num_workers}. Search with Trainer(num_workers=0), on a"
                " machine like those of the workers, and train with the size found."
            )
        finder = BatchSizeFinder(
            mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val
        )
        self._search(
            finder, model, method, train_dataloaders, val_dataloaders, dataloaders, datamodule
        )
        return finder.optimal_batch_size

    def sweep(
        self,
        model: Callable[..., LightningModule],
        datamodule: Callable[..., LightningDataModule] | LightningDataModule | None = None,
        *,
        spec: SweepSpec | None = None,
        train_dataloaders: GivenData = None,
        val_dataloaders: GivenData = None,
        resume: str | bool = False,
        **settings: Unpack[SweepSettings],
    ) -> SweepResult:
        """Run the trials of a sweep, each with values drawn from the space.

        Args:
            model: the module's class, or a function; called with the trial's `model.*` values.
            datamodule: the datamodule's class, or a function; called with the trial's `data.*`
                values. Or an object, the same for all.
            spec: the settings of the sweep.
            train_dataloaders: loaders instead of a datamodule.
            val_dataloaders: likewise.
            resume: a sweep to go on with whose process has ended: its name or folder; True: the
                newest of this name.
            settings: the settings of the sweep, instead of `spec`; see `raylit.tune.SweepSpec`.

        Returns:
            The trials, best first.

        Raises:
            ConfigError: a setting is wrong; nothing was started.
            LaunchError: every trial failed.
        """
        from raylit.tune.recipe import Classes  # loads Ray
        from raylit.tune.spec import SweepSpec
        from raylit.tune.sweep import run_sweep

        if (spec is None) == (not settings):
            raise ConfigError(
                "Tuner.sweep wants the settings of the sweep: space=..., metric=..., ..., or a"
                " SweepSpec as spec=..., but not both."
            )
        spec = SweepSpec.of(settings) if spec is None else spec
        if isinstance(model, LightningModule):
            raise ConfigError(
                f"Tuner.sweep got a {type(model).__name__} object; every trial needs one of its"
                " own. Give the class, or a function that makes it."
            )
        loaders: dict[str, Loaders] = {}
        if train_dataloaders is not None:
            loaders = {"train_dataloaders": train_dataloaders, "val_dataloaders": val_dataloaders}
        recipe = Classes(self.trainer, model, datamodule, loaders, spec.trainer_settings)
        recipe.check(spec.space)
        return run_sweep(self.trainer, recipe, spec, resume=resume)

    def _search(
        self,
        finder: LearningRateFinder | BatchSizeFinder,
        model: LightningModule,
        method: str,
        train: GivenData,
        val: GivenData,
        data: GivenData,
        datamodule: LightningDataModule | None,
    ) -> None:
        """Run the job `method` as far as the finder's search, and undo its changes.

        The finder is the first of the callbacks.
        """
        trainer = self.trainer
        name = "lr_find" if isinstance(finder, LearningRateFinder) else "scale_batch_size"
        if method not in STAGE_OF:
            raise ConfigError(
                f"{name}(method={method!r}) is not known.{did_you_mean(method, STAGE_OF)} Use one"
                f" of: {', '.join(STAGE_OF)}."
            )
        if method == "fit" and data is not None:
            raise ConfigError(
                f"{name}(dataloaders=...) is for evaluation. To search in training, give"
                " train_dataloaders and val_dataloaders."
            )
        if method != "fit" and (train is not None or val is not None):
            raise ConfigError(
                f"{name}(method={method!r}) takes dataloaders=..., not train_dataloaders and"
                " val_dataloaders."
            )
        if any(isinstance(callback, type(finder)) for callback in trainer.callbacks):
            raise ConfigError(
                f"The Trainer has a {type(finder).__name__} among its callbacks, which searches in"
                " fit. Take it out to use the Tuner."
            )
        given = {"train": train, "val": val} if method == "fit" else {STAGE_OF[method]: data}
        for stage, loaders in given.items():
            if any(hasattr(leaf, "__next__") for leaf in tree_leaves(loaders)):
                raise DataError(
                    f"The {stage} data is an iterator: the batches that {name} reads would be"
                    " missing later. Give a DataLoader or an iterable."
                )
        model = driver.check_model(method, model)
        callbacks = trainer.callbacks
        loggers = trainer.loggers
        modes = submodule_modes(model)
        states = [dict(vars(callback)) for callback in callbacks]
        finder._early_exit = True
        trainer.callbacks = [finder, *callbacks]
        trainer.loggers = [DummyLogger()] if loggers else []
        try:
            with isolated(), generators_kept(given):
                if method == "fit":
                    trainer.fit(model, train, val, datamodule)
                elif method == "predict":
                    trainer.predict(model, data, datamodule)
                else:
                    getattr(trainer, method)(model, data, verbose=False, datamodule=datamodule)
        finally:
            trainer.callbacks = callbacks
            trainer.loggers = loggers
            for callback, state in zip(callbacks, states, strict=True):
                vars(callback).clear()
                vars(callback).update(state)
            restore_modes(model, modes)
