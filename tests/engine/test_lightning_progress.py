from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raylit.core.progress import (
    BATCH,
    BETWEEN_EPOCHS,
    EPOCH,
    EPOCH_PLATEAU,
    EPOCH_START,
    IDLE,
    LOGGING,
    PLATEAU,
    VALIDATION,
    Progress,
)
from raylit.engine.lightning_progress import loops_of, progress_of, progress_of_counters


@st.composite
def progresses(draw: st.DrawFn) -> Progress:
    """A cursor as Lightning could have it in some hook of a fit with 5 batches in an epoch."""
    at = draw(st.sampled_from([IDLE, EPOCH_START, BATCH, LOGGING, PLATEAU]))
    epoch = draw(st.integers(1, 5))
    batch = 5 if at in BETWEEN_EPOCHS else draw(st.integers(1, 5))
    steps = 5 * epoch + batch
    return Progress(
        epoch=epoch,
        batch=batch,
        at=at,
        is_last_batch=batch == 5,
        scheduler_steps=draw(st.integers(0, 9)),
        total_batches=5 * epoch + batch,
        steps=steps,
        log_steps=steps - (at in (LOGGING, PLATEAU)),
    )


@given(progresses(), st.booleans())
def test_there_and_back(progress: Progress, automatic: bool) -> None:
    loops = loops_of(progress, automatic=automatic, accumulate=1)
    found = Progress()
    found.load_state_dict(progress_of(loops, progress.steps))
    assert found == progress


def test_an_epochs_end_is_the_next_ones_beginning() -> None:
    """Lightning's checkpoints do not hold the values that its end would need."""
    progress = Progress(epoch=2, batch=5, at=EPOCH_PLATEAU, is_last_batch=True)
    found = progress_of(loops_of(progress, automatic=True, accumulate=1), 0)
    assert (found["epoch"], found["at"]) == (3, IDLE)


COUNTERS = {"epoch": 1, "epochs_begun": 2, "epochs_started": 2, "epochs_processed": 1}
BATCHES = {"batch": 3, "batches_done": 3}


def test_counters_and_stages_of_before_the_cursor() -> None:
    def at(stage: str | None = "train", **counts: int) -> object:
        return progress_of_counters({**COUNTERS, **BATCHES, **counts}, stage)["at"]

    assert at() == BATCH
    assert at(batches_done=2) == LOGGING
    assert at("validate") == PLATEAU
    assert at("validation left") == VALIDATION
    assert at(epochs_processed=2) == EPOCH_PLATEAU
    assert at(epochs_started=1) == EPOCH_START
    over = {"epochs_begun": 1, "epochs_started": 1}
    assert at("between epochs", **over) == EPOCH
    assert at("train", **over) == at(None, **over) == IDLE
    assert at("validate", **over) == IDLE, "of a validate after the fit"


def test_the_steps_stand_where_lightning_looks_for_them() -> None:
    progress = Progress(epoch=1, steps=6, batch=2, at=BATCH, total_batches=6)
    automatic = loops_of(progress, automatic=True, accumulate=1)["fit_loop"]
    manual = loops_of(progress, automatic=False, accumulate=1)["fit_loop"]

    def steps(loop: dict[str, dict[str, dict[str, dict[str, dict[str, int]]]]]) -> tuple[int, int]:
        optimizer = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"][
            "total"
        ]
        return optimizer["completed"], loop["epoch_loop.manual_optimization.optim_step_progress"][
            "total"
        ]["completed"]  # type: ignore[return-value]

    assert steps(automatic) == (6, 0)
    assert steps(manual) == (0, 6)


def test_steps_of_an_accumulation() -> None:
    def in_epoch(batch: int, is_last: bool) -> int:
        progress = Progress(batch=batch, is_last_batch=is_last)
        loop = loops_of(progress, automatic=True, accumulate=3)["fit_loop"]
        return int(
            loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"][
                "current"
            ]["completed"]
        )

    assert [in_epoch(batch, False) for batch in range(5)] == [0, 0, 0, 1, 1]
    assert in_epoch(5, True) == 2
