from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from raylit.testing import BoringDataModule, BoringModel, RandomDataset, TinyModel
from tests.lazy import lightning
from tests.quiet import trainer


def test_data_is_the_same_everywhere() -> None:
    assert torch.equal(RandomDataset(4, 6)[3], RandomDataset(4, 6).data[3])
    assert not torch.equal(RandomDataset(4, 6).data, RandomDataset(4, 6, seed=1).data)
    assert len(RandomDataset(4, 6)) == 6
    state = torch.get_rng_state()
    RandomDataset(4, 6)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("ours", [BoringModel, BoringDataModule, RandomDataset])
def test_what_lightning_s_have_ours_have(ours: Any) -> None:
    theirs = getattr(lightning.pytorch.demos.boring_classes, ours.__name__)
    names = [name for name in vars(theirs) if not name.startswith("_") and name != "setup"]
    assert names or ours is RandomDataset
    assert [name for name in names if not hasattr(ours, name)] == []
    known = inspect.signature(ours).parameters
    assert (
        list(inspect.signature(theirs).parameters)
        == list(known)[: len(inspect.signature(theirs).parameters)]
    )


def test_all_stages(tmp_path: Path) -> None:
    for model, data in (
        (BoringModel(), None),
        (BoringModel(), BoringDataModule()),
        (TinyModel(), None),
    ):
        done = trainer(tmp_path)
        before = model.layer.weight.clone()
        done.fit(model, datamodule=data)
        assert not torch.equal(before, model.layer.weight)
        assert done.global_step == (4 if isinstance(model, TinyModel) else 64)
        done.validate(model, datamodule=data, verbose=False)
        done.test(model, datamodule=data, verbose=False)
        assert len(done.predict(model, datamodule=data)) == done.global_step


def test_what_the_tiny_model_logs(tmp_path: Path) -> None:
    done = trainer(tmp_path, max_epochs=2)
    result = done.fit(TinyModel())
    assert {"train_loss", "val_loss"} <= result.metrics.keys()
    assert set(done.test(TinyModel(), verbose=False)[0]) == {"test_loss"}
