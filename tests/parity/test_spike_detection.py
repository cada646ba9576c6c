"""SpikeDetection: where training ends, and which batches are written down."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.harness import loader, model_class, parity, trainer


def scripted(pl: Any, losses: list[float], *, as_dict: bool = False) -> Any:
    """A model with these losses, and weights that do not change."""

    class Scripted(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.losses = iter(losses)

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            loss = self.layer.weight.sum() * 0 + torch.tensor(next(self.losses))
            return {"loss": loss, "more": 1} if as_dict else loss

    return Scripted()


def outcome(
    pl: Any, root: Path, losses: list[float], detection: Any, batches: int = 8, **arguments: Any
) -> Any:
    """Where training ended, and what was written down."""
    one = trainer(pl, root, callbacks=[detection], max_epochs=len(losses) // batches, **arguments)
    ended = "at the end"
    try:
        one.fit(scripted(pl, losses), loader(batches))
    except RuntimeError as error:
        ended = str(error).split(".")[0]
    written = {
        str(path.relative_to(root)): json.loads(path.read_text()) for path in root.rglob("*.json")
    }
    return {
        "ended": ended,
        "written": written,
        "step": one.global_step,
        "epoch": one.current_epoch,
        "bad": detection.bad_batches,
    }


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"window": 3, "rtol": 0.5},
    {"rtol": None, "atol": 1.5},
    {"rtol": 0.3, "atol": 1.0, "warmup": 4},
    {"mode": "max", "rtol": 0.4},
    {"warmup": 0, "rtol": 0.2},
    {"finite_only": False, "rtol": 0.8},
    {"rtol": None},
]


@parity
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("kind", ["random", "jump", "fall", "nan", "inf", "smooth"])
def test_where_it_ends(pl: Any, tmp_path: Path, arguments: dict[str, Any], kind: str) -> Any:
    draw, found = random.Random(kind), []
    for number in range(3):
        losses = [4 - 0.05 * step + draw.uniform(-0.2, 0.2) for step in range(24)]
        if kind != "smooth":
            value = {
                "random": draw.uniform(0, 12),
                "jump": 20.0,
                "fall": -9.0,
                "nan": math.nan,
                "inf": math.inf,
            }[kind]
            # infinity in the warm-up raises a false alarm in Lightning: see test_differences.py
            first = arguments.get("warmup", 1) if value == math.inf else 0
            losses[draw.choice([step for step in range(24) if step % 8 >= first])] = value
        found.append(
            outcome(pl, tmp_path / str(number), losses, pl.callbacks.SpikeDetection(**arguments))
        )
    return found


@parity
@pytest.mark.parametrize("path", ["skip.json", "folder", None])
def test_where_it_writes(pl: Any, tmp_path: Path, path: str | None) -> Any:
    losses = [1.0, 1.1, 1.0, 9.0, 1.0, 1.0]
    return outcome(
        pl,
        tmp_path,
        losses,
        pl.callbacks.SpikeDetection(exclude_batches_path=path and tmp_path / "here" / path),
        batches=6,
    )


@parity
def test_accumulation_and_dicts(pl: Any, tmp_path: Path) -> Any:
    detection = pl.callbacks.SpikeDetection(rtol=1.5)
    return outcome(
        pl, tmp_path, [1.0, 1.1, 1.0, 1.2, 9.0, 1.0, 1.0, 1.0], detection, accumulate_grad_batches=2
    )
