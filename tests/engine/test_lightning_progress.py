from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raylit.core.progress import Progress
from raylit.engine.lightning_progress import loops_of, progress_of


@st.composite
def progresses(draw: st.DrawFn) -> Progress:
    """Counters as they stand in some hook of a fit with 5 batches in an epoch."""
    epoch, batch = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    in_epoch_end = draw(st.booleans())
    done = batch - draw(st.integers(0, min(1, batch)))
    steps = 5 * epoch + batch
    counts = {
        "total_batches": 5 * epoch + batch,
        "steps": steps,
        "log_steps": steps - draw(st.integers(0, min(1, steps))),
    }
    epochs = {
        "epoch": epoch,
        "epochs_begun": epoch + 1,
        "epochs_started": epoch + 1,
        "epochs_processed": epoch + in_epoch_end,
    }
    return Progress(
        **epochs,
        batch=batch,
        batches_done=done,
        is_last_batch=batch == 5,
        scheduler_steps=draw(st.integers(0, 9)),
        **counts,
    )


@given(progresses(), st.booleans())
def test_there_and_back(progress: Progress, automatic: bool) -> None:
    loops = loops_of(progress, automatic=automatic, accumulate=1)
    assert progress_of(loops, progress.steps) == progress.state_dict()


def test_the_steps_stand_where_lightning_looks_for_them() -> None:
    progress = Progress(epoch=1, steps=6, batch=2, batches_done=2, total_batches=6)
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
