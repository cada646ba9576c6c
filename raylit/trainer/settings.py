"""The arguments of the Trainer.

They become `Settings` and `Limits`, or raise an error.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec

import numpy as np
import torch

from raylit.callbacks import (
    Bar,
    Callback,
    Checkpoint,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
    RecoveryCheckpoint,
    Timer,
)
from raylit.callbacks.monitors.timer import parse_duration
from raylit.checkpoint.io import CheckpointIO
from raylit.core.callback import check_callbacks, in_order
from raylit.core.limits import Limits
from raylit.engine.compile import options_of
from raylit.errors import ConfigError, WrongTypeError, did_you_mean, foreign_hint
from raylit.loggers import CSVLogger, Logger
from raylit.loggers.dummy import DummyLogger
from raylit.parallel.plugins import ClusterEnvironment, PrecisionPlugin, TorchSyncBatchNorm
from raylit.parallel.precision import canonical
from raylit.parallel.strategy import Strategy
from raylit.parallel.world import ACCELERATORS, Accelerator
from raylit.runtime import environment, storage
from raylit.runtime.aliases import Arguments
from raylit.runtime.messages import info, warn
from raylit.validation.config import ValidationConfig, config_of

P = ParamSpec("P")

DEFAULT_EPOCHS = 1000  # Lightning's
MAX_WORKERS = 2**16  # ranks; torch has never been run on more

LIMITS_OF_BATCHES = (
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of a Trainer, checked and settled: how and where it runs. They never change.

    `Limits` are the arguments that may change while it runs.

    Attributes:
        arguments: all arguments as they were given, for another Trainer like this one.
        min_workers: Ray workers, at least.
        num_workers: at most; 0: training runs in the process of the user.
        gpus: the numbers of the GPUs on which the ranks of this machine compute; None: the first.
        launcher: what starts the workers: `ray`, or `local` processes.
        start_method: how local ones are started; `fork` copies this process.
        max_failures: a number, or a `ray.train.FailureConfig`.
        storage_path: folder or URL, or None.
        default_root_dir: an absolute folder, or a URL.
        precision: the canonical name, such as `bf16-mixed`.
        compile: arguments of torch.compile; None: nothing is compiled.
        async_validation: None: training waits for validation.
        fast_dev_run: batches of a fast dev run, True for one; False for a real run.
    """

    arguments: Arguments
    min_workers: int
    num_workers: int
    gpus: tuple[int, ...] | None
    launcher: str
    start_method: str
    num_nodes: int
    use_gpu: bool | None
    accelerator: str
    resources_per_worker: dict[str, float] | None
    max_failures: object
    storage_path: str | None
    default_root_dir: str
    precision: str
    compile: Arguments | None
    async_validation: ValidationConfig | None
    fast_dev_run: int | bool
    overfit_batches: int | float
    deterministic: bool | str | None
    benchmark: bool | None
    inference_mode: bool
    detect_anomaly: bool
    barebones: bool
    sync_batchnorm: bool
    use_distributed_sampler: bool
    enable_autolog_hparams: bool
    strict_checkpoints: bool
    checkpoint_io: CheckpointIO | None

    @classmethod
    def of(cls, given: Arguments, strategy: Strategy) -> Settings:
        """Return the settings that arguments of the Trainer mean.

        Args:
            given: the arguments.
            strategy: what the one of that name means.

        Raises:
            ConfigError: one is out of range or contradicts another.
        """
        environment.check()
        # First, since the rest compares, multiplies and prints these numbers
        bounded(given)
        plugins = Plugins.of(given["plugins"], given["precision"], given["sync_batchnorm"])
        if given["model_registry"] is not None:
            raise ConfigError(
                f"model_registry={given['model_registry']!r}: the registry of Lightning's cloud is"
                " not part of raylit. Leave it out; MLFlowLogger(log_model=True) keeps models"
                " where MLflow's registry finds them."
            )
        wanted = given["accelerator"]
        wanted = wanted.name if isinstance(wanted, Accelerator) else wanted
        min_workers, num_workers = number_of_workers(
            given["num_workers"], given["devices"], given["num_nodes"], wanted
        )
        launcher, start_method = launcher_of(
            given["launcher"], strategy.start_method, given["num_nodes"], min_workers != num_workers
        )
        gpus = gpus_of(given["devices"], wanted)
        if gpus is not None and num_workers and launcher == "ray":
            raise ConfigError(
                f"devices={given['devices']!r}: Ray chooses the GPUs of its workers. Give their"
                f" number, devices={len(gpus)}, and which there are to choose from where Ray is"
                " started: CUDA_VISIBLE_DEVICES; or let launcher='local' start processes."
            )
        reserved = resources(given["resources_per_worker"])
        use_gpu, accelerator = device(given["use_gpu"], wanted, reserved, num_workers)
        trial_batches = fast_dev_run(given["fast_dev_run"])
        return cls(
            arguments=given,
            min_workers=min_workers,
            num_workers=num_workers,
            gpus=gpus,
            launcher=launcher,
            start_method=start_method,
            use_gpu=use_gpu,
            accelerator=accelerator,
            max_failures=failures(given["max_failures"]),
            storage_path=shared_place(given["storage_path"], num_workers),
            default_root_dir=root_dir(given["default_root_dir"], given["storage_path"]),
            precision=canonical(plugins.precision or given["precision"]),
            checkpoint_io=plugins.checkpoint_io,
            compile=options_of(given["compile"]),
            async_validation=config_of(given["async_validation"], is_dev_run=bool(trial_batches)),
            fast_dev_run=trial_batches,
            overfit_batches=limit("overfit_batches", given["overfit_batches"]),
            num_nodes=given["num_nodes"],
            resources_per_worker=reserved,
            deterministic=given["deterministic"],
            benchmark=given["benchmark"],
            inference_mode=given["inference_mode"],
            detect_anomaly=given["detect_anomaly"],
            barebones=given["barebones"],
            sync_batchnorm=given["sync_batchnorm"] or plugins.syncs_batch_norm,
            use_distributed_sampler=given["use_distributed_sampler"],
            enable_autolog_hparams=given["enable_autolog_hparams"],
            strict_checkpoints=given["strict_checkpoints"],
        )


