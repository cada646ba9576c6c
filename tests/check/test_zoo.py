"""`raylit check` against a zoo: models with nothing wrong, and models broken in one way each."""

from __future__ import annotations

from typing import Any

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

WITH_GRADIENTS = {"physics_informed"}  # a loss of gradients, which validation does not record


def check(case: Case, validates: bool = False) -> pl.CheckReport:
    model, train = case
    trainer = pl.Trainer(accelerator="cpu", max_epochs=5, logger=False)
    if not validates or not model.automatic_optimization:
        return trainer.check(model, train, verbose=False)

    class Validated(type(model)):  # type: ignore[misc]
        def validation_step(self, *args: Any) -> None:
            self.training_step(*args)

    model.__class__ = Validated
    return trainer.check(model, train, train, verbose=False)


def accuse_nothing(name: str, seed: int, validates: bool = False) -> None:
    torch.manual_seed(seed)
    report = check(CORRECT[name](), validates)
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


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(CORRECT.keys() - WITH_GRADIENTS))
def test_validation_changes_nothing(name: str) -> None:
    accuse_nothing(name, 0, validates=True)


@pytest.mark.parametrize(
    "validates", [pytest.param(False, marks=pytest.mark.long), True], ids=["alone", "validates"]
)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_found(name: str, validates: bool) -> None:
    torch.manual_seed(0)
    make, wanted = BROKEN[name]
    case = make()
    if wanted == "error":
        with pytest.raises((RuntimeError, IndexError, ValueError, RaylitError)):
            check(case, validates)
        return
    finding = check(case, validates)[wanted]
    assert finding.status not in ("ok", "unknown"), finding
    assert finding.advice
