"""Lightning's place for models that torch.compile has wrapped."""

from __future__ import annotations

import torch

from raylit import LightningModule

__all__ = ["from_compiled", "to_uncompiled"]


def from_compiled(model: object) -> LightningModule:
    """Return the module in a compiled one; `Trainer.fit` takes either.

    Raises:
        ValueError: it is not compiled, or no LightningModule.
    """
    if not isinstance(model, torch._dynamo.OptimizedModule):
        raise ValueError(
            f"`model` is required to be a `OptimizedModule`. Found a `{type(model).__name__}`"
            " instead. Give what torch.compile(model) returned."
        )
    found: object = model._orig_mod
    if not isinstance(found, LightningModule):
        raise ValueError(
            "`model` is expected to be a compiled LightningModule. Found a"
            f" `{type(found).__name__}` instead."
        )
    found._torch_compile = model.dynamo_ctx  # type: ignore[assignment]
    return found


def to_uncompiled(model: LightningModule) -> LightningModule:
    """Return a module as it was before `torch.compile`.

    Raises:
        ValueError: it was not compiled.
    """
    found = getattr(model, "_orig_mod", model)
    if found is model and getattr(model, "_torch_compile", None) is None:
        raise ValueError(
            "`model` must either be an instance of OptimizedModule or a compiled LightningModule,"
            f" but it is a {type(model).__name__}."
        )
    found._torch_compile = None
    return found
