"""BatchSizeFinder.

Tries ever larger batches, and keeps the largest size for which the memory suffices.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from raylit.callbacks.finders.dry_run import dry_run
from raylit.core.callback import FIRST, Callback
from raylit.core.hparams import get_value, holders_of, set_value
from raylit.engine.run import STAGE_OF, Run
from raylit.errors import ConfigError, SearchDone
from raylit.runtime.messages import info, warn

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer
    from raylit.data import CombinedLoader

MODES = ("power", "binsearch")
SIGNS_OF_FULL_MEMORY = (  # in the text of a RuntimeError
    ("CUDA", "out of memory"),
    ("HIP", "out of memory"),
    ("MPS", "out of memory"),
    ("CUBLAS_STATUS_ALLOC_FAILED",),
    ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.",),
    ("DefaultCPUAllocator", "can't allocate memory"),
    ("DefaultCPUAllocator", "not enough memory"),
)


class BatchSizeFinder(Callback):
    """Finds the largest batch size for which the memory suffices.

    Before `fit`, `validate`, `test` or `predict` it runs a few steps with each size, sets the
    attribute to the size found, and leaves no other trace. The loaders must come from hooks of the
    model or the datamodule that make them with that attribute. Override `on_fit_start` to do
    nothing, and call `scale_batch_size` in another hook, such as `on_train_epoch_start`, to search
    then.

    Args:
        mode: `power` doubles the size until the memory is full; `binsearch` then halves the
            distance between what fits and what does not.
        steps_per_trial: steps with each size.
        init_val: the first size.
        max_trials: sizes to try; of `binsearch`, sizes that fit. With 0 the first size is taken as
            it is.
        batch_arg_name: attribute or hyperparameter, of the model or the datamodule, that is the
            batch size.
        margin: part of the size that is given back in the end, as a reserve; for `binsearch`.
        max_val: largest size.

    Attributes:
        optimal_batch_size: what was found; before, `init_val`.

    Raises:
        ConfigError: an argument is out of range; when it runs: there is no such attribute, the
            loaders were given to the Trainer directly, there are several to evaluate, or there are
            several ranks.

    Example:
        >>> finder = BatchSizeFinder(mode="binsearch")
        >>> Trainer(callbacks=[finder]).fit(model, datamodule=data)
        >>> finder.optimal_batch_size, data.batch_size
    """

    SUPPORTED_MODES = MODES
    call_order = FIRST

    def __init__(
        self,
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> None:
        if mode.lower() not in MODES:
            raise ConfigError(
                f"BatchSizeFinder(mode={mode!r}) is not known. Use 'power' or 'binsearch'."
            )
        if not 0.0 <= margin < 1.0:
            raise ConfigError(
                f"margin={margin!r}: give the part of the batch to keep in reserve, at least 0 and"
                " less than 1, such as 0.05."
            )
        for name, value in {
            "steps_per_trial": steps_per_trial,
            "init_val": init_val,
            "max_trials": max_trials,
            "max_val": max_val,
        }.items():
            least = 0 if name == "max_trials" else 1
            if value < least:
                raise ConfigError(f"{name}={value!r}: give a whole number of at least {least}.")
        self.optimal_batch_size: int | None = init_val
        self._mode = mode.lower()
        self._steps_per_trial = steps_per_trial
        self._init_val = init_val
        self._max_trials = max_trials
        self._batch_arg_name = batch_arg_name
        self._margin = margin
        self._max_val = max_val
        self._early_exit = False  # the Tuner wants the result and nothing else

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        name = self._batch_arg_name
        run = trainer.run
        assert isinstance(run, Run)
        if trainer.world_size > 1:
            raise ConfigError(
                f"BatchSizeFinder does not work on {trainer.world_size} ranks: when one runs out of"
                " memory, the others would wait for it. Search in one process, with"
                " Trainer(num_workers=0), and train with the size found."
            )
        if STAGE_OF[stage] in run.job.data:
            raise ConfigError(
                "BatchSizeFinder cannot change the batch size of loaders that were given to"
                f" Trainer.{stage} directly. Return them from {STAGE_OF[stage]}_dataloader() of the"
                f" model or of a LightningDataModule, made with batch_size=self.{name}."
            )
        if not holders_of(name, pl_module, trainer.datamodule):
            raise ConfigError(
                f"BatchSizeFinder finds no {name}, neither as attribute nor in hparams of the model"
                f" or the datamodule. Set self.{name} in __init__ and make the loaders with"
                f" batch_size=self.{name}; or name another attribute with batch_arg_name='...'."
            )
        if hasattr(pl_module, name) and name in pl_module.hparams:
            warn(
                f"There is both model.{name} and model.hparams.{name}; both are set to what is"
                " found. Use one of them."
            )

    def on_fit_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.scale_batch_size(trainer, pl_module)

    def on_validation_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self.scale_batch_size(trainer, pl_module)

    def on_test_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.scale_batch_size(trainer, pl_module)

    def on_predict_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.scale_batch_size(trainer, pl_module)

    def scale_batch_size(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Search now; the size is in `optimal_batch_size`, and set."""
        run = trainer.run
        assert isinstance(run, Run), "called in a hook of a run"
        if trainer.fast_dev_run:
            warn("BatchSizeFinder does nothing in a fast dev run (fast_dev_run).")
            self.optimal_batch_size = None
        else:
            self.optimal_batch_size = self._search(run)
        if self._early_exit:
            raise SearchDone

    def _search(self, run: Run) -> int:
        stage = STAGE_OF[run.job.fn]
        name = self._batch_arg_name
        if stage == "train":
            settings: dict[str, int | float] = {
                "max_steps": run.progress.steps + self._steps_per_trial,
                "limit_train_batches": 1.0,
                "limit_val_batches": self._steps_per_trial,
            }
        else:
            settings = {f"limit_{stage}_batches": self._steps_per_trial}
            if len(run.data.loaders[stage].flattened) > 1:
                raise ConfigError(
                    "BatchSizeFinder searches for the batch size of one loader, but there are"
                    f" {len(run.data.loaders[stage].flattened)} to {run.job.fn}."
                )
        holders = holders_of(name, run.module, run.datamodule)
        before = get_value(holders, name)
        try:
            with dry_run(run, [], **settings) as perform:
                length = num_samples(run.dry_run([]).load(stage))
                # the batch sizes of the loaders, for each size tried
                made: list[list[int | None]] = []

                def fits(size: int) -> bool:
                    set_value(holders, name, size)
                    found = has_room(perform)
                    trial = run.trainer.run
                    assert isinstance(trial, Run)
                    loaders = trial.data.loaders[stage].flattened
                    made.append([getattr(loader, "batch_size", None) for loader in loaders])
                    info(f"Batch size {size} {'fits' if found else 'does not fit'}.")
                    return found

                start = before if before >= length else min(self._init_val, self._max_val)
                search = largest_power if self._mode == "power" else largest
                size = search(fits, start, length, self._max_trials, self._max_val)
        except BaseException:
            set_value(holders, name, before)
            raise
        if len(made) > 1 and made.count(made[0]) == len(made) and any(made[0]):
            warn(
                f"The {stage} loader had batches of {made[0]} whatever {name} was: is it made with"
                f" batch_size=self.{name}?"
            )
        if self._mode == "binsearch":
            size = max(1, int(size * (1 - self._margin)))
        set_value(holders, name, size)
        # Those of the loop that is about to begin are to have the new size.
        run.data.loaders.clear()
        if self._early_exit:  # there is none, and users look at them afterwards
            run.load(stage)
            if run.job.fn == "fit" and run.validates:
                run.load("val")
        info(f"Batch size set to {size} ({name}).")
        return size


