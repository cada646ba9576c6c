"""Throughput.

Batches, samples, items and floating-point operations per second, over the last updates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from raylit.errors import ConfigError
from raylit.runtime.messages import warn

T = TypeVar("T", int, float)

# Peak operations per second of one chip in matrix products, dense (not the doubled figures for
# sparse matrices), as NVIDIA's data sheets give them: words in the device's name, float32,
# TensorFloat-32, float16 and bfloat16 (0: not supported).
PEAK_FLOPS: list[tuple[tuple[str, ...], float, float, float, float]] = [
    (("h200", "nvl"), 60e12, 417.5e12, 835.5e12, 835.5e12),
    (("h200",), 67e12, 494.5e12, 989.5e12, 989.5e12),
    (("h100", "pcie"), 51e12, 378e12, 756e12, 756e12),
    (("h100", "nvl"), 60e12, 417.5e12, 835.5e12, 835.5e12),
    (("h100",), 67e12, 494.5e12, 989.5e12, 989.5e12),
    (("a100",), 19.5e12, 156e12, 312e12, 312e12),
    (("l40s",), 91.6e12, 183e12, 362e12, 362e12),
    (("l40",), 90.5e12, 90.5e12, 181e12, 181e12),
    (("l4",), 30.3e12, 60e12, 121e12, 121e12),
    (("a40",), 37.4e12, 74.8e12, 149.7e12, 149.7e12),
    (("a10g",), 35e12, 35e12, 70e12, 70e12),
    (("a10",), 31.2e12, 62.5e12, 125e12, 125e12),
    (("t4",), 8.1e12, 0, 65e12, 0),
    (("v100", "pcie"), 14e12, 0, 112e12, 0),
    (("v100",), 15.7e12, 0, 125e12, 0),
]


class Throughput:
    """Counts batches, samples and operations, and tells the mean rates over the last updates.

    `compute` gives `time`, `batches`, `samples` and `lengths` so far; once there are `window_size`
    updates also `device/batches_per_sec`, `device/samples_per_sec`, `device/items_per_sec`,
    `device/flops_per_sec` and `device/mfu` (model FLOPs utilization: the share of
    `available_flops`); with several devices the same without `device/` for all of them together.

    Args:
        available_flops: peak operations per second of one device.
        world_size: number of devices.
        window_size: updates to take the mean over, at least 2.
        separator: between `device` and the name.

    Raises:
        ConfigError: `world_size` or `window_size` is too small.

    Source: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, appendix B, for
        MFU.

    Example:
        >>> throughput = Throughput(window_size=2)
        >>> throughput.update(time=1.0, batches=1, samples=8)
        >>> throughput.update(time=2.0, batches=2, samples=16)
        >>> throughput.compute()["device/samples_per_sec"]
        8.0
    """

    def __init__(
        self,
        available_flops: float | None = None,
        world_size: int = 1,
        window_size: int = 100,
        separator: str = "/",
    ) -> None:
        if world_size < 1 or window_size < 2:
            raise ConfigError(
                f"Throughput(world_size={world_size}, window_size={window_size}): give at least 1"
                " device and a window of at least 2."
            )
        self.available_flops = available_flops
        self.world_size = world_size
        self.separator = separator
        self._time: deque[float] = deque(maxlen=window_size)
        self._batches: deque[int] = deque(maxlen=window_size)
        self._samples: deque[int] = deque(maxlen=window_size)
        self._lengths: deque[int] = deque(maxlen=window_size)
        self._flops: deque[int] = deque(maxlen=window_size)

    def update(
        self,
        *,
        time: float,
        batches: int,
        samples: int,
        lengths: int | None = None,
        flops: int | None = None,
    ) -> None:
        """Take note of the counts of this device since the beginning.

        Each number must be larger than at the update before.

        Args:
            time: seconds.
            batches: batches.
            samples: samples, at least as many as batches.
            lengths: items of all samples together, such as tokens; at least as many as samples.
            flops: floating-point operations since the last update; this one may stay the same.

        Raises:
            ValueError: a number has not grown, or is smaller than it can be.
            RuntimeError: `lengths` is given at some updates only.
        """
        if samples < batches:
            raise ValueError(
                f"samples={samples} is less than batches={batches}: a batch has at least one"
                " sample."
            )
        if lengths is not None and lengths < samples:
            raise ValueError(
                f"lengths={lengths} is less than samples={samples}: a sample has at least one item."
            )
        _append(self._time, time, "time")
        _append(self._batches, batches, "batches")
        _append(self._samples, samples, "samples")
        if lengths is not None:
            _append(self._lengths, lengths, "lengths")
            if len(self._lengths) != len(self._samples):
                raise RuntimeError(
                    f"lengths was given at {len(self._lengths)} of {len(self._samples)} updates."
                    " Give it at each, or at none."
                )
        if flops is not None:
            self._flops.append(flops * self.world_size)

    def compute(self) -> dict[str, float]:
        """Return the totals, and the rates once the window is full."""
        metrics: dict[str, float] = {
            "time": self._time[-1],
            "batches": self._batches[-1],
            "samples": self._samples[-1],
        }
        if self._lengths:
            metrics["lengths"] = self._lengths[-1]
        elapsed_s = self._time[-1] - self._time[0]
        for name, window in (
            ("batches", self._batches),
            ("samples", self._samples),
            ("items", self._lengths),
        ):
            if len(window) == window.maxlen:
                self._add(metrics, name, (window[-1] - window[0]) / elapsed_s)
        if len(self._flops) == self._flops.maxlen:
            # The first were done before the window's time
            flops_per_s = (sum(self._flops) - self._flops[0]) / elapsed_s / self.world_size
            self._add(metrics, "flops", flops_per_s)
            if self.available_flops:
                metrics[f"device{self.separator}mfu"] = flops_per_s / self.available_flops
        return metrics

    def reset(self) -> None:
        """Forget everything."""
        for window in (self._time, self._batches, self._samples, self._lengths, self._flops):
            window.clear()

    def _add(self, metrics: dict[str, float], name: str, per_s: float) -> None:
        metrics[f"device{self.separator}{name}_per_sec"] = per_s
        if self.world_size > 1:
            metrics[f"{name}_per_sec"] = per_s * self.world_size


def _append(window: deque[T], value: T, name: str) -> None:
    if window and value <= window[-1]:
        raise ValueError(
            f"{name}={value} is not more than at the update before ({window[-1]}). Give the total"
            " since the beginning."
        )
    window.append(value)


def measure_flops(
    model: nn.Module,
    forward_fn: Callable[[], Tensor],
    loss_fn: Callable[[Tensor], Tensor] | None = None,
) -> int:
    """Count the floating-point operations of one call of a model.

    On the `meta` device nothing is computed.

    Args:
        model: the model.
        forward_fn: calls it and returns the result.
        loss_fn: from the result to the loss; with it, the backward pass is counted too.

    Example:
        >>> with torch.device("meta"):
        ...     model, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
        >>> measure_flops(model, lambda: model(x))
        48
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        output = forward_fn()
        if loss_fn is not None:
            loss_fn(output).backward()
    return int(counter.get_total_flops())


def get_available_flops(device: torch.device, dtype: torch.dtype) -> int | None:
    """Return the peak operations per second of a GPU in matrix products of a format.

    None, with a warning, where it is not known.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = peak_flops(name, dtype)
    if found is None:
        warn(
            f"The peak FLOPs of {name!r} for {dtype} are not known, so there will be no MFU. Give"
            " them as available_flops=..."
        )
    return found


def peak_flops(name: str, dtype: torch.dtype) -> int | None:
    """Look a chip up by the name that CUDA gives it.

    None if it is not in the table, or cannot compute in that format.
    """
    words = set(name.lower().replace("-", " ").split())
    for known, float32, tf32, float16, bfloat16 in PEAK_FLOPS:
        if words.issuperset(known):
            if (
                dtype is torch.float32
                and tf32
                and torch.get_float32_matmul_precision() != "highest"
            ):
                return int(tf32)
            return (
                int(
                    {torch.float32: float32, torch.float16: float16, torch.bfloat16: bfloat16}.get(
                        dtype, 0
                    )
                )
                or None
            )
    return None
