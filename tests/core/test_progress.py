from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylit.core.progress import (
    BACKWARD,
    BATCH,
    FORWARD,
    LOGGING,
    SCHEDULERS,
    STEPPED,
    STEPPING,
    WITH_GRADIENTS,
    WITHIN_BATCH,
    Action,
    Progress,
)

COUNTS = st.fixed_dictionaries(
    {
        field.name: st.integers(0, 9)
        for field in fields(Progress)
        if field.name not in ("is_last_batch", "at")
    }
)
PLACES = st.sampled_from(get_args(Action))


@given(COUNTS, st.booleans(), PLACES)
def test_there_and_back(counts: dict[str, Any], is_last: bool, at: Action) -> None:
    progress, other = Progress(**counts, is_last_batch=is_last, at=at), Progress()
    other.load_state_dict(progress.state_dict())
    assert other == progress


def test_what_another_version_wrote_is_taken_as_far_as_it_is_known() -> None:
    progress = Progress(epoch=1, steps=5)
    progress.load_state_dict({"steps": 7, "moons": 3})
    assert progress == Progress(epoch=1, steps=7)


@given(COUNTS)
def test_an_epoch_counts_its_batches_anew_and_nothing_else(counts: dict[str, Any]) -> None:
    progress = Progress(**counts, is_last_batch=True)
    progress.start_epoch()
    assert progress == Progress(**{**counts, "batch": 0}, at=BATCH)


@given(COUNTS, PLACES, st.booleans())
def test_what_is_stored_is_a_place_to_go_on_from(
    counts: dict[str, Any], at: Action, automatic: bool
) -> None:
    progress = Progress(**counts, at=at)
    stored = progress.to_go_on_from(automatic=automatic)
    assert stored.at not in WITHIN_BATCH
    assert stored is not progress, "it is a copy"
    if at not in WITHIN_BATCH:
        assert stored == progress


def test_a_batch_that_has_changed_the_weights_is_done() -> None:
    progress = Progress(batch=3, total_batches=8, steps=2)
    for at in (FORWARD, BACKWARD, STEPPING):
        progress.at = at
        stored = progress.to_go_on_from(automatic=True)
        assert (stored.at, stored.batch, stored.total_batches) == (BATCH, 2, 7)
    for at, wanted in WITH_GRADIENTS.items():
        progress.at = at
        stored = progress.to_go_on_from(automatic=True)
        assert (stored.at, stored.batch, stored.steps) == (wanted, 2, 2)
    progress.at = STEPPED
    assert progress.to_go_on_from(automatic=False) == Progress(
        batch=3, total_batches=8, steps=2, at=SCHEDULERS
    )
    assert progress.to_go_on_from(automatic=True).steps == 3, "which the loop had yet to count"


@pytest.mark.parametrize(
    ("at", "batch", "automatic", "accumulate", "half"),
    [
        (FORWARD, 2, True, 2, False),
        (FORWARD, 2, False, 1, False),
        (BACKWARD, 1, True, 1, False),
        (BACKWARD, 1, True, 2, False),  # the first of a window, which clears the gradients
        (BACKWARD, 2, True, 2, True),
        (BACKWARD, 1, False, 1, True),
        (STEPPING, 1, True, 1, True),
        (STEPPED, 1, False, 1, True),
        (LOGGING, 1, True, 1, False),
    ],
)
def test_whether_a_batch_is_half_done(
    at: Action, batch: int, automatic: bool, accumulate: int, half: bool
) -> None:
    progress = Progress(batch=batch, at=at)
    assert progress.is_half_done(automatic=automatic, accumulate=accumulate) is half
