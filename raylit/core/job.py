"""Job and Result: what goes to the processes that do the work, and what comes back.

Both are pickled when those are others than this one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from raylit.core.datamodule import LightningDataModule
    from raylit.core.module import LightningModule
    from raylit.trainer.trainer import Trainer

Fn = Literal["fit", "validate", "test", "predict"]


@dataclass(slots=True)
class Job:
    """The work of one call of `fit`, `validate`, `test` or `predict`.

    Attributes:
        fn: which of the four.
        trainer: the settings, callbacks and loggers.
        module: the model.
        datamodule: the data, or None.
        data: loaders given directly, by stage (`train`, `val`, `test`, `predict`).
        ckpt_path: checkpoint to start from, already a path, or None.
        weights_only: False lets the checkpoint run code when it is loaded.
        return_predictions: whether `predict` keeps its results.
        returns_state: whether the Result must carry what the driver's objects are to hold
            afterwards, since they are others than the workers'.
        notice: says whether this rank's machine is about to be taken away, or None where nobody
            would know; see `launch/on_ray/preemption.py`.
        validator: starts the validations that training does not wait for, on rank 0; see
            `launch/on_ray/validation.py`.
        resized: how many workers there are of those there may be, and what follows from it, or
            None; see `launch/on_ray/rescale.py`.
        display: where the progress bar of rank 0 sends what it would draw, or None to draw here.
    """

    fn: Fn
    trainer: Trainer
    module: LightningModule
    datamodule: LightningDataModule | None = None
    data: dict[str, Any] = field(default_factory=dict)
    ckpt_path: str | None = None
    weights_only: bool | None = None
    return_predictions: bool = True
    returns_state: bool = False
    notice: Any = None
    validator: Any = None
    resized: Any = None
    display: Any = None


@dataclass(slots=True)
class Result:
    """What a fit gives back.

    Attributes:
        metrics: the last value of everything logged, as numbers.
        best_model_path: checkpoint with the best monitored value, or None.
        best_model_score: that value, or None.
        last_model_path: the newest checkpoint, or None.
        run_id: the MLflow run, or None.
        history: the epoch values in the order they were logged, each with `epoch` and `step`.
        epochs: epochs completed.
        steps: optimizer steps taken.
        value: what `validate`, `test` and `predict` return to the user.
        state: for the driver's objects; only on the way from the workers.

    Example:
        >>> result = trainer.fit(model, datamodule=data)
        >>> result.metrics["val_loss"], result.best_model_path
    """

    metrics: dict[str, float] = field(default_factory=dict)
    best_model_path: str | None = None
    best_model_score: float | None = None
    last_model_path: str | None = None
    run_id: str | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    epochs: int = 0
    steps: int = 0
    value: Any = None
    state: dict[str, Any] | None = None

    def plot(self, *keys: str) -> Any:
        """Draw the history over the epochs.

        Args:
            keys: metrics to draw; all if none is named.

        Returns:
            A matplotlib Figure.
        """
        from matplotlib.figure import Figure

        names = keys or tuple(
            sorted({name for row in self.history for name in row} - {"epoch", "step"})
        )
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        for name in names:
            points = [(row["step"], row[name]) for row in self.history if name in row]
            axes.plot(
                [x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=name
            )
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
        return figure
