"""Precision: the number format of parameters, inputs and compute."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from raylit.errors import ConfigError
from raylit.runtime.aliases import Batch
from raylit.runtime.batch import cast_to
from raylit.runtime.messages import warn

# what the user may write -> canonical name
_NAMES: dict[str, str] = {
    "32": "32-true",
    "32-true": "32-true",
    "64": "64-true",
    "64-true": "64-true",
    "16": "16-mixed",
    "16-mixed": "16-mixed",
    "16-true": "16-true",
    "bf16": "bf16-mixed",
    "bf16-mixed": "bf16-mixed",
    "bf16-true": "bf16-true",
}
_DTYPES = {"64": torch.float64, "32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}


def canonical(precision: str | int | None) -> str:
    """Return the canonical name, such as `bf16-mixed`, of a precision.

    Raises:
        ConfigError: there is no such precision.
    """
    name = _NAMES.get("32-true" if precision is None else str(precision))
    if name is None:
        raise ConfigError(
            f"precision={precision!r} is not known. Use one of: {', '.join(sorted(set(_NAMES)))}."
        )
    return name


class Precision:
    """How one precision acts on a run.

    `true` formats store parameters in the format; `mixed` ones keep them in float32 and compute the
    steps under autocast, with the loss scaled for float16 on a GPU (Micikevicius et al., "Mixed
    Precision Training", 2018).

    Attributes:
        name: canonical name.
        dtype: format of the compute.
        scaler: the gradient scaler, or None where none is needed.
        has_context: whether steps must run within `context()`.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "16-mixed" and device.type == "cpu":
            warn("precision='16-mixed' is not possible on a CPU; bf16-mixed is used instead.")
            name = "bf16-mixed"
        bits, kind = name.split("-")
        self.name = name
        self.device = device
        self.dtype = _DTYPES[bits]
        self.is_mixed = kind == "mixed"
        self.converts = kind == "true" and bits != "32"
        self.has_context = self.is_mixed or self.converts
        self.scaler = (
            torch.amp.GradScaler(device.type)
            if name == "16-mixed" and device.type == "cuda"
            else None
        )

    def fresh(self) -> Precision:
        """Return a copy with its own gradient scaler, so a trial leaves no trace in this one's."""
        made = copy.copy(self)
        if self.scaler is not None:
            made.scaler = torch.amp.GradScaler(self.device.type)
            made.scaler.load_state_dict(self.scaler.state_dict())
        return made

    @contextmanager
    def context(self) -> Iterator[None]:
        """The context in which a step runs: autocast, or new tensors in the format."""
        if self.is_mixed:
            # autocast's cast cache goes wrong when parameters change under it, so weights are cast
            # anew in each step
            with torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=False):
                yield
        elif self.converts:
            default = torch.get_default_dtype()
            torch.set_default_dtype(self.dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(default)
        else:
            yield

    @property
    def precision(self) -> str:
        """The canonical name, as Lightning calls it."""
        return self.name

    @contextmanager
    def creating(self, empty: bool) -> Iterator[None]:
        """The context in which to make a model.

        It lands on the device in the format, and if `empty` with whatever the memory held.
        """
        with (
            torch.device(self.device),
            _NoInit() if empty else nullcontext(),
            self.context() if self.converts else nullcontext(),
        ):
            yield

    def convert_module(self, module: nn.Module) -> None:
        """Bring the parameters and buffers into the format, in place."""
        if self.dtype is torch.float64:
            # Unlike `to` it leaves complex parameters and the states of torchmetrics as they are
            module.double()
        elif self.converts:
            module.to(self.dtype)

    def convert_input(self, batch: Batch) -> Batch:
        """Bring the floating-point tensors of a batch into the format."""
        return cast_to(batch, self.dtype) if self.converts else batch


class _NoInit(TorchFunctionMode):
    """Lets the functions of `torch.nn.init` leave their tensor as it is, for a `with` block."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
