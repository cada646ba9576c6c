from __future__ import annotations

import inspect
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import raylit as pl
from raylit.callbacks import Callback, ModelPruning
from raylit.callbacks.weights.pruning import without_masks
from raylit.errors import ConfigError
from raylit.testing import TinyModel
from tests.lazy import lightning
from tests.quiet import UNLOGGED
from tests.ranks import run_on_two_ranks


class Model(TinyModel):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Identity()
        self.hidden = nn.Linear(32, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(self.hidden(x))
        return out

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


def fit(
    folder: Path | str,
    *callbacks: Any,
    ckpt_path: Any = None,
    seed: int = 0,
    model: Any = None,
    **arguments: Any,
) -> Any:
    torch.manual_seed(seed)
    model = model or Model()
    settings = {
        "max_epochs": 4,
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "gradient_clip_val": 0.5,
        **arguments,
    }
    pl.Trainer(**UNLOGGED, callbacks=list(callbacks), **settings).fit(model, ckpt_path=ckpt_path)
    return model


def tensors(model: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


def num_zeros(*weights: Tensor) -> int:
    return sum(int((weight == 0).sum()) for weight in weights)


def test_arguments() -> None:
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (ModelPruning, lightning.pytorch.callbacks.ModelPruning)
    )
    assert [(p.name, p.default) for p in ours.values()] == [
        (p.name, p.default) for p in theirs.values()
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pruning_fn": "l1_unstructurd"}, "Did you mean 'l1_unstructured'"),
        ({"pruning_fn": 1}, "pruning_fn=1 is no method"),
        ({"pruning_fn": "random_structured", "use_global_unstructured": False}, "pruning_dim"),
        (
            {"pruning_fn": "ln_structured", "pruning_dim": 0, "use_global_unstructured": False},
            "pruning_norm",
        ),
        ({"pruning_fn": "random_structured", "pruning_dim": 0}, "use_global_unstructured=False"),
        ({"parameter_names": ["wieght"]}, "Did you mean 'weight'"),
        ({"amount": None}, "amount=None"),
        ({"verbose": 4}, "verbose=4"),
    ],
)
def test_arguments_that_are_wrong(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ModelPruning(**{"pruning_fn": "l1_unstructured", **arguments})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([(nn.Linear(2, 2), "weight")], "no parameter of Model"),
        ([("head", "weight")], "no parameter of Model"),
        ([("layer", "gain")], "no parameter of Model"),
        ("layer", "no list of modules"),
    ],
)
def test_parameters_that_are_not_the_models(tmp_path: Path, given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fit(tmp_path, ModelPruning("l1_unstructured", given))


def test_a_part_of_what_is_left_is_pruned_each_time(tmp_path: Path) -> None:
    counts: list[int] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            counts.append(
                num_zeros(pl_module.hidden.weight, pl_module.layer.weight, pl_module.layer.bias)
            )

    model = fit(tmp_path, ModelPruning("l1_unstructured", amount=0.5), Watch(), max_epochs=3)
    assert counts[::4] == [0, 545, 545 + 272]  # of 1090
    assert [name for name, _ in model.named_parameters()] == [
        "layer.weight",
        "layer.bias",
        "hidden.weight",
    ]


def test_the_weights_left_begin_again_each_time(tmp_path: Path) -> None:
    start = torch.manual_seed(0) and Model().hidden.weight
    model = fit(tmp_path, ModelPruning("l1_unstructured", amount=0.1), max_epochs=3)
    left = model.hidden.weight != 0
    assert 0 < left.sum() < left.numel()
    assert torch.equal(model.hidden.weight[left], start[left])


@pytest.mark.parametrize("batches", [3, 4, 6, 8, 11, 12])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"make_pruning_permanent": False},
        {"use_lottery_ticket_hypothesis": False},
        {"use_global_unstructured": False, "parameter_names": ["weight"]},
        {
            "pruning_fn": "ln_structured",
            "use_global_unstructured": False,
            "pruning_dim": 0,
            "pruning_norm": 2,
            "parameters_to_prune": [("hidden", "weight")],
        },
        {"prune_on_train_epoch_end": False, "make_pruning_permanent": False},
    ],
    ids=["lottery", "masks", "trained", "by-layer", "structured", "validation"],
)
def test_a_fit_that_goes_on_ends_as_one_that_never_stopped(
    tmp_path: Path, batches: int, arguments: dict[str, Any]
) -> None:
    """Also where weights begin again, from those the first fit began with."""

    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.progress.total_batches == batches:
                trainer.save_checkpoint(tmp_path / "one.ckpt")

        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.progress.total_batches == batches:
                trainer.save_checkpoint(tmp_path / "one.ckpt")

    settings = {"pruning_fn": "l1_unstructured", "amount": 0.3, **arguments}
    whole = fit(tmp_path, ModelPruning(**settings), Saves())
    assert (
        "hidden.weight" in torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]
        or "make_pruning_permanent" in arguments
    )
    again = fit(tmp_path, ModelPruning(**settings), ckpt_path=tmp_path / "one.ckpt", seed=1)
    assert tensors(again) == tensors(whole)


