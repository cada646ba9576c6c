from __future__ import annotations

from pathlib import Path

import pytest

from raylit.tune.remote import Listener
from raylit.tune.report import Reporter


@pytest.mark.ray
def test_a_report_that_cannot_be_kept_fails_where_it_was_made(
    tmp_path: Path, ray_cluster: str
) -> None:
    """Rank 0 would wait for an answer for ever."""
    listener = Listener(Reporter(str(tmp_path / "trial/reports.jsonl")))
    (tmp_path / "trial").touch()  # where the folder of its reports is to be
    try:
        with pytest.raises(FileExistsError):
            listener.reports.begin("0123")
    finally:
        listener.close()
