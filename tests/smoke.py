"""That raylit works in the Python that runs this: every module, a fit, MLflow, Ray workers.

`python tests/smoke.py`, from a folder where it may leave files, where raylit is installed without
the extra `test`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import torch

import raylit as pl
from raylit.errors import MissingPackageError
from raylit.testing import BoringModel


class Net(BoringModel):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch).square().mean()
        self.log("train_loss", loss)
        return loss


def modules() -> int:
    """Import every module of raylit that needs no extra; return how many."""
    number = 0
    for found in pkgutil.walk_packages(pl.__path__, "raylit."):
        if found.name.endswith("__main__") or ".as_lightning" in found.name:
            continue  # these do something when they are imported
        try:
            importlib.import_module(found.name)
            number += 1
        except (MissingPackageError, ModuleNotFoundError) as error:
            if str(getattr(error, "name", "") or "").startswith("raylit"):
                raise
    return number


def main() -> None:
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}: {modules()} modules")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    for workers in (0, 2):
        trainer = pl.Trainer(
            max_epochs=1,
            limit_train_batches=4,
            limit_val_batches=2,
            log_every_n_steps=1,
            num_workers=workers,
            logger=pl.MLFlowLogger("smoke"),
            **quiet,  # type: ignore[arg-type]
        )
        result = trainer.fit(Net())
        assert result.steps == 4 and "train_loss" in result.metrics, result
        again = Net.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
        assert again.layer.weight.isfinite().all()
        print(f"{workers} workers: {result.steps} steps, {result.metrics}")


if __name__ == "__main__":
    main()