def limits_of(given: Arguments, settings: Settings) -> Limits:
    """Return the limits that arguments of the Trainer mean, or those of a fast dev run.

    Raises:
        ConfigError: one is out of range or contradicts another.
    """
    max_epochs, min_epochs = epochs(
        given["max_epochs"],
        given["min_epochs"],
        1 if settings.fast_dev_run else given["max_steps"],
        given["min_steps"],
        given["max_time"],
        given["callbacks"],
    )
    interval, time_s = validation_interval(
        given["val_check_interval"], given["check_val_every_n_epoch"]
    )
    log_every = given["log_every_n_steps"]
    clip_val, clip_algorithm = clipping(
        given["gradient_clip_val"], given["gradient_clip_algorithm"]
    )
    limits = Limits(
        max_epochs=max_epochs,
        min_epochs=min_epochs,
        max_steps=given["max_steps"],
        min_steps=given["min_steps"],
        **{name: limit(name, given[name]) for name in LIMITS_OF_BATCHES},
        num_sanity_val_steps=sanity_steps(given["num_sanity_val_steps"]),
        val_check_interval=interval,
        val_check_time_s=time_s,
        check_val_every_n_epoch=given["check_val_every_n_epoch"],
        reload_dataloaders_every_n_epochs=at_least(
            0, reload_dataloaders_every_n_epochs=given["reload_dataloaders_every_n_epochs"]
        ),
        log_every_n_steps=at_least(0, log_every_n_steps=50 if log_every is None else log_every),
        accumulate_grad_batches=accumulation(given["accumulate_grad_batches"]),
        gradient_clip_val=clip_val,
        gradient_clip_algorithm=clip_algorithm,
    )
    if settings.fast_dev_run:
        num_batches = int(settings.fast_dev_run)
        limits.max_steps = num_batches
        limits.max_epochs = 1
        limits.num_sanity_val_steps = 0
        limits.val_check_interval = 1.0
        limits.val_check_time_s = None
        limits.check_val_every_n_epoch = 1
        for name in LIMITS_OF_BATCHES:
            setattr(limits, name, num_batches)
    if settings.overfit_batches > 0:
        limits.limit_train_batches = limits.limit_val_batches = settings.overfit_batches
    return limits


INSTEAD = {  # what Lightning's Trainer once had, and what is written today
    "gpus": "accelerator='gpu' with devices=, or num_workers= for Ray workers with a GPU each",
    "auto_select_gpus": "devices='auto'",
    "num_processes": "devices= with launcher='local', or num_workers=",
    "tpu_cores": "accelerator='gpu' or 'cpu'; there is no other kind",
    "checkpoint_callback": "enable_checkpointing=, or a ModelCheckpoint among the callbacks",
    "resume_from_checkpoint": "trainer.fit(model, ckpt_path=...)",
    "weights_summary": "enable_model_summary=",
    "progress_bar_refresh_rate": "callbacks=[RichProgressBar(refresh_rate=...)]",
    "auto_lr_find": "Tuner(trainer).lr_find(model)",
    "auto_scale_batch_size": "Tuner(trainer).scale_batch_size(model)",
    "replace_sampler_ddp": "use_distributed_sampler=",
    "track_grad_norm": "MLFlowLogger(monitor=...), or self.log in on_before_optimizer_step",
    "terminate_on_nan": "detect_anomaly=True",
    "stochastic_weight_avg": "callbacks=[StochasticWeightAveraging(...)]",
    "multiple_trainloader_mode": "CombinedLoader(loaders, mode=...)",
    "flush_logs_every_n_steps": "CSVLogger(flush_logs_every_n_steps=...)",
    "amp_backend": "precision='16-mixed'",
}


