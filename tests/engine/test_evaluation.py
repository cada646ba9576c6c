"""The loops that change no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from raylit.testing import BoringModel, RandomDataset, TinyModel
from tests.quiet import trainer


class Numbers(BoringModel):
    """Its data are numbers, so that what it logs can be worked out by hand."""

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # type: ignore[override]
        for reduce_fx in ("mean", "sum", "min", "max"):
            self.log(reduce_fx, batch[0].mean(), reduce_fx=reduce_fx)
        self.log("all", batch[0].mean(), add_dataloader_idx=False) if not dataloader_idx else None

    def on_test_epoch_end(self) -> None:
        self.log("end", 9.0)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:  # type: ignore[override]
        return {"x": batch[0] * 2, "loader": dataloader_idx}


def numbers(*values: float, batch_size: int = 3) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.tensor([float(value) for value in values])), batch_size)


def test_a_smaller_last_batch_weighs_less(tmp_path: Path) -> None:
    (found,) = trainer(tmp_path).test(Numbers(), numbers(1, 2, 3, 10), verbose=False)
    assert found == {"mean": 4.0, "sum": 12.0, "min": 2.0, "max": 10.0, "all": 4.0, "end": 9.0}


def test_several_loaders(tmp_path: Path) -> None:
    one, two = trainer(tmp_path).test(Numbers(), [numbers(1, 2, 3, 10), numbers(5)], verbose=False)
    assert (one["mean/dataloader_idx_0"], two["mean/dataloader_idx_1"]) == (4.0, 5.0)
    assert (one["end"], two["end"], one["all"]) == (9.0, 9.0, 4.0)


def test_predictions_come_in_order_and_on_the_cpu(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    found = one.predict(Numbers(), numbers(1, 2, 3, 4))
    assert [output["x"].tolist() for output in found] == [[2, 4, 6], [8]]
    several = one.predict(Numbers(), [numbers(1), numbers(2, 3)])
    assert [
        [(output["loader"], output["x"].tolist()) for output in outputs] for outputs in several
    ] == [[(0, [2])], [(1, [4, 6])]]
    assert one.predict(Numbers(), numbers(1), return_predictions=False) is None


class Modes(BoringModel):
    """Notes what holds within its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Dropout().eval()
        self.seen: dict[str, Any] = {}

    def _see(self, name: str) -> None:
        self.seen[name] = (
            self.layer.training,
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self._see("train")
        assert not self.frozen.training
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._see("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._see("test")

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        self._see("predict")


@pytest.mark.parametrize("inference", [True, False])
def test_what_holds_within_the_steps(tmp_path: Path, inference: bool) -> None:
    module, one = (
        Modes(),
        trainer(tmp_path, inference_mode=inference, limit_train_batches=2, limit_val_batches=1),
    )
    one.fit(module)
    one.test(module, verbose=False)
    one.predict(module)
    evaluated = (False, False, inference)
    assert module.seen == {
        "train": (True, True, False),
        "val": (False, False, False),
        "test": evaluated,
        "predict": evaluated,
    }
    assert module.training and not module.frozen.training
    assert torch.is_grad_enabled()


def test_the_sanity_check_leaves_no_trace(tmp_path: Path) -> None:
    """Neither values nor random numbers: the fit is the same as without it."""

    class Draws(TinyModel):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            torch.rand(3)
            super().validation_step(batch, batch_idx)

        def on_train_start(self) -> None:
            assert self.trainer.callback_metrics == {}

    weights: list[Tensor] = []
    for number in (0, 2, -1):
        torch.manual_seed(1)
        module = Draws()
        one = trainer(tmp_path, num_sanity_val_steps=number)
        result = one.fit(
            module, DataLoader(RandomDataset(32, 16), 4, shuffle=True), module.val_dataloader()
        )
        assert len(result.history) == 1
        weights.append(module.layer.weight)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_an_evaluation_changes_no_weights(tmp_path: Path) -> None:
    module = TinyModel()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    one = trainer(tmp_path)
    for fn in ("validate", "test"):
        getattr(one, fn)(module, verbose=False)
    one.predict(module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_an_exception_within_gives_the_global_state_back(tmp_path: Path) -> None:
    class Fails(TinyModel):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path).test(Fails(), verbose=False)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
