"""A sweep file made from a config alone: each value to vary, how far, and why, in one line.

It uses all that is known of a model and its data without a person: the types, names and values of
their constructors' arguments, the result of a learning-rate finder, the speed of batches of other
sizes. The file is written to be edited.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import math
import re
import textwrap
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from raylit.callbacks import Callback, EarlyStopping, ModelCheckpoint
from raylit.callbacks.finders.batch_size_finder import has_room
from raylit.callbacks.finders.learning_rate_finder import USUAL_NAMES, LRFinderResult
from raylit.errors import ConfigError, DataError
from raylit.runtime.aliases import Arguments
from raylit.runtime.messages import info
from raylit.runtime.rng import isolated
from raylit.tune.aliases import Value, Values
from raylit.tune.direction import direction_of
from raylit.tune.space import fits, read_space
from raylit.tune.stops import seconds
from raylit.tune.trial import Made
from raylit.tune.tuner import Tuner

if TYPE_CHECKING:
    from raylit.core.trainer import JobTrainer

BUDGET = "10m"  # unless given
MAX_TRIALS = 100
MIN_TRIALS = 8
EPOCHS = 10  # of a trial, if the config has no number
BATCHES = 14  # that are timed, of each size, after 2 that are not
SKIPPED = 10  # steps of the finder, in which the loss falls for reasons of its own
TRAINER = {"class_path": "raylit.trainer.trainer.Trainer"}  # which a config does not name
MIN_BATCHES = 10  # of an epoch: with larger batches there would be too few steps
# Names of arguments, and what is tried of a value. The first that fits counts.
FIXED = re.compile(r"^(in|input|out|output|num|n)_|_(in|out)$|class|vocab|seed|worker|path|kernel")
SIZES = re.compile(r"width|hidden|dim|channel|unit|filter|d_model|embed|feature")
DEPTHS = re.compile(r"depth|layers|blocks")
DROPOUT = re.compile(r"dropout|drop_rate|drop_prob|p_drop")
DECAY = re.compile(r"weight_decay|^wd$|^l2")
SMOOTHING = re.compile(r"label_smoothing")
MOMENTUM = re.compile(r"^momentum$")


@dataclass(frozen=True)
class Line:
    """A line of the sweep file: a key with its value, and why."""

    key: str
    value: object
    reason: str

    def text(self, indent: str = "") -> str:
        """Return it as YAML."""
        value = yaml.safe_dump(
            self.value, default_flow_style=True, sort_keys=False, width=1000
        ).strip()
        return f"{indent}{self.key}: {value.removesuffix('...').strip()}  # {self.reason}"


@dataclass
class Proposal:
    """A sweep file that was chosen, with reasons.

    Attributes:
        settings: all but the space.
        space: what is varied.
        left: arguments that are left as they are, by the reason why.
    """

    settings: list[Line] = field(default_factory=list)
    space: list[Line] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, name: str, reason: str) -> None:
        """Leave an argument as it is."""
        self.left.setdefault(reason, []).append(name)

    def text(self, head: str) -> str:
        """Return the file."""
        lines = [f"# {line}" for line in head.splitlines()]
        lines += [line.text() for line in self.settings]
        lines += ["space:", *(line.text("  ") for line in self.space)]
        if self.left:
            lines.append("# Left as they are in the config:")
        for reason, names in self.left.items():
            text = f"{', '.join(names)}: {reason}"
            lines += textwrap.wrap(text, 98, initial_indent="#   ", subsequent_indent="#     ")
        return "\n".join(lines) + "\n"


def propose(
    recipe: Callable[[dict[str, object]], Made],
    config: Mapping[str, object],
    name: str,
    budget: str | None = None,
    average: int = 1,
) -> Proposal:
    """Return a sweep for a config, found by short trials in this process that leave no trace.

    Args:
        recipe: makes the config's objects with some values replaced.
        config: as plain data.
        name: of the sweep.
        budget: how long the sweep may take, such as `10m`.
        average: so many of the best checkpoints of each trial are kept, to be averaged.

    Raises:
        ConfigError: no metric is logged in validation, there is nothing to vary, or the budget is
            no time.
    """
    info(f"--auto: short trials to see what to vary; then the sweep, for {budget or BUDGET}.")
    with quiet():
        return _propose(recipe, config, name, budget, average)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Say nothing of the fits in a block but warnings."""
    logger = logging.getLogger("raylit")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _propose(
    recipe: Callable[[dict[str, object]], Made],
    config: Mapping[str, object],
    name: str,
    budget: str | None,
    average: int,
) -> Proposal:
    budget_s = seconds(budget if budget is not None else BUDGET, ("budget",))
    found = Proposal()
    metric, mode, why = choose_metric(recipe)
    found.settings.append(Line("name", name, "also that of its folder and of its MLflow run"))
    found.settings.append(Line("metric", {"name": metric, "mode": mode}, why))
    _constructor(found, "model", config.get("model"))
    _constructor(found, "data", config.get("data"))
    _learning_rate(found, recipe, config)
    epoch_s = _batch_size(found, recipe, config)
    trainer = recipe({}).trainer
    _regularization(found, recipe, config)
    if not found.space:
        raise ConfigError(
            "--auto: neither the model nor the data has an argument that could be varied, such as"
            " lr, width, dropout or batch_size. Give it one, or describe the sweep: --sweep FILE."
        )
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else EPOCHS
    if epochs != trainer.max_epochs:
        line = Line("trainer.max_epochs", epochs, "the config sets none")
        found.space.append(line)
    if average > 1:
        saver = "trainer.callbacks.ModelCheckpoint.save_top_k"
        found.space.append(Line(saver, average, "--average: so many are averaged at the end"))
    grace = max(1, epochs // 4)
    trials = MAX_TRIALS
    if epoch_s:
        # by ASHA with a factor of 3 half of the epochs or less are run
        trials = round(budget_s / (epoch_s * max(grace, epochs / 2)))
        trials = min(MAX_TRIALS, max(MIN_TRIALS, trials))
    cost = f"an epoch takes about {epoch_s:.2g} s here, " if epoch_s else ""
    found.settings += [
        Line("search", "optuna", "TPE: samples near what did well"),
        Line(
            "scheduler",
            {"name": "asha", "max_t": epochs, "grace_period": grace, "reduction_factor": 3},
            f"stops two of three trials after {grace} of {epochs} epochs, and so on",
        ),
        Line("trials", trials, f"{cost}at most what the budget holds"),
        Line("stop", {"time_budget": budget or BUDGET}, "--budget" if budget else "by default"),
    ]
    points = hand_written(found, config)
    if points:
        reason = "the values of the config first"
        if all(line.key in points for line in found.space if isinstance(line.value, Mapping)):
            reason += ": the best is at least as good in validation"
        found.settings.append(Line("points", [points], reason))
    seed = config.get("seed_everything")
    if isinstance(seed, int) and not isinstance(seed, bool):
        found.settings.append(Line("seed", seed, "that of the config"))
    return found


# ---- what to optimize ----


def choose_metric(recipe: Callable[[Values], Made]) -> tuple[str, str, str]:
    """Return the metric, its mode, and why it was chosen.

    Raises:
        ConfigError: validation logs nothing, or nothing whose name tells.
    """
    made = recipe({})
    for kind in (ModelCheckpoint, EarlyStopping):
        for callback in made.trainer.callbacks:
            if isinstance(callback, kind) and callback.monitor:
                return callback.monitor, callback.mode, f"{kind.__name__} of the config watches it"
    trainer = made.trainer.replaced(fast_dev_run=True, logger=False, callbacks=None, **ALONE)
    with isolated():
        trainer.fit(made.model, datamodule=made.data, **made.loaders)
    logged = [key for key in trainer.callback_metrics if key.startswith("val")]
    for key in sorted(logged, key=lambda key: "loss" not in key):
        mode = direction_of(key)
        if mode is not None:
            return key, mode, f"logged in validation, by its name better if {mode}imal"
    if logged:
        raise ConfigError(
            f"--auto: validation logs {', '.join(logged)}, whose names do not tell whether more is"
            f" better. Let a ModelCheckpoint of the config watch one: monitor: {logged[0]}, mode:"
            " max or min."
        )
    raise ConfigError(
        "--auto: no metric to optimize: validation logs none whose name begins with val. Log one,"
        " self.log('val_loss', ...), or have a ModelCheckpoint monitor one."
    )


# A fit in this process, without anything that stays
ALONE: Arguments = {
    "num_workers": None,
    "devices": None,
    "num_nodes": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


# ---- learning rate ----


def _learning_rate(
    found: Proposal, recipe: Callable[[Values], Made], config: Mapping[str, object]
) -> None:
    key, value = _lr_of(config)
    if key is None:
        found.leave("the learning rate", "neither the model nor an optimizer has lr or such")
        return
    found.space = [line for line in found.space if line.key != key]
    made = recipe({})
    made.trainer = made.trainer.replaced(**ALONE | {"logger": False, "enable_checkpointing": None})
    curve = None
    try:
        curve = Tuner(made.trainer).lr_find(
            made.model, datamodule=made.data, update_attr=False, **made.loaders
        )
    except (ConfigError, DataError) as error:
        info(f"--auto: no learning-rate finder: {error}")
    low, high, why = lr_range(curve, value)
    found.space.append(Line(key, {"loguniform": [low, high]}, why))


def _lr_of(config: Mapping[str, object]) -> tuple[str | None, float | None]:
    """Return the key that is the learning rate, and its value."""
    model = _arguments(config.get("model"))
    for name in USUAL_NAMES:
        if name in model:
            return f"model.{name}", _positive(model[name])
    optimizer = config.get("optimizer")
    if isinstance(optimizer, Mapping):
        return "optimizer.lr", _positive(_arguments(optimizer).get("lr"))
    return None, None


def lr_range(curve: LRFinderResult | None, value: float | None) -> tuple[float, float, str]:
    """Return the ends of the learning rates to try, and why.

    From where the loss has fallen by a tenth of its whole fall to where it is least. The finder's
    own suggestion, the steepest fall by learning rate, is no end: on the digits it was 6e-6.
    """
    found = curve.results if curve is not None else {"lr": [], "loss": []}
    all_pairs = zip(found["lr"], found["loss"], strict=True)
    pairs = [pair for pair in all_pairs if math.isfinite(pair[1])][SKIPPED:]
    least = min(pairs, key=lambda pair: pair[1], default=(0.0, math.nan))
    if not pairs or not pairs[0][1] > least[1]:
        middle = value or 1e-3
        return _rounded(middle / 10), _rounded(middle * 10), "a tenth to ten times the config's"
    tenth = pairs[0][1] - (pairs[0][1] - least[1]) / 10
    falls = next(lr for lr, loss in pairs if loss <= tenth)
    low, high = _rounded(min(falls, least[0] / 10)), _rounded(least[0])
    if value is not None:
        # Rounded before: the config's own value is tried first, and has to lie within
        low, high = min(low, value), max(high, value)
    why = f"finder: the loss falls from {falls:.2g} on, and is least at {least[0]:.2g}"
    return low, high, why


# ---- batch size ----


class _Clock(Callback):
    """Notes when each batch ends, and how many there are in an epoch."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(
        self, trainer: object, pl_module: object, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self.ends.append(time.perf_counter())


def _batch_size(
    found: Proposal, recipe: Callable[[dict[str, object]], Made], config: Mapping[str, object]
) -> float | None:
    """Propose batch sizes; returns the seconds of an epoch with that of the config, if known."""
    size = _arguments(config.get("data")).get("batch_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        timed = _timed(recipe, {})
        return timed[1] if timed is not None else None
    speeds: dict[int, float] = {}
    epoch_s = None
    for other in sorted({max(1, size // 2), size, 2 * size, 4 * size}):
        timed = _timed(recipe, {"data.batch_size": other})
        if timed is None:
            break  # no memory for it, nor for a larger one
        batches_per_s, seconds_of_epoch, batches = timed
        if other == size:
            epoch_s = seconds_of_epoch
        if other > size and batches < MIN_BATCHES:
            break
        speeds[other] = batches_per_s * other
    if len(speeds) > 1:
        told = ", ".join(f"{speed:,.0f}" for speed in speeds.values())
        why = f"{told} samples a second; there is memory for all"
        found.space.append(Line("data.batch_size", {"choice": list(speeds)}, why))
    else:
        found.leave(f"data.batch_size {size}", "with others there are too few batches")
    return epoch_s


def _timed(recipe: Callable[[Values], Made], values: Values) -> tuple[float, float, float] | None:
    """Return batches a second, seconds of an epoch, and its batches; None if memory is full."""
    made = recipe(values)
    clock = _Clock()
    trainer = made.trainer.replaced(
        max_epochs=1,
        limit_train_batches=1.0,
        max_steps=-1,
        limit_val_batches=0,
        logger=False,
        callbacks=[clock, _Few()],
        **ALONE,
    )
    with isolated():
        fits = has_room(lambda: trainer.fit(made.model, datamodule=made.data, **made.loaders))
    if not fits:
        return None
    ends = clock.ends[1:] or clock.ends
    per_second = (len(ends) - 1) / max(1e-6, ends[-1] - ends[0]) if len(ends) > 1 else 1.0
    batches = float(trainer.num_training_batches)
    return per_second, batches / per_second, batches


class _Few(Callback):
    """Ends a fit after some batches."""

    def on_train_batch_end(
        self, trainer: JobTrainer, pl_module: object, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if batch_idx + 1 >= BATCHES:
            trainer.should_stop = True


# ---- arguments of constructors ----


def _constructor(found: Proposal, scope: str, spec: object) -> None:
    """Propose values for the arguments of the model's or the data's class."""
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        return
    cls = _class_of(spec["class_path"])
    hints = get_type_hints(cls.__init__)
    for name, value in _arguments(spec).items():
        if (scope == "data" and name == "batch_size") or name in USUAL_NAMES:
            continue  # are measured
        made = propose_argument(name, hints.get(name, Any), value)
        key = f"{scope}.{name}"
        if isinstance(made, str):
            found.leave(key, made)
        else:
            found.space.append(Line(key, *made))


def propose_argument(
    name: str, wanted: object, value: object
) -> tuple[Mapping[str, Sequence[object]], str] | str:
    """Return the values to try for an argument and why, or why to leave it as it is."""
    options = _plain_of(wanted)
    if get_origin(options) is Literal:
        values = list(get_args(options))
        if type(None) in get_args(wanted):
            values.append(None)
        return {"choice": values}, "the values of its type, Literal"
    if FIXED.search(name):
        return "by its name it belongs to the data or the machine"
    if isinstance(value, bool):
        if options is bool:
            return {"choice": [value, not value]}, "true or false"
        return "of no type that says what else to try"
    if isinstance(value, int) and options is int:
        if DEPTHS.search(name):
            around = sorted({max(1, value - 1), value, value + 1})
            return {"choice": around}, "by its name a depth: one less and one more"
        if SIZES.search(name) and value > 1:
            return {"choice": [value // 2, value, 2 * value]}, "by its name a size: half and double"
    if isinstance(value, (int, float)) and options in (float, int):
        if DROPOUT.search(name) and 0 <= value <= 0.5:
            return {"uniform": [0.0, 0.5]}, "dropout: from none to half"
        if DECAY.search(name):
            several = sorted({0.0, 1e-4, 1e-3, 1e-2, float(value)})
            return {"choice": several}, "weight decay: by powers of ten"
        if SMOOTHING.search(name):
            return {"choice": sorted({0.0, 0.05, 0.1, float(value)})}, "label smoothing: some"
        if MOMENTUM.search(name) and 0 <= value < 1:
            return {"choice": sorted({0.8, 0.9, 0.95, float(value)})}, "momentum: usual values"
    return "nothing in its name or type says what else to try"


def _plain_of(wanted: object) -> object:
    """Return a type without None."""
    if get_origin(wanted) in (Union, types.UnionType):
        others = [one for one in get_args(wanted) if one is not type(None)]
        return others[0] if len(others) == 1 else Any
    return wanted


def _arguments(spec: object) -> Arguments:
    """Return the arguments of a class by name: those of the config, else the defaults."""
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        return {}
    parameters = inspect.signature(_class_of(spec["class_path"])).parameters
    found = {
        name: one.default
        for name, one in parameters.items()
        if one.default is not inspect.Parameter.empty
    }
    return found | dict(spec.get("init_args") or {})


def _class_of(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


# ---- regularization ----


def _regularization(
    found: Proposal, recipe: Callable[[dict[str, object]], Made], config: Mapping[str, object]
) -> None:
    made = recipe({})
    optimizer = config.get("optimizer")
    if isinstance(optimizer, Mapping) and "weight_decay" in _arguments(optimizer):
        value = _arguments(optimizer)["weight_decay"]
        proposed = propose_argument("weight_decay", float, value)
        if not isinstance(proposed, str):
            found.space.append(Line("optimizer.weight_decay", *proposed))
    clips = made.trainer.settings.arguments["gradient_clip_val"]
    if clips is None and made.model.automatic_optimization:
        line = Line("trainer.gradient_clip_val", {"choice": [None, 1.0]}, "none, or a norm of 1")
        found.space.append(line)


# ---- what the config has ----


def hand_written(found: Proposal, config: Mapping[str, object]) -> dict[str, object]:
    """Return the values that the config has for the varied keys, where they are in the space."""
    space = read_space({line.key: line.value for line in found.space})
    values: dict[str, object] = {}
    for line in found.space:
        if not isinstance(line.value, Mapping):
            continue
        scope, _, name = line.key.partition(".")
        spec = config.get(scope)
        own = _arguments({**TRAINER, "init_args": spec} if scope == "trainer" else spec)
        if name in own and fits(own[name], space[line.key]):
            values[line.key] = own[name]
    return values


def _positive(value: Value) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and value > 0 else None


def _rounded(value: float) -> float:
    """Return a number with two digits."""
    return float(f"{value:.1e}")
