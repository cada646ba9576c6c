"""ImageLogger: images that a model makes or is given, as one picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from raylit.callbacks.pictures.chosen import Array, Chosen, as_array, fingerprints, values_of
from raylit.callbacks.pictures.picture import Picture
from raylit.callbacks.pictures.sampling import sampled
from raylit.errors import ConfigError
from raylit.runtime.aliases import Batch, StepOutput
from raylit.runtime.batch import parts_of

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class ImageLogger(Picture):
    """Keeps a picture of several images at the end of each validation, or each epoch without one.

    Args:
        source: where the images come from, (images, channels, height, width) or (images, height,
            width), with 1 or 3 channels: a method of the module without arguments, such as one that
            samples; or an item of what `validation_step` returns, or of the batch. Of items those
            images are shown whose samples come first by their content, so they are the same in
            every epoch and on any number of ranks. A method is called on all ranks in eval mode,
            with the same seed each time; rank 0's images are kept.
        num_images: at most.
        value_range: the values of black and white; None: 0 and 1, or 255 of whole numbers.
        seed: of the random numbers that a method draws.
        name: under which the loggers keep it; None: as `source`.
        every_n_epochs: in which epochs of a fit.

    Raises:
        ConfigError: `num_images` is not positive or there is no logger; in a run, if there is no
            such method or item, or it gives no images.

    Example:
        >>> class Draws(BoringModel):
        ...     def sample_images(self):
        ...         return torch.rand(16, 1, 8, 8)
        >>> trainer = Trainer(callbacks=[ImageLogger("sample_images")], logger=CSVLogger("logs"))
    """

    def __init__(
        self,
        source: str,
        num_images: int = 16,
        value_range: tuple[float, float] | None = None,
        seed: int = 0,
        name: str | None = None,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__(name if name is not None else source, every_n_epochs)
        if num_images < 1:
            raise ConfigError(f"ImageLogger(num_images={num_images}) must be 1 or more.")
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ConfigError(
                f"ImageLogger(value_range={value_range}): the value of white must be above that of"
                " black, as in (-1.0, 1.0)."
            )
        self.source = source
        self.num_images = num_images
        self.value_range = value_range
        self.seed = seed
        self._chosen: Chosen | None = None

    def begin(self) -> None:
        self._chosen = Chosen(self.num_images)

    def see(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        dataloader_idx: int,
    ) -> None:
        if self._chosen is None or callable(getattr(pl_module, self.source, None)):
            return
        images = self._item(pl_module, outputs, batch)
        size = len(images)
        content = fingerprints(values_of(batch, size), size, self.seed).to(images.device)
        self._chosen.offer(content, content, {"image": images}, {})

    def draw(self, trainer: RunningTrainer, pl_module: LightningModule, name: str) -> None:
        method = getattr(pl_module, self.source, None)
        chosen = self._chosen
        self._chosen = None
        if callable(method):
            images = sampled(method, pl_module, self.seed)
            if not isinstance(images, Tensor):
                raise ConfigError(self._refusal(pl_module, f"gives a {type(images).__name__}"))
            pictures = [*as_array(images[: self.num_images])]
        else:
            found = chosen.gathered(trainer.world) if chosen is not None else []
            pictures = [one.values["image"] for one in found]
        if pictures and trainer.is_global_zero:
            pl_module.log_image(name, self._grid(pl_module, pictures))

    def on_train_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        is_method = callable(getattr(pl_module, self.source, None))
        if is_method and not trainer.enable_validation and self.is_due(trainer):
            self.draw(trainer, pl_module, self.name)

    def _item(self, pl_module: LightningModule, outputs: StepOutput, batch: Batch) -> Tensor:
        for place in (outputs, batch):
            parts = {} if place is None or isinstance(place, Tensor) else dict(parts_of(place))
            found = parts.get(self.source)
            if isinstance(found, Tensor):
                return found
        what = "is neither a method of it, nor in what its step returns, nor in the batch"
        raise ConfigError(self._refusal(pl_module, what))

    def _grid(self, pl_module: LightningModule, pictures: list[Array]) -> Array:
        """Return one image of all, (height, width, channels) from 0 to 1.

        Smaller ones lie in the upper left corner of the room that the largest take.
        """
        for shape in (one.shape for one in pictures):
            if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in (1, 3)):
                raise ConfigError(self._refusal(pl_module, f"gives images of shape {shape}"))
        low, high = self.value_range or (0.0, 255.0 if pictures[0].dtype.kind in "iu" else 1.0)
        columns = math.ceil(math.sqrt(len(pictures)))
        rows = math.ceil(len(pictures) / columns)
        height = max(one.shape[-2] for one in pictures)
        width = max(one.shape[-1] for one in pictures)
        grid = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), np.float32)
        for index, one in enumerate(pictures):
            top = index // columns * (height + 1)
            left = index % columns * (width + 1)
            layers = one if one.ndim == 3 else one[None]
            scaled = np.clip((layers - low) / (high - low), 0, 1)
            bottom, right = top + one.shape[-2], left + one.shape[-1]
            grid[top:bottom, left:right] = np.moveaxis(scaled, 0, -1)
        factor = max(1, 256 // max(grid.shape[:2]))  # small ones are enlarged, pixel by pixel
        large: Array = grid.repeat(factor, 0).repeat(factor, 1)
        return large

    def _refusal(self, pl_module: LightningModule, what: str) -> str:
        return (
            f"ImageLogger({self.source!r}): {self.source} of {type(pl_module).__name__} {what}."
            " Give the name of a method that returns a tensor (images, channels, height, width)"
            " with 1 or 3 channels, or of such a tensor in what validation_step returns or in the"
            " batch."
        )
