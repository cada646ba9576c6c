"""Tracebacks in which the user's lines are found."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import TracebackType

from raylit.runtime.messages import is_verbose
from raylit.runtime.notebook import is_notebook

OURS = str(Path(__file__).parents[1]) + os.sep


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an exception as text.

    From the user's first line on and without raylit's, or, if verbose, all of it.
    """
    whole = traceback.TracebackException.from_exception(error)
    one: traceback.TracebackException | None = whole
    while one is not None and not is_verbose():
        frames = [frame for frame in one.stack if not frame.filename.startswith(OURS)]
        first = next(
            (index for index, frame in enumerate(frames) if "site-packages" not in frame.filename),
            0,
        )
        if frames:
            one.stack = traceback.StackSummary.from_list(frames[first:])
        one = one.__cause__ or one.__context__
    return "".join(whole.format())


def hide_own_frames(error: BaseException) -> None:
    """In a notebook, take raylit's frames out of the traceback of an exception, unless verbose.

    Of the 60 lines that IPython shows of a mistake in `training_step`, three are the user's.
    """
    if is_notebook() and not is_verbose():
        error.__traceback__ = _of_others(error.__traceback__)


def _of_others(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without raylit's frames."""
    others = []
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(OURS):
            others.append(trace)
        trace = trace.tb_next
    kept = None
    for one in reversed(others):  # not by recursion: it may be as long as Python's stack
        kept = TracebackType(kept, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return kept
