"""Names for values whose type is the user's own, so that a signature tells their role."""

from __future__ import annotations

from typing import Any, TypeAlias

Batch: TypeAlias = Any  # an item of a loader: tensors, in any nesting
StepOutput: TypeAlias = Any  # a step's return value: a tensor, a mapping with `loss`, or None
Loaders: TypeAlias = Any  # a DataLoader, any iterable, or a list or dict of them
UserOptimizer: TypeAlias = Any  # an Optimizer, or an object with the methods of one
StateDict: TypeAlias = dict[str, Any]  # what a checkpoint holds of one object: plain data
CheckpointDict: TypeAlias = dict[str, Any]  # a whole checkpoint
OptimizerLRScheduler: TypeAlias = Any  # all that `configure_optimizers` may return
UserScheduler: TypeAlias = Any  # an LRScheduler, or an object with the methods of one
ParamGroup: TypeAlias = dict[str, Any]  # parameters of an optimizer, and their settings
Prediction: TypeAlias = Any  # what `predict_step` returns for one batch
ForwardInput: TypeAlias = Any  # an argument of `forward`, or a tuple of several
Arguments: TypeAlias = dict[str, Any]  # keyword arguments by name
PlainData: TypeAlias = Any  # what YAML or JSON holds: a text, a number, a list or dict of such
PlainDict: TypeAlias = dict[str, Any]  # a mapping as YAML or JSON holds it
Experiment: TypeAlias = Any  # what a logging library itself gives: a writer, a run
