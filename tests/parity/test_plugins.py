"""`Trainer(plugins=...)`: how checkpoints are written, number formats, batch norm, environments."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

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
def test_checkpoints_in_a_thread(pl: Any, tmp_path: Path) -> Any:
    io = plugins_of(pl).AsyncCheckpointIO(plugins_of(pl).TorchCheckpointIO())
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "here", save_top_k=-1)
    one = trainer(pl, tmp_path, callbacks=[saver], plugins=io, max_epochs=3)
    one.fit(model_class(pl)(), loader(2))
    return files(tmp_path), torch.load(saver.best_model_path, weights_only=True)["global_step"]


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
