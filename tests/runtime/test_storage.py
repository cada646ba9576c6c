"""Runs whose files are in buckets.

S3, spoken by a server on this machine, and Google Cloud Storage likewise.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch import Tensor

import raylit as pl
from raylit.callbacks import ModelCheckpoint, RecoveryCheckpoint
from raylit.checkpoint import folder, load, save
from raylit.cli.record import KeepConfig
from raylit.errors import ConfigError, MissingPackageError, NotSavedError
from raylit.launch.on_ray.nodes import check_shared
from raylit.loggers import CSVLogger
from raylit.runtime import storage
from raylit.testing import TinyModel
from tests.buckets import gcs_server
from tests.deadlines import stretched
from tests.quiet import QUIET, UNLOGGED
from tests.ranks import run_on_two_ranks

ROOT = Path(__file__).parents[2]


class Known(TinyModel):
    """Its metric `m` is known beforehand: 0, 1, 0, 1, ... by epoch."""

    def on_train_epoch_end(self) -> None:
        self.log("m", float(self.current_epoch % 2))


def files(url: str) -> list[str]:
    """What is below a URL, relative to it."""
    fs, inner = storage.fresh(url)
    return sorted(path.removeprefix(inner).lstrip("/") for path in fs.find(inner))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- names ----


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.ckpt", False),
        ("file:///a", False),
        ("local:///a", False),
        ("s3://a", True),
        ("memory://a", True),
    ],
)
def test_urls(path: str, expected: bool) -> None:
    assert storage.is_url(path) is expected


def test_a_url_of_the_local_disk_is_a_path(tmp_path: Path) -> None:
    trainer = pl.Trainer(default_root_dir=f"file://{tmp_path}/root", max_epochs=1, **QUIET)
    assert trainer.default_root_dir == str(tmp_path / "root")
    assert pl.Trainer(storage_path=f"file://{tmp_path}/nfs", max_epochs=1).default_root_dir == str(
        tmp_path / "nfs"
    )
    trainer.fit(TinyModel())
    best = tmp_path / "root/lightning_logs/version_0/checkpoints/epoch=0-step=4.ckpt"
    assert best.exists() and trainer.checkpoint_callback.best_model_path == str(best)
    trainer.test(TinyModel(), ckpt_path=f"file://{best}", verbose=False)
    assert trainer.ckpt_path == str(best)


# ---- a run whose files are all in a bucket ----


@pytest.fixture(params=["s3", "gcs"])
def place(request: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket."""
    if request.param == "s3":
        yield bucket
        return
    with gcs_server("runs") as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield "gs://runs"
        fsspec.filesystem("gs").clear_instance_cache()


def test_a_run_in_a_bucket_is_the_run_in_a_folder(place: str, tmp_path: Path) -> None:
    weights, logged, names = {}, {}, {}
    for root in (str(tmp_path), place):
        pl.seed_everything(1, verbose=False)
        saver = ModelCheckpoint(monitor="m", save_top_k=2, save_last=True)
        more = {
            "callbacks": [saver, KeepConfig("seed: 1\n")],
            "log_every_n_steps": 1,
            "max_epochs": 4,
        }
        trainer = pl.Trainer(default_root_dir=root, **more, **QUIET)
        model = Known()
        result = trainer.fit(model)
        run = f"{root}/lightning_logs/version_0"
        assert result.best_model_path == f"{run}/checkpoints/epoch=0-step=4.ckpt"
        names[root] = files(root)
        metrics = trainer.test(model, ckpt_path="best", verbose=False)
        assert metrics == trainer.test(
            Known.load_from_checkpoint(result.best_model_path), verbose=False
        )
        # As in another process: it has to look
        goes_on = pl.Trainer(default_root_dir=root, max_epochs=6, **QUIET)
        goes_on.fit(model, ckpt_path="last")
        assert goes_on.ckpt_path == f"{run}/checkpoints/last.ckpt"
        assert goes_on.log_dir == f"{root}/lightning_logs/version_1"
        weights[root] = dict(model.state_dict())
        logged[root] = storage.file_system(f"{run}/metrics.csv")[0].cat_file(f"{run}/metrics.csv")
    assert names[place] == names[str(tmp_path)]
    assert [name.rpartition("/")[2] for name in names[place]] == [
        "epoch=0-step=4.ckpt",
        "epoch=2-step=12.ckpt",
        "last.ckpt",
        "config.yaml",
        "hparams.yaml",
        "metrics.csv",
    ]
    assert logged[place] == logged[str(tmp_path)] and logged[place].count(b"\n") > 16
    assert equal(weights[place], weights[str(tmp_path)])


