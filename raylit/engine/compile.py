"""`Trainer(compile=...)`.

The modules that the steps call are compiled by torch.compile, the steps themselves are not.

A step is the user's code: it logs, reads counters, updates metrics, steps optimizers. It stays as
it is, so none of that can break a graph. Each module that it calls, by `self(x)` or `self.net(x)`,
becomes one graph with everything below it. A `self.log` inside of a `forward` is carried out after
the graph has run. Modules are compiled in place and given back as they were: names, weights and
checkpoints do not change.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raylit.core.hooks import is_overridden
from raylit.errors import ConfigError, did_you_mean
from raylit.metrics.torchmetric import is_metric
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.engine.run import Run


def options_of(given: bool | dict[str, object]) -> dict[str, object] | None:
    """Return the arguments of torch.compile that `Trainer(compile=...)` means, None for none of it.

    Raises:
        ConfigError: torch.compile has no such argument.
    """
    if given is False or given is None:
        return None
    if given is True:
        return {}
    if not isinstance(given, dict):
        raise ConfigError(
            f'compile={given!r}: give True, False, or arguments of torch.compile: {{"mode":'
            ' "reduce-overhead"}.'
        )
    known = [name for name in inspect.signature(torch.compile).parameters if name != "model"]
    for name in given:
        if name not in known:
            raise ConfigError(
                f"compile={given!r}: torch.compile has no argument"
                f" {name!r}.{did_you_mean(str(name), known)}"
            )
    return dict(given)


def compile_modules(run: Run) -> list[nn.Module]:
    """Compile, in place, the modules that the steps of the run's module call.

    Returns the modules to hand to `restore`.

    It does so as `Trainer(compile=...)` says, or else as the `torch.compile(model)` that the user
    gave to the Trainer.

    Raises:
        ConfigError: the compiler of the backend is missing, or there is no such backend.
    """
    options = run.trainer.compile
    compile: Callable[..., Callable[..., object]] | None = (
        getattr(run.module, "_torch_compile", None)
        if options is None
        else partial(torch.compile, **options)
    )
    if compile is None:
        return []
    backend = (options or {}).get("backend", "inductor")
    if (
        options is not None
        and backend == "inductor"
        and run.device.type == "cpu"
        and shutil.which(os.environ.get("CXX", "g++")) is None
    ):
        raise ConfigError(
            "Trainer(compile=...) needs a C++ compiler on the CPU, and g++ was not found. Install"
            " it (apt install g++), name another in the environment variable CXX, or take a backend"
            ' that needs none: compile={"backend": "aot_eager"}.'
        )
    modules = list(_called_by_steps(run.module))
    if not modules:
        warn(
            f"Trainer(compile=...) has nothing to compile: {type(run.module).__name__} has neither"
            " a forward nor submodules with parameters."
        )
    pending: list[tuple[object, ...]] = []
    log = run.metrics.log

    def log_or_defer(*args: Any) -> None:
        if torch.compiler.is_compiling():
            # Inside of a graph only this list grows, which torch does again after each run of it:
            # `log` itself would break the graph in two
            pending.append(args)
        else:
            log(*args)

    run.metrics.log = log_or_defer  # type: ignore[method-assign, assignment]
    for module in modules:
        try:
            compiled = compile(_entry(module))
        except Exception as error:
            # Those compiled before it would stay so, and the next fit would leave them as they are
            restore(modules)
            raise ConfigError(
                f"Trainer(compile={options!r}): torch.compile refuses: {error}"
            ) from error
        module._compiled_call_impl = _with_deferred_logs(module, compiled, pending, log)
    return modules


def restore(modules: list[nn.Module]) -> None:
    """Make compiled modules uncompiled again."""
    for module in modules:
        vars(module).pop("_compiled_call_impl", None)


def _called_by_steps(module: LightningModule) -> Iterator[nn.Module]:
    """Yield the module itself, if it has a forward, and the children that have parameters.

    Modules that the user has compiled are left out, and so are metrics.
    """
    if is_overridden("forward", module, nn.Module) and module._compiled_call_impl is None:
        yield module
    for child in _children(module):
        # By `child.compile()`, `torch.compile(child)` and torch.jit: the user chose how
        is_compiled = (
            child._compiled_call_impl is not None
            or hasattr(child, "_orig_mod")
            or isinstance(child, torch.jit.ScriptModule)
        )
        if next(child.parameters(), None) is not None and not is_compiled and not is_metric(child):
            yield child


def _children(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the children, in place of a list or dict of modules those in it."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _children(child)
        else:
            yield child


def _entry(module: nn.Module) -> Callable[..., object]:
    """Return a function that calls the module, for torch.compile to begin with.

    It passes over the code of torch's own modules.

    Its code object is its own, since torch.compile counts graphs by that and gives up after a few.
    """

    def entry(*args: object, **kwargs: object) -> object:
        return module._call_impl(*args, **kwargs)

    code = entry.__code__.replace(co_name=type(module).__name__)
    return FunctionType(code, globals(), code.co_name, None, entry.__closure__)


def _with_deferred_logs(
    module: nn.Module,
    compiled: Callable[..., object],
    pending: list[tuple[object, ...]],
    log: Callable[..., None],
) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> object:
        if torch.compiler.is_compiling():  # within the graph of a parent
            return module._call_impl(*args, **kwargs)
        output = compiled(*args, **kwargs)
        if pending:
            calls = pending[:]
            pending.clear()
            for arguments in calls:
                log(*arguments)
        return output

    return call
