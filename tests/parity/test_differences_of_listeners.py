"""Where profilers, loggers and callbacks differ from Lightning's on purpose.

See test_differences.py.
"""

from __future__ import annotations

import pickle
import pstats
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit
from raylit.runtime.throughput import get_available_flops
from tests.lazy import lightning
from tests.parity.harness import files, loader, model_class, trainer
from tests.parity.test_differences import both


class Failure(Exception):
    pass


class Fails:
    """Mixed into a callback: raises in one hook."""

    def fail(self, *args: Any, **kwargs: Any) -> None:
        raise Failure


def failing(pl: Any, hook: str) -> Any:
    return type("Failing", (Fails, pl.Callback), {hook: Fails.fail})()


# ---- profilers ----


def test_a_profiler_reports_also_after_an_exception(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        profiler = pl.profilers.SimpleProfiler(root / "out", "report")
        with pytest.raises(Failure):
            trainer(pl, root, profiler=profiler, callbacks=[failing(pl, "on_train_epoch_end")]).fit(
                model_class(pl)(), loader(2)
            )
        return "training_step" in "".join(path.read_text() for path in (root / "out").glob("*.txt"))

    assert both(scenario, tmp_path) == (False, True)


def test_the_advanced_profiler_goes_on_with_an_outer_action(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        def before() -> None: ...
        def within() -> None: ...
        def after() -> None: ...

        profiler = pl.profilers.AdvancedProfiler(root, "report", dump_stats=True)
        with profiler.profile("outer"):
            before()
            with profiler.profile("inner"):
                within()
            after()
        profiler.summary()
        (path,) = root.glob("*outer.prof")
        stats: Any = pstats.Stats(str(path))
        return sorted({name for _, _, name in stats.stats} & {"before", "within", "after"})

    assert both(scenario, tmp_path) == (["before"], ["after", "before"])


def test_the_pytorch_profiler_does_not_record_the_sanity_check(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        schedule = torch.profiler.schedule(wait=1, warmup=0, active=2)
        profiler = pl.profilers.PyTorchProfiler(root / "traces", "report", schedule=schedule)
        one = trainer(
            pl,
            root,
            profiler=profiler,
            max_epochs=1,
            num_sanity_val_steps=4,
            check_val_every_n_epoch=2,
        )
        one.fit(model_class(pl)(), loader(6), loader(4))
        return [
            any(step in path.name for path in (root / "traces").glob("*.json"))
            for step in ("validation_step", "training_step")
        ]

    assert both(scenario, tmp_path) == ([True, True], [False, True])


def test_the_pytorch_profiler_refuses_unknown_arguments() -> None:
    lightning.pytorch.profilers.PyTorchProfiler(profile_memry=True)
    with pytest.raises(raylit.errors.ConfigError, match="Did you mean 'profile_memory'"):
        raylit.profilers.PyTorchProfiler(profile_memry=True)


# ---- loggers ----


def test_what_restarted_workers_log_again_stands_in_tensorboard_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    def scenario(pl: Any, root: Path) -> Any:
        logger = pl.loggers.TensorBoardLogger(root, version=0)
        if hasattr(logger, "open"):
            logger.open(default_root_dir=str(root), tags={})
        for steps in ([0, 1], [1, 2]):
            worker = pickle.loads(pickle.dumps(logger))
            for step in steps:
                worker.log_metrics({"loss": float(step)}, step)
            worker.finalize("failed")
        events = [
            event
            for path in sorted(Path(logger.log_dir).glob("events*"))
            for event in EventFileLoader(str(path)).Load()
        ]
        return sorted(
            event.step for event in events for value in event.summary.value if value.tag == "loss"
        )

    assert both(scenario, tmp_path) == ([0, 1, 1, 2], [0, 1, 2])


def test_a_disk_that_fails_does_not_end_the_training(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        logger = pl.loggers.CSVLogger(root, version=0)

        class Breaks(pl.Callback):  # type: ignore[misc]
            def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
                if trainer.current_epoch == 1:
                    shutil.rmtree(logger.log_dir)
                    Path(logger.log_dir).write_text("a file where the folder was")

        one = trainer(
            pl, root, logger=logger, callbacks=[Breaks()], max_epochs=3, log_every_n_steps=1
        )
        try:
            one.fit(model_class(pl)(), loader(2))
        except OSError as error:
            return type(error).__name__, one.current_epoch
        return "trained", one.current_epoch

    theirs, ours = both(scenario, tmp_path)
    assert ours == ["trained", 3]
    assert theirs[0] != "trained"


# ---- callbacks ----


def test_a_test_leaves_the_checkpoint_of_an_exception(tmp_path: Path) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        def saver() -> Any:
            return pl.callbacks.OnExceptionCheckpoint(root / "kept")

        with pytest.raises(Failure):
            trainer(pl, root, callbacks=[saver(), failing(pl, "on_train_epoch_start")]).fit(
                model_class(pl)(), loader(2)
            )
        found = [files(root)]
        trainer(pl, root, callbacks=[saver()]).test(model_class(pl)(), loader(1), verbose=False)
        return [*found, files(root)]

    saved = ["kept/on_exception.ckpt"]
    assert both(scenario, tmp_path) == ([saved, []], [saved, saved])


@pytest.mark.parametrize("hook", ["setup", "on_test_start"])
def test_what_no_fit_could_go_on_from_is_not_saved(tmp_path: Path, hook: str) -> None:
    def scenario(pl: Any, root: Path) -> Any:
        one = trainer(
            pl,
            root,
            callbacks=[pl.callbacks.OnExceptionCheckpoint(root / "kept"), failing(pl, hook)],
        )
        with pytest.raises(Failure):
            (one.test if hook == "on_test_start" else one.fit)(model_class(pl)(), loader(1))
        return files(root)

    assert both(scenario, tmp_path) == (["kept/on_exception.ckpt"], [])


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [("NVIDIA H100 NVL", 1978.8e12, 835.5e12), ("NVIDIA L40S", 121e12, 362e12)],
)
def test_peak_flops_are_those_of_dense_matrices(
    monkeypatch: pytest.MonkeyPatch, name: str, theirs: float, ours: float
) -> None:
    """Lightning's are those of two chips, or of another one."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    assert (
        lightning.fabric.utilities.throughput.get_available_flops(
            torch.device("cuda"), torch.bfloat16
        )
        == theirs
    )
    assert get_available_flops(torch.device("cuda"), torch.bfloat16) == ours


def test_the_throughput_monitor_waits_for_a_gpu_only_when_values_are_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(1))

    def scenario(pl: Any, root: Path) -> Any:
        class Net(model_class(pl)):  # type: ignore[misc]
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return self(batch).square().mean()

            def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
                return batch

            def on_train_start(self) -> None:  # as if the run were on a GPU
                if pl is raylit:
                    self.trainer.world.device = torch.device("cuda")
                else:
                    self.trainer.strategy._root_device = torch.device("cuda")

            def on_train_end(self) -> None:
                if pl is raylit:
                    self.trainer.world.device = torch.device("cpu")
                else:
                    self.trainer.strategy._root_device = torch.device("cpu")

        waited.clear()
        monitor = pl.callbacks.ThroughputMonitor(len, window_size=2)
        trainer(pl, root, logger=True, callbacks=[monitor], max_epochs=1, log_every_n_steps=4).fit(
            Net(), loader(8)
        )
        return len(waited)

    assert both(scenario, tmp_path) == (8, 2)


# ---- arguments and values of callbacks ----


def test_functions_are_given_by_name() -> None:
    """By place they would depend on the order of the events, which changes when one is added."""
    seen: list[str] = []

    def setup(*args: Any, **kwargs: Any) -> None:
        seen.append("setup")

    theirs = lightning.pytorch.callbacks.LambdaCallback(setup)
    theirs.setup(None, None, stage="fit")
    assert seen == ["setup"]
    with pytest.raises(TypeError, match="positional"):
        raylit.callbacks.LambdaCallback(setup)  # type: ignore[call-arg]


def test_learning_rates_that_are_tensors_are_logged_as_numbers(tmp_path: Path) -> None:
    """As they are with `capturable=True`."""

    def scenario(pl: Any, root: Path) -> Any:
        class WithTensor(model_class(pl)):  # type: ignore[misc]
            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=torch.tensor(0.1))

        monitor = pl.callbacks.LearningRateMonitor("step")
        logger = pl.loggers.CSVLogger(root)
        fitter = trainer(pl, root, callbacks=[monitor], logger=logger, log_every_n_steps=1)
        fitter.fit(WithTensor(), loader(2))
        return sorted({type(value).__name__ for values in monitor.lrs.values() for value in values})

    assert both(scenario, tmp_path) == (["Tensor"], ["float"])
