"""FSDP on real ranks.

Checkpoints that go from 2 ranks to 1 to 4, exact resume, precision, what cannot be sharded.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import raylit as pl
from raylit.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from raylit.checkpoint import load, to_one_file
from raylit.checkpoint.sharded import COMPLETE, META
from raylit.errors import CheckpointError, ConfigError
from raylit.parallel import FSDPStrategy, Precision, World
from raylit.testing import BoringModel
from raylit.utilities import grad_norm
from tests.engine.test_resume import Net as Resumed
from tests.engine.test_resume import Saves, fit, loader
from tests.lazy import lightning
from tests.parallel.test_sync import Block, Net, X, Y
from tests.quiet import BARE, QUIET, UNLOGGED
from tests.ranks import run_on_ranks, run_on_two_ranks

FULL = FSDPStrategy(auto_wrap_policy=["torch.nn.Linear"])
FOLDERS = FSDPStrategy(auto_wrap_policy=nn.Linear, state_dict_type="sharded")
BACKGROUND = FSDPStrategy(auto_wrap_policy=nn.Linear, state_dict_type="sharded", async_save=True)


# ---- 2 -> 1 -> 4 ----


def go_on(
    folder: str, strategy: Any, max_epochs: int, ckpt_path: str | None = None
) -> dict[str, Any]:
    """Train until `max_epochs` in 64 bit and leave `<folder>/last.ckpt`."""
    torch.manual_seed(4)
    module = Net()
    size = dist.get_world_size() if dist.is_initialized() else 1
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 16 // size)
    saver = ModelCheckpoint(folder, save_last=True, filename="{epoch}")
    trainer = pl.Trainer(
        strategy=strategy,
        precision="64-true",
        max_epochs=max_epochs,
        callbacks=saver,
        **UNLOGGED,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    assert trainer.global_step == 10 * max_epochs
    return {name: value.clone() for name, value in module.state_dict().items()}


def two(folder: str) -> None:
    go_on(folder + "/file", FULL, 1)
    go_on(folder + "/folder", FOLDERS, 1)
    go_on(folder + "/background", BACKGROUND, 1)
    go_on(folder + "/direct", BACKGROUND, 1)


def four(folder: str) -> dict[str, Any]:
    direct = {
        "ddp": go_on(f"{folder}/ddp", "ddp", 3, f"{folder}/direct/last.ckpt"),
        "direct": go_on(f"{folder}/direct", FOLDERS, 3, f"{folder}/direct/last.ckpt"),
    }
    return direct | {
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
    for one, other in [
        (exported["state_dict"], gathered["state_dict"]),
        (exported["optimizer_states"], gathered["optimizer_states"]),
    ]:
        flat, expected = (torch.utils._pytree.tree_flatten(value) for value in (one, other))
        assert flat[1] == expected[1]
        for found, wanted in zip(flat[0], expected[0], strict=True):
            assert torch.equal(found, wanted) if isinstance(wanted, Tensor) else found == wanted
    reopened = Net.load_from_checkpoint(tmp_path / "folder/last.ckpt")
    assert all(
        torch.equal(value.double(), exported["state_dict"][name].float().double())
        for name, value in reopened.state_dict().items()
    )
    opened_by_lightning(tmp_path / "one.ckpt", exported)


def opened_by_lightning(path: Path, checkpoint: dict[str, Any]) -> None:
    made = Net()

    class OfLightning(lightning.pytorch.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = made.blocks
            self.head = made.head
            self.scale = made.scale
            self.losses = made.losses

        forward = Net.forward
        loss = Net.loss
        training_step = Net.training_step
        configure_optimizers = Net.configure_optimizers

    module = OfLightning()
    trainer = lightning.pytorch.Trainer(
        precision="64-true", max_epochs=3, default_root_dir=path.parent, **BARE
    )
    trainer.fit(
        module,
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 16),
        ckpt_path=path,
    )
    assert trainer.global_step == checkpoint["global_step"] == 30
    assert all(
        torch.equal(value.float(), checkpoint["state_dict"][name].float())
        for name, value in module.state_dict().items()
    )


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
        weights, rows, result = fit(
            root, loader(), kind=Resumed, callbacks=[Saves(root)], strategy=strategy, **arguments
        )
        for batch in sorted(rows):
            again, rest, resumed = fit(
                root,
                loader(),
                kind=Resumed,
                ckpt_path=root / f"{batch}.ckpt",
                strategy=strategy,
                **arguments,
            )
            same = (
                rest == {key: row for key, row in rows.items() if key > batch}
                and resumed.metrics == result.metrics
            )
            if not same or not all(
                torch.equal(again[key], value) for key, value in weights.items()
            ):
                differing.append((number, batch, rest, rows))
    return differing


def test_two_ranks_go_on_bit_for_bit(tmp_path: Path) -> None:
    assert run_on_two_ranks(resumes, tmp_path) == [[], []]


# ---- precision, memory, what hooks see ----


class Mixed(pl.LightningModule):
    """Convolution, batch norm, an embedding, layer norm, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8)
        )
        self.embedding = nn.Embedding(5, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 1)
        self.seen: dict[str, Any] = {}

    def forward(self, image: Tensor, word: Tensor) -> Tensor:
        return self.head(
            self.layer(torch.stack([self.image(image), self.embedding(word)], dim=1)).mean(1)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        out = self(batch[0], batch[1])
        self.seen["types"] = (
            self.head.weight.dtype,
            self.image[1].weight.dtype,
            out.dtype,
            batch[2].dtype,
        )
        self.seen["whole"] = (
            self.head.weight.shape == (1, 8) and type(self.layer.linear1.weight) is not nn.Parameter
        )
        return nn.functional.mse_loss(out, batch[2])

    def on_train_batch_end(self, *args: Any) -> None:
        parts = {
            name: (
                getattr(parameter, "to_local", parameter.detach)().numel(),
                parameter.dtype,
                parameter.grad.dtype,
            )
            for name, parameter in self.named_parameters()
        }
        self.seen["parts"] = parts
        self.seen["held"] = sum(number for number, _, _ in parts.values())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def train_mixed(folder: str, strategy: Any, precision: str) -> Mixed:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data = [
        torch.randn(32, 1, 4, 4, generator=generator),
        torch.randint(5, (32,), generator=generator),
        torch.randn(32, 1, generator=generator),
    ]
    module = Mixed()
    trainer = pl.Trainer(
        strategy=strategy,
        precision=precision,
        max_epochs=3,
        default_root_dir=folder,
        **BARE,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), 4))
    return module


