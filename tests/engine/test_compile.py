"""Compiled against eager: the same numbers, logs and names; and which graphs there are."""

from __future__ import annotations

import copy
import csv
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.errors import ConfigError
from tests.lazy import dynamo_testing, torchmetrics
from tests.ranks import run_on_two_ranks

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 2,
}
AOT: dict[str, Any] = {"backend": "aot_eager"}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


class Net(pl.LightningModule):
    """Logs in every way: values, a metric, inside forward; reads torch._dynamo.utils.counters.

    Uses dropout and batch norm.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.0)
        )
        self.heads = nn.ModuleList([nn.Linear(16, 3)])
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(3)
        self.criterion = nn.CrossEntropyLoss()
        self.logs = True

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x)
        if self.logs:
            self.log("hidden", hidden.mean(), on_step=True, on_epoch=True)
            self.log_dict({"spread": hidden.std(), "constant": 1.5})
        return self.heads[0](hidden)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = self(batch[0])
        loss = self.criterion(output, batch[1]) * (
            1 + 0.01 * self.global_step + 0.1 * self.current_epoch
        )
        self.accuracy(output, batch[1])
        self.log("accuracy", self.accuracy, on_epoch=True)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.criterion(self(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.logs = False
        return self(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader(rows: int = 22) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 8, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 4)  # the last batch is shorter


def fit(folder: Path, model: Any = None, **trainer: Any) -> dict[str, Any]:
    model = model if model is not None else Net()
    folder = folder / str(len(os.listdir(folder)))
    folder.mkdir()
    logger = pl.CSVLogger(folder)
    done = pl.Trainer(
        **{**QUIET, "logger": logger, "log_every_n_steps": 1, "default_root_dir": folder, **trainer}
    )
    done.fit(model, loader(), loader())
    model = done.lightning_module
    test = done.test(model, loader(), verbose=False)
    predictions = done.predict(model, DataLoader(torch.ones(6, 8), 3))
    with open(Path(str(logger.log_dir)) / "metrics.csv", newline="") as file:
        rows = [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoint = torch.load(done.checkpoint_callback.best_model_path, weights_only=True)  # type: ignore[union-attr]
    return {
        "weights": weights,
        "rows": rows,
        "test": test,
        "predictions": predictions,
        "keys": list(checkpoint["state_dict"]),
        "model": model,
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["rows"] and len(one["rows"]) == len(other["rows"])
    for row, like in zip(one["rows"], other["rows"], strict=True):
        assert row == pytest.approx(like, abs=1e-4)
    assert one["test"][0] == pytest.approx(other["test"][0], abs=1e-4)
    assert all(
        prediction.allclose(like, atol=1e-4)
        for prediction, like in zip(one["predictions"], other["predictions"], strict=True)
    )
    assert one["keys"] == other["keys"] and not any("_orig_mod" in key for key in one["keys"])
    assert all(
        one["weights"][name].allclose(other["weights"][name], atol=1e-4)
        for name in other["weights"]
    )


@pytest.mark.parametrize("options", [{"backend": "eager"}, AOT, {**AOT, "dynamic": True}], ids=str)
def test_is_eager_within_float_error(options: dict[str, Any], tmp_path: Path) -> None:
    same(fit(tmp_path, compile=options), fit(tmp_path))


@pytest.mark.long
def test_inductor(tmp_path: Path) -> None:
    assert shutil.which("g++"), "the tests of the default backend need a C++ compiler"
    same(fit(tmp_path, compile=True, max_epochs=1), fit(tmp_path, max_epochs=1))


def test_logging_breaks_no_graph(tmp_path: Path) -> None:
    backend = dynamo_testing.CompileCounterWithBackend("aot_eager")
    same(fit(tmp_path, compile={"backend": backend, "fullgraph": True}), fit(tmp_path))
    assert torch._dynamo.utils.counters["graph_break"] == {}
    # Training and evaluation, each for two batch sizes at most; not one for every step
    assert 2 <= backend.frame_count <= 8


class Parts(Net):
    """Its steps call twelve modules, torch's own among them, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.ModuleDict(
            {
                str(number): nn.Sequential(nn.Linear(16, 16), *[nn.Tanh()] * number)
                for number in range(10)
            }
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        hidden = self.encoder(batch[0])
        for part in self.middle.values():
            hidden = part(hidden)
        loss = self.criterion(self.heads[0](hidden), batch[1])
        self.log("loss", loss)
        return loss


def test_a_step_that_calls_submodules(tmp_path: Path) -> None:
    backend = dynamo_testing.CompileCounterWithBackend("aot_eager")
    weights = []
    for number, arguments in enumerate(({"compile": {"backend": backend, "fullgraph": True}}, {})):
        settings = {
            **QUIET,
            "logger": False,
            "enable_checkpointing": False,
            "limit_val_batches": 0,
            "default_root_dir": tmp_path / str(number),
        }
        model = Parts()
        pl.Trainer(**settings, **arguments).fit(model, loader(20), loader(20))
        weights.append(model.state_dict())
    assert backend.frame_count == 12
    assert all(weights[0][name].allclose(weights[1][name], atol=1e-4) for name in weights[1])