def largest_power(
    fits: Callable[[int], bool], size: int, length: float, max_trials: int, max_val: int
) -> int:
    """Return the largest of `size`, its doubles and its halves that fits.

    Args:
        fits: tries a size.
        size: the first to try.
        length: number of samples, beyond which a larger batch makes no difference.
        max_trials: how many sizes to try.
        max_val: the largest.

    Raises:
        ConfigError: not even 1 fits.
    """
    best, too_large = 0, 0
    for _ in range(max_trials):
        if fits(size):
            best = size
            if size >= min(length, max_val) or 2 * size == too_large:
                break
            size = min(2 * size, max_val)
        elif best:
            break
        else:
            too_large = size
            size = smaller(size)
    return best or size


def largest(
    fits: Callable[[int], bool], size: int, length: float, max_trials: int, max_val: int
) -> int:
    """Return the largest size that fits.

    The arguments are as in `largest_power`, but `max_trials` counts the sizes that fit.
    """
    best, too_large = 0, 0
    first = size
    while max_trials:
        if fits(size):
            best = size
            max_trials -= 1
            if size >= min(length, max_val):
                break
            size = (best + too_large) // 2 if too_large else min(2 * size, max_val)
        else:
            too_large = size
            size = (best + too_large) // 2 if best else smaller(size)
        if best and too_large - best == 1:
            break
    return best or first


def smaller(size: int) -> int:
    """Return half of a size that did not fit.

    Raises:
        ConfigError: it was 1.
    """
    if size == 1:
        raise ConfigError(
            "The memory does not even suffice for batches of one sample. Make the model or the"
            " samples smaller, or use precision='bf16-mixed'."
        )
    return size // 2


def has_room(perform: Callable[[], object]) -> bool:
    """Tell whether `perform` runs without running out of memory."""
    failed = False
    try:
        perform()
    except (RuntimeError, MemoryError) as error:
        if not is_oom_error(error):
            raise
        failed = True
    # only now has the exception let go of the tensors in its frames
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return not failed


def is_oom_error(error: BaseException) -> bool:
    """Tell whether an exception says that memory is full.

    That of a CUDA, ROCm or Apple device, or of the host.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        all(part in str(error) for part in sign) for sign in SIGNS_OF_FULL_MEMORY
    )


def num_samples(loader: CombinedLoader) -> float:
    """Return how many samples there are to read, as far as they can be counted; infinity if not."""
    lengths = []
    for one in loader.flattened:
        try:
            lengths.append(len(one.dataset))
        except (AttributeError, TypeError, NotImplementedError):
            continue
    if not lengths:
        return float("inf")
    if loader.mode == "sequential":
        return float(sum(lengths))
    return float(min(lengths) if loader.mode == "min_size" else max(lengths))