def defaults_from_environment(init: Callable[P, None]) -> Callable[P, None]:
    """Decorate the Trainer's `__init__`.

    Arguments that are not given are taken from variables such as PL_TRAINER_MAX_EPOCHS, if they are
    set.

    Raises:
        ConfigError: also of a variable whose value is not what its argument wants.
        WrongTypeError: the Trainer has no such argument.
    """

    @functools.wraps(init)
    def with_environment(*args: P.args, **kwargs: P.kwargs) -> None:
        known = [name for name, _, _ in _variables(type(args[0]).__name__, init)]
        for name in kwargs.keys() - set(known):
            hint = INSTEAD.get(name)
            raise WrongTypeError(
                f"Trainer.__init__() got an unexpected keyword argument {name!r}."
                + (f" Write {hint}." if hint else did_you_mean(name, known))
            )
        found = arguments_of_environment(type(args[0]).__name__, init, given=kwargs)
        kwargs.update((name, value) for name, (_, _, value) in found.items())
        try:
            init(*args, **kwargs)
        except (ConfigError, TypeError) as error:
            if not found:
                raise
            origin = ", ".join(f"{variable}={text}" for variable, text, _ in found.values())
            raise type(error)(
                f"{error} These arguments came from the environment: {origin}."
            ) from error

    return with_environment


def arguments_of_environment(
    kind: str, init: Callable[..., None], given: Collection[str] = ()
) -> dict[str, tuple[str, str, object]]:
    """Return arguments that variables such as PL_TRAINER_MAX_EPOCHS give, unless they are given.

    By name: the variable, its text, the value.

    Raises:
        ConfigError: a value is not what its argument wants.
    """
    found = {}
    for name, variable, annotation in _variables(kind, init):
        text = os.environ.get(variable)
        if text and name not in given:
            found[name] = (variable, text, from_variable(variable, text, annotation))
    return found


@functools.cache  # reading the signature took a tenth of a fit of one step
def _variables(kind: str, init: Callable[..., None]) -> list[tuple[str, str, str]]:
    """Return each argument with its variable and its type, as they are written."""
    return [
        (name, f"PL_{kind}_{name}".upper(), str(parameter.annotation))
        for name, parameter in list(inspect.signature(init).parameters.items())[1:]
    ]


