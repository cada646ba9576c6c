"""What a worker is given and gives back; whole jobs: test_launcher.py and test_pool.py."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from raylit.callbacks import Callback, ModelCheckpoint
from raylit.core.job import Job, Result
from raylit.core.returned import returned
from raylit.errors import ConfigError
from raylit.launch.on_ray.worker_main import SEED, Preempted, WorkerMain, packed
from raylit.testing import TinyModel
from tests.quiet import trainer


class Keeps(Callback):
    def __init__(self) -> None:
        self.lock: Any = threading.Lock()
        self.number = 3


def test_a_result_gives_up_what_cannot_be_pickled_of_callbacks_alone() -> None:
    result = Result({"loss": float("inf")}, state={"callbacks": returned([Keeps()])})
    found = pickle.loads(packed(result))
    assert found.metrics == {"loss": float("inf")}
    (callback,) = found.state["callbacks"]
    assert callback.values == {"number": 3} and set(callback.left) == {"lock"}
    with pytest.raises(TypeError, match="lock"):
        packed(Result(value=threading.Lock()))


def test_who_left_or_had_nothing_to_give_says_so() -> None:
    assert pickle.loads(packed(Preempted())) == Preempted()
    assert pickle.loads(packed(None)) is None
    assert pickle.loads(packed(Result(steps=2))).steps == 2, "of a job that returns no state"


@pytest.mark.parametrize("seed", [None, "5"])
def test_a_worker_knows_seed_and_files_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: str | None
) -> None:
    """As they were when the job was made, not when it arrives."""
    monkeypatch.delenv(SEED, raising=False)
    if seed is not None:
        monkeypatch.setenv(SEED, seed)
    old = tmp_path / "ckpt/old.ckpt"
    old.parent.mkdir()
    old.write_bytes(b"of another fit")
    made = trainer(tmp_path, ModelCheckpoint(old.parent), enable_checkpointing=None)
    work = WorkerMain(Job("fit", made, TinyModel()))
    monkeypatch.setenv(SEED, "6")
    (tmp_path / "ckpt/new.ckpt").write_bytes(b"")
    arrived = pickle.loads(cloudpickle.dumps(work))
    assert arrived.seed == seed
    assert list(arrived.before) == [str(old)]
    assert arrived.pickled.content().fn == "fit"


def test_a_job_that_cannot_be_sent_names_the_part(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^The callback Keeps cannot be sent to the workers"):
        WorkerMain(Job("fit", trainer(tmp_path, Keeps()), TinyModel()))