SCRIPT = """
import os, signal, sys
import raylit as pl
from raylit.callbacks import RecoveryCheckpoint
from raylit.testing import TinyModel

class Dies(TinyModel):
    def on_train_batch_end(self, *args):
        # Else a step is left out while the one before is on its way.
        self.trainer._run.recovery._writer.wait()
        if self.trainer.progress.total_batches == 7:
            os.kill(os.getpid(), signal.SIGKILL)

pl.seed_everything(1)
saver = RecoveryCheckpoint(every_n_steps=1, every_s=None)
pl.Trainer(
    storage_path=sys.argv[1], accelerator="cpu", max_epochs=3, callbacks=[saver], logger=False,
    enable_progress_bar=False,
).fit(Dies())
"""


def test_a_process_that_is_killed_goes_on_from_the_bucket(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, bucket],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=stretched(120),
    )
    assert killed.returncode == -signal.SIGKILL
    assert [name for name in files(bucket) if "checkpoints/recovery/batch=6-" in name]
    weights = []
    for ckpt_path in ("last", None):
        pl.seed_everything(1, verbose=False)
        model = TinyModel()
        trainer = pl.Trainer(storage_path=bucket, max_epochs=3, **UNLOGGED)
        trainer.fit(model, ckpt_path=ckpt_path)
        weights.append(dict(model.state_dict()))
        if ckpt_path:
            assert str(trainer.ckpt_path).startswith(f"{bucket}/checkpoints/recovery/batch=6-")
            assert not [name for name in files(bucket) if "recovery" in name], "of no more use"
    assert equal(*weights)


# ---- what goes wrong ----


class Unpicklable:
    """Pickling it is interrupted."""

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_a_save_that_is_interrupted_leaves_what_was_there(bucket: str) -> None:
    save({"x": 1}, f"{bucket}/one.ckpt")
    for name in ("one.ckpt", "two.ckpt"):
        with pytest.raises(KeyboardInterrupt):
            save({"x": torch.zeros(100_000), "y": Unpicklable()}, f"{bucket}/{name}")
    assert files(bucket) == ["one.ckpt"] and load(f"{bucket}/one.ckpt") == {"x": 1}


@pytest.mark.parametrize("ckpt_path", [None, "last"])
def test_a_bucket_that_is_not_there_is_said_before_any_work_and_not_made(
    bucket: str, tmp_path: Path, ckpt_path: str | None
) -> None:
    trainer = pl.Trainer(
        storage_path="s3://no-such-bucket/runs", default_root_dir=tmp_path, max_epochs=1, **QUIET
    )
    with pytest.raises(
        NotSavedError,
        match=r"Nothing can be written to s3://no-such-bucket/runs: .*AWS_ENDPOINT_URL",
    ):
        trainer.fit(TinyModel(), ckpt_path=ckpt_path)
    with pytest.raises(
        NotSavedError, match=r"Could not write the checkpoint s3://no-such-bucket/one\.ckpt"
    ):
        save({"x": 1}, "s3://no-such-bucket/one.ckpt")
    assert not fsspec.filesystem("s3").exists("no-such-bucket")
    assert list(tmp_path.iterdir()) == []