def test_a_checkpoint_with_masks_is_tested(tmp_path: Path) -> None:
    class Saves(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "one.ckpt")

    model = fit(tmp_path, ModelPruning("l1_unstructured", make_pruning_permanent=False), Saves())
    fresh = Model()
    trainer = pl.Trainer(
        **UNLOGGED,
        callbacks=[ModelPruning("l1_unstructured")],
        default_root_dir=tmp_path,
        max_epochs=1,
    )
    trainer.test(fresh, ckpt_path=tmp_path / "one.ckpt", verbose=False)
    assert torch.equal(fresh.hidden.weight, model.hidden.weight_mask * model.hidden.weight_orig)
    assert not fresh._load_state_dict_pre_hooks


def test_masks_of_a_users_own_are_left_alone() -> None:
    state = {
        "attention_mask": torch.ones(2),
        "weight_mask": torch.tensor([1.0, 0.0]),
        "weight_orig": torch.tensor([3.0, 4.0]),
    }
    assert {name: value.tolist() for name, value in without_masks(state).items()} == {
        "attention_mask": [1, 1],
        "weight": [3, 0],
    }


def test_given_parameters_are_found_again_by_name(tmp_path: Path) -> None:
    """As when the callback has come back from a worker, with a module that is not the driver's."""
    model = Model()
    callback = ModelPruning("l1_unstructured", [(model.hidden, "weight")])
    fit(tmp_path, callback, model=model, max_epochs=1)
    home = pickle.loads(pickle.dumps(callback))
    other = fit(tmp_path, home, max_epochs=1)
    assert num_zeros(other.hidden.weight) == 32 * 32 // 2
    assert num_zeros(other.layer.weight) == 0


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_it_says_how_much_is_pruned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, verbose: int
) -> None:
    log = logging.getLogger("raylit")
    log.addHandler(caplog.handler)
    try:
        fit(
            tmp_path,
            ModelPruning("l1_unstructured", [("hidden", "weight")], amount=256, verbose=verbose),
            max_epochs=2,
        )
    finally:
        log.removeHandler(caplog.handler)
    said = [record.message for record in caplog.records if "Pruned" in record.message]
    assert len(said) == 2 * verbose
    if verbose:
        assert (
            said[-verbose]
            == "Applied `L1Unstructured`. Pruned: 256/1024 (25.00%) -> 512/1024 (50.00%)"
        )
    if verbose == 2:
        assert "`hidden.weight` with amount=256" in said[-1]


def main(folder: str) -> Any:
    class Differs(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            torch.manual_seed(trainer.global_rank)

    random = fit(folder, ModelPruning("random_unstructured", resample_parameters=True), Differs())
    largest = fit(folder, ModelPruning("l1_unstructured", use_lottery_ticket_hypothesis=False))
    return random.state_dict(), largest.state_dict()


def test_two_ranks_prune_the_same_weights(tmp_path: Path) -> None:
    """Also where they draw different random numbers."""
    for zero, one in zip(*run_on_two_ranks(main, tmp_path), strict=True):
        assert all(torch.equal(zero[name], one[name]) for name in zero)
        assert num_zeros(zero["hidden.weight"]) > 900
