from __future__ import annotations

from dataclasses import fields
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from raylit.core.progress import Progress

COUNTS = st.fixed_dictionaries(
    {field.name: st.integers(0, 9) for field in fields(Progress) if field.name != "is_last_batch"}
)


@given(COUNTS, st.booleans())
def test_there_and_back(counts: dict[str, Any], is_last: bool) -> None:
    progress, other = Progress(**counts, is_last_batch=is_last), Progress()
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
    assert progress == Progress(
        **{**counts, "epochs_started": counts["epochs_begun"], "batch": 0, "batches_done": 0}
    )
