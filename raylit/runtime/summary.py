"""The parts of a module: its submodules with type, parameters, mode and sizes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from raylit.errors import ConfigError
from raylit.runtime.aliases import Arguments

if TYPE_CHECKING:
    from rich.table import Table

UNKNOWN = "?"
LEFT_OVER = "other params"


@dataclass(slots=True)
class Layer:
    """One submodule.

    Attributes:
        name: where it is, such as `encoder.0`.
        type: name of its class.
        num_parameters: parameters of it and all below it.
        training: whether it is in train mode.
        in_size: shape of its input, nested as the input is; `?` if it was not seen.
        out_size: likewise of its output.
        flops: floating-point operations of one forward pass; None if not counted.
    """

    name: str
    type: str
    num_parameters: int
    training: bool
    in_size: object = UNKNOWN
    out_size: object = UNKNOWN
    flops: int | None = None


@dataclass(slots=True)
class Summary:
    """The findings of `summarize`. `print(summary)` shows them as a table.

    Attributes:
        layers: the submodules, outer ones before those within.
        total_parameters: how many numbers the parameters hold; those not yet created (`LazyLinear`)
            count as 0.
        trainable_parameters: those of them that require gradients.
        model_size: MB (10^6 bytes) that the parameters take.
        total_training_modes: how many submodules are in `train` and in `eval` mode, at any depth.
        total_flops: floating-point operations of one forward pass of `example_input_array`; 0
            without one.
        has_sizes: whether there was one.
        left_over_parameters: parameters that belong to none of the layers shown.
    """

    layers: list[Layer] = field(default_factory=list)
    total_parameters: int = 0
    trainable_parameters: int = 0
    model_size: float = 0.0
    total_training_modes: dict[str, int] = field(default_factory=dict)
    total_flops: int = 0
    has_sizes: bool = False
    left_over_parameters: int = 0

    @property
    def layer_names(self) -> list[str]:
        """Names of the submodules."""
        return [layer.name for layer in self.layers]

    @property
    def layer_types(self) -> list[str]:
        """Names of their classes."""
        return [layer.type for layer in self.layers]

    @property
    def param_nums(self) -> list[int]:
        """Their numbers of parameters."""
        return [layer.num_parameters for layer in self.layers]

    @property
    def training_modes(self) -> list[bool]:
        """Whether each is in train mode."""
        return [layer.training for layer in self.layers]

    @property
    def in_sizes(self) -> list[object]:
        """Shapes of their inputs."""
        return [layer.in_size for layer in self.layers]

    @property
    def out_sizes(self) -> list[object]:
        """Shapes of their outputs."""
        return [layer.out_size for layer in self.layers]

    def table(self, header_style: str = "") -> Table:
        """Return the submodules as a table for `rich`.

        Args:
            header_style: a style of rich, such as `bold magenta`.
        """
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, header_style=header_style, pad_edge=False)
        for column in (
            "",
            "Name",
            "Type",
            "Params",
            "Mode",
            *(("FLOPs", "In sizes", "Out sizes") if self.has_sizes else ()),
        ):
            table.add_column(
                column, justify="right" if column in ("Params", "FLOPs") else "left", no_wrap=True
            )
        rows = [
            [
                layer.name,
                layer.type,
                count(layer.num_parameters),
                "train" if layer.training else "eval",
            ]
            + (
                [count(layer.flops or 0), str(layer.in_size), str(layer.out_size)]
                if self.has_sizes
                else []
            )
            for layer in self.layers
        ]
        if self.left_over_parameters:
            rows.append(
                [
                    LEFT_OVER,
                    "n/a",
                    count(self.left_over_parameters),
                    *["n/a"] * (4 if self.has_sizes else 1),
                ]
            )
        for number, row in enumerate(rows):
            # as Text, because the brackets of a size are no markup
            table.add_row(str(number) if row[0] != LEFT_OVER else "", *(Text(cell) for cell in row))
        return table

    def totals(self) -> dict[str, str]:
        """Return the sums over the whole module, in words: description to value."""
        values = {
            "Trainable params": count(self.trainable_parameters),
            "Non-trainable params": count(self.total_parameters - self.trainable_parameters),
            "Total params": count(self.total_parameters),
            "Total estimated model params size (MB)": f"{self.model_size:,.3f}",
            "Modules in train mode": str(self.total_training_modes["train"]),
            "Modules in eval mode": str(self.total_training_modes["eval"]),
        }
        return values | ({"Total FLOPs": count(self.total_flops)} if self.has_sizes else {})

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(
            file=io.StringIO(),
            width=1000,
            color_system=None,
            force_terminal=False,
            force_jupyter=False,  # or it shows an empty output beside what it captures
        )
        with console.capture() as capture:
            console.print(self.table())
        lines = [line.rstrip() for line in capture.get().splitlines()]
        return "\n".join(
            [
                *filter(None, lines),
                "",
                *(f"{value:<10}{text}" for text, value in self.totals().items()),
            ]
        )


def summarize(module: nn.Module, max_depth: int = 1) -> Summary:
    """Return the submodules of a module, with their parameters and sizes.

    If it has an `example_input_array`, that is passed through it once, in eval mode and without
    gradients, to see the sizes.

    Args:
        module: a LightningModule, or any module.
        max_depth: how deep to look for submodules; -1: to the bottom, 0: not at all.

    Raises:
        ConfigError: `max_depth` is below -1.

    Example:
        >>> summarize(nn.Sequential(nn.Linear(256, 512), nn.ReLU())).total_parameters
        131584
    """
    if not isinstance(max_depth, int) or max_depth < -1:
        raise ConfigError(
            f"max_depth={max_depth!r}: give the depth of submodules to show, -1 for all, or 0 for"
            " none."
        )
    shown = (
        list(module.named_children())
        if max_depth == 1
        else [(name, child) for name, child in module.named_modules() if name]
    )
    shown = [
        (name, child) for name, child in shown if max_depth == -1 or name.count(".") < max_depth
    ]
    # First, because it creates lazy parameters
    sizes, flops, total_flops = _run_example(module, dict(shown))
    parameters = [
        parameter
        for parameter in module.parameters()
        if not isinstance(parameter, UninitializedParameter)
    ]
    modes = [child.training for child in module.modules()][1:]
    layers = [
        Layer(
            name,
            type(child).__name__,
            _num_parameters(child),
            child.training,
            *sizes.get(name, (UNKNOWN, UNKNOWN)),
            flops=flops.get(name),
        )
        for name, child in shown
    ]
    total = sum(parameter.numel() for parameter in parameters)
    return Summary(
        layers=layers,
        total_parameters=total,
        trainable_parameters=sum(
            parameter.numel() for parameter in parameters if parameter.requires_grad
        ),
        model_size=sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        * 1e-6,
        total_training_modes={"train": modes.count(True), "eval": modes.count(False)},
        total_flops=total_flops,
        has_sizes=getattr(module, "example_input_array", None) is not None,
        left_over_parameters=max(0, total - sum(layer.num_parameters for layer in layers)),
    )


def _num_parameters(module: nn.Module) -> int:
    return sum(
        parameter.numel()
        for parameter in module.parameters()
        if not isinstance(parameter, UninitializedParameter)
    )


def _run_example(
    module: nn.Module, watched: Mapping[str, nn.Module]
) -> tuple[dict[str, tuple[object, object]], dict[str, int], int]:
    """Pass `example_input_array` through the module.

    Returns sizes and FLOPs by name, and all FLOPs.
    """
    example = getattr(module, "example_input_array", None)
    if example is None:
        return {}, {}, 0
    from torch.utils.flop_counter import FlopCounterMode

    sizes: dict[str, tuple[object, object]] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[object, ...], Arguments, object], None]:
        def hook(_: nn.Module, args: tuple[object, ...], kwargs: Arguments, output: object) -> None:
            inputs = [*args, *kwargs.values()]
            sizes.setdefault(
                name, (shape_of(inputs[0] if len(inputs) == 1 else inputs), shape_of(output))
            )

        return hook

    handles = [
        child.register_forward_hook(remember(name), with_kwargs=True)
        for name, child in watched.items()
        if not isinstance(child, torch.jit.ScriptModule)
    ]
    modes = [(child, child.training) for child in module.modules()]
    counter = FlopCounterMode(display=False)
    example = _moved(module, example)
    module.eval()
    try:
        with torch.no_grad(), _compute_format(module), counter:
            if isinstance(example, (list, tuple)):
                module(*example)
            elif isinstance(example, dict):
                module(**example)
            else:
                module(example)
    finally:
        for handle in handles:
            handle.remove()
        for child, training in modes:
            child.training = training
    counts = counter.get_flop_counts()
    root = type(module).__name__
    return (
        sizes,
        {name: sum(counts.get(f"{root}.{name}", {}).values()) for name in watched},
        counter.get_total_flops(),
    )


def _moved(module: nn.Module, example: object) -> object:
    """Bring the example to where the module is, the way its batches get there."""
    for name, args in (
        ("on_before_batch_transfer", ()),
        ("transfer_batch_to_device", (_device_of(module),)),
        ("on_after_batch_transfer", ()),
    ):
        hook = getattr(module, name, None)
        if hook is not None:
            example = hook(example, *args, 0)
    return example


def _device_of(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _compute_format(module: nn.Module) -> torch.autocast:
    """Return a context in which a float32 example passes through layers of half precision."""
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    is_half = dtype in (torch.float16, torch.bfloat16)
    return torch.autocast(
        _device_of(module).type, dtype=dtype if is_half else None, enabled=is_half
    )


def shape_of(value: object) -> object:
    """Return the shape of a tensor as a list; of a list or tuple, those of its items.

    Anything else has the shape `?`.
    """
    if isinstance(value, Tensor) or hasattr(value, "shape"):
        return list(value.shape)
    if isinstance(value, (list, tuple)):
        return [shape_of(item) for item in value]
    return UNKNOWN


def count(number: int) -> str:
    """Return a large number in a few characters.

    Example:
        >>> count(123), count(1234), count(2_000_000), count(400_000_000_000_000)
        ('123', '1.2 K', '2.0 M', '400 T')
    """
    value = float(number)
    units = ["", " K", " M", " B", " T"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    if units[0] == "":
        return f"{number:,d}"
    return f"{int(value):,d}{units[0]}" if value >= 100 else f"{value:,.1f}{units[0]}"