def from_variable(variable: str, text: str, wanted: str) -> object:
    """Return the value of an environment variable.

    A Python literal, or text where the argument's type has it.

    Raises:
        ConfigError: it is text, and the argument wants something else.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if not any(kind in wanted for kind in ("str", "Any", "Literal")):
            raise ConfigError(
                f"The environment variable {variable}={text} holds no {wanted}. Write it as in"
                " Python (3, 0.5, True, None), or unset it."
            ) from None
    return text


WITHOUT_BAREBONES = {  # arguments that barebones excludes, and why
    "enable_checkpointing": "checkpoints cost speed",
    "logger": "logging costs speed",
    "enable_progress_bar": "the progress bar costs speed",
    "log_every_n_steps": "logging costs speed",
    "enable_model_summary": "the model summary costs time",
    "num_sanity_val_steps": "the sanity check costs time",
    "fast_dev_run": "a fast dev run measures no speed",
    "detect_anomaly": "anomaly detection costs speed",
    "profiler": "profiling costs speed",
}


def bare(arguments: dict[str, object]) -> dict[str, object]:
    """Return the arguments of a Trainer for `barebones=True`: all that costs speed is off.

    Raises:
        ConfigError: one asks for it.
    """
    for name, reason in WITHOUT_BAREBONES.items():
        value = arguments[name]
        if value or (name in ("logger", "profiler") and value not in (None, False)):
            raise ConfigError(
                f"`Trainer(barebones=True, {name}={value!r})` was passed."
                f" {reason[0].upper()}{reason[1:]},"
                " so it is disabled in barebones mode. Leave one of the two out."
            )
    info(
        "Trainer(barebones=True): what costs speed is off, so that the rest can be measured:"
        f" self.log, self.log_dict and the arguments {', '.join(WITHOUT_BAREBONES)}. Since there is"
        " no progress bar, you may want to print progress in the module."
    )
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return {
        **arguments,
        **dict.fromkeys(off, False),
        "log_every_n_steps": 0,
        "num_sanity_val_steps": 0,
    }


def without_numpy(given: Mapping[str, object]) -> dict[str, Any]:
    """Return arguments with Python's own numbers in place of those of numpy.

    The type of a number tells what it means, and a sweep or a table gives numpy's.
    """
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in given.items()
    }


MOST = 2**63 - 1  # what tensors, files and other libraries count to


def bounded(given: Mapping[str, object]) -> None:
    """Find out whether any argument is a whole number that nothing can count to.

    Raises:
        ConfigError: one is.
    """
    for name, value in given.items():
        if isinstance(value, int) and abs(value) > MOST:
            # Python refuses to write a number of more than 4,300 digits
            digits = len(str(abs(value))) if abs(value) < 10**4000 else "thousands of"
            raise ConfigError(
                f"{name} is a number of {digits} digits: at most {MOST:,} is counted to. For no"
                " limit leave it out, or give -1 where that means so."
            )


def at_least(minimum: int, **argument: object) -> int:
    """Return the one argument, a whole number not below `minimum`."""
    ((name, value),) = argument.items()
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(f"{name}={value!r}: give a whole number of at least {minimum}.")
    return value


def accumulation(batches: object) -> int:
    """Return over how many batches gradients add up."""
    if isinstance(batches, Mapping):
        raise WrongTypeError(
            f"accumulate_grad_batches={batches}: give a number, not a value of type"
            f" {type(batches).__name__}. What changes with the epochs is a callback:"
            f" callbacks=[GradientAccumulationScheduler(scheduling={batches})]."
        )
    return at_least(1, accumulate_grad_batches=batches)


def failures(max_failures: object) -> object:
    """Return how many failures are allowed.

    A number, or a `ray.train.FailureConfig`, which also says how many preemptions.
    """
    return (
        max_failures
        if hasattr(max_failures, "max_failures")
        else at_least(0, max_failures=max_failures)
    )


def number_of_workers(
    num_workers: int | tuple[int, int] | None, devices: object, num_nodes: int, accelerator: str
) -> tuple[int, int]:
    """Return how many Ray workers are meant, at least and at most.

    By raylit's `num_workers`, or by Lightning's `devices` and `num_nodes`.
    """
    at_least(1, num_nodes=num_nodes)
    if accelerator not in ACCELERATORS:
        raise ConfigError(
            f"You selected an invalid accelerator name: `accelerator={accelerator!r}`. It is not"
            f" known. Use one of: {', '.join(ACCELERATORS)}."
        )
    if num_workers is not None:
        least, most = (
            num_workers
            if isinstance(num_workers, (tuple, list)) and len(num_workers) == 2
            else (num_workers, num_workers)
        )
        if not all(
            isinstance(one, int) and not isinstance(one, bool) for one in (least, most)
        ) or not (1 <= least <= most or least == most == 0):
            raise ConfigError(
                f"num_workers={num_workers!r}: give a whole number of at least 0, or two, the"
                " fewest and the most, for a fit that goes on with as many workers as there is"
                " room for: num_workers=(1, 4)."
            )
        if most > MAX_WORKERS:
            raise ConfigError(
                f"num_workers={num_workers!r}: at most {MAX_WORKERS:,} workers make a group."
            )
        _refuse_another_count(num_workers, devices, num_nodes)
        return least, most
    if devices is None or devices == "auto":
        per_node = 1
    elif (listed := _listed(devices)) is not None:
        per_node = len(listed)
    else:
        per_node = _number_of_devices(str(devices))
        if per_node == -1:
            per_node = (
                max(1, torch.cuda.device_count()) if accelerator != "cpu" else os.cpu_count() or 1
            )
    if per_node < 1:
        raise ConfigError(
            f"`Trainer(devices={devices!r})` value is not a valid input:"
            f" devices={devices!r} names no device. Give a number of at least 1, a list of GPUs, or"
            " 'auto'."
        )
    total = per_node * num_nodes
    if total > MAX_WORKERS:
        raise ConfigError(
            f"devices={devices!r} on num_nodes={num_nodes} are {total:,} workers: at most"
            f" {MAX_WORKERS:,} make a group."
        )
    # One device needs no worker: training runs in this process
    total = total if total > 1 else 0
    return total, total


def _refuse_another_count(num_workers: object, devices: object, num_nodes: int) -> None:
    """Find Lightning's words for the number of workers beside `num_workers`.

    Raises:
        ConfigError: one says more than what is meant anyway, as `devices="auto"` and `num_nodes=1`
            do in the configs that Lightning writes.
    """
    given = []
    if devices is not None and str(devices) not in ("auto", "1"):
        given.append(f"devices={devices!r}")
    if num_nodes != 1:
        given.append(f"num_nodes={num_nodes}")
    if given:
        lines = " and ".join(given)
        raise ConfigError(
            f"num_workers={num_workers!r} was given together with {lines}: each says how many"
            f" workers there are. Delete {lines}; num_workers counts those of all nodes."
        )


def _number_of_devices(text: str) -> int:
    """Return how many devices a text such as `2` or `-1` means, 0 if it is neither of these."""
    return int(text) if text.lstrip("-").isdigit() else 0


def _listed(devices: object) -> list[int] | None:
    """Return the numbers of a list such as `[0, 1]` or `0,1`, none if that is wrong.

    None if it is no list.
    """
    if isinstance(devices, str) and "," in devices:
        texts = [part.strip() for part in devices.split(",") if part.strip()]
        return list(map(int, texts)) if all(one.isdecimal() for one in texts) else []
    if not isinstance(devices, (list, tuple)):
        return None
    are_numbers = all(isinstance(one, int) and not isinstance(one, bool) for one in devices)
    return list(devices) if are_numbers else []


def gpus_of(devices: object, accelerator: str) -> tuple[int, ...] | None:
    """Return the GPUs that a list of devices names, None if it names the first ones, or none.

    Raises:
        ConfigError: it names one twice.
    """
    listed = _listed(devices)
    if not listed or accelerator not in ("auto", "gpu", "cuda"):
        return None
    if len(set(listed)) < len(listed):
        raise ConfigError(
            f"devices={devices!r}: Device ID's (GPU) must be unique, since two ranks cannot share"
            " one. Leave out those that stand there twice."
        )
    return None if listed == list(range(len(listed))) else tuple(listed)


LAUNCHERS = ("ray", "local")


def launcher_of(
    launcher: str | None, start_method: str | None, num_nodes: int, is_elastic: bool
) -> tuple[str, str]:
    """Return the launcher of the workers, and the start method of local processes.

    Args:
        launcher: as given.
        start_method: of the strategy; one means local processes.
        num_nodes: as given.
        is_elastic: whether the number of workers may change.

    Raises:
        ConfigError: there is no such launcher, or it cannot do what else was asked for.
    """
    if launcher is not None and launcher not in LAUNCHERS:
        raise ConfigError(
            f"launcher={launcher!r} is not known. Use 'ray', or 'local' for processes of this"
            " machine without Ray."
        )
    if launcher == "ray" and start_method is not None:
        raise ConfigError(
            f"launcher='ray' was given together with a strategy that starts local processes"
            f" (start_method={start_method!r}). Leave one of them out."
        )
    is_local = launcher == "local" or start_method is not None
    if is_local and num_nodes > 1:
        raise ConfigError(
            f"num_nodes={num_nodes}: local processes are on this machine. Leave it out, or let Ray"
            " start the workers (strategy='ddp')."
        )
    if is_local and is_elastic:
        raise ConfigError(
            "num_workers=(min, max): local processes stay as many as they are. Give one number, or"
            " let Ray start the workers."
        )
    return "local" if is_local else "ray", "fork" if start_method == "fork" else "spawn"


def resources(given: object) -> dict[str, float] | None:
    """Return the resources that each worker reserves, by name, or None for the default.

    Raises:
        ConfigError: it is no such dict, or a worker cannot have so much.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"resources_per_worker={given!r}: give a dict of names and numbers, such as"
            " {'CPU': 2, 'GPU': 1}."
        )
    for name, amount in given.items():
        is_number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f"resources_per_worker={given!r}: {name!r} names no resource. Names are texts, such"
                " as 'CPU', 'GPU' or one that `ray start --resources` made up."
            )
        if name.lower() in ("cpu", "gpu") and name not in ("CPU", "GPU"):
            raise ConfigError(
                f"resources_per_worker={given!r}: Ray writes it {name.upper()!r}:"
                f" {{{name.upper()!r}: {amount!r}}}."
            )
        if not is_number or not 0 <= amount < math.inf:
            raise ConfigError(
                f"resources_per_worker={given!r}: {name} must be a number of at least 0, such as"
                f" {{{name!r}: 1}}."
            )
        if name == "GPU" and amount != int(amount):
            raise ConfigError(
                f"resources_per_worker={given!r}: two workers cannot share a GPU, since NCCL"
                " refuses two ranks on one. Give a whole number, such as {'GPU': 1}."
            )
    return dict(given)


