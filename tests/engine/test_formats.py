"""Checkpoints of raylit before its cursor, and of Lightning 2.6.6, go on to the end of the fit that wrote them, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import raylit as pl
from tests.engine.fixtures.make import HERE, end_of, loaders, module, trainer

EXPECTED = json.loads((HERE / "expected.json").read_text())


@pytest.mark.parametrize("path", sorted(HERE.glob("*.ckpt")), ids=lambda path: path.stem)
def test_it_goes_on(path: Path) -> None:
    framework, kind, _ = path.stem.split("-")
    one = trainer(pl, kind)
    net = module(pl, kind)
    one.fit(net, *loaders(), ckpt_path=path)
    assert end_of(one, net) == EXPECTED[f"{framework}-{kind}"]
