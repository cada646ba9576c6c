"""The contract of `raylit.launch.Launcher` as tests, for launchers written elsewhere too."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader

from raylit.callbacks import Callback, EarlyStopping, ModelCheckpoint
from raylit.launch import Launcher, LocalLauncher
from raylit.loggers import CSVLogger
from raylit.runtime.aliases import Arguments, Batch, StateDict, StepOutput
from raylit.testing.modules import RandomDataset, TinyModel
from raylit.trainer.trainer import Trainer

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class Mistake(Exception):
    """Raised by the suite in user code; it can be pickled."""


class Counts(Callback):
    """Counts epochs, in an attribute and in its state."""

    def __init__(self) -> None:
        self.num_epochs = 0

    def on_train_epoch_end(self, *args: object) -> None:
        """Count."""
        self.num_epochs += 1

    def state_dict(self) -> StateDict:
        """Return the count."""
        return {"num_epochs": self.num_epochs}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take the count back."""
        self.num_epochs = state_dict["num_epochs"]


class Holds(Callback):
    """Holds an attribute that cannot be pickled once the job runs, beside one that can."""

    def __init__(self) -> None:
        self.num_batches = 0

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Make it, where it is used."""
        self.lock = threading.Lock()

    def on_train_batch_end(self, *args: object) -> None:
        """Count."""
        with self.lock:
            self.num_batches += 1


class Brings(TinyModel):
    """Brings callbacks of its own: an EarlyStopping in the place of the user's, and a new one."""

    def configure_callbacks(self) -> list[Callback]:
        """Return them."""
        return [EarlyStopping("val_loss", patience=7), Counts()]


