"""ModelPruning: what is pruned, what weights begin again, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.names import without_addresses
from tests.parity.harness import errors, files, loader, model_class, parity, seen, trainer
from tests.parity.test_checkpoints import contents, counters


def deep(pl: Any) -> Any:
    class Deep(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Sequential(
                nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4, bias=False), nn.LayerNorm(4)
            )
            self.unpruned: list[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(self.hidden(self.dropout(x)))
            return out

        def on_train_epoch_end(self) -> None:
            self.unpruned.append(
                {name: tensor.clone() for name, tensor in self.state_dict().items()}
            )

    return Deep


class Largest(prune.BasePruningMethod):
    """A method of a user: prunes the largest weights."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        mask = default_mask.clone()
        mask.view(-1)[t.view(-1).argmax()] = 0
        return mask


BY_LAYER = {"use_global_unstructured": False}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "l1": {"pruning_fn": "l1_unstructured"},
    "upper-case": {"pruning_fn": "L1_Unstructured", "amount": 3},
    "random": {"pruning_fn": "random_unstructured", "amount": 0.3},
    "class": {"pruning_fn": prune.L1Unstructured, "amount": 0.2},
    "own": {"pruning_fn": Largest},
    "by-layer": {"pruning_fn": "l1_unstructured", **BY_LAYER, "amount": 0.25},
    "random-by-layer": {"pruning_fn": "random_unstructured", **BY_LAYER},
    "structured": {
        "pruning_fn": "ln_structured",
        **BY_LAYER,
        "pruning_dim": 0,
        "pruning_norm": 1,
        "parameter_names": ["weight"],
        "given": True,
    },
    "random-structured": {
        "pruning_fn": "random_structured",
        **BY_LAYER,
        "pruning_dim": 0,
        "parameter_names": ["weight"],
        "given": True,
    },
    "weights": {"pruning_fn": "l1_unstructured", "parameter_names": ["weight"]},
    "given": {"pruning_fn": "l1_unstructured", "given": True},
    "goes-on": {
        "pruning_fn": "l1_unstructured",
        "use_lottery_ticket_hypothesis": False,
        "amount": 0.3,
    },
    "sometimes": {
        "pruning_fn": "l1_unstructured",
        "use_lottery_ticket_hypothesis": lambda epoch: epoch == 1,
        "apply_pruning": lambda epoch: epoch != 0,
        "amount": lambda epoch: 0.2 * epoch,
    },
    "never": {"pruning_fn": "l1_unstructured", "apply_pruning": False},
    "new-weights": {
        "pruning_fn": "l1_unstructured",
        "resample_parameters": True,
        "use_lottery_ticket_hypothesis": True,
    },
    "masks": {"pruning_fn": "l1_unstructured", "make_pruning_permanent": False, "amount": 0.3},
    "validation": {"pruning_fn": "l1_unstructured", "prune_on_train_epoch_end": False},
}


def pruning(pl: Any, model: Any, given: bool = False, **arguments: Any) -> Any:
    """The callback, with two parameters given by the model.

    It begins again once, see tests/parity/test_differences.py.
    """
    arguments.setdefault("use_lottery_ticket_hypothesis", lambda epoch: epoch == 1)
    if given:
        arguments["parameters_to_prune"] = [
            (model.hidden[0], "weight"),
            (model.hidden[2], "weight"),
        ]
    return pl.callbacks.ModelPruning(**arguments)


@parity
@pytest.mark.parametrize("name", ARGUMENTS)
def test_weights_and_files(pl: Any, tmp_path: Path, name: str) -> Any:
    model, saver = deep(pl)(), pl.callbacks.ModelCheckpoint(tmp_path / "kept", save_top_k=-1)
    one = trainer(
        pl, tmp_path, callbacks=[pruning(pl, model, **ARGUMENTS[name]), saver], max_epochs=3
    )
    one.fit(model, loader(4), loader(2))
    found = {name: contents(tmp_path / name) for name in files(tmp_path)}
    for one_file in found.values():
        one_file["loops"] = counters(one_file["loops"])
        for key in [key for key in one_file["callbacks"] if key.startswith("ModelPruning")]:
            one_file["callbacks"].pop(key)  # Lightning keeps no state
        one_file["state_dict"] = dict(sorted(one_file["state_dict"].items()))
    return {
        **seen(one),
        "files": found,
        "unpruned": model.unpruned,
        "hooks": [len(module._forward_pre_hooks) for module in model.modules()],
    }


@parity
def test_which_may_be_filtered(pl: Any, tmp_path: Path) -> Any:
    class Biases(pl.callbacks.ModelPruning):  # type: ignore[misc]
        def filter_parameters_to_prune(self, parameters_to_prune: Any = ()) -> Any:
            return [one for one in parameters_to_prune if one[1] == "bias"]

    one = trainer(
        pl,
        tmp_path,
        callbacks=[
            Biases("l1_unstructured", use_lottery_ticket_hypothesis=lambda epoch: epoch == 1)
        ],
    )
    one.fit(deep(pl)(), loader(4))
    return seen(one)


@parity
def test_a_checkpoint_with_plain_weights_is_tested(pl: Any, tmp_path: Path) -> Any:
    saver, model = pl.callbacks.ModelCheckpoint(tmp_path / "kept"), deep(pl)()
    trainer(pl, tmp_path, callbacks=[pruning(pl, model, pruning_fn="l1_unstructured"), saver]).fit(
        model, loader(4)
    )
    one, fresh = (
        trainer(pl, tmp_path, callbacks=[pl.callbacks.ModelPruning("l1_unstructured")]),
        deep(pl)(),
    )
    one.test(fresh, loader(2), ckpt_path=saver.best_model_path, verbose=False)
    return seen(one)


@errors
@pytest.mark.parametrize(
    "arguments",
    [
        {"pruning_fn": "l2"},
        {"pruning_fn": prune.l1_unstructured},
        {"pruning_fn": prune.L1Unstructured(0.5)},
        {"pruning_fn": prune.L1Unstructured, **BY_LAYER},
        {"pruning_fn": "ln_structured", **BY_LAYER},
        {"pruning_fn": "ln_structured", **BY_LAYER, "pruning_dim": 0},
        {"pruning_fn": "ln_structured", "pruning_dim": 0, "pruning_norm": 1},
        {"pruning_fn": prune.LnStructured},
        {"parameter_names": ["weights"]},
        {"amount": "half"},
        {"verbose": 3},
    ],
    ids=without_addresses,
)
def test_arguments(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> None:
    pl.callbacks.ModelPruning(**{"pruning_fn": "l1_unstructured", **arguments})


@errors
@pytest.mark.parametrize(
    "given",
    [
        lambda model: [(nn.Linear(2, 2), "weight")],
        lambda model: [(model.layer, "weights")],
        lambda model: [model.layer],
    ],
)
def test_parameters_that_are_not_the_models(pl: Any, tmp_path: Path, given: Any) -> None:
    model = deep(pl)()
    trainer(
        pl, tmp_path, callbacks=[pl.callbacks.ModelPruning("l1_unstructured", given(model))]
    ).fit(model, loader(2))
