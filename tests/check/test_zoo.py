"""`raylit check` against a zoo: models with nothing wrong, and models broken in one way each."""

from __future__ import annotations

import pytest
import torch

import raylit as pl
from raylit.errors import RaylitError

from .broken import BROKEN
from .correct import CORRECT, Case

CLOCK = "time"  # goes by the clock, and may warn of anything
# Where nothing that is seen in a few batches tells, and the author is asked.
ASKED = {
    "graph_whose_edges_are_in_the_model": "samples",
    "generator_that_steps_every_hundred_batches": "gradients",
    "autoencoder_of_sequences": "loss",
    "head_for_batches_that_come_late": "gradients",
}


def check(case: Case) -> pl.CheckReport:
    model, train = case
    trainer = pl.Trainer(accelerator="cpu", max_epochs=5, logger=False)
    return trainer.check(model, train, verbose=False)


def accuse_nothing(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    report = check(CORRECT[name]())
    said = {
        finding.check: (finding.status, finding.found)
        for finding in report.findings
        if finding.status not in ("ok", "unknown") and finding.check != CLOCK
    }
    assert report.ok, said
    asked = said.pop(ASKED.get(name, ""), ("question",))
    assert asked[0] == "question"
    assert not said


@pytest.mark.parametrize("name", CORRECT)
def test_nothing_is_wrong_with_a_correct_model(name: str) -> None:
    accuse_nothing(name, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("name", CORRECT)
def test_with_other_weights_neither(name: str, seed: int) -> None:
    accuse_nothing(name, seed)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_found(name: str) -> None:
    torch.manual_seed(0)
    make, wanted = BROKEN[name]
    case = make()
    if wanted == "error":
        with pytest.raises((RuntimeError, IndexError, ValueError, RaylitError)):
            check(case)
        return
    finding = check(case)[wanted]
    assert finding.status not in ("ok", "unknown"), finding
    assert finding.advice