class Fails(TinyModel):
    """Raises in the third step of training."""

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Raise, or train."""
        if self.global_step == 2:
            raise Mistake("in the third step")
        return super().training_step(batch, batch_idx)


class LauncherConformance:
    """Checks that hold for every launcher.

    Subclass it as `Test...` and override `make` and the arguments of the Trainer that the launcher
    reads.

    Attributes:
        trainer_arguments: of the Trainer whose jobs are launched, such as `{"num_workers": 2}`.
        num_ranks: how many ranks that makes.

    Example:
        >>> class TestRayTrainLauncher(LauncherConformance):
        ...     trainer_arguments = {"num_workers": 2}
        ...     num_ranks = 2
        ...
        ...     @pytest.fixture
        ...     def make(self):
        ...         return RayTrainLauncher
    """

    trainer_arguments: Arguments = {}  # noqa: RUF012  (a subclass gives its own)
    num_ranks = 1

    @pytest.fixture
    def make(self) -> Callable[[], Launcher]:
        """Return a function that makes a launcher. To override."""
        raise NotImplementedError

    @pytest.fixture
    def trainer(
        self, make: Callable[[], Launcher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Trainer]:
        """Return a function that makes a Trainer of two epochs which uses the launcher."""
        launcher = make()
        monkeypatch.setattr("raylit.trainer.driver.launcher_for", lambda job: launcher)

        def make_trainer(**arguments: Any) -> Trainer:
            settings = {
                "accelerator": "cpu",
                "logger": False,
                "max_epochs": 2,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "default_root_dir": tmp_path,
            }
            return Trainer(**{**settings, **self.trainer_arguments, **arguments})

        return make_trainer

    def model(self, kind: Callable[[], TinyModel] = TinyModel) -> TinyModel:
        """Return a model, the same each time."""
        torch.manual_seed(0)
        return kind()

    def test_what_a_fit_leaves(self, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
        """Weights, callbacks, counters, metrics and files are those of the run.

        In whatever process it ran.
        """
        model = self.model()
        counts = Counts()
        saver = ModelCheckpoint(tmp_path / "ckpt", monitor="val_loss", save_last=True)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        done = trainer(
            callbacks=[counts, saver], logger=CSVLogger(tmp_path), enable_checkpointing=None
        )
        result = done.fit(model)
        steps = 2 * -(-4 // self.num_ranks)
        assert (result.epochs, result.steps, done.current_epoch, done.global_step) == (
            2,
            steps,
            2,
            steps,
        )
        assert counts.num_epochs == 2
        assert (saver.best_model_path, saver.last_model_path) == (
            result.best_model_path,
            result.last_model_path,
        )
        saved = torch.load(saver.last_model_path, weights_only=True)["state_dict"]
        assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
        assert not torch.equal(before["layer.weight"], model.state_dict()["layer.weight"])
        assert result.metrics["val_loss"] == pytest.approx(float(done.callback_metrics["val_loss"]))
        assert len(result.history) == 2
        assert list(tmp_path.rglob("metrics.csv"))
        assert done.state.finished

    def test_callbacks_come_home_by_what_they_are(
        self, trainer: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        """The driver's own callbacks take the state of their copies; the module's are added."""
        saver = ModelCheckpoint(tmp_path / "ckpt", monitor="val_loss")
        done = trainer(
            callbacks=[EarlyStopping("train_loss", patience=2), saver], enable_checkpointing=None
        )
        result = done.fit(self.model(Brings))
        stopping = done.early_stopping_callback
        assert stopping is not None and (stopping.monitor, stopping.patience) == ("val_loss", 7)
        assert stopping.best_score == saver.best_model_score == result.best_model_score
        assert saver.best_model_path == result.best_model_path
        assert Path(saver.best_model_path).is_file()
        assert done.checkpoint_callback is saver
        (counts,) = (callback for callback in done.callbacks if isinstance(callback, Counts))
        assert counts.num_epochs == 2

    def test_what_cannot_be_pickled_costs_no_fit(self, trainer: Callable[..., Trainer]) -> None:
        """It stays where it was made, and a warning names callback and attribute."""
        holds = Holds()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            result = trainer(callbacks=holds).fit(self.model())
        assert holds.num_batches == result.steps > 0
        said = [str(one.message) for one in told if "Holds" in str(one.message)]
        if hasattr(holds, "lock"):  # it was this process
            assert not said
        else:
            (text,) = said
            assert "without its attribute lock, which cannot be pickled" in text

    def test_one_rank_gives_what_this_process_would(
        self, trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """How the process was started changes no number."""
        if self.num_ranks > 1:
            pytest.skip("several ranks read the data in another order")
        here = self.model()
        there = self.model()
        there.dropout.p = here.dropout.p = 0.0
        trainer().fit(there)
        monkeypatch.setattr("raylit.trainer.driver.launcher_for", lambda job: LocalLauncher())
        trainer().fit(here)
        assert torch.equal(here.layer.weight, there.layer.weight)

    def test_a_second_fit_and_a_resumed_one_go_on(
        self, trainer: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        """Counters and state are handed over, from the objects and from a checkpoint."""
        model = self.model()
        counts = Counts()
        saver = ModelCheckpoint(tmp_path / "ckpt", every_n_epochs=1, save_top_k=-1)
        done = trainer(max_epochs=1, callbacks=[counts, saver], enable_checkpointing=None)
        done.fit(model)
        done.max_epochs = 2
        done.fit(model)
        assert (counts.num_epochs, done.current_epoch) == (2, 2)
        fresh = Counts()
        again = trainer(max_epochs=3, callbacks=fresh)
        again.fit(self.model(), ckpt_path=saver.best_model_path)
        assert (fresh.num_epochs, again.current_epoch) == (3, 3)

    def test_evaluation_counts_each_sample_once(self, trainer: Callable[..., Trainer]) -> None:
        """Any number of ranks and samples gives the values of one process."""
        model = self.model()
        loader = DataLoader(RandomDataset(32, 7), batch_size=2)
        model.eval()
        with torch.no_grad():
            expected = float(model.step(RandomDataset(32, 7).data))
        assert trainer().validate(model, loader, verbose=False)[0]["val_loss"] == pytest.approx(
            expected, rel=1e-5
        )
        assert trainer().test(model, loader, verbose=False)[0]["test_loss"] == pytest.approx(
            expected, rel=1e-5
        )

    def test_predictions_come_in_the_order_of_the_data(
        self, trainer: Callable[..., Trainer]
    ) -> None:
        """Every sample once, in order."""
        model = self.model()
        found = torch.cat(trainer().predict(model, DataLoader(RandomDataset(32, 7), batch_size=2)))
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(found, model(RandomDataset(32, 7).data))

    def test_the_user_s_exception_is_raised_here(self, trainer: Callable[..., Trainer]) -> None:
        """As it is, with a note on where it happened; afterwards the launcher can be used again."""
        done = trainer()
        with pytest.raises(Mistake, match="in the third step") as raised:
            done.fit(self.model(Fails))
        assert any("rank" in note and "step 2" in note for note in raised.value.__notes__)
        assert done.state.status == "interrupted"
        assert trainer(max_epochs=1).fit(self.model()).epochs == 1

    def test_a_stop_is_known_here(self, trainer: Callable[..., Trainer]) -> None:
        """Callbacks can be asked afterwards why training ended."""
        stopping = EarlyStopping("val_loss", stopping_threshold=100.0)
        done = trainer(max_epochs=5, callbacks=stopping)
        done.fit(self.model())
        assert (stopping.stopping_reason.name, stopping.stopped_epoch, done.current_epoch) == (
            "STOPPING_THRESHOLD",
            0,
            1,
        )
        assert done.should_stop