def device(
    use_gpu: object, accelerator: str, resources: Mapping[str, float] | None, num_workers: int
) -> tuple[bool | None, str]:
    """Return whether workers get a GPU each, None to find out on the cluster, and the accelerator.

    Raises:
        ConfigError: the arguments contradict each other.
    """
    if use_gpu not in (None, True, False):
        raise ConfigError(f"use_gpu={use_gpu!r}: give True, False or None.")
    wanted = accelerator in ("gpu", "cuda")
    amount = (resources or {}).get("GPU")
    asks = {
        f"use_gpu={use_gpu}": use_gpu,
        f"accelerator={accelerator!r}": None if accelerator == "auto" else wanted,
        f"resources_per_worker={resources!r}": None if amount is None else amount > 0,
    }
    given = {argument: gpu for argument, gpu in asks.items() if gpu is not None}
    if not num_workers:
        return bool(use_gpu or wanted), "gpu" if use_gpu else accelerator
    if len(set(given.values())) > 1:
        raise ConfigError(
            f"Trainer({', '.join(given)}): one asks for GPUs and another for none. Leave one out;"
            " accelerator='auto' takes a GPU for each worker where the cluster has as many."
        )
    if not given:
        return None, accelerator
    gpu = next(iter(given.values()))
    return gpu, "gpu" if gpu else "cpu"


