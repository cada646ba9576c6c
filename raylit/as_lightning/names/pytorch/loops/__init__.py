"""Lightning's place for its loops. raylit has one, `raylit.engine.loop`, and its Trainer shows it.

`trainer.fit_loop` and its like are views; these classes are for annotations.
"""


class _Loop:
    """A loop of Lightning's."""


class _FitLoop(_Loop):
    """`trainer.fit_loop`."""


class _TrainingEpochLoop(_Loop):
    """`trainer.fit_loop.epoch_loop`."""


class _EvaluationLoop(_Loop):
    """`trainer.validate_loop`, `trainer.test_loop`."""


class _PredictionLoop(_Loop):
    """`trainer.predict_loop`."""


class _AutomaticOptimization(_Loop):
    """Optimization by the Trainer."""


class _ManualOptimization(_Loop):
    """Optimization by the module."""