def test_wrong_credentials_and_packages(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fs = fsspec.filesystem("s3")
    fs.clear_instance_cache()
    assert "credentials" in str(storage.unwritable(bucket))
    fs.clear_instance_cache()
    monkeypatch.setitem(sys.modules, "adlfs", None)  # as if it were not installed
    for scheme in ("abfs", "az"):
        with pytest.raises(MissingPackageError, match=r"adlfs.*pip install 'raylit\[azure\]'"):
            pl.Trainer(storage_path=f"{scheme}://box/runs", max_epochs=1, **QUIET).fit(TinyModel())
    with pytest.raises(ConfigError, match="Did you mean 's3'"):
        pl.Trainer(storage_path="s33://box/runs", max_epochs=1, **QUIET).fit(TinyModel())


def test_what_a_run_goes_on_from_and_what_others_saved_is_kept(bucket: str, tmp_path: Path) -> None:
    def fit(max_epochs: int, where: str, ckpt_path: str | None) -> str:
        saver = ModelCheckpoint(f"{bucket}/{where}", filename="{epoch}")
        pl.Trainer(
            default_root_dir=tmp_path, callbacks=saver, max_epochs=max_epochs, **UNLOGGED
        ).fit(TinyModel(), ckpt_path=ckpt_path)
        return saver.best_model_path

    first = fit(1, "one", None)
    second = fit(3, "one", first)
    third = fit(4, "two", second)
    kept = [name for name in files(bucket) if "recovery" not in name]
    assert kept == ["one/epoch=0.ckpt", "one/epoch=2.ckpt", "two/epoch=3.ckpt"]
    assert [first, second, third] == [f"{bucket}/{name}" for name in kept]


def test_sharded_checkpoints_want_a_folder(bucket: str) -> None:
    trainer = pl.Trainer(
        storage_path=bucket,
        strategy=pl.strategies.FSDPStrategy(state_dict_type="sharded"),
        max_epochs=1,
        **QUIET,
    )
    with pytest.raises(
        ConfigError,
        match=r"a sharded checkpoint needs a folder that all ranks reach.*state_dict_type='full'",
    ):
        trainer.fit(TinyModel())


class LosesItsBucket(Known):
    """After the first epoch its bucket is gone."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1 and self.trainer.is_global_zero:
            fsspec.filesystem("s3").rm(self.trainer.storage_path, recursive=True)


def lose_the_bucket(where: str) -> tuple[int, str, list[str]]:
    saver = ModelCheckpoint(monitor="m", mode="max", save_top_k=2, save_last=True)
    url = (Path(where) / "url").read_text()
    trainer = pl.Trainer(
        storage_path=url,
        max_epochs=4,
        callbacks=[saver],
        log_every_n_steps=1,
        **UNLOGGED,
    )
    trainer.fit(LosesItsBucket())
    return trainer.global_step, saver.best_model_path, sorted(saver.best_k_models)


def test_a_bucket_that_goes_away_does_not_end_the_run_nor_part_the_ranks(
    bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text(bucket)
    first = f"{bucket}/checkpoints/epoch=0-step=2.ckpt"
    assert run_on_two_ranks(lose_the_bucket, tmp_path) == [(8, first, [first])] * 2


def test_what_cannot_be_deleted_is_warned_of(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save({"x": 1}, f"{bucket}/one.ckpt")
    fs = fsspec.filesystem("s3")
    monkeypatch.setattr(fs, "rm", lambda *args, **kwargs: fs.cat_file("no-such-bucket/x"))
    with pytest.warns(
        UserWarning, match=r"one\.ckpt is no longer needed, but could not be deleted"
    ):
        folder.remove(f"{bucket}/one.ckpt")


def test_runs_that_start_together_get_two_numbers(bucket: str) -> None:
    loggers = [CSVLogger(bucket) for _ in range(2)]
    assert [logger.version for logger in loggers] == [0, 1]
    fs, _ = storage.fresh(bucket)
    assert not fs.glob(f"{bucket}/lightning_logs/version_2/*")
    copy = pickle.loads(pickle.dumps(loggers[0]))
    assert copy.log_dir == f"{bucket}/lightning_logs/version_0"


# ---- on Ray ----


@pytest.mark.ray
def test_workers_that_cannot_write_are_found_before_they_start(ray_cluster: str) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"workers on the node [\d.]+ of the Ray cluster cannot: .*environment in which `ray"
            r" start`"
        ),
    ):
        check_shared(["s3://no-such-bucket/runs"])


class DiesOnce(TinyModel):
    """Rank 1 is killed before the fourth batch, once."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if (
            self.trainer.progress.total_batches == 4
            and self.global_rank == 1
            and not os.path.exists(self.mark)
        ):
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.long
def test_workers_go_on_from_a_bucket(
    ray_cluster: str, bucket: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    callbacks = [ModelCheckpoint(save_last=True), RecoveryCheckpoint(every_n_steps=1, every_s=None)]
    more = {"default_root_dir": tmp_path, "callbacks": callbacks, "logger": False}
    trainer = pl.Trainer(
        storage_path=bucket, num_workers=2, max_failures=1, max_epochs=3, **more, **QUIET
    )
    result = trainer.fit(DiesOnce(str(tmp_path / "died")))
    text = "".join(capfd.readouterr())
    assert f"Restoring states from the checkpoint path at {bucket}/checkpoints/" in text
    assert "Found credentials" not in text
    assert result.last_model_path == f"{bucket}/checkpoints/last.ckpt" and result.steps == 6
    assert [name for name in files(bucket) if name.endswith(".ckpt")] == [
        "checkpoints/epoch=2-step=6.ckpt",
        "checkpoints/last.ckpt",
    ]
    assert equal(
        load(result.last_model_path)["state_dict"], dict(trainer.lightning_module.state_dict())
    )


@pytest.mark.ray
@pytest.mark.long
def test_a_sweep_in_a_bucket(ray_cluster: str, bucket: str, tmp_path: Path) -> None:
    from ray import tune

    trainer = pl.Trainer(
        storage_path=bucket,
        default_root_dir=tmp_path,
        max_epochs=2,
        logger=CSVLogger(bucket),
        **QUIET,
    )
    sweep = pl.Tuner(trainer).sweep(
        TinyModel, space={"model.batch_size": tune.grid_search([2, 4])}, metric="val_loss"
    )
    assert [trial.error for trial in sweep.trials] == [None, None]
    for trial in sweep.trials:
        assert trial.checkpoint is not None and trial.checkpoint.startswith(
            f"{sweep.folder}/{trial.name}/checkpoints/"
        )
        assert (
            TinyModel.load_from_checkpoint(trial.checkpoint).batch_size
            == trial.config["model.batch_size"]
        )
        assert f"lightning_logs/{trial.name}/metrics.csv" in files(bucket)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
def test_a_place_where_the_mode_promises_more_than_holds() -> None:
    trainer = pl.Trainer(default_root_dir="/proc/nothing", max_epochs=1, **QUIET)
    with pytest.raises(ConfigError, match=r"would write to /proc/nothing.*nothing can be written"):
        trainer.fit(TinyModel())