def shared_place(storage_path: str | os.PathLike[str] | None, num_workers: int) -> str | None:
    """Return the folder or URL for the files of a run, None for none.

    Raises:
        ConfigError: workers would take it for another folder than this process, or it is a file.
    """
    if storage_path is not None:
        a_name("storage_path", storage_path)
    found = place(storage_path)
    if found is None or "://" in found:
        return found
    whole = os.path.expanduser(found)
    not_a_file("storage_path", os.path.abspath(whole))
    if not num_workers:
        return os.path.abspath(whole)
    if not os.path.isabs(whole):
        raise ConfigError(
            f"storage_path={found!r} is relative, and the workers' processes are in other folders"
            f" than this one. Give an absolute path, storage_path={os.path.abspath(whole)!r}, or a"
            " URL such as 's3://bucket/runs'."
        )
    return whole


def place(storage_path: str | os.PathLike[str] | None) -> str | None:
    """Return the folder or URL for the files of a run, None for none."""
    return storage.local(storage_path) if storage_path else None


def root_dir(given: str | os.PathLike[str] | None, storage_path: str | None = None) -> str:
    """Return the folder for whatever has none of its own: a URL as it is, else an absolute path.

    Without one the storage or the current folder.

    Raises:
        ConfigError: there is a file, so that no folder can be made.
    """
    shared = place(storage_path)
    if given is not None:
        root = storage.local(a_name("default_root_dir", given))
    else:
        root = shared if shared and "://" not in shared else os.getcwd()
    if "://" in root:
        return root
    whole = os.path.abspath(os.path.expanduser(root))
    not_a_file("default_root_dir", whole)
    return whole


def a_name(argument: str, given: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return a path that names a folder.

    Raises:
        ConfigError: it is empty, blank, has a zero byte in it, or is the URL of no bucket.
    """
    text = os.fspath(given)
    if not text.strip() or "\0" in text:
        raise ConfigError(
            f"{argument}={text!r} names no folder. Give the path of one, or leave it out."
        )
    scheme, mark, rest = text.partition("://")
    if mark and scheme in storage.BUCKETS and not rest.strip("/"):
        raise ConfigError(f"{argument}={text!r} names no bucket. Give {scheme}://BUCKET/FOLDER.")
    return given


def not_a_file(argument: str, folder: str) -> None:
    """Find out whether a folder can be at a path, before anything is started.

    Raises:
        ConfigError: there is a file, or the system takes no such name.
    """
    try:
        file = storage.file_in_the_way(folder)
    except OSError as error:
        raise ConfigError(
            f"{argument}={shortened(folder)!r}: {error.strerror}. Give another path."
        ) from error
    if file is not None:
        kind = "a link to nowhere" if os.path.islink(file) else "a file"
        raise ConfigError(
            f"{argument}={folder!r}: {'it' if file == folder else file} is {kind}, and the run's"
            f" files need a folder. Give another path, such as {argument}={f'{file}-runs'!r}, or"
            " move it away."
        )


def shortened(text: str) -> str:
    """Return a text of at most 80 characters."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def fast_dev_run(value: int | bool) -> int | bool:
    """Return the number of batches of a fast dev run: True for one, False for a real run."""
    number = value if isinstance(value, bool) else at_least(0, fast_dev_run=value)
    return True if number == 1 else number


def warn_of_default_epochs(settings: Settings, limits: Limits) -> None:
    """Say that a fit has a limit that nobody gave."""
    if settings.arguments["max_epochs"] is None and limits.max_epochs == DEFAULT_EPOCHS:
        warn(
            f"max_epochs was not set; it is {DEFAULT_EPOCHS}. Set max_epochs=-1 to train without a"
            " limit."
        )


def epochs(
    max_epochs: int | None,
    min_epochs: int | None,
    max_steps: int,
    min_steps: int | None,
    max_time: object,
    callbacks: Sequence[Callback] | Callback | None,
) -> tuple[int, int]:
    """Return max_epochs and min_epochs with their defaults, which depend on the other limits."""
    for name, value in (("max_epochs", max_epochs), ("max_steps", max_steps)):
        if value is not None and (not isinstance(value, int) or value < -1):
            raise ConfigError(
                f"`{name}` must be a non-negative integer or -1. You passed in {value!r}."
                f" {name}={value!r}: give a whole number of at least 0, or -1 for no limit."
            )
    for name, value in (("min_epochs", min_epochs), ("min_steps", min_steps)):
        if value is not None:
            at_least(0, **{name: value})
    if max_epochs is None:
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
        if (
            max_steps == -1
            and max_time is None
            and not any(isinstance(callback, Timer) for callback in given)
        ):
            max_epochs = DEFAULT_EPOCHS  # which a fit warns of
        else:
            max_epochs = -1
    if min_epochs is None:
        min_epochs = 1 if min_steps is not None else 0
    return max_epochs, min_epochs


def limit(name: str, value: int | float | None) -> int | float:
    """Return a limit of batches: a whole number, or a fraction from 0.0 to 1.0.

    The type tells which is meant, but 2.0 can only be 2.
    """
    if value is None:
        return 1.0
    value = _whole(value)
    if (
        isinstance(value, bool)
        or (isinstance(value, int) and value < 0)
        or (isinstance(value, float) and not 0.0 <= value <= 1.0)
    ):
        raise ConfigError(
            f"You have passed invalid value {value!r} for {name}, it has to be in [0.0, 1.0] or an"
            f" int: {name}={value!r}: give a whole number of batches (2), or a fraction of them"
            " from 0.0 to 1.0 (0.5)."
        )
    return value


def _whole(value: int | float) -> int | float:
    """Return a float above 1 without a fraction as an int: it counts batches, as in Lightning."""
    return int(value) if isinstance(value, float) and value > 1 and value.is_integer() else value


def validation_interval(
    value: object, check_val_every_n_epoch: int | None
) -> tuple[int | float, float | None]:
    """Return (batches or fraction of an epoch, None) or (1.0, seconds)."""
    if check_val_every_n_epoch is not None:
        at_least(1, check_val_every_n_epoch=check_val_every_n_epoch)
    if value is None:
        return 1.0, None
    if isinstance(value, (str, dict, timedelta)):
        duration = parse_duration(value, "Trainer(val_check_interval={})")
        assert duration is not None
        return 1.0, duration.total_seconds()
    value = _whole(value) if isinstance(value, float) else value
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or (isinstance(value, float) and not 0.0 <= value <= 1.0)
        or (isinstance(value, int) and value < 1)
    ):
        raise ConfigError(
            f"You have passed invalid value {value!r} for val_check_interval, it has to be in"
            " [0.0, 1.0] or an int: "
            f"val_check_interval={value!r}: give a number of batches (100), a fraction of an epoch"
            " (0.25), or a time ('00:00:15:00')."
        )
    if check_val_every_n_epoch is None and isinstance(value, float):
        raise ConfigError(
            "check_val_every_n_epoch=None counts batches over epochs, so"
            f" val_check_interval={value} must be a number of batches."
        )
    return value, None


