from __future__ import annotations

import dataclasses
import enum
import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import raylit as pl
from raylit.checkpoint import load, save
from raylit.core.hparams import construct
from raylit.core.importable import describe, restore
from raylit.core.objects import put_back
from raylit.errors import CheckpointError
from raylit.testing import BoringModel, RandomDataset
from tests.names import without_addresses


class Kind(enum.Enum):
    SMALL = "s"


@dataclasses.dataclass
class Size:
    width: int
    kind: Kind
    layer: type[nn.Module] = nn.Linear


@pl.allow
def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@dataclasses.dataclass
class Converts:
    """It takes names, and has converted them once it is made."""

    kind: Any

    def __post_init__(self) -> None:
        self.kind = {"s": Kind.SMALL}[self.kind]


@dataclasses.dataclass
class Weights:
    """Two of it cannot be compared."""

    x: torch.Tensor

    def __post_init__(self) -> None:
        self.x = self.x.clone()


class Net(BoringModel):
    def __init__(self, activation: Any = nn.ReLU, function: Any = None, **more: Any) -> None:
        super().__init__()
        self.save_hyperparameters()


VALUES = [
    nn.ReLU,
    torch.optim.Adam,
    nn.functional.gelu,
    torch.relu,
    double,
    Kind.SMALL,
    Size(3, Kind.SMALL),
    functools.partial(nn.Linear, 3, bias=False),
    functools.partial(nn.Sequential, functools.partial(torch.sum, dim=1)),
]


@pytest.mark.parametrize("value", VALUES, ids=without_addresses)
def test_a_checkpoint_restores_it(tmp_path: Path, value: Any, recwarn: Any) -> None:
    trainer = pl.Trainer(
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    trainer.fit(Net(function=value, width=3), torch.utils.data.DataLoader(RandomDataset(32, 2)))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert not [one for one in recwarn if "not stored" in str(one.message)]
    torch.load(tmp_path / "one.ckpt", weights_only=True)
    again = Net.load_from_checkpoint(tmp_path / "one.ckpt")
    assert again.hparams.activation is nn.ReLU and again.hparams.width == 3
    if isinstance(value, functools.partial):
        assert (again.hparams.function.func, again.hparams.function.keywords) == (
            value.func,
            value.keywords,
        )
    else:
        assert again.hparams.function == value
    assert (
        Net.load_from_checkpoint(
            tmp_path / "one.ckpt", function=None, activation=nn.Tanh
        ).hparams.activation
        is nn.Tanh
    )


def local() -> Any:
    def inner() -> None: ...

    return inner


@pytest.mark.parametrize(
    "value",
    [
        local(),
        lambda x: x,
        nn.Linear(2, 2),
        os.system,
        subprocess.Popen,
        object(),
        functools.partial(os.system, "ls"),
        Converts("s"),
        Weights(torch.ones(2)),
    ],
    ids=without_addresses,
)
def test_what_is_not_exact_or_comes_from_elsewhere_is_left_out(value: Any) -> None:
    assert describe(value, Net) is None


def test_a_constructor_that_fails_when_a_checkpoint_is_loaded() -> None:
    described = {"path": f"{__name__}:Converts", "fields": {"kind": {"plain": "gone"}}}
    own = {"hyper_parameters": {"hyper_parameters": {"function": described}}}
    with pytest.raises(CheckpointError, match="'function' in the checkpoint was not restored"):
        construct(Net, {"raylit": own}, None, {})
    checkpoint: dict[str, Any] = {"raylit": {"objects": [[["mine"], described]]}}
    put_back(checkpoint, Net)
    assert "mine" not in checkpoint


@pytest.mark.parametrize(
    "description",
    [
        {"path": "os:system"},
        {"path": "builtins:exec"},
        {"partial": {"path": "os:system"}, "args": [{"plain": "touch HARM"}], "keywords": {}},
        {"path": "tests.core.test_importable:double", "fields": {"x": {"plain": 1}}},
        {"path": "torch.nn:NoSuchThing"},
        {"path": "torch.no_such_module:x"},
    ],
    ids=without_addresses,
)
def test_a_checkpoint_cannot_name_what_it_wants(tmp_path: Path, description: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"a checkpoint of a Net may name|is no dataclass|is not there, or was not imported",
    ):
        restore(description, Net)
    trainer = pl.Trainer(
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    trainer.fit(Net(), torch.utils.data.DataLoader(RandomDataset(32, 2)))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = load(tmp_path / "one.ckpt")
    checkpoint["raylit"]["hyper_parameters"]["hyper_parameters"] = {"function": description}
    del checkpoint["hyper_parameters"]["function"]
    save(checkpoint, tmp_path / "two.ckpt")
    with pytest.raises(CheckpointError, match=r"load_from_checkpoint\(path, function=\.\.\.\)"):
        Net.load_from_checkpoint(tmp_path / "two.ckpt")