class NoStep(Mixed):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.own = nn.Parameter(torch.ones(1))


def refusal(folder: str, module: Any, **arguments: Any) -> str:
    try:
        pl.Trainer(
            strategy="fsdp",
            max_epochs=1,
            default_root_dir=folder,
            **UNLOGGED,
            **arguments,
        ).fit(
            module,
            torch.utils.data.DataLoader(torch.zeros(4, 1)),  # type: ignore[arg-type]
        )
    except ConfigError as error:
        return str(error)
    return "none"


def in_precisions(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        module = train_mixed(folder, FSDPStrategy(min_num_params=100), precision)
        found[precision] = {"seen": module.seen, "state": module.state_dict(), "ddp": {}}
        if precision != "bf16-true":
            found[precision]["ddp"] = train_mixed(folder, "ddp", precision).state_dict()
    kept = {
        "offload": FSDPStrategy(cpu_offload=True),
        "kept": FSDPStrategy(sharding_strategy="SHARD_GRAD_OP", min_num_params=100),
    }
    for name, strategy in kept.items():
        found[name] = train_mixed(folder, strategy, "32-true").state_dict()
    found["refused"] = [
        refusal(folder, NoStep()),
        refusal(folder, Mixed(), compile=True),
        refusal(folder, Mixed(), callbacks=pl.callbacks.EMAWeightAveraging()),
        refusal(folder, Mixed(), callbacks=pl.callbacks.StochasticWeightAveraging(0.1)),
        refusal(folder, Mixed(), callbacks=pl.callbacks.ModelPruning("l1_unstructured")),
        refusal(folder, Mixed(), callbacks=OnExceptionCheckpoint(folder)),
    ]
    world = World.join("cpu")
    try:
        FSDPStrategy(sharding_strategy="HYBRID_SHARD", device_mesh=(2, 2)).shard(
            Mixed(), world, Precision("32-true", world.device)
        )
    except ConfigError as error:
        found["refused"].append(str(error))
    return found


def test_precisions_and_memory(tmp_path: Path) -> None:
    ranks = run_on_two_ranks(in_precisions, tmp_path)
    number = sum(parameter.numel() for parameter in Mixed().parameters())
    for rank in ranks:
        single, mixed, true = (
            rank[name]["seen"] for name in ("32-true", "bf16-mixed", "bf16-true")
        )
        assert single["types"] == (torch.float32,) * 4
        assert mixed["types"] == (
            torch.bfloat16,
            torch.float32,
            torch.bfloat16,
            torch.float32,
        ), "batch norm and targets keep their format"
        assert true["types"] == (torch.bfloat16,) * 4
        assert single["whole"] and single["held"] < 0.6 * number, (
            "between steps a rank holds a half"
        )
        assert {kinds for _, *kinds in mixed["parts"].values() for kinds in kinds} == {
            torch.float32
        }
        for name, value in ranks[0]["32-true"]["ddp"].items():  # whose running means DDP takes
            torch.testing.assert_close(rank["32-true"]["state"][name], value, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(rank["offload"][name], value, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(rank["kept"][name], value, rtol=1e-4, atol=1e-5)
        for name, value in ranks[0]["bf16-mixed"]["ddp"].items():
            torch.testing.assert_close(
                rank["bf16-mixed"]["state"][name], value, rtol=0.1, atol=0.05
            )
        texts = [
            "parameters of its own",
            "compile",
            "WeightAveraging",
            "StochasticWeightAveraging",
            "ModelPruning",
            "OnExceptionCheckpoint",
            "means 4 ranks",
        ]
        for text, message in zip(rank["refused"], texts, strict=True):
            assert message in text, text
    assert all(
        torch.equal(ranks[0]["32-true"]["state"][name], value)
        for name, value in ranks[1]["32-true"]["state"].items()
    )


# ---- after the fit, and searches before it ----


class Finds(Net):
    """Checks in its hooks that the optimizers hold parts."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.grad_norms = grad_norm(self, 2)

    def on_train_start(self) -> None:
        parameters = [
            parameter
            for group in self.trainer.optimizers[0].param_groups
            for parameter in group["params"]
        ]
        assert all(
            hasattr(parameter, "to_local") == self.trainer.strategy.shards
            for parameter in parameters
        )


class Fails(Net):
    def on_train_batch_end(self, *args: Any) -> None:
        if self.global_step == 3:
            raise ZeroDivisionError


def before_and_after(folder: str) -> dict[str, Any]:
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X.float(), Y.float()), 8)
    found: dict[str, Any] = {}
    for strategy in ("ddp", FULL):
        torch.manual_seed(0)
        module = Finds()
        finder = pl.callbacks.LearningRateFinder(num_training_steps=10, update_attr=False)
        trainer = pl.Trainer(
            strategy=strategy,
            max_epochs=1,
            default_root_dir=folder,
            callbacks=finder,
            **BARE,
        )
        trainer.fit(module, data, data)
        path = f"{folder}/{type(trainer.strategy).__name__}.ckpt"
        trainer.save_checkpoint(path)  # the fit has ended: the module is whole again
        (tested,) = trainer.validate(module, data, verbose=False)
        saved = torch.load(path, weights_only=True)
        found[type(trainer.strategy).__name__] = {
            "losses": finder.optimal_lr.results["loss"],
            "tested": tested,
            "norms": module.grad_norms,
            "saved": [saved["state_dict"], saved["optimizer_states"], saved["global_step"]],
            "kinds": {type(parameter) for parameter in module.parameters()},
        }
    module = Fails()
    try:
        pl.Trainer(strategy="fsdp", max_epochs=1, default_root_dir=folder, **BARE).fit(module, data)
    except ZeroDivisionError:
        found["failed"] = True
    found["again"] = refusal(folder, module)
    return found


def test_what_comes_before_and_after_a_fit_is_as_with_ddp(tmp_path: Path) -> None:
    for found in run_on_two_ranks(before_and_after, tmp_path):
        ddp, fsdp = found["DDPStrategy"], found["FSDPStrategy"]
        assert fsdp["kinds"] == {nn.Parameter}
        assert fsdp["losses"] == pytest.approx(ddp["losses"], rel=1e-4)
        assert fsdp["norms"] == pytest.approx(ddp["norms"], rel=1e-3)
        assert fsdp["tested"] == pytest.approx(ddp["tested"], rel=1e-4)
        flat, expected = (
            torch.utils._pytree.tree_flatten(fsdp["saved"]),
            torch.utils._pytree.tree_flatten(ddp["saved"]),
        )
        assert flat[1] == expected[1]
        for one, other in zip(flat[0], expected[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert found["failed"]
        assert "is sharded already: by a run that an exception ended" in found["again"]


# ---- the model that a logger keeps ----


class Keeps(pl.loggers.CSVLogger):
    """Keeps the model of a fit, as a logger does that can."""

    kept: Any = None

    @property
    def wants_model(self) -> bool:
        return True

    def keep_model(self, module: pl.LightningModule, inputs: tuple[Any, ...], step: int) -> None:
        with torch.no_grad():
            self.kept = (type(module), module(*inputs), step)


class Forward(BoringModel):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


def keep(folder: str) -> Any:
    logger = Keeps(folder)
    module = Forward()
    trainer = pl.Trainer(
        strategy="fsdp",
        max_steps=3,
        logger=logger,
        enable_checkpointing=False,
        **QUIET,
    )
    trainer.fit(module)
    if not trainer.is_global_zero:
        return logger.kept
    kind, output, step = logger.kept
    batch = next(iter(module.val_dataloader()))
    return kind is Forward, step, torch.equal(output, module(batch))


def test_loggers_keep_the_whole_model(tmp_path: Path) -> None:
    assert run_on_two_ranks(keep, tmp_path) == [(True, 3, True), None]


# ---- folders that are not whole, and settings that mean nothing ----


def one_folder(folder: str) -> None:
    go_on(folder, FOLDERS, 1)


def test_a_folder_that_lost_something_or_says_more_is_not_loaded(tmp_path: Path) -> None:
    run_on_two_ranks(one_folder, tmp_path)
    path = tmp_path / "last.ckpt"
    assert load(path)["global_step"] == 10
    part = next(path.glob("__0_*.distcp"))
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    with pytest.raises(
        CheckpointError, match=f"{part.name} has {len(content) - 1} bytes, not {len(content)}"
    ):
        load(path)
    # `last` falls back to the one before it
    trainer = pl.Trainer(max_epochs=1, callbacks=ModelCheckpoint(tmp_path), **UNLOGGED)
    with pytest.warns(UserWarning, match="torn or damaged; it is left aside"):
        trainer.validate(
            Net(),
            torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X.float(), Y.float())),
            ckpt_path="last",
            verbose=False,
        )
    assert trainer.ckpt_path == str(tmp_path / "epoch=0.ckpt")
    part.write_bytes(content)
    # DCP's metadata is a pickle: one that would run something does not
    (path / ".metadata").write_bytes(pickle.dumps(Evil()))
    told = json.loads((path / COMPLETE).read_text())
    told["files"][".metadata"] = (path / ".metadata").stat().st_size
    (path / COMPLETE).write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"names .*system, which does not belong there"):
        load(path)
    (path / COMPLETE).unlink()
    with pytest.raises(CheckpointError, match="its writing was not finished"):
        load(path)
    assert (path / META).exists()


class Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"auto_wrap_policy": "torch.nn.Lineal"},
            "auto_wrap_policy='torch.nn.Lineal'.*import path",
        ),
        ({"auto_wrap_policy": {Block, int}}, "is no class of modules"),
        ({"auto_wrap_policy": Block, "min_num_params": 3}, "Leave one of them out"),
        ({"sharding_strategy": "NO_SHARD"}, "NO_SHARD is strategy='ddp'"),
        ({"device_mesh": (2, 1)}, "HYBRID_SHARD"),
        ({"state_dict_type": "local"}, "Use 'full' or 'sharded'"),
        ({"async_save": True}, "needs state_dict_type='sharded'"),
    ],
)
def test_settings_that_mean_nothing(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FSDPStrategy(**arguments)


def test_a_policy_that_matches_no_module(tmp_path: Path) -> None:
    strategy = FSDPStrategy(auto_wrap_policy={nn.TransformerEncoderLayer})
    trainer = pl.Trainer(strategy=strategy, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(ConfigError, match="TransformerEncoderLayer, of which BoringModel has no"):
        trainer.fit(BoringModel())
