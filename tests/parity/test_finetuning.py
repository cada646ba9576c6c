"""BaseFinetuning and BackboneFinetuning.

What is frozen when, the groups of the optimizer, and going on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.lazy import lightning
from tests.parity.harness import (
    errors,
    loader,
    model_class,
    packages,
    parity,
    plain,
    quiet,
    seen,
    seen_after,
    trainer,
)


def with_backbone(pl: Any, *, norm: bool = True) -> Any:
    class WithBackbone(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            del self.dropout
            self.backbone = nn.Sequential(
                nn.Linear(4, 4),
                nn.BatchNorm1d(4) if norm else nn.Identity(),
                nn.Sequential(nn.ReLU(), nn.Linear(4, 4)),
            )
            self.groups: list[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(self.backbone(x))
            return out

        def on_train_epoch_end(self) -> None:
            groups = self.optimizers().param_groups
            self.groups.append(
                [
                    {**group, "params": [tuple(one.shape) for one in group["params"]]}
                    for group in groups
                ]
            )
            self.groups.append([name for name, one in self.named_parameters() if one.requires_grad])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.7)]

    return WithBackbone


def in_steps(pl: Any) -> Any:
    """Unfreezes the two halves of the backbone one after the other.

    Its batch norm stays as it is until the end.
    """

    class InSteps(pl.callbacks.BaseFinetuning):  # type: ignore[misc]
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(module.backbone, train_bn=False)

        def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(module.backbone[2], optimizer)
            if epoch == 2:
                self.unfreeze_and_add_param_group(
                    [module.backbone[0], {"norm": module.backbone[1]}.values()],
                    optimizer,
                    lr=0.01,
                    train_bn=False,
                )

    return InSteps


CALLBACKS: dict[str, Any] = {
    "default": lambda pl: pl.callbacks.BackboneFinetuning(1),
    "given": lambda pl: pl.callbacks.BackboneFinetuning(
        2, lambda epoch: 1.0 + 0.1 * epoch, backbone_initial_lr=0.02, should_align=False
    ),
    "ratio": lambda pl: pl.callbacks.BackboneFinetuning(
        1, lambda epoch: 3.0, backbone_initial_ratio_lr=0.4, train_bn=False
    ),
    "at-once": lambda pl: pl.callbacks.BackboneFinetuning(0),
    "steps": lambda pl: in_steps(pl)(),
}


@parity
@pytest.mark.parametrize("name", CALLBACKS)
def test_weights_and_groups(pl: Any, tmp_path: Path, name: str) -> Any:
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "kept")
    callback, model = CALLBACKS[name](pl), with_backbone(pl)()
    one = trainer(pl, tmp_path, callbacks=[callback, saver], max_epochs=4)
    one.fit(model, loader(3), loader(1))
    saved = torch.load(saver.best_model_path, weights_only=True)
    state = saved["callbacks"][callback.state_key]
    tracks = [one.track_running_stats for one in model.modules() if isinstance(one, nn.BatchNorm1d)]
    shared = {
        key: state.get(key) for key in ("internal_optimizer_metadata", "previous_backbone_lr")
    }
    return {
        **seen(one),
        "groups": model.groups,
        "tracks": tracks,
        "optimizer": saved["optimizer_states"],
        "state": shared,
    }


@parity
@pytest.mark.parametrize("epochs", [1, 2])
def test_going_on_before_it_unfreezes(pl: Any, tmp_path: Path, epochs: int) -> Any:
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "kept")
    trainer(pl, tmp_path, callbacks=[CALLBACKS["given"](pl), saver], max_epochs=epochs).fit(
        with_backbone(pl)(), loader(3)
    )
    model = with_backbone(pl)()
    one = trainer(pl, tmp_path, callbacks=[CALLBACKS["given"](pl)], max_epochs=4)
    one.fit(model, loader(3), ckpt_path=saver.best_model_path)
    return {**seen_after(one), "groups": model.groups}


@parity
def test_functions(pl: Any, tmp_path: Path) -> Any:
    """The helpers, on modules nested in modules, lists and dicts."""
    tools, found = pl.callbacks.BaseFinetuning, []

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child, self.own = nn.Linear(2, 2), nn.Parameter(torch.zeros(1))

    tree = nn.ModuleDict(
        {
            "a": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
            "b": Own(),
            "c": nn.ModuleList([nn.ReLU(), nn.LSTM(2, 2)]),
        }
    )
    for nested in (tree, [tree["a"], [tree["b"]]], tree["c"], nn.Linear(2, 2), tree["a"][1]):
        found.append([type(one).__name__ for one in tools.flatten_modules(nested)])
    for train_bn in (True, False):
        tools.freeze(tree, train_bn=train_bn)
        found.append([(name, one.requires_grad) for name, one in tree.named_parameters()])
        found.append(
            [one.track_running_stats for one in tree.modules() if isinstance(one, nn.BatchNorm1d)]
        )
        found.append(
            [
                len(list(tools.filter_params(tree, train_bn=bn, requires_grad=grad)))
                for bn in (True, False)
                for grad in (True, False)
            ]
        )
    tools.make_trainable(tree["a"])
    tools.freeze_module(tree["b"])
    found.append([(name, one.requires_grad) for name, one in tree.named_parameters()])
    return found


@pytest.mark.parametrize("writer", packages(), ids=lambda pl: pl.__name__)
def test_a_checkpoint_of_either_unfreezes_in_raylit(tmp_path: Path, writer: Any) -> None:
    """A fit that goes on after the backbone was unfrozen ends as one that never stopped."""
    raylit = packages()[1]

    def fit(pl: Any, epochs: int, ckpt_path: Any = None, *more: Any) -> Any:
        torch.manual_seed(0)
        model = with_backbone(pl)()
        trainer(pl, tmp_path, callbacks=[CALLBACKS["default"](pl), *more], max_epochs=epochs).fit(
            model, loader(3), ckpt_path=ckpt_path
        )
        return plain(
            [
                model.state_dict(),
                {name: one.requires_grad for name, one in model.named_parameters()},
            ],
            tmp_path,
        )

    with quiet():
        saver = writer.callbacks.ModelCheckpoint(tmp_path)
        fit(writer, 2, None, saver)
        assert fit(raylit, 4, saver.best_model_path) == fit(lightning.pytorch, 4)


@errors
@pytest.mark.parametrize("backbone", [None, "resnet"])
def test_no_backbone(pl: Any, tmp_path: Path, backbone: Any) -> None:
    model = model_class(pl)()
    if backbone is not None:
        model.backbone = backbone
    trainer(pl, tmp_path, callbacks=[pl.callbacks.BackboneFinetuning()]).fit(model, loader(2))
