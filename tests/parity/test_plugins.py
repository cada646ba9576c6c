"""`Trainer(plugins=...)`: how checkpoints are written, number formats, batch norm, environments."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit
from tests.parity.harness import errors, files, loader, model_class, parity, trainer


def plugins_of(pl: Any) -> Any:
    return importlib.import_module(f"{pl.__name__}.plugins")


def noting_io(pl: Any, calls: list[Any]) -> Any:
    """A CheckpointIO whose files no other can read."""

    class Turned(plugins_of(pl).CheckpointIO):  # type: ignore[misc]
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            calls.append(("save", os.path.basename(path), sorted(checkpoint["state_dict"])))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.save(checkpoint, path)
            Path(path).write_bytes(Path(path).read_bytes()[::-1])

        def load_checkpoint(self, path: Any, map_location: Any = None, **kwargs: Any) -> Any:
            calls.append(("load", os.path.basename(path)))
            turned = Path(f"{path}.turned")
            turned.write_bytes(Path(path).read_bytes()[::-1])
            return torch.load(turned, map_location=map_location, weights_only=False)

        def remove_checkpoint(self, path: Any) -> None:
            calls.append(("remove", os.path.basename(path)))
            Path(path).unlink()

        def teardown(self) -> None:
            calls.append("teardown")

    return Turned()


@parity
def test_a_checkpoint_io_writes_reads_and_deletes(pl: Any, tmp_path: Path) -> Any:
    calls: list[Any] = []
    io = noting_io(pl, calls)

    def fit(epochs: int, **given: Any) -> Any:
        saver = pl.callbacks.ModelCheckpoint(tmp_path / "here", monitor="epoch_loss")
        one = trainer(pl, tmp_path, callbacks=[saver], plugins=[io], max_epochs=epochs)
        model = model_class(pl)()
        model.on_train_epoch_end = lambda: model.log("epoch_loss", -float(model.current_epoch))
        one.fit(model, loader(2), **given)
        return one, saver, model

    one, _, _ = fit(2)
    one.save_checkpoint(tmp_path / "mine.ckpt")
    again, saver, model = fit(3, ckpt_path=tmp_path / "mine.ckpt")
    again.validate(model, loader(1), ckpt_path=saver.best_model_path, verbose=False)
    seen = [one for one in calls if one != "teardown"]
    return seen, "teardown" in calls, again.global_step, files(tmp_path)


@parity
@pytest.mark.parametrize("save_last", [None, True])
def test_checkpoints_in_a_thread(pl: Any, tmp_path: Path, save_last: Any) -> Any:
    return fitted_in_a_thread(pl, tmp_path, save_last)


def test_a_link_to_what_a_thread_has_yet_to_write(tmp_path: Path) -> None:
    names, step = fitted_in_a_thread(raylit, tmp_path, "link")
    assert "here/last.ckpt" in names and step == 6
    assert os.readlink(tmp_path / "here/last.ckpt") == "epoch=2-step=6.ckpt"


def fitted_in_a_thread(pl: Any, tmp_path: Path, save_last: Any) -> Any:
    class Slow(plugins_of(pl).TorchCheckpointIO):  # type: ignore[misc]
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            time.sleep(0.05)
            super().save_checkpoint(*args, **kwargs)

    io = plugins_of(pl).AsyncCheckpointIO(Slow())
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "here", save_top_k=-1, save_last=save_last)
    one = trainer(pl, tmp_path, callbacks=[saver], plugins=io, max_epochs=3)
    one.fit(model_class(pl)(), loader(2))
    return files(tmp_path), torch.load(saver.best_model_path, weights_only=True)["global_step"]


@pytest.mark.parametrize("save_last", [None, True])
def test_training_goes_on_where_a_checkpoint_io_cannot_write(
    tmp_path: Path, save_last: bool | None
) -> None:
    class Full(plugins_of(raylit).TorchCheckpointIO):  # type: ignore[misc]
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            if checkpoint["epoch"] == 1:
                raise OSError(28, "No space left on device")
            super().save_checkpoint(checkpoint, path, storage_options)

    saver = raylit.callbacks.ModelCheckpoint(tmp_path / "here", save_last=save_last)
    one = trainer(raylit, tmp_path, callbacks=[saver], plugins=[Full()], max_epochs=3)
    with pytest.warns(RuntimeWarning, match="Full could not write .*epoch=1.*No space left"):
        one.fit(model_class(raylit)(), loader(2))
    assert one.current_epoch == 3
    assert Path(saver.best_model_path).name == "epoch=2-step=6.ckpt"


@parity
@pytest.mark.parametrize("name", ["HalfPrecision", "DoublePrecision", "MixedPrecision"])
def test_number_formats(pl: Any, tmp_path: Path, name: str) -> Any:
    given = {"HalfPrecision": ("bf16-true",), "MixedPrecision": ("bf16-mixed", "cpu")}
    plugin = getattr(plugins_of(pl), name)(*given.get(name, ()))
    one = trainer(pl, tmp_path, plugins=plugin, max_epochs=1)
    model = model_class(pl)()
    one.fit(model, loader(2))
    return one.precision, dict(model.state_dict())


@errors
@pytest.mark.parametrize("kind", ["both", "two", "unknown"])
def test_plugins_that_contradict(pl: Any, tmp_path: Path, kind: str) -> Any:
    double = plugins_of(pl).DoublePrecision
    given: dict[str, Any] = {
        "both": {"plugins": double(), "precision": "bf16-mixed"},
        "two": {"plugins": [double(), plugins_of(pl).HalfPrecision("bf16-true")]},
        "unknown": {"plugins": [object()]},
    }[kind]
    trainer(pl, tmp_path, **given)


@parity
def test_overridable_parts_of_model_checkpoint(pl: Any, tmp_path: Path) -> Any:
    calls: list[Any] = []

    class Keeps(pl.callbacks.ModelCheckpoint):  # type: ignore[misc,name-defined]
        def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
            super()._save_checkpoint(trainer, filepath)
            Path(f"{filepath}.beside").touch()

        def _remove_checkpoint(self, trainer: Any, filepath: str) -> None:
            super()._remove_checkpoint(trainer, filepath)
            calls.append(os.path.basename(filepath))
            Path(f"{filepath}.beside").unlink()

        def _update_best_and_save(self, current: Any, trainer: Any, candidates: Any) -> None:
            super()._update_best_and_save(current, trainer, candidates)
            calls.append((float(current), sorted(candidates)))

        def _save_monitor_checkpoint(self, trainer: Any, candidates: Any) -> Any:
            calls.append("monitor")
            return super()._save_monitor_checkpoint(trainer, candidates)

    class Model(model_class(pl)):  # type: ignore[misc]
        def on_train_epoch_end(self) -> None:
            self.log("value", -float(self.current_epoch))

    saver = Keeps(tmp_path / "here", monitor="value", save_last=True)
    trainer(pl, tmp_path, callbacks=[saver], max_epochs=2).fit(Model(), loader(2))
    return calls, files(tmp_path / "here"), files(tmp_path / "here", "epoch=1*.beside")