def sanity_steps(value: int | None) -> float:
    """Return the number of batches of the sanity check; -1 means all."""
    if value is None:
        return 2
    return float("inf") if value == -1 else at_least(0, num_sanity_val_steps=value)


def clipping(value: object, algorithm: str | None) -> tuple[float | None, str | None]:
    """Check the arguments of gradient clipping."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise WrongTypeError(
            f"`gradient_clip_val` should be an int or a float."
            f" gradient_clip_val={value!r}: give a number."
        )
    if value is not None and math.isnan(value):
        raise ConfigError("gradient_clip_val is not a number (nan). Leave it out to clip nothing.")
    if algorithm is not None and algorithm.lower() not in ("norm", "value"):
        raise ConfigError(
            f"`gradient_clip_algorithm` {algorithm} is invalid. "
            f"gradient_clip_algorithm={algorithm!r} is not known. Use 'norm' or 'value'."
        )
    return value, algorithm.lower() if algorithm is not None else None


INSTEAD_OF = {  # a kind of plugin that is not taken, and what to write
    "DeepSpeedPrecision": "strategy='fsdp' shards a model that is too large for one device",
    "BitsandbytesPrecision": "quantize the layers in configure_model, with bitsandbytes itself",
    "TransformerEnginePrecision": "use its layers in the module, or precision='bf16-mixed'",
    "XLAPrecision": "raylit has no XLA: precision='bf16-mixed' is for GPUs and CPUs",
    "XLACheckpointIO": "raylit has no XLA: leave it out",
    "Precision": "precision='bf16-mixed' (or another) says the number format",
    "LayerSync": "sync_batchnorm=True takes batch norm statistics over all ranks",
    "ClusterEnvironment": (
        "ranks are found from the variables of torchrun, or started by num_workers=..."
    ),
}


@dataclass(frozen=True, slots=True)
class Plugins:
    """The settings that plugins give.

    Attributes:
        precision: the number format, None if none says it.
        checkpoint_io: how checkpoints are written; None: raylit's own way.
        syncs_batch_norm: whether batch norm is to be taken over all ranks.
    """

    precision: str | None = None
    checkpoint_io: CheckpointIO | None = None
    syncs_batch_norm: bool = False

    @classmethod
    def of(cls, plugins: object, precision: str | int | None, sync_batchnorm: bool) -> Plugins:
        """Return the settings of the Trainer's plugins, checked against its other arguments.

        Raises:
            ConfigError: there are two of a kind, one contradicts an argument, or is not taken.
        """
        given = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]
        found: dict[type, Any] = {}
        for plugin in given:
            if plugin is None:
                continue
            kinds = (PrecisionPlugin, CheckpointIO, TorchSyncBatchNorm, ClusterEnvironment)
            kind = next((one for one in kinds if isinstance(plugin, one)), None)
            instead = getattr(plugin, "instead", None)
            if kind is None or instead is not None:
                raise ConfigError(
                    f"Trainer(plugins=...) got {plugin!r}, which raylit does not take:"
                    f" {instead or _instead_of(plugin)}. Leave it out.{foreign_hint(plugin)}"
                )
            if kind in found:
                raise ConfigError(
                    f"Received multiple values for {kind.__name__} in `plugins`: {found[kind]!r}"
                    f" and {plugin!r}. Expected one value at most: leave one out."
                )
            found[kind] = plugin
        format_of = found.get(PrecisionPlugin)
        if format_of is not None and precision is not None:
            raise ConfigError(
                f"Received both `precision={precision!r}` and `plugins={format_of!r}`. Choose one."
            )
        if TorchSyncBatchNorm in found and sync_batchnorm:
            raise ConfigError(
                "Received both sync_batchnorm=True and plugins=TorchSyncBatchNorm(). Choose one."
            )
        return cls(
            None if format_of is None else format_of.precision,
            found.get(CheckpointIO),
            TorchSyncBatchNorm in found,
        )


def _instead_of(plugin: object) -> str:
    kinds = [cls.__name__ for cls in type(plugin).__mro__]
    return next(
        (text for kind, text in INSTEAD_OF.items() if kind in kinds),
        f"plugins are a CheckpointIO, or say what these arguments do:"
        f" {'; '.join(INSTEAD_OF.values())}",
    )


def make_loggers(
    logger: Logger | Iterable[Logger] | bool | None, default_root_dir: str, *, dummy: bool
) -> list[Logger]:
    """Return the loggers: those given, or a CSVLogger.

    If `dummy`, one that writes nothing in their place.
    """
    if logger is None or logger is True:
        loggers: list[Logger] = [CSVLogger(default_root_dir)]
    elif logger is False:
        loggers = []
    elif isinstance(logger, str):
        raise ConfigError(
            f"logger={logger!r} is a text. Give a logger, such as MLFlowLogger('experiment') or"
            " CSVLogger('logs'), several in a list, or False for none."
        )
    else:
        loggers = list(logger) if isinstance(logger, Iterable) else [logger]
        for one in loggers:
            is_one = callable(getattr(one, "log_metrics", None)) and not foreign_hint(one)
            if not isinstance(one, Logger) and not is_one:
                raise ConfigError(
                    f"logger={logger!r} holds {one!r}, which is no Logger and has no method"
                    f" log_metrics.{foreign_hint(one)} Give a Logger, True or False."
                )
    return [DummyLogger()] if dummy and loggers else loggers


def make_callbacks(
    given: Sequence[Callback] | Callback | None,
    max_time: str | timedelta | dict[str, int] | None,
    checkpointing: bool | None,
    bar: bool | None,
    summary: bool | None,
    is_dev_run: bool,
) -> list[Callback]:
    """Return the callbacks: those given and the defaults that are wanted, checkpoints last.

    Of a fast dev run nothing is to be left.
    """
    if given is not None and not isinstance(given, (Callback, Iterable)):
        raise WrongTypeError(
            f"callbacks={given!r}: give a Callback, or a list of them.{foreign_hint(given)}"
        )
    callbacks = [given] if isinstance(given, Callback) else list(given or ())
    check_callbacks(callbacks)
    for name, enabled, kind in (
        ("enable_checkpointing", checkpointing, Checkpoint),
        ("enable_progress_bar", bar, Bar),
    ):
        if enabled is False and any(isinstance(callback, kind) for callback in callbacks):
            raise ConfigError(
                f"Trainer was configured with `{name}=False` but found"
                f" `{type(next(one for one in callbacks if isinstance(one, kind))).__name__}` in"
                " callbacks list. Leave one of them out."
            )
    if max_time is not None and not any(isinstance(callback, Timer) for callback in callbacks):
        callbacks.append(Timer(max_time, interval="step"))
    if bar is not False and not any(isinstance(callback, Bar) for callback in callbacks):
        callbacks.append(ProgressBar())
    if summary is not False and not any(
        isinstance(callback, ModelSummary) for callback in callbacks
    ):
        callbacks.append(ModelSummary())
    if checkpointing is not False and not any(
        isinstance(callback, Checkpoint) for callback in callbacks
    ):
        callbacks.append(ModelCheckpoint())
    if (
        checkpointing is not False
        and not is_dev_run
        and not any(isinstance(callback, RecoveryCheckpoint) for callback in callbacks)
    ):
        callbacks.append(RecoveryCheckpoint())
    return in_order(callbacks)


def print_results(fn: str, values: list[dict[str, float]]) -> None:
    """Print the values of an evaluation as a table, a column for each loader."""
    if not any(values):
        return
    from rich.table import Table

    table = Table(
        "metric", *(f"loader {index}" if len(values) > 1 else fn for index in range(len(values)))
    )
    names = dict.fromkeys(name.split("/dataloader_idx_")[0] for row in values for name in row)
    for name in names:
        row = [
            next(
                (
                    f"{float(v):.6g}"
                    for k, v in one.items()
                    if k.split("/dataloader_idx_")[0] == name
                ),
                "",
            )
            for one in values
        ]
        table.add_row(name, *row)
    print_table(table)


def print_table(table: object) -> None:
    """Print a table of `rich`."""
    from rich.console import Console

    Console().print(table)
