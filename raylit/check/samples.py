"""Finds out whether outputs depend on other samples, and on which inputs the loss depends."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from raylit.data.combined import length_of
from raylit.runtime import rng
from raylit.runtime.aliases import Batch, Loaders
from raylit.runtime.batch import named_tensors, with_tensors

if TYPE_CHECKING:
    from raylit.core.module import LightningModule

SIZES = (13, 11, 7, 5, 3, 2)  # of the samples to look at; few layers are as wide as the first


def num_samples(loader: Loaders, batch: Batch) -> int | None:
    """Return how many samples a batch holds, None if the loader's batch size disagrees."""
    size = next(
        (tensor.size(0) for tensor in named_tensors(batch).values() if tensor.ndim),
        None,
    )
    wanted = getattr(loader, "batch_size", None)
    if not isinstance(wanted, int):
        return size
    return size if size == min(wanted, length_of(getattr(loader, "dataset", None))) else None


def fewer_samples(batch: Batch, number: int) -> tuple[Batch, int]:
    """Return the first samples of a batch, as many as no other dimension of it has; and how many.

    So a dimension of that size is the one of the samples: a batch of 16 sequences of 16 steps, or
    one of 16 in a layer of width 16, does not tell which is which.
    """
    tensors = named_tensors(batch)
    of_samples = [one.ndim > 0 and one.size(0) == number for one in tensors.values()]
    others = {
        size
        for one, has_rows in zip(tensors.values(), of_samples, strict=True)
        for size in one.shape[1 if has_rows else 0 :]
    }
    fewer = next((n for n in SIZES if n <= number and n not in others), number)
    if fewer == number:
        return batch, number
    cut = [
        one[:fewer].clone() if has_rows else one
        for one, has_rows in zip(tensors.values(), of_samples, strict=True)
    ]
    return with_tensors(batch, cut), fewer


class _Unlogged:
    """Accepts the calls of `self.log`, and keeps nothing."""

    def log(self, *args: object, **kwargs: object) -> None:
        """Do nothing."""


def call_step(module: LightningModule, batch: Batch, batch_idx: int, seed: int = 0) -> object:
    """Call `training_step` outside the loop, with a seed's random numbers; nothing is logged."""
    step = getattr(module.training_step, "__wrapped__", module.training_step)
    takes_index = len(inspect.signature(step).parameters) > 1
    module.attach_log(_Unlogged())
    with rng.isolated():
        torch.manual_seed(seed)
        output: object = step(batch, *((batch_idx,) if takes_index else ()))
    return output


def loss_of(output: object) -> Tensor | None:
    """Return the loss in the output of `training_step`, None if there is none."""
    loss = output.get("loss") if isinstance(output, dict) else output
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None


def inputs_that_count(
    module: LightningModule, batch: Batch, batch_idx: int, num_samples: int
) -> dict[str, bool]:
    """Tell for each input of a batch whether the loss depends on it.

    It does if a gradient reaches it or, failing that, if the loss changes when all samples get the
    values of the first. Inputs with one number per sample that is not a floating-point number are
    labels or ids, and are left out.

    Args:
        module: in eval mode.
        batch: as `training_step` gets it.
        batch_idx: its number.
        num_samples: in the batch.

    Returns:
        Nothing if it cannot be told.
    """
    tensors = named_tensors(batch)
    wanted = [
        name
        for name, one in tensors.items()
        if one.ndim > 0
        and one.size(0) == num_samples
        and one.dtype is not torch.bool
        and (one.is_floating_point() or one.ndim > 1)
    ]

    def loss_with(given: dict[str, Tensor]) -> Tensor | None:
        return loss_of(call_step(module, with_tensors(batch, given.values()), batch_idx))

    leaves = {
        name: one.detach().clone().requires_grad_(one.is_floating_point() and name in wanted)
        for name, one in tensors.items()
    }
    floats = [name for name in wanted if leaves[name].requires_grad]
    try:
        with torch.enable_grad():
            # copies, which may be written to in place
            loss = loss_with({name: one.clone() for name, one in leaves.items()})
        if loss is None or not loss.requires_grad or not bool(loss.isfinite()):
            return {}
        given = [leaves[name] for name in floats]
        found = torch.autograd.grad(loss, given, allow_unused=True) if given else ()
        counts = {
            name: one is not None and bool(one.any())
            for name, one in zip(floats, found, strict=True)
        }
        for name in wanted:
            # not shuffled, which a mean over the samples does not see if it is all they have
            first = tensors[name][:1].expand_as(tensors[name]).clone()
            if counts.get(name) or torch.equal(first, tensors[name]):
                continue
            # without a gradient it may be a label, or the input of a frozen part
            with torch.no_grad():
                other = loss_with({**tensors, name: first})
            counts[name] = other is None or bool(other != loss.detach())
    except Exception:  # whatever a step in eval mode raises: it was made for train mode
        return {}
    return counts


def mixes_samples(
    module: nn.Module, args: object, kwargs: object, num_samples: int | None
) -> tuple[bool | None, str]:
    """Tell whether the output of a sample depends on the input of another, by its gradient.

    Args:
        module: in eval mode, in which batch norm takes nothing from the batch.
        args: its arguments.
        kwargs: its keyword arguments.
        num_samples: samples in the batch; None if that is not known.

    Returns:
        Whether it does, None if that cannot be told; and which samples, or why it cannot.
    """
    if num_samples is None or num_samples < 2:
        return None, (
            "the number of samples is not known"
            if num_samples is None
            else "the batch has one sample"
        )
    flat, spec = tree_flatten((args, kwargs))
    leaves = [
        item.clone().requires_grad_() if _has_rows(item, num_samples) else item for item in flat
    ]
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not inputs:
        return None, "no input is a floating-point tensor with a row for each sample"
    try:
        with torch.enable_grad():
            # Which may be written to in place
            copied = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            positional, named = tree_unflatten(copied, spec)
            outputs = [
                item
                for item in tree_leaves(module(*positional, **named))
                if _has_rows(item, num_samples) and item.requires_grad
            ]
    except Exception as error:
        return (
            None,
            (
                f"it could not be called in eval mode ({type(error).__name__}:"
                f" {str(error).splitlines()[0] if str(error) else ''})"
            ),
        )
    if not outputs:
        return None, "no output has a row for each sample"
    if any(_relates(one, num_samples) for one in [*flat, *outputs]):
        return None, "a number for each pair of samples is given or made, so they are related"
    for row in sorted({0, num_samples // 2, num_samples - 1}):
        value = torch.stack(
            [(output[row] * torch.randn_like(output[row])).sum().float() for output in outputs]
        ).sum()
        for gradient in torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True):
            if gradient is None:
                continue
            if not bool(gradient.isfinite().all()):
                return None, "the gradient is not finite"
            # an input may be one number a sample, as the columns of a table are
            of_others = gradient.reshape(num_samples, -1).any(1)
            of_others[row] = False
            if of_others.any():
                return True, f"output {row} depends on input {int(of_others.nonzero()[0])}"
    return False, ""


def _has_rows(value: object, number: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim > 0
        and value.size(0) == number
    )


def _relates(value: object, number: int) -> bool:
    """Tell whether two dimensions are those of the samples: similarities, or a graph."""
    return isinstance(value, Tensor) and list(value.shape).count(number) > 1
