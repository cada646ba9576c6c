"""TextLogger: the texts that a model writes, epoch by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.callbacks.pictures.picture import Picture
from raylit.callbacks.pictures.sampling import sampled
from raylit.errors import ConfigError

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class TextLogger(Picture):
    """Keeps texts that the model makes, after each validation, or each epoch without one.

    They are files, `<name>/step-<step>.txt`.

    Args:
        source: name of a method of the module, without arguments, that returns a string or a list
            of strings. It is called on all ranks in eval mode, with the same seed each time; rank
            0's texts are kept.
        seed: of the random numbers that it draws.
        name: under which the loggers keep it; None: as `source`.
        every_n_epochs: in which epochs of a fit.

    Raises:
        ConfigError: there is no logger; in a run, if there is no such method, or it gives no texts.

    Example:
        >>> class Writes(BoringModel):
        ...     def sample_text(self):
        ...         return ["once upon a time"]
        >>> trainer = Trainer(callbacks=[TextLogger("sample_text")], logger=CSVLogger("logs"))
    """

    def __init__(
        self, source: str, seed: int = 0, name: str | None = None, every_n_epochs: int = 1
    ) -> None:
        super().__init__(name if name is not None else source, every_n_epochs)
        self.source = source
        self.seed = seed

    def draw(self, trainer: RunningTrainer, pl_module: LightningModule, name: str) -> None:
        method = getattr(pl_module, self.source, None)
        if not callable(method):
            raise ConfigError(
                f"TextLogger({self.source!r}): {type(pl_module).__name__} has no such method. Give"
                f" it one that returns a list of strings: def {self.source}(self): ..."
            )
        texts = sampled(method, pl_module, self.seed)
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise ConfigError(
                f"TextLogger({self.source!r}): it gives a {type(texts).__name__}, not a string or a"
                " list of strings."
            )
        if trainer.is_global_zero:
            path = f"{name}/step-{trainer.global_step:08}.txt"
            pl_module.log_text(path, "\n\n--------\n\n".join(texts) + "\n")

    def on_train_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if not trainer.enable_validation and self.is_due(trainer):
            self.draw(trainer, pl_module, self.name)