def test_manual_optimization_accumulation_and_precision(tmp_path: Path) -> None:
    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    same(fit(tmp_path, Manual(), compile=AOT), fit(tmp_path, Manual()))
    settings: dict[str, Any] = {
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.5,
        "precision": "64-true",
    }
    same(fit(tmp_path, compile=AOT, **settings), fit(tmp_path, **settings))
    mixed = {"precision": "bf16-mixed"}
    one, other = fit(tmp_path, compile=AOT, **mixed), fit(tmp_path, **mixed)
    assert all(
        one["weights"][name].allclose(other["weights"][name], atol=0.05)
        for name in other["weights"]
    )


def test_the_module_is_given_back_as_it_was(tmp_path: Path) -> None:
    model, seen = Net(), []

    class Look(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 0:
                copied = pickle.loads(pickle.dumps(copy.deepcopy(pl_module)))
                seen.append(
                    [
                        name
                        for name, child in pl_module.named_modules()
                        if child._compiled_call_impl is not None
                    ]
                )
                assert all(child._compiled_call_impl is None for child in copied.modules())
                assert "log" in vars(pl_module._metrics)

    fit(tmp_path, model, compile=AOT, callbacks=Look())
    assert seen == [["", "encoder", "heads.0"]] * 2
    assert all(child._compiled_call_impl is None for child in model.modules())
    assert "_compiled_call_impl" not in vars(model) and "log" not in vars(model)

    class Fails(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise ZeroDivisionError

    model = Fails()
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, model, compile=AOT)
    assert all(child._compiled_call_impl is None for child in model.modules())


def test_off_is_off(tmp_path: Path) -> None:
    class Look(pl.Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            assert all(child._compiled_call_impl is None for child in pl_module.modules())
            assert "log" not in vars(pl_module._metrics)

    fit(tmp_path, callbacks=Look())
    assert torch._dynamo.utils.counters["stats"] == {}


def test_what_the_user_compiled_stays(tmp_path: Path) -> None:
    model = Net()
    model.encoder.compile(**AOT)
    own = model.encoder._compiled_call_impl
    same(fit(tmp_path, model, compile=AOT), fit(tmp_path))
    assert model.encoder._compiled_call_impl is own


def test_the_compiled_model_of_a_user(tmp_path: Path) -> None:
    backend = dynamo_testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Net(), backend=backend)
    same(fit(tmp_path, compiled), fit(tmp_path))
    assert backend.frame_count >= 2
    with pytest.raises(
        ConfigError,
        match=(
            r"cannot be sent to workers. Give them the model itself, and"
            r" Trainer\(compile=True\)"
        ),
    ):
        pl.Trainer(**QUIET, num_workers=2, logger=False, default_root_dir=tmp_path).fit(
            compiled, loader()
        )  # type: ignore[arg-type]


def fit_on_ranks(folder: str) -> list[Any]:
    found = []
    for compile in (False, AOT):
        model = Net()
        settings = {
            **QUIET,
            "logger": False,
            "enable_checkpointing": False,
            "default_root_dir": folder,
            "compile": compile,
        }
        trainer = pl.Trainer(**settings)
        trainer.fit(model, loader(16), loader(16))
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        found.append(({name: value.tolist() for name, value in model.state_dict().items()}, values))
    return found


def test_on_two_ranks(tmp_path: Path) -> None:
    one, other = run_on_two_ranks(fit_on_ranks, tmp_path)
    for (eager, eager_values), (compiled, values) in (one, other):
        assert all(
            torch.tensor(compiled[name]).allclose(torch.tensor(eager[name]), atol=1e-4)
            for name in eager
        )
        assert values == pytest.approx(eager_values, abs=1e-4)
    assert {name: value for name, value in one[1][0].items() if "running" not in name} == {
        name: value for name, value in other[1][0].items() if "running" not in name
    }


def test_wrong_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"torch.compile has no argument 'backnd'. Did you mean 'backend'\?"
    ):
        pl.Trainer(**QUIET, compile={"backnd": "eager"})
    with pytest.raises(ConfigError, match=r"compile='yes': give True, False"):
        pl.Trainer(**QUIET, compile="yes")  # type: ignore[arg-type]
    model = Net()
    with pytest.raises(ConfigError, match=r"torch.compile refuses: .*nosuch"):
        fit(tmp_path, model, compile={"backend": "nosuch"})
    assert all(child._compiled_call_impl is None for child in model.modules())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler on the CPU"):
        fit(tmp_path, compile=True)


def test_nothing_to_compile(tmp_path: Path) -> None:
    class Bare(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (batch[0] @ self.weight - 1).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.warns(
        UserWarning, match="has nothing to compile: Bare has neither a forward nor submodules"
    ):
        pl.Trainer(
            **QUIET,
            logger=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            compile=AOT,
        ).fit(Bare(), loader())
