"""FSDP on real ranks: checkpoints that go from 2 ranks to 1 to 4, exact resume, precision, what cannot be sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
import torch.distributed as dist
from torch import Tensor, nn

import raylit as pl
from raylit.callbacks import ModelCheckpoint
from raylit.checkpoint import to_one_file
from raylit.parallel import FSDPStrategy
from tests.checkpoint.test_resume import QUIET, Saves, fit, loader
from tests.checkpoint.test_resume import Net as Resumed
from tests.parallel.test_sync import Net, X, Y
from tests.ranks import run_on_ranks, run_on_two_ranks

FULL = FSDPStrategy(auto_wrap_policy=["torch.nn.Linear"])
FOLDERS = FSDPStrategy(auto_wrap_policy=nn.Linear, state_dict_type="sharded")
BACKGROUND = FSDPStrategy(auto_wrap_policy=nn.Linear, state_dict_type="sharded", async_save=True)


# ---- 2 -> 1 -> 4 ----


def go_on(folder: str, strategy: Any, max_epochs: int, ckpt_path: str | None = None) -> dict[str, Any]:
    """Train until `max_epochs` in 64 bit and leave `<folder>/last.ckpt`."""
    torch.manual_seed(4)
    module = Net()
    size = dist.get_world_size() if dist.is_initialized() else 1
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 16 // size)
    saver = ModelCheckpoint(folder, save_last=True, filename="{epoch}")
    trainer = pl.Trainer(
        accelerator="cpu", strategy=strategy, precision="64-true", max_epochs=max_epochs, callbacks=saver, logger=False, **QUIET
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    assert trainer.global_step == 10 * max_epochs
    return {name: value.clone() for name, value in module.state_dict().items()}


def two(folder: str) -> None:
    go_on(folder + "/file", FULL, 1)
    go_on(folder + "/folder", FOLDERS, 1)
    go_on(folder + "/background", BACKGROUND, 1)


def four(folder: str) -> dict[str, Any]:
    return {
        kind: go_on(f"{folder}/{kind}", strategy, 3, f"{folder}/{kind}/last.ckpt")
        for kind, strategy in {"file": FULL, "folder": FOLDERS, "background": BACKGROUND}.items()
    }


def test_a_checkpoint_of_two_ranks_goes_on_in_one_and_then_in_four(tmp_path: Path) -> None:
    run_on_two_ranks(two, tmp_path)
    for kind, strategy in {"file": FULL, "folder": FOLDERS, "background": BACKGROUND}.items():
        assert (tmp_path / kind / "last.ckpt").is_dir() == (kind != "file")
        go_on(str(tmp_path / kind), strategy, 2, str(tmp_path / kind / "last.ckpt"))
    ranks = run_on_ranks(4, four, tmp_path)
    straight = go_on(str(tmp_path / "straight"), "auto", 3)
    for kind in ranks[0]:
        for rank in ranks:
            for name, value in straight.items():
                torch.testing.assert_close(rank[kind][name], value, rtol=1e-10, atol=1e-12)
    newest = [str(path) for path in (tmp_path / "folder").iterdir()]
    assert not [path for path in newest if path.endswith((".part", ".old"))], newest

    # one file of it opens anywhere, as the file that was gathered does
    to_one_file(tmp_path / "folder/last.ckpt", tmp_path / "one.ckpt")
    exported = torch.load(tmp_path / "one.ckpt", weights_only=True)
    gathered = torch.load(tmp_path / "file/last.ckpt", weights_only=True)
    assert exported.keys() == gathered.keys()
    for one, other in [(exported["state_dict"], gathered["state_dict"]), (exported["optimizer_states"], gathered["optimizer_states"])]:
        flat, expected = (torch.utils._pytree.tree_flatten(value) for value in (one, other))
        assert flat[1] == expected[1]
        for found, wanted in zip(flat[0], expected[0], strict=True):
            assert torch.equal(found, wanted) if isinstance(wanted, Tensor) else found == wanted
    reopened = Net.load_from_checkpoint(tmp_path / "folder/last.ckpt")
    assert all(torch.equal(value.double(), exported["state_dict"][name].float().double()) for name, value in reopened.state_dict().items())
    opened_by_lightning(tmp_path / "one.ckpt", exported)


class OfLightning(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        made = Net()
        self.blocks, self.head, self.scale, self.losses = made.blocks, made.head, made.scale, made.losses

    forward, loss, training_step, configure_optimizers = Net.forward, Net.loss, Net.training_step, Net.configure_optimizers


def opened_by_lightning(path: Path, checkpoint: dict[str, Any]) -> None:
    module = OfLightning()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, **QUIET}
    trainer = lightning.Trainer(accelerator="cpu", precision="64-true", max_epochs=3, default_root_dir=path.parent, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 16), ckpt_path=path)
    assert trainer.global_step == checkpoint["global_step"] == 30
    assert all(torch.equal(value.float(), checkpoint["state_dict"][name].float()) for name, value in module.state_dict().items())


# ---- in the middle of an epoch ----


def resumes(folder: str) -> list[Any]:
    """What differs between whole fits and those that went on after each batch: nothing."""
    differing = []
    for number, (strategy, arguments) in enumerate(
        [
            (FULL, {"accumulate_grad_batches": 3}),
            (BACKGROUND, {"gradient_clip_val": 0.1}),
            (FULL, {"precision": "bf16-mixed", "accumulate_grad_batches": 2}),
        ]
    ):
        root = Path(folder) / f"case {number}"
        weights, rows, result = fit(root, loader(), kind=Resumed, callbacks=[Saves(root)], strategy=strategy, **arguments)
        for batch in sorted(rows):
            again, rest, resumed = fit(root, loader(), kind=Resumed, ckpt_path=root / f"{batch}.ckpt", strategy=strategy, **arguments)
            same = rest == {key: row for key, row in rows.items() if key > batch} and resumed.metrics == result.metrics
            if not same or not all(torch.equal(again[key], value) for key, value in weights.items()):
                differing.append((number, batch, rest, rows))
    return differing


def test_two_ranks_go_on_bit_for_bit(tmp_path: Path) -> None:
    assert run_on_two_ranks(resumes, tmp_path) == [[], []]
