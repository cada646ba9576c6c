"""Trainer: the settings of a run, and fit, validate, test, predict, check, export and explain."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from raylit.callbacks import Callback
from raylit.checkpoint import find
from raylit.checkpoint.io import CheckpointIO
from raylit.core.callback import check_callbacks, checkpoint_roots
from raylit.core.datamodule import GivenData, LightningDataModule
from raylit.core.job import Fn, Job, Result, Task
from raylit.core.module import LightningModule
from raylit.core.progress import Progress
from raylit.core.returned import bring_home
from raylit.core.states import TrainerFn, TrainerState, TrainerStatus
from raylit.core.trainer import RunHandle
from raylit.engine.run import Run
from raylit.engine.saving import write
from raylit.errors import ConfigError, NoAttributeError, did_you_mean
from raylit.loggers import Logger
from raylit.parallel import Strategy, World, find_strategy
from raylit.parallel.plugins import ClusterEnvironment, LayerSync, PrecisionPlugin
from raylit.profilers import Profiler, find_profiler
from raylit.runtime import determinism
from raylit.runtime.aliases import Prediction, StateDict
from raylit.runtime.kinds import check_kinds
from raylit.runtime.messages import warn_once
from raylit.trainer import driver, settings
from raylit.trainer.view import TrainerView
from raylit.validation.config import ValidationConfig

if TYPE_CHECKING:
    from raylit.check.check import CheckReport
    from raylit.explain import Explanation
    from raylit.export import ExportReport

Plugin = CheckpointIO | PrecisionPlugin | LayerSync | ClusterEnvironment


class Trainer(TrainerView):
    """Trains, validates, tests and predicts, in this process or on Ray.

    Arguments not given may come from the environment: PL_TRAINER_MAX_EPOCHS=3.

    Args:
        num_workers: 0 trains in this process; n in n Ray actors, each with a copy of the model,
            gradients averaged. (min, max): elastic, in as many as there is room for; starts with
            min, shrinks when a node goes, grows when one comes; the batch of all of max is kept.
        use_gpu: whether each Ray worker gets a GPU. None: whether `accelerator` says so; with
            `auto`, where the cluster has as many GPUs as workers are wanted.
        resources_per_worker: what each Ray worker reserves, such as `{"CPU": 2}`. Default: one CPU,
            and one GPU if it gets one.
        max_failures: how often Ray restarts the workers after one failed, from the newest
            checkpoint; or a `ray.train.FailureConfig`.
        storage_path: folder or URL that all nodes of the Ray cluster reach, for the files of a run:
            Ray's, and checkpoints. Default: `default_root_dir`.
        accelerator: `auto`, `cpu`, `gpu`, `cuda` or `mps`.
        strategy: how workers are kept in step: `auto`, `ddp`, `ddp_find_unused_parameters_true`,
            `fsdp`, or a DDPStrategy or FSDPStrategy. `ddp_spawn`, `ddp_fork` and `ddp_notebook`
            (which forks too) mean local processes.
        launcher: what starts the workers: `ray` (default), or `local`: processes of this machine,
            without Ray, which start in a third of the time.
        devices: Lightning's spelling of workers per node: a number, or a list of GPUs. More than
            one means that many workers.
        num_nodes: Lightning's spelling: workers are `devices * num_nodes`.
        compile: whether modules are compiled by torch.compile; or its arguments: `{"mode":
            "max-autotune"}`.
        async_validation: whether training does not wait for validation, which then runs in Ray
            tasks of its own, on checkpoints; or a ValidationConfig.
        precision: `32-true`, `64-true`, `16-mixed`, `bf16-mixed`, `16-true`, `bf16-true`, or 64,
            32, 16, `bf16`.
        logger: a logger or several; True for a CSVLogger, False for none.
        callbacks: a callback or several.
        fast_dev_run: run n batches (True: 1) of everything once, without loggers and checkpoints,
            to find errors.
        max_epochs: stop after so many epochs. Default 1000, or no limit if `max_steps` or
            `max_time` is given; -1: no limit.
        min_epochs: do not stop earlier than this.
        max_steps: stop after so many optimizer steps; -1: no limit.
        min_steps: do not stop earlier than this.
        max_time: stop after this time: `DD:HH:MM:SS`, a timedelta, or its arguments as a dict.
        limit_train_batches: batches of an epoch to train on: a number, or a fraction of them.
        limit_val_batches: likewise for validation.
        limit_test_batches: likewise for test.
        limit_predict_batches: likewise for prediction.
        overfit_batches: train and validate on this many (or this fraction) of the batches,
            unshuffled.
        val_check_interval: validate every n batches, at this fraction of an epoch, or after this
            time (as `max_time`).
        check_val_every_n_epoch: validate in every n-th epoch. None: `val_check_interval` counts
            batches over epochs.
        num_sanity_val_steps: validation batches to run before training; -1: all. Default 2.
        log_every_n_steps: how often step values go to the loggers. Default 50; 0: never.
        enable_checkpointing: whether a ModelCheckpoint and a RecoveryCheckpoint are added if there
            is none. Default True.
        strict_checkpoints: whether saving refuses objects that are no plain data, rather than
            pickle them in a part that `torch.load(weights_only=True)` leaves aside.
        enable_progress_bar: whether progress is shown. Default True.
        enable_model_summary: whether the model is summarized at the start. Default True.
        accumulate_grad_batches: batches whose gradients add up to one optimizer step.
        gradient_clip_val: bound of the gradients; None or 0: none.
        gradient_clip_algorithm: `norm` bounds the norm of all gradients together, `value` each
            number.
        deterministic: True: only deterministic algorithms; `warn`: warn where there is none.
        benchmark: whether cuDNN looks for the fastest algorithm. Default: as it is set; False if
            `deterministic`.
        plugins: a CheckpointIO, which writes and reads checkpoints otherwise; or what says with an
            object what an argument says with a word, such as MixedPrecision and TorchSyncBatchNorm.
        inference_mode: whether evaluation outside of fit runs in inference mode rather than under
            no_grad.
        use_distributed_sampler: whether loaders are sharded over the workers.
        profiler: what measures where the time goes: `simple`, `advanced`, `pytorch` or a Profiler;
            it reports at the end.
        detect_anomaly: whether autograd looks for NaN and says where it came from. Slow.
        barebones: whether all that may cost speed is off, to measure the rest: loggers,
            checkpoints, bar, summary, sanity check, `self.log`.
        sync_batchnorm: whether batch norm statistics are taken over all workers.
        reload_dataloaders_every_n_epochs: ask for the loaders anew every n epochs; 0: never.
        default_root_dir: folder for whatever has no folder of its own. Default: `storage_path` if
            that is a folder, else the current one.
        enable_autolog_hparams: whether hyperparameters are sent to the loggers.
        model_registry: only None, as configs that Lightning wrote have it.

    Raises:
        ConfigError: an argument is out of range or contradicts another.

    Example:
        >>> trainer = Trainer(max_epochs=3, callbacks=[EarlyStopping("val_loss")])
        >>> result = trainer.fit(model, train_dataloaders=loader)
    """

    @settings.defaults_from_environment
    def __init__(
        self,
        *,
        num_workers: int | tuple[int, int] | None = None,
        use_gpu: bool | None = None,
        resources_per_worker: dict[str, float] | None = None,
        max_failures: int | Any = 0,
        storage_path: str | os.PathLike[str] | None = None,
        accelerator: str = "auto",
        strategy: str | Strategy = "auto",
        devices: int | str | list[int] | None = None,
        num_nodes: int = 1,
        precision: str | int | None = None,
        logger: Logger | Iterable[Logger] | bool | None = None,
        callbacks: Sequence[Callback] | Callback | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | dict[str, int] | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | Literal["warn"] | None = None,
        benchmark: bool | None = None,
        plugins: Plugin | list[Plugin] | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Profiler | str | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        sync_batchnorm: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | os.PathLike[str] | None = None,
        enable_autolog_hparams: bool = True,
        compile: bool | dict[str, Any] = False,
        async_validation: bool | ValidationConfig = False,
        strict_checkpoints: bool = False,
        model_registry: str | None = None,
        launcher: Literal["ray", "local"] | None = None,
    ) -> None:
        given = settings.without_numpy(
            {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        )
        # two say more of a value of another type where they are looked at
        check_kinds(Trainer.__init__, given, but=("gradient_clip_val", "accumulate_grad_batches"))
        self.strategy = find_strategy(strategy)
        self.settings = settings.Settings.of(given, self.strategy)
        # After the settings, which keep the arguments as they were given, for `replaced`
        if barebones:
            given = settings.bare(given)
        self.limits = settings.limits_of(given, self.settings)
        determinism.apply(deterministic, benchmark)
        self.profiler = find_profiler(profiler)
        self._opened: find.Opened = {}
        is_dev_run = bool(self.fast_dev_run)
        self.loggers = settings.make_loggers(
            given["logger"], self.default_root_dir, dummy=is_dev_run
        )
        self.callbacks = settings.make_callbacks(
            callbacks,
            max_time,
            given["enable_checkpointing"],
            given["enable_progress_bar"],
            given["enable_model_summary"],
            is_dev_run=is_dev_run,
        )
        self.should_stop = False
        self.progress = Progress()
        self.num_training_batches = float("inf")
        self.ckpt_path = None
        self.display = None
        self._run = None
        self._state = TrainerState()
        self._module = None
        self._datamodule = None
        self._metrics = ({}, {}, {})

    # ---- entry points ----

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: GivenData = None,
        val_dataloaders: GivenData = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
    ) -> Result:
        """Train `model`.

        Args:
            model: the module; afterwards it holds the trained weights.
            train_dataloaders: a DataLoader, any iterable, a `ray.data.Dataset`, or a list or dict
                of them; or a LightningDataModule.
            val_dataloaders: likewise for validation; several are read one after the other.
            datamodule: the data, instead of loaders.
            ckpt_path: checkpoint to go on from: a path, `last` or `best`.
            weights_only: False lets the checkpoint run code when it is loaded: only for files you
                wrote yourself.

        Returns:
            Metrics, paths of checkpoints, the MLflow run, the history.

        Raises:
            ConfigError: model, data or settings do not fit together.
            CheckpointError: the checkpoint is missing, torn or unsafe.
        """
        job = self._job(
            "fit",
            model,
            {"train": train_dataloaders, "val": val_dataloaders},
            datamodule,
            ckpt_path,
            weights_only,
        )
        settings.warn_of_default_epochs(self.settings, self.limits)
        self.should_stop = False
        with driver.Driving(job):
            result = driver.launcher_for(job).launch(job)
        return self._adopt(job, result)

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: GivenData = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Run validation once; the arguments are as in `fit`.

        Returns:
            The values logged, one dict for each loader.
        """
        return self._evaluate(
            "validate", model, {"val": dataloaders}, datamodule, ckpt_path, weights_only, verbose
        )

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: GivenData = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Run the test once; the arguments are as in `fit`.

        Returns:
            The values logged, one dict for each loader.
        """
        return self._evaluate(
            "test", model, {"test": dataloaders}, datamodule, ckpt_path, weights_only, verbose
        )

    @overload
    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: GivenData = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: Literal[True] | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: GivenData = None,
        datamodule: LightningDataModule | None = None,
        *,
        return_predictions: bool,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
    ) -> list[Prediction] | None: ...

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: GivenData = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
    ) -> list[Prediction] | None:
        """Run `predict_step` over the data.

        Args:
            model: as in `fit`, like the others but one.
            dataloaders: as `train_dataloaders`.
            datamodule: the data, instead of loaders.
            return_predictions: False keeps nothing, for callbacks that write it away.
            ckpt_path: checkpoint with the weights to use.
            weights_only: False lets the checkpoint run code when it is loaded.

        Returns:
            What `predict_step` returned for each batch, in the order of the data; for several
            loaders a list of such lists; None if `return_predictions` is False.
        """
        job = self._job(
            "predict", model, {"predict": dataloaders}, datamodule, ckpt_path, weights_only
        )
        job.return_predictions = return_predictions is not False
        with driver.Driving(job):
            result = driver.launcher_for(job).launch(job)
        predictions: list[Prediction] | None = self._adopt(job, result).value
        return predictions

    def _evaluate(
        self,
        fn: Fn,
        model: LightningModule | None,
        data: dict[str, object],
        datamodule: LightningDataModule | None,
        ckpt_path: str | os.PathLike[str] | None,
        weights_only: bool | None,
        verbose: bool,
    ) -> list[dict[str, float]]:
        job = self._job(fn, model, data, datamodule, ckpt_path, weights_only)
        with driver.Driving(job):
            result = driver.launcher_for(job).launch(job)
        values: list[dict[str, float]] = self._adopt(job, result).value
        if verbose:
            settings.print_results(fn, values)
        return values

    def check(
        self,
        model: LightningModule,
        train_dataloaders: GivenData = None,
        val_dataloaders: GivenData = None,
        datamodule: LightningDataModule | None = None,
        verbose: bool = True,
    ) -> CheckReport:
        """Look for faults of a model before it is trained, and estimate the cost of an epoch.

        The arguments are as in `fit`; see `raylit.check`. A copy is trained: model, data and random
        states are left as they are. `verbose` prints the findings.
        """
        from raylit.check.check import check

        given, datamodule = driver.check_data(
            "check", {"train": train_dataloaders, "val": val_dataloaders}, datamodule
        )
        report = check(self, driver.check_model("check", model), given, datamodule)
        if verbose:
            settings.print_table(report.table())
        return report

    def export(
        self,
        model: LightningModule | None = None,
        path: str | os.PathLike[str] | None = None,
        format: str | None = None,
        dataloaders: GivenData = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        num_batches: int = 4,
        tolerance: float = 1e-5,
        verbose: bool = True,
    ) -> ExportReport:
        """Write `forward` of a model, in eval mode, to a file that runs without raylit.

        The file takes any number of samples. Its outputs are compared with the module's on
        validation batches, of the sizes they have and of one sample; if they differ, nothing is
        written. Runs in this process, on the CPU, in float32; callbacks and loggers rest.

        Args:
            model: as in `validate`.
            path: the file, a folder for `mlflow`. Default: the name of the class, in this folder.
            format: `onnx`, `pt2` (torch.export), `safetensors` (weights alone) or `mlflow` (a
                folder for `mlflow.pyfunc`). Default: as the suffix of `path` says, else `onnx`.
            dataloaders: validation data.
            datamodule: the data, instead of loaders.
            ckpt_path: checkpoint with the weights to export.
            weights_only: False lets the checkpoint run code when it is loaded.
            num_batches: validation batches to compare on.
            tolerance: largest difference of outputs that is allowed, as a part of the largest
                output (of 1 if that is larger).
            verbose: whether the report is printed.

        Raises:
            ConfigError: the format is not known, the model cannot be exported (names the operator
                and the line), or the file gives other numbers.
            MissingPackageError: a package that the format needs is not installed.

        Source: https://docs.pytorch.org/docs/stable/export.html

        Example:
            >>> report = trainer.export(model, "model.pt2", dataloaders=loader, verbose=False)
            >>> report.max_difference < 1e-5
            True
        """
        from raylit.trainer import tasks

        task = tasks.export_task(self, model, path, format, num_batches, tolerance)
        alone = tasks.with_weights_alone(self, num_workers=0, accelerator="cpu")
        report: ExportReport
        report, _ = self._do(task, alone, model, dataloaders, datamodule, ckpt_path, weights_only)
        if verbose:
            print(report)
        return report

    def explain(
        self,
        model: LightningModule | None = None,
        dataloaders: GivenData = None,
        method: str | Any = "integrated_gradients",
        target: int | str = "prediction",
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        layer: str | Sequence[str] = (),
        baselines: float | None = None,
        num_steps: int = 50,
        internal_batch_size: int = 256,
        feature_names: Sequence[str] | None = None,
        sanity_check: bool = False,
    ) -> Explanation:
        """Tell how much each part of an input speaks for an output of a model.

        For each validation sample; on Ray each worker explains a piece of them, as `predict` does.
        Inputs are those of `forward` (see `LightningModule.forward_inputs`), several at once if it
        takes several. Callbacks rest; the model is as `ckpt_path` has it. An MLFlowLogger of the
        Trainer keeps the arrays, a picture and the importance of features beside the run that the
        checkpoint is of, or that the Trainer has just fitted: `explanations/<method>/step-<step>`.

        Args:
            model: as in `validate`; `forward` returns (samples,) or (samples, outputs).
            dataloaders: validation data.
            method: `integrated_gradients`, `saliency`, `layer_gradcam`, `occlusion`,
                `feature_ablation` or `permutation` (which gives a sample the features of the sample
                before it in its batch); or an object of captum, or a class of it.
            target: which output: `prediction` (the largest), `label` (as the batch says), or its
                index.
            datamodule: the data, instead of loaders.
            ckpt_path: checkpoint with the weights.
            weights_only: False lets the checkpoint run code when it is loaded.
            layer: name of the embedding layer that takes the integers which `forward` gets, or
                several; for `layer_gradcam` the layer to look at, by default the last Conv2d.
            baselines: a number that stands for nothing; None: 0.
            num_steps: of the path of integrated gradients.
            internal_batch_size: samples in the model at once, which bounds the memory of integrated
                gradients.
            feature_names: of the columns of a table.
            sanity_check: whether to compare with the same model with random weights, and warn if
                that gives the same.

        Raises:
            ConfigError: the method does not fit the model, or the target is out of range.
            MissingPackageError: captum is not installed.

        Source: Kokhlikyan et al. 2020, https://arxiv.org/abs/2009.07896; integrated gradients:
        Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365.

        Example:
            >>> explanation = trainer.explain(model, loader, target=0)
            >>> list(explanation.attributions)
            ['x']
        """
        from raylit.explain.methods import Method
        from raylit.trainer import tasks

        layers = (layer,) if isinstance(layer, str) else tuple(layer)
        task = tasks.explain_task(
            Method(method, layers, baselines, num_steps, internal_batch_size),
            target,
            feature_names,
            sanity_check,
        )
        alone = tasks.with_weights_alone(self)
        explanation: Explanation
        explanation, found = self._do(
            task, alone, model, dataloaders, datamodule, ckpt_path, weights_only
        )
        tasks.keep_explanation(self, explanation, found, weights_only)
        return explanation

    def _do(
        self,
        task: Task,
        alone: Trainer,
        model: LightningModule | None,
        dataloaders: object,
        datamodule: LightningDataModule | None,
        ckpt_path: str | os.PathLike[str] | None,
        weights_only: bool | None,
    ) -> tuple[Any, str | None]:
        """Have `alone`, a Trainer without callbacks, do a task with a model and validation data.

        Returns the result of the task, and the checkpoint that the weights are from.
        """
        if model is None:
            model = self._module
            ckpt_path = driver.best_by_default(
                task.name, model, self.checkpoint_callback, ckpt_path
            )
        # Here, since `alone` has no callbacks and loggers that say where checkpoints are
        roots = checkpoint_roots(self, "validate")
        is_own = self.checkpoint_io is None
        found = find.resolve(ckpt_path, self.savers, roots, "validate", is_own=is_own)
        job = alone._job("validate", model, {"val": dataloaders}, datamodule, found, weights_only)
        job.task = task
        with driver.Driving(job):
            result = driver.launcher_for(job).launch(job)
        self._module = job.module
        return alone._adopt(job, result).value, job.ckpt_path

    # ---- for callbacks and user code ----

    def save_checkpoint(
        self,
        filepath: str | os.PathLike[str],
        weights_only: bool | None = None,
        storage_options: dict[str, object] | None = None,
    ) -> None:
        """Write a checkpoint of the run as it is now. Call it on all ranks; rank 0 writes.

        Args:
            filepath: local path or fsspec URL.
            weights_only: leave out what only a continued training needs.
            storage_options: handed to fsspec for URLs.

        Raises:
            NotSavedError: it could not be written; what stood there is untouched. On all ranks, if
                rank 0 could not.
        """
        if self._run is None and self.num_workers and self._module is not None:
            self._save_what_came_home(self._module, filepath, storage_options)
            return
        if self._run is None:
            raise NoAttributeError(
                "Saving a checkpoint is only possible if a model is attached to the Trainer. "
                "There is nothing to save yet: call fit, validate, test or predict first."
            )
        with self.profiler.profile("save_checkpoint"):
            write(self._run, filepath, bool(weights_only), storage_options)

    def _save_what_came_home(
        self,
        module: LightningModule,
        filepath: str | os.PathLike[str],
        storage_options: dict[str, object] | None,
    ) -> None:
        """Write the part of a remote job that came home: the model, without optimizers."""
        warn_once(
            f"{filepath} is written without the state of optimizers, which was in the workers. The"
            " checkpoints that ModelCheckpoint saves have it."
        )
        world = World(torch.device("cpu"))
        loggers = self.loggers
        self.loggers = []  # they are closed
        try:
            run = Run(Job("fit", self, module, self._datamodule), world)
            write(run, filepath, weights_only=True, storage_options=storage_options)
        finally:
            self.loggers = loggers
            world.leave()

    def backward(self, loss: object, *args: object, **kwargs: object) -> None:
        """Run the backward pass with its hooks; see `LightningModule.manual_backward`."""
        assert self._run is not None, "no job was run yet"
        self._run.backward(loss, *args, **kwargs)

    @property
    def changed_arguments(self) -> dict[str, object]:
        """The arguments that differ from their defaults, as they were given."""
        defaults = inspect.signature(Trainer.__init__).parameters
        plain = (bool, int, float, str)
        return {
            name: value
            for name, value in self.settings.arguments.items()
            if value is not defaults[name].default
            and not (isinstance(value, plain) and value == defaults[name].default)
        }

    def replaced(self, **arguments: object) -> Trainer:
        """Return a new Trainer with the arguments this one was made with, but for those given.

        Raises:
            ConfigError: there is no such argument, or its value is out of range.
        """
        for name in arguments:
            if name not in self.settings.arguments:
                raise ConfigError(
                    f"Trainer has no argument {name!r}."
                    f"{did_you_mean(name, self.settings.arguments)}"
                )
        # The `__init__` of a subclass may take other arguments; what it has set stays
        made = copy.copy(self)
        Trainer.__init__(made, **{**self.settings.arguments, **arguments})
        return made

    # ---- a job's beginning and end ----

    def _job(
        self,
        fn: Fn,
        model: LightningModule | None,
        data: dict[str, object],
        datamodule: LightningDataModule | None,
        ckpt_path: str | os.PathLike[str] | None,
        weights_only: bool | None,
    ) -> Job:
        if model is None and fn != "fit":
            model = self._module
            ckpt_path = driver.best_by_default(
                fn, self._module, self.checkpoint_callback, ckpt_path
            )
        model = driver.check_model(fn, model)
        given, datamodule = driver.check_data(fn, data, datamodule)
        check_callbacks(self.callbacks)  # some may have come since it was made
        driver.check_places(fn, self)
        driver.check_cluster(self)
        opened = self.opened_for(weights_only)
        self.ckpt_path = find.resolve(
            ckpt_path,
            self.savers,
            checkpoint_roots(self, fn),
            fn,
            opened,
            is_own=self.checkpoint_io is None,
            origin=driver.origin_of(model),
        )
        self._look_into_checkpoint(weights_only)
        self._state.fn = TrainerFn(fn)
        self._state.status = TrainerStatus.RUNNING
        self._module = model
        self._datamodule = datamodule
        return Job(
            fn,
            self,
            model,
            datamodule,
            given,
            self.ckpt_path,
            weights_only,
            is_picked=ckpt_path not in (None, "last"),
            opened=self._take_opened(),
        )

    def opened_for(self, weights_only: bool | None) -> find.Opened | None:
        """Return the holder of a checkpoint that is read before a job, which then need not read it.

        None where the job runs elsewhere, or opens the file otherwise.
        """
        # where code may run, the file is opened by whoever lets it
        is_own = weights_only is not False and self.checkpoint_io is None
        return self._opened if is_own and not self.num_workers else None

    def _look_into_checkpoint(self, weights_only: bool | None) -> None:
        """Find out whether the checkpoint of the next job can be read, if that runs no code."""
        if self.ckpt_path and weights_only is not False and self.checkpoint_io is None:
            find.look_into(self.ckpt_path, self.opened_for(weights_only))

    def _take_opened(self) -> find.Opened:
        opened = self._opened
        self._opened = {}
        return opened

    def _adopt(self, job: Job, result: Result) -> Result:
        """Take over module, callbacks and counters as workers in other processes left them."""
        state = result.state
        # The result is the user's to keep, and is not to hold the weights as well
        result.state = None
        if state is not None:
            job.module.load_state_dict(state["module"])
            self.callbacks = bring_home(self.callbacks, state["callbacks"])
            self.progress.load_state_dict(state["progress"])
            self._metrics = state["metrics"]
            self.should_stop = state["should_stop"]
            self.num_training_batches = state["num_training_batches"]
            self._state.status = TrainerStatus.FINISHED
        return result

    def begin(self, run: RunHandle) -> None:
        """A job begins on this rank; the worker calls it."""
        assert isinstance(run, Run)
        if self._run is not None:
            run.follow(self._run)
        self._run = run
        self._metrics = ({}, {}, {})
        self.strategy.attach(run.world)
        self.strategy.show(self)
        self._module = run.module
        self._datamodule = run.datamodule
        self.display = run.job.display
        self._state.fn = TrainerFn(run.job.fn)
        self._state.status = TrainerStatus.RUNNING

    def end(self, run: RunHandle) -> None:
        """The job has ended on this rank; the worker calls it."""
        assert isinstance(run, Run)
        self._metrics = (run.metrics.callback, run.metrics.logged, run.metrics.progress_bar)
        self.display = None
        run.outcome.is_over = True

    def __getstate__(self) -> StateDict:
        return {
            **self.__dict__,
            "_run": None,
            "_module": None,
            "_datamodule": None,
            "display": None,
            "_opened": {},
        }
