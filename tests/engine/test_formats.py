"""Checkpoints of raylit before its cursor, and of Lightning 2.6.6, go on to the end of their fits.

That end was written by another machine: its processor may round a sum otherwise (by 1.2e-7 here
where the first had no AMX), so weights are compared to the last digits but two. That fits on one
machine go on bit for bit is shown in test_resume_matrix.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import raylit as pl
from tests.engine.fixtures.make import HERE, end_of, loaders, module, trainer

EXPECTED = json.loads((HERE / "expected.json").read_text())


@pytest.mark.parametrize("path", sorted(HERE.glob("*.ckpt")), ids=lambda path: path.stem)
def test_it_goes_on(path: Path) -> None:
    framework, kind, _ = path.stem.split("-")
    one = trainer(pl, kind)
    net = module(pl, kind)
    one.fit(net, *loaders(), ckpt_path=path)
    found = end_of(one, net)
    expected = EXPECTED[f"{framework}-{kind}"]
    for ours, theirs in zip(found.pop("weights"), expected["weights"], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-6)
    assert found == {name: value for name, value in expected.items() if name != "weights"}
