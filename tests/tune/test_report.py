"""What a trial's report knows of the trial's own files, below Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import raylit as pl
from raylit.callbacks import ModelCheckpoint
from raylit.testing import TinyModel
from raylit.tune.report import Reporter, TrialReport, TuneReport


class Silent:
    """Reports go nowhere; no fit asks for a decision here."""

    def begin(self, run_id: str) -> None: ...
    def report(self, metrics: TrialReport) -> Any: ...


def test_savers_take_over_the_files_of_their_own_trial_alone(tmp_path: Path) -> None:
    own, donors = tmp_path / "trial-001", tmp_path / "trial-000"
    past = [
        TrialReport(n + 1, {"val_loss": value, "best_model_path": str(own / f"{n}.ckpt")})
        for n, value in enumerate((0.7, 0.2, float("nan"), 0.4))
    ]
    report = TuneReport({"val_loss": "min"}, Silent(), {}, past)
    best = ModelCheckpoint(own, monitor="val_loss", save_last=True)
    other = ModelCheckpoint(own, monitor="loss", save_top_k=2)
    trainer = pl.Trainer(logger=False, callbacks=[best, other, report], default_root_dir=tmp_path)

    def states(folder: Path) -> dict[str, Any]:
        kept = {str(folder / f"{n}.ckpt"): torch.tensor(float(n)) for n in range(2)}
        one = {"dirpath": str(folder), "best_k_models": kept, "best_model_path": min(kept)}
        return {saver.state_key: dict(one) for saver in (best, other)}

    mine = {"callbacks": states(own)}
    report.on_load_checkpoint(trainer, TinyModel(), mine)
    assert mine["callbacks"] == states(own), "a trial that goes on keeps all it knows"

    theirs = {"callbacks": states(donors)}
    report.on_load_checkpoint(trainer, TinyModel(), theirs)
    found = theirs["callbacks"][best.state_key]
    assert {path: one.item() for path, one in found["best_k_models"].items()} == {
        str(own / "1.ckpt"): torch.tensor(0.2).item()
    }
    assert found["best_model_path"] == found["kth_best_model_path"] == str(own / "1.ckpt")
    assert found["last_model_path"] == str(own / "last.ckpt")
    assert theirs["callbacks"][other.state_key]["best_k_models"] == {}, "their values are unknown"


def test_what_is_written_behind_a_torn_line_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    path.write_text('{"begun": "1"}\n{"report": 1, "val')
    reporter = Reporter(str(path))
    reporter.begin("2")
    reporter.end("finished")
    assert Reporter(str(path)).has_ended == "finished"
    assert len(path.read_text().splitlines()) == 4
