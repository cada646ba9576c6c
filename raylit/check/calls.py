"""Watches the calls of a step into torch: loss functions, parameters, conversions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from raylit.runtime.aliases import Arguments

LOSSES = (
    F.cross_entropy,
    F.nll_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
)
DROPOUTS = (
    F.dropout,
    F.alpha_dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.feature_alpha_dropout,
)
WHOLE = ("long", "int", "short", "char", "byte", "to", "type")  # may make whole numbers
DIFFERENCES = ("sub", "subtract", "__sub__", "rsub", "__rsub__")
# Steps of a graph that change the place of numbers, and no number.
MOVES = (
    "Alias",
    "Clone",
    "Contiguous",
    "Expand",
    "Flatten",
    "Index",
    "IndexSelect",
    "MaskedSelect",
    "Permute",
    "ReshapeAlias",
    "Select",
    "Slice",
    "Squeeze",
    "T",
    "ToCopy",
    "Transpose",
    "UnsafeView",
    "Unsqueeze",
    "View",
)


@dataclass
class LossCall:
    """One call of a loss function of torch in a training step.

    Attributes:
        function: its name.
        value: what it returned, if that is one number.
        expected: what a model that knows nothing yet gets, where that can be told.
        why: where `expected` comes from, in words.
        mistake: what is wrong with the arguments, or None.
        fix: what to do about it.
        suspicion: what may be wrong with them, or None: many calls must agree.
        compares_samples: whether its target is a tensor of the batch.
    """

    function: str
    value: float | None = None
    expected: float | None = None
    why: str = ""
    mistake: str | None = None
    fix: str = ""
    suspicion: str | None = None
    compares_samples: bool = False


class ObservedCalls(TorchFunctionMode):
    """Takes notes of the calls of torch, for a `with` block.

    Args:
        module: whose step runs.
        batch: the tensors of the batch, by name.

    Attributes:
        losses: calls of loss functions.
        trained: names of the parameters that are used where gradients are recorded.
        used: names of all that are used.
        strangers: shapes of parameters that are used and trained, and not the module's.
        truncated: names of the inputs whose fractions are cut off.
        differences: shapes of a prediction and a target whose difference is one of each pair.
        random: what is random, or looks at other samples, in eval mode.
    """

    def __init__(self, module: nn.Module, batch: dict[str, Tensor]) -> None:
        super().__init__()
        self.losses: list[LossCall] = []
        self.trained: set[str] = set()
        self.used: set[str] = set()
        self.strangers: list[list[int]] = []
        self.truncated: list[str] = []
        self.differences: list[tuple[list[int], list[int]]] = []
        self.random: list[str] = []
        self._module = module
        self._names = {id(one): name for name, one in module.named_parameters()}
        self._seen_strangers: set[int] = set()
        self._batch = batch
        self._embedded: list[Tensor] = []  # the sequences of tokens that the model reads
        self._places = {_place(one): name for name, one in batch.items() if one.numel()}

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Arguments | None = None,
    ) -> object:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        with contextlib.suppress(RuntimeError):  # within vmap nothing can be looked at
            self._note(func, made, args, kwargs)
        return made

    def _note(
        self,
        func: Callable[..., object],
        made: object,
        args: tuple[object, ...],
        kwargs: Arguments,
    ) -> None:
        name = getattr(func, "__name__", "")
        if name == "__get__" or name.startswith("__set"):  # an attribute, as its shape
            return
        self._note_parameters([*args, *kwargs.values()])
        if func in LOSSES:
            self._note_loss(func, made, args, kwargs)
        elif func is F.embedding:
            self._note_tokens(_argument(args, kwargs, 0, "input"))
        elif func in DROPOUTS or func is F.batch_norm:
            self._note_mode(func, args, kwargs)
        elif name in WHOLE:
            self._note_whole(args[0], made)
        elif name in DIFFERENCES:
            self._note_difference(args, made)

    def _note_parameters(self, values: Iterable[object]) -> None:
        for leaf in tree_leaves(list(values)):
            if not isinstance(leaf, nn.Parameter):
                continue
            name = self._names.get(id(leaf))
            records = leaf.requires_grad and torch.is_grad_enabled()
            if name is not None:
                self.used.add(name)
                if records:
                    self.trained.add(name)
            elif records and id(leaf) not in self._seen_strangers:
                self._seen_strangers.add(id(leaf))
                self.strangers.append(list(leaf.shape))

    def _note_loss(
        self,
        func: Callable[..., object],
        made: object,
        args: tuple[object, ...],
        kwargs: Arguments,
    ) -> None:
        given, target = (
            _argument(args, kwargs, n, name) for n, name in enumerate(("input", "target"))
        )
        if not isinstance(given, Tensor) or not isinstance(target, Tensor):
            return
        call = describe(func.__name__, given, target.detach(), made, kwargs)
        call.compares_samples = self._is_of_batch(target)
        if func is F.cross_entropy and self._is_read(target):
            call.suspicion = call.suspicion or (
                "the targets of cross_entropy are the tokens that the model reads, at the same"
                " positions: a language model learns to copy them"
            )
            call.fix = call.fix or "read tokens[:, :-1] and compare with tokens[:, 1:]"
        self.losses.append(call)

    def _note_tokens(self, tokens: object) -> None:
        if isinstance(tokens, Tensor) and tokens.ndim > 1:
            self._embedded.append(tokens.detach().flatten())

    def _is_read(self, target: Tensor) -> bool:
        """Tell whether a target was also given to an embedding: sequences of different tokens."""
        tokens = target.detach().flatten()
        return any(torch.equal(one, tokens) for one in self._embedded) and len(tokens.unique()) > 1

    def _is_of_batch(self, target: Tensor) -> bool:
        values = target.detach().flatten().double()
        return _place(target) in self._places or any(
            one.numel() == values.numel() and torch.equal(one.flatten().double(), values)
            for one in self._batch.values()
        )

    def _note_mode(
        self, func: Callable[..., object], args: tuple[object, ...], kwargs: Arguments
    ) -> None:
        """Note a dropout or batch norm that is in train mode where the module is in eval mode."""
        is_norm = func is F.batch_norm
        training = _argument(args, kwargs, 5 if is_norm else 2, "training")
        training = not is_norm if training is None else training
        # without running statistics it has no other way
        by_design = is_norm and _argument(args, kwargs, 1, "running_mean") is None
        if training and not self._module.training and not by_design:
            self.random.append(func.__name__)

    def _note_whole(self, before: object, after: object) -> None:
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            return
        is_cut = before.is_floating_point() and not (
            after.is_floating_point() or after.is_complex() or after.dtype is torch.bool
        )
        name = self._places.get(_place(before)) if is_cut else None
        if name is not None and name not in self.truncated and bool(before.frac().any()):
            self.truncated.append(name)

    def _note_difference(self, args: tuple[object, ...], made: object) -> None:
        both = [one for one in args if isinstance(one, Tensor)]
        if len(both) != 2 or not isinstance(made, Tensor) or both[0].ndim == both[1].ndim:
            return
        is_target = any(self._is_of_batch(one) for one in both)
        if is_target and _is_of_pairs(both[0], both[1]):
            self.differences.append((list(both[0].shape), list(both[1].shape)))


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


def _argument(args: tuple[object, ...], kwargs: Arguments, position: int, name: str) -> object:
    return args[position] if len(args) > position else kwargs.get(name)


def _is_of_pairs(one: Tensor, other: Tensor) -> bool:
    """Tell whether broadcasting combines each number of one tensor with several of the other."""
    try:
        shape = torch.broadcast_shapes(one.shape, other.shape)
    except RuntimeError:
        return False
    num_pairs: int = math.prod(shape)
    return num_pairs > max(one.numel(), other.numel())


def activations(tensor: Tensor) -> list[str]:
    """Return the activations that a tensor comes from, the last first: `Sigmoid`, `Softmax`.

    Read from its graph, past steps that only move numbers.
    """
    found = list[str]()
    node = tensor.grad_fn
    while node is not None:
        name = node.name().partition("Backward")[0]
        if name in ("Sigmoid", "Softmax"):
            found.append(name)
        elif name not in MOVES:
            break
        node = next((one for one, _ in node.next_functions if one is not None), None)
    return found


def describe(
    function: str, given: Tensor, target: Tensor, value: object, kwargs: dict[str, object]
) -> LossCall:
    """Judge the call of a loss function with `given`, the output of the model, and `target`."""
    call = LossCall(function)
    is_mean = kwargs.get("reduction", "mean") == "mean"
    if isinstance(value, Tensor) and value.ndim == 0 and is_mean:
        call.value = float(value.detach())
    judges: dict[str, Callable[[LossCall, list[str], Tensor, Tensor, Arguments], None]] = {
        "cross_entropy": _of_classes,
        "nll_loss": _of_classes,
        "binary_cross_entropy": _of_yes_or_no,
        "binary_cross_entropy_with_logits": _of_yes_or_no,
    }
    judge = judges.get(function, _of_numbers)
    judge(call, activations(given), given.detach().float(), target, kwargs)
    return call


def _of_classes(
    call: LossCall, last: list[str], given: Tensor, target: Tensor, kwargs: dict[str, object]
) -> None:
    classes = given.shape[:2][-1] if given.ndim else 1  # of one sample the first dimension
    call.expected = math.log(classes)
    call.why = f"log {classes} for {classes} classes"
    if call.function == "nll_loss":
        if bool((given > 0).any()):
            call.mistake = "nll_loss gets numbers above 0, which are no log-probabilities"
            call.fix = "use cross_entropy"
        return
    are_probabilities = (
        given.ndim > 1
        and classes > 1
        and bool((given >= 0).all())
        and bool(((given.sum(1) - 1).abs() < 1e-3).all())
    )
    if are_probabilities or last[:1] == ["Softmax"]:
        call.mistake = "cross_entropy gets probabilities, but applies log_softmax itself"
        call.fix = "leave softmax out of the model, or use nll_loss on their logarithm"
    elif last[:1] == ["Sigmoid"]:
        call.suspicion = "cross_entropy gets the results of a sigmoid, but applies log_softmax"
        call.fix = "leave the sigmoid out of the model, or use binary_cross_entropy"


def _of_yes_or_no(
    call: LossCall, last: list[str], given: Tensor, target: Tensor, kwargs: dict[str, object]
) -> None:
    if kwargs.get("weight") is None and kwargs.get("pos_weight") is None:
        call.expected = math.log(2)
        call.why = "log 2 for yes or no"
    call.fix = "leave the sigmoid out of the model"
    if call.function == "binary_cross_entropy":
        if last[:2] == ["Sigmoid", "Sigmoid"]:
            call.mistake = "binary_cross_entropy gets the sigmoid of a sigmoid"
            call.fix = "leave one of them out"
    elif last:
        call.mistake = (
            "binary_cross_entropy_with_logits gets the results of a"
            f" {last[0].lower()}, but applies a sigmoid itself"
        )
    elif given.numel() >= 8 and bool(((given >= 0) & (given <= 1)).all()):
        # a fresh model's numbers may all lie there by chance
        call.suspicion = (
            "binary_cross_entropy_with_logits gets numbers from 0 to 1 only, but applies a"
            " sigmoid itself"
        )


def _of_numbers(
    call: LossCall, last: list[str], given: Tensor, target: Tensor, kwargs: dict[str, object]
) -> None:
    target = target.float()
    variance = float((target - target.mean()).square().mean())
    if call.function == "mse_loss" and variance > 0:
        call.expected = variance
        call.why = "the variance of the targets in the batch"
    if _is_of_pairs(given, target):
        call.mistake = (
            f"{call.function} compares shapes {list(given.shape)} and {list(target.shape)}: every"
            " prediction with several targets"
        )
        call.fix = "give both the same shape, for instance with squeeze(1) or unsqueeze(1)"
