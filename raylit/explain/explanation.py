"""Explanation: attributions as arrays, with their names, and a picture of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from raylit.core.shown import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"

MOST_BARS = 20
MOST_PICTURES = 6


@dataclass
class Explanation:
    """How much each part of each input speaks for (above 0) or against (below 0) the target.

    Attributes:
        method: its name.
        attributions: for each input an array, (samples, ...): of the shape of the input; for a
            Grad-CAM map and for images that are ablated or occluded (samples, 1, height, width) may
            stand for all channels; for an embedding layer (samples, positions).
        inputs: the tensors that `forward` was given, under their names.
        outputs: what `forward` gave, (samples, ...).
        targets: for each sample the index of the output that is explained; empty where there is one
            output only.
        deltas: for integrated gradients, for each sample, how far the attributions add up to
            something else than the output's difference from the baseline's; else None.
        feature_names: of the columns of a table, or None.
        randomized: rank correlation of the sizes of the attributions with those of the same model
            with random weights, None if it was not asked for. Near 1 the method shows the input,
            not the model (Adebayo et al. 2018, https://arxiv.org/abs/1810.03292).
        num_samples: how many samples there are.
        run_id: the run of MLflow beside which it is kept, None where it is not.

    Example:
        >>> explanation = trainer.explain(model, loader, method="saliency")
        >>> explanation.attributions["x"].shape[1]
        32
        >>> explanation.plot().savefig("explanation.png")
    """

    method: str
    attributions: dict[str, Array]
    inputs: dict[str, Array]
    outputs: Array
    targets: Array
    deltas: Array | None = None
    feature_names: list[str] | None = None
    randomized: float | None = None
    num_samples: int = field(init=False)
    run_id: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.num_samples = len(self.outputs)

    def importance(self, name: str | None = None) -> dict[str, float]:
        """Return the mean size of the attributions of each feature of an input, the largest first.

        Args:
            name: of the input; None: the first.
        """
        name = name if name is not None else next(iter(self.attributions))
        sizes = np.abs(self.attributions[name]).mean(0)
        names = self._feature_names(name, sizes.size)
        ranked = np.argsort(-sizes.reshape(-1), kind="stable")
        return {names[index]: float(sizes.reshape(-1)[index]) for index in ranked}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all arrays to an .npz file, for `numpy.load`."""
        arrays = {f"attributions.{name}": array for name, array in self.attributions.items()}
        arrays |= {f"inputs.{name}": array for name, array in self.inputs.items()}
        arrays |= {"outputs": self.outputs, "targets": self.targets}
        if self.deltas is not None:
            arrays["deltas"] = self.deltas
        if self.feature_names is not None:
            arrays["feature_names"] = np.array(self.feature_names)
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]

    def plot(self, samples: Sequence[int] | None = None, *, dark: bool = False) -> Figure:
        """Draw the attributions: laid over images, or as bars by feature for other inputs.

        Args:
            samples: numbers of those to draw; None: of images the first six, of other inputs the
                mean size over all.
            dark: whether the background is dark.
        """
        import matplotlib.style

        with matplotlib.style.context("dark_background" if dark else "default"):
            rows = list(self.attributions)
            shown = list(samples if samples is not None else range(self.num_samples))
            shown = shown[:MOST_PICTURES]
            columns = [len(shown) if self.attributions[name].ndim == 4 else 1 for name in rows]
            width = max(1.8 * max(columns), 6)
            heights = [4.0 if self.attributions[name].ndim == 4 else 3.5 for name in rows]
            figure = new_figure(width, sum(heights))
            parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)
            for name, part in zip(rows, parts[:, 0], strict=True):
                part.suptitle(f"{name}: {self.method.replace('_', ' ')}")
                if self.attributions[name].ndim == 4:
                    self._draw_images(part, name, shown)
                else:
                    self._draw_bars(part.subplots(), name, samples)
        return figure

    def _feature_names(self, name: str, size: int) -> list[str]:
        if self.feature_names is not None and len(self.feature_names) == size:
            return self.feature_names
        return [f"{name}[{index}]" for index in range(size)]

    def _draw_images(self, part: SubFigure, name: str, shown: list[int]) -> None:
        maps = self.attributions[name].sum(1)
        axes = part.subplots(2, len(shown), squeeze=False)
        for column, index in enumerate(shown):
            picture = self.inputs[name][index] if name in self.inputs else None
            if picture is not None:
                axes[0][column].imshow(_as_picture(picture), cmap="gray")
            limit = float(np.abs(maps[index]).max()) or 1.0
            axes[1][column].imshow(maps[index], cmap="RdBu_r", vmin=-limit, vmax=limit)
            title = f"target {self.targets[index]}" if len(self.targets) else f"sample {index}"
            axes[0][column].set_title(title, fontsize=9)
            for one in axes[:, column]:
                one.set_axis_off()

    def _draw_bars(self, axes: Axes, name: str, samples: Sequence[int] | None) -> None:
        if samples is None:
            values = self.importance(name)
            axes.set_xlabel("mean size of the attribution")
        else:
            mean = self.attributions[name][list(samples)].mean(0).reshape(-1)
            names = self._feature_names(name, mean.size)
            order = np.argsort(-np.abs(mean), kind="stable")
            values = {names[index]: float(mean[index]) for index in order}
            axes.set_xlabel("attribution")
        most = list(values.items())[:MOST_BARS][::-1]
        axes.barh([one for one, _ in most], [value for _, value in most])
        axes.tick_params(axis="y", labelsize=8)
        axes.axvline(0, color="gray", linewidth=0.8)


def _as_picture(picture: Array) -> Array:
    """Return (channels, height, width) of any range as matplotlib draws it, from 0 to 1."""
    low, high = float(picture.min()), float(picture.max())
    scaled = (picture - low) / ((high - low) or 1.0)
    return np.moveaxis(scaled, 0, -1) if len(picture) == 3 else scaled.mean(0)
