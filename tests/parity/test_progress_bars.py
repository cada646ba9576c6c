"""Progress bars: what they tell, and the parts that users override."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import raylit
from tests.lazy import lightning
from tests.parity.harness import loader, model_class, parity, trainer


@parity
def test_bars_of_tqdm_that_are_overridden(pl: Any, tmp_path: Path) -> Any:
    made: list[Any] = []

    class Bar(pl.callbacks.TQDMProgressBar):  # type: ignore[misc,name-defined]
        def noting(self, name: str, bar: Any) -> Any:
            made.append([name, bar.desc, bar.leave, bar.pos])
            return bar

        def init_sanity_tqdm(self) -> Any:
            return self.noting("sanity", super().init_sanity_tqdm())

        def init_train_tqdm(self) -> Any:
            return self.noting("train", super().init_train_tqdm())

        def init_validation_tqdm(self) -> Any:
            return self.noting("validation", super().init_validation_tqdm())

        def init_test_tqdm(self) -> Any:
            return self.noting("test", super().init_test_tqdm())

        def init_predict_tqdm(self) -> Any:
            return self.noting("predict", super().init_predict_tqdm())

        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            made.append([self.train_progress_bar.n, self.train_progress_bar.total])

        def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
            super().on_validation_batch_end(*args, **kwargs)
            made.append(["val", self.val_progress_bar.n, self.total_val_batches_current_dataloader])

    bar = Bar(refresh_rate=2, leave=True)
    one = trainer(
        pl, tmp_path, callbacks=[bar], max_epochs=2, enable_progress_bar=True, logger=False
    )
    model = model_class(pl)()
    one.fit(model, loader(3), loader(2))
    one.test(model, loader(1), verbose=False)
    one.predict(model, loader(1))
    return made, one.progress_bar_callback is bar, bar.is_enabled, bar.refresh_rate


class Own:
    """What a bar of one's own reads."""

    def on_train_batch_end(self: Any, *args: Any) -> None:
        self.seen.append([self.total_train_batches, self.trainer.global_step])

    def on_validation_start(self: Any, *args: Any) -> None:
        self.seen.append([self.total_val_batches, self.has_dataloader_changed(0)])


def test_a_bar_of_ones_own(tmp_path: Path) -> None:
    """Lightning's ProgressBar draws nothing: in raylit that is `Bar`."""

    def scenario(pl: Any) -> Any:
        base = raylit.callbacks.Bar if pl is raylit else pl.callbacks.ProgressBar
        bar = type("Mine", (Own, base), {"disable": lambda self: None})()
        bar.seen = []
        one = trainer(
            pl,
            tmp_path / pl.__name__,
            callbacks=[bar],
            enable_progress_bar=True,
            max_epochs=1,
            num_sanity_val_steps=0,
        )
        one.fit(model_class(pl)(), loader(2), loader(1))
        return bar.seen, bar.train_description, sorted(bar.get_metrics(one, one.lightning_module))

    assert scenario(raylit) == scenario(lightning.pytorch)
