"""What profilers see of a run, and what they report."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.profiler import record_function

import raylit
from tests.parity.harness import (
    MODULE_HOOKS,
    errors,
    loader,
    model_class,
    parity,
    seen,
    traced,
    trainer,
)

NOT_HOOKS = ("forward", "transfer_batch_to_device", "clip_gradients", "on_load_checkpoint")


def actions(profiler: Any) -> dict[str, int]:
    """How often each action ran, but for what Lightning's strategies do between two hooks."""
    return {
        name: len(times)
        for name, times in sorted(profiler.recorded_durations.items())
        if not re.match(
            r"\[Strategy\].*\.on_|\[Callback\](ModelCheckpoint|RecoveryCheckpoint|Watch)", name
        )
    }


def whole_run(pl: Any, root: Path, profiler: Any, **settings: Any) -> Any:
    """A fit, with validation and checkpoints, of a model that overrides every hook.

    Then test and predict. Lightning calls all hooks.
    """
    module = traced(
        model_class(pl),
        [hook for hook in MODULE_HOOKS if not hook.endswith("_dataloader")],
        "module",
        [],
    )()
    data = traced(
        pl.LightningDataModule, ["setup", "teardown", "prepare_data", "state_dict"], "data", []
    )()
    data.train_dataloader = lambda: loader(5)
    data.val_dataloader = lambda: loader(2, seed=1)
    data.test_dataloader = data.predict_dataloader = lambda: loader(3, seed=2)
    one = trainer(pl, root, profiler=profiler, enable_checkpointing=True, **settings)
    one.fit(module, datamodule=data)
    one.test(module, datamodule=data, verbose=False)
    one.predict(module, datamodule=data)
    return one


@parity
@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}, {"val_check_interval": 2}],
    ids=str,
)
def test_actions_and_how_often(pl: Any, tmp_path: Path, settings: dict[str, Any]) -> Any:
    profiler = pl.profilers.SimpleProfiler()
    one = whole_run(pl, tmp_path, profiler, **settings)
    assert one.profiler is profiler
    found = actions(profiler)
    # asked for through `trainer.fit(train_dataloaders)` or hooks, and called in other places of the
    # two
    return {
        name: number
        for name, number in found.items()
        if not name.endswith(
            (
                "_dataloader",
                ".prepare_data",
                ".configure_model",
                ".lr_scheduler_step",
                ".configure_gradient_clipping",
            )
        )
    }


@parity
def test_manual_optimization(pl: Any, tmp_path: Path) -> Any:
    class Manual(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            for _ in range(2):
                with self.trainer.profiler.profile("mine"):
                    loss = self.loss(batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

    profiler = pl.profilers.SimpleProfiler()
    one = trainer(pl, tmp_path, profiler=profiler)
    one.fit(Manual(), loader(3))
    names = (
        "mine",
        "optimizer_step",
        "run_training_batch",
        "[Strategy]SingleDeviceStrategy.training_step",
    )
    return [
        {name: number for name, number in actions(profiler).items() if name in names},
        seen(one),
    ]


@parity
@pytest.mark.parametrize("profiler", [None, "simple", "advanced", "pytorch"])
def test_a_profiler_changes_nothing(pl: Any, tmp_path: Path, profiler: str | None) -> Any:
    one = trainer(
        pl,
        tmp_path,
        profiler=profiler,
        logger=True,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
        precision="bf16-mixed",
        max_epochs=3,
    )
    one.fit(
        model_class(pl)(on_step=True, on_epoch=True),
        loader(5, short=1, shuffle=True),
        loader(3, seed=1),
    )
    found = seen(one)
    return {**found, "profiler": type(one.profiler).__name__}


@parity
@pytest.mark.parametrize("extended", [True, False])
def test_report_of_the_simple_profiler(
    pl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extended: bool
) -> Any:
    now = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)) ** 2 / 7)
    profiler = pl.profilers.SimpleProfiler(extended=extended)
    found = [profiler.summary()] if extended else []
    for name in ("a", "a longer name", "a", "b"):
        with profiler.profile(name):
            pass
    found.append(profiler.summary())
    profiler.setup("fit", 1, str(tmp_path))
    return [
        *found,
        profiler.summary(),
        profiler._prepare_filename(),
        profiler._prepare_filename("a/b: c", ".x"),
        profiler.local_rank,
    ]


@parity
@pytest.mark.parametrize("kind", ["SimpleProfiler", "AdvancedProfiler", "PyTorchProfiler"])
@pytest.mark.parametrize("where", ["dirpath", "log_dir", "nowhere"])
def test_files(pl: Any, tmp_path: Path, kind: str, where: str) -> Any:
    arguments = {"dirpath": tmp_path / "there"} if where == "dirpath" else {}
    profiler = getattr(pl.profilers, kind)(
        filename=None if where == "nowhere" else "report", **arguments
    )
    one = trainer(
        pl, tmp_path, profiler=profiler, logger=where == "log_dir", num_sanity_val_steps=0
    )
    module = model_class(pl)()
    one.fit(module, loader(6), loader(6))
    one.test(module, loader(6), verbose=False)
    names = Counter(
        re.sub(r"\d{10,}", "TIME", str(path.relative_to(tmp_path)))
        for path in tmp_path.rglob("*")
        if path.is_file() and "csv" not in path.name
    )
    titles = {path.name: path.read_text().splitlines()[0] for path in tmp_path.rglob("*.txt")}
    return (
        [names, titles, str(profiler.dirpath)]
        if where != "nowhere"
        else [names - Counter(names), str(profiler.dirpath)]
    )


