"""Progress: the counters of a fit and its cursor, which names the next action; both are saved.

    idle                no fit runs, or training has ended
    epoch               an epoch begins, if there is to be one more
    epoch start         on_train_epoch_start fires
    batch               the next batch is read                      <--+
    step                the same; its gradients are there already      |
    clip                and on_before_optimizer_step has fired         |
      forward             on_train_batch_start, training_step          |
      backward            gradients are added                          |  within the batch:
      stepping            an optimizer changes the weights             |  never stored
      stepped             it has                                       |
      gradients           on_after_backward has fired, and could save  |  stored as `step`, and
      clipping            on_before_optimizer_step as well             |  as `clip`, with them
    schedulers          learning-rate schedulers by step               |
    epoch schedulers    after the last batch, those by epoch           |
    logging             on_train_batch_end has fired; the loggers      |
    validation          if it is due                                   |
    plateau             schedulers by step that go by a metric      ---+
    epoch end           the epoch's values are reduced
    epoch plateau       on_train_epoch_end has fired; schedulers by epoch that go by a metric, the
                        loggers

The loop sets `at` before it does the action that `at` names, and a fit that goes on enters there.
An event counts as fired once the first of its hooks has begun.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Final, Literal, Self, get_args

from raylit.runtime.aliases import StateDict

Action = Literal[
    "idle",
    "epoch",
    "epoch start",
    "batch",
    "forward",
    "backward",
    "stepping",
    "stepped",
    "gradients",
    "clipping",
    "step",
    "clip",
    "schedulers",
    "epoch schedulers",
    "logging",
    "validation",
    "plateau",
    "epoch end",
    "epoch plateau",
]
IDLE: Final = "idle"
EPOCH: Final = "epoch"
EPOCH_START: Final = "epoch start"
BATCH: Final = "batch"
FORWARD: Final = "forward"
BACKWARD: Final = "backward"
STEPPING: Final = "stepping"
STEPPED: Final = "stepped"
GRADIENTS: Final = "gradients"
CLIPPING: Final = "clipping"
STEP: Final = "step"
CLIP: Final = "clip"
SCHEDULERS: Final = "schedulers"
EPOCH_SCHEDULERS: Final = "epoch schedulers"
LOGGING: Final = "logging"
VALIDATION: Final = "validation"
PLATEAU: Final = "plateau"
EPOCH_END: Final = "epoch end"
EPOCH_PLATEAU: Final = "epoch plateau"

BETWEEN_EPOCHS = (IDLE, EPOCH, EPOCH_START)
WITHIN_BATCH = (FORWARD, BACKWARD, STEPPING, STEPPED, GRADIENTS, CLIPPING)
WITH_GRADIENTS: dict[Action, Action] = {GRADIENTS: STEP, CLIPPING: CLIP}


@dataclass(slots=True)
class Progress:
    """Where a fit is. A step is one optimizer step, a batch one micro-batch of a rank.

    The loop writes it, with the parts of the engine that the loop calls. Within a step
    `CountedOptimizer` and `optimizers.count_steps` write it, and when a fit resumes
    `state.restore_training` and a RescalePlan.

    Attributes:
        epoch: epochs completed; the number of the epoch that runs.
        batch: batches begun in this epoch; after its end and until the next one's
            `on_train_epoch_start`, in the last.
        total_batches: batches begun over all epochs.
        steps: optimizer steps (with manual optimization: summed over the optimizers).
        log_steps: windows completed (with manual optimization: batches), the x-axis of the loggers.
            That of the running batch is not counted yet: the x of its values is its number, from 0.
        scheduler_steps: steps of all learning-rate schedulers.
        is_last_batch: whether the batch begun is the epoch's last.
        at: the action that runs or, where none does, comes next.
        updated: how many schedulers the running action has come past.
    """

    epoch: int = 0
    batch: int = 0
    total_batches: int = 0
    steps: int = 0
    log_steps: int = 0
    scheduler_steps: int = 0
    is_last_batch: bool = False
    at: Action = IDLE
    updated: int = 0

    @property
    def in_epoch(self) -> bool:
        """Whether an epoch was begun that has not come to its end."""
        return self.at not in BETWEEN_EPOCHS

    @property
    def batch_idx(self) -> int:
        """The number in its epoch, from 0, of the batch that runs or that is read."""
        return self.batch if self.at == BATCH else max(0, self.batch - 1)

    def start_epoch(self) -> None:
        """Count the batches of an epoch anew."""
        self.batch = 0
        self.is_last_batch = False
        self.at = BATCH

    def to_go_on_from(self, *, automatic: bool) -> Self:
        """Return the progress that a checkpoint saved now is to hold.

        A batch that has not changed the weights is trained on anew, or if its gradients are there,
        read anew; one that has is done. With automatic optimization its step is counted only after
        `optimizer_step`.
        """
        if self.at == STEPPED:
            return replace(self, at=SCHEDULERS, steps=self.steps + automatic)
        if self.at in WITHIN_BATCH:
            return replace(
                self,
                batch=self.batch - 1,
                total_batches=self.total_batches - 1,
                is_last_batch=False,
                at=WITH_GRADIENTS.get(self.at, BATCH),
            )
        return replace(self)

    def is_half_done(self, *, automatic: bool, accumulate: int) -> bool:
        """Tell whether the batch, were it ended now, has left traces that nothing can undo.

        An optimizer was at work, or gradients were added to those of earlier batches.
        """
        if self.at == BACKWARD:
            return not automatic or (self.batch - 1) % accumulate != 0
        return self.at in (STEPPING, STEPPED)

    def is_within_window(self, *, automatic: bool, accumulate: int) -> bool:
        """Tell whether gradients of batches that were read wait for more before the step."""
        return (
            automatic and self.in_epoch and bool(self.batch % accumulate) and not self.is_last_batch
        )

    def state_dict(self) -> StateDict:
        """Return the progress as plain data."""
        return asdict(self)

    def load_state_dict(self, state: StateDict) -> None:
        """Take the progress from `state_dict`; keys of other versions are ignored.

        Raises:
            ValueError: one of the values is impossible.
        """
        for field in fields(self):
            if field.name not in state:
                continue
            value = state[field.name]
            if field.name == "at":
                is_one = value in get_args(Action)
            else:
                is_one = isinstance(value, int) and 0 <= value < 2**63
            if not is_one:
                raise ValueError(f"{field.name} is {value!r}")
            setattr(self, field.name, value)
