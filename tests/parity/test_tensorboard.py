"""What a run leaves in TensorBoard's event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lazy import event_accumulator
from tests.parity.harness import files, loader, model_class, parity, trainer


def shown(folder: str) -> dict[str, Any]:
    """Steps and values of each tag, and what else there is."""
    events = event_accumulator.EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {
        tag: sorted([event.step, event.value] for event in events.Scalars(tag))
        for tag in sorted(tags["scalars"])
    }
    return {
        "scalars": scalars,
        "graph": tags["graph"],
        "tensors": tags["tensors"],
        "hparams": sorted(events.PluginTagToContent("hparams")),
    }


def with_hparams(pl: Any) -> Any:
    """The small model with hyperparameters, which uses the logger's own object too."""

    class Model(model_class(pl)):  # type: ignore[misc]
        def __init__(
            self, lr: float = 0.1, sizes: tuple[int, ...] = (1, 2), **log_arguments: Any
        ) -> None:
            super().__init__(**log_arguments)
            self.save_hyperparameters()
            self.example_input_array = next(iter(loader(1)))

        def on_train_epoch_end(self) -> None:
            self.logger.experiment.add_scalar("own", self.current_epoch, self.global_step)
            self.logger.log_metrics(
                {"pair": {"a": 1.0, "b": 2.0}, "alone": 3}, step=self.global_step
            )

    return Model


@parity
@pytest.mark.parametrize("log_arguments", [{}, {"on_step": True, "on_epoch": True}], ids=str)
@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate_grad_batches": 2}, {"val_check_interval": 2, "max_steps": 7}],
    ids=str,
)
def test_a_fit_and_a_test(
    pl: Any, tmp_path: Path, settings: dict[str, Any], log_arguments: dict[str, Any]
) -> Any:
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="tb", prefix="p")
    one = trainer(
        pl, tmp_path, logger=logger, log_every_n_steps=2, enable_checkpointing=True, **settings
    )
    model = with_hparams(pl)(**log_arguments)
    one.fit(model, loader(5, short=1), loader(3, seed=1))
    one.test(model, loader(2), verbose=False)
    return {
        **shown(logger.log_dir),
        "yaml": (Path(logger.log_dir) / "hparams.yaml").read_text(),
        "checkpoints": files(tmp_path),
    }


@parity
def test_going_on_from_a_checkpoint(pl: Any, tmp_path: Path) -> Any:
    found = []
    for epochs, checkpoint in ((1, None), (3, "last")):
        logger = pl.loggers.TensorBoardLogger(tmp_path)
        saver = pl.callbacks.ModelCheckpoint(tmp_path / "saved", save_last=True)
        one = trainer(
            pl, tmp_path, logger=logger, log_every_n_steps=1, max_epochs=epochs, callbacks=[saver]
        )
        model = with_hparams(pl)()
        model.dropout.p = 0.0  # Lightning does not bring back random states
        one.fit(model, loader(4), loader(2), ckpt_path=checkpoint)
        found.append({"version": logger.version, **shown(logger.log_dir)})
    return found


@parity
@pytest.mark.parametrize("log_graph", [True, False])
def test_the_graph(pl: Any, tmp_path: Path, log_graph: bool) -> Any:
    logger = pl.loggers.TensorBoardLogger(tmp_path, version="v", log_graph=log_graph, sub_dir="sub")
    one = trainer(pl, tmp_path, logger=logger, max_epochs=1)
    model = with_hparams(pl)()
    one.fit(model, loader(2))
    return {
        **shown(str(tmp_path / "lightning_logs" / "v" / "sub")),
        "weights": model.state_dict(),
        "log_dir": one.log_dir,
    }