def recorded(pl: Any, root: Path, active: int, **settings: Any) -> list[tuple[str, Counter[str]]]:
    """The traces of a fit and a test.

    Their names, the labels in them and how often they are there.
    """
    profiler = pl.profilers.PyTorchProfiler(
        root / "traces", schedule=torch.profiler.schedule(wait=1, warmup=1, active=active)
    )
    one = trainer(pl, root, profiler=profiler, max_epochs=1, num_sanity_val_steps=0, **settings)
    module = model_class(pl)()
    one.fit(module, loader(6), loader(4))
    one.test(module, loader(6), verbose=False)
    return [
        (
            path.name.split(".1")[0],
            Counter(
                event["name"]
                for event in json.loads(path.read_text())["traceEvents"]
                if event.get("cat") == "user_annotation"
            ),
        )
        for path in sorted((root / "traces").glob("*.json"))
    ]


def steps_of(labels: Counter[str]) -> dict[str, int]:
    return {
        name: number
        for name, number in labels.items()
        if name.endswith("_step") and "Strategy" in name
    }


# under Lightning, validation that is recorded up to a recorded training step corrupts memory, so
# `active=3` with it is below, for raylit alone
@parity
@pytest.mark.parametrize(
    ("active", "settings"),
    [
        (1, {}),
        (3, {}),
        (1, {"val_check_interval": 3}),
        (1, {"limit_val_batches": 0}),
        (3, {"limit_val_batches": 0}),
    ],
    ids=str,
)
def test_steps_that_the_pytorch_profiler_records(
    pl: Any, tmp_path: Path, settings: dict[str, Any], active: int
) -> Any:
    found = recorded(pl, tmp_path, active, **settings)
    return [
        (name, steps_of(labels), sum("[pl][module]" in label for label in labels))
        for name, labels in found
    ]


@pytest.mark.parametrize("active", [1, 2, 3])
@pytest.mark.parametrize(
    "settings", [{}, {"val_check_interval": 3}, {"limit_val_batches": 0}], ids=str
)
def test_a_recorded_step_is_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], active: int
) -> None:
    recordings, labels = (
        [0],
        [],
        # A label that ends in another recording than the one it began in writes to memory that was
        # freed
    )
    enable, enter, leave = (
        torch.autograd.profiler._enable_profiler,
        record_function.__enter__,
        record_function.__exit__,
    )

    def enabled(*args: Any, **kwargs: Any) -> None:
        recordings[0] += 1
        enable(*args, **kwargs)

    def entered(label: record_function) -> Any:
        label.began = recordings[0] if torch._C._autograd._profiler_enabled() else None  # type: ignore[attr-defined]
        return enter(label)

    def left(label: record_function, *args: Any) -> None:
        if label.began and torch._C._autograd._profiler_enabled():  # type: ignore[attr-defined]
            labels.append((label.name, recordings[0] - label.began))  # type: ignore[attr-defined]
        leave(label, *args)

    monkeypatch.setattr(torch.autograd.profiler, "_enable_profiler", enabled)
    monkeypatch.setattr(record_function, "__enter__", entered)
    monkeypatch.setattr(record_function, "__exit__", left)
    found = recorded(raylit, tmp_path, active, **settings)
    assert recordings[0] >= 2 and labels and {later for _, later in labels} == {0}
    step = (
        "[Strategy]SingleDeviceStrategy.training_step",
        "[Strategy]SingleDeviceStrategy.backward",
        "run_training_batch",
    )
    counts = [
        (*(one[f"[pl][profile]{part}"] for part in step), one["Optimizer.step#SGD.step"])
        for _, one in found
    ]
    assert all(len(set(count)) == 1 for count in counts) and any(count[0] for count in counts)


@errors
@pytest.mark.parametrize(
    "arguments",
    [
        {"sort_by_key": "no"},
        {"schedule": 3},
        {"schedule": lambda step: 3},
        {"table_kwargs": {"no": 1}},
        {"table_kwargs": {"row_limit": 1}},
    ],
)
def test_arguments_of_the_pytorch_profiler(
    pl: Any, tmp_path: Path, arguments: dict[str, Any]
) -> Any:
    pl.profilers.PyTorchProfiler(**arguments)


@errors
def test_unknown_profiler(pl: Any, tmp_path: Path) -> Any:
    trainer(pl, tmp_path, profiler="no")


@errors
@pytest.mark.parametrize("kind", ["SimpleProfiler", "AdvancedProfiler"])
def test_stopping_what_was_not_started(pl: Any, tmp_path: Path, kind: str) -> Any:
    getattr(pl.profilers, kind)().stop("a")


@errors
def test_starting_twice(pl: Any, tmp_path: Path) -> Any:
    profiler = pl.profilers.SimpleProfiler()
    profiler.start("a")
    profiler.start("a")
