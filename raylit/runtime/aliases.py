"""Names for values whose type is the user's own, so that a signature says what they are."""

from __future__ import annotations

from typing import Any, TypeAlias

Batch: TypeAlias = Any  # an item of a loader: tensors, in any nesting
StepOutput: TypeAlias = Any  # a step's return value: a tensor, a mapping with `loss`, or None
Loaders: TypeAlias = Any  # a DataLoader, any iterable, or a list or dict of them
UserOptimizer: TypeAlias = Any  # an Optimizer, or an object with the methods of one
StateDict: TypeAlias = dict[str, Any]  # what a checkpoint holds of one object: plain data
CheckpointDict: TypeAlias = dict[str, Any]  # a whole checkpoint
Arguments: TypeAlias = dict[str, Any]  # keyword arguments, by name
Experiment: TypeAlias = Any  # what a logging library itself gives: a writer, a run
