"""Run the examples and keep their pictures here: python examples/pictures/draw.py [NAME ...]

All together take some ten CPU minutes; each needs what its docstring says.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def script(*args: str) -> Callable[[], None]:
    def run() -> None:
        subprocess.run([sys.executable, "-m", *args], check=True)

    return run


def diamonds() -> None:
    script("examples.diamonds")()
    script("examples.diamonds", "importance")()


def finetune() -> None:
    if not os.path.exists("glyphs.ckpt"):
        script("examples.glyphs")()
    script("examples.finetune")()


def digits() -> None:
    """The confusion matrix of examples/digits.py, as its callback draws it."""
    import raylit as pl
    from examples.digits import DigitsData, LitDigits
    from raylit.callbacks import ConfusionMatrixLogger

    pl.seed_everything(1)
    confusion = ConfusionMatrixLogger()
    trainer = pl.Trainer(max_epochs=15, logger=pl.loggers.CSVLogger("logs"), callbacks=[confusion])
    trainer.fit(LitDigits(), datamodule=DigitsData())
    trainer.test(datamodule=DigitsData(), ckpt_path="best")
    confusion.plot().savefig("digits.png", dpi=70)


def digit_images() -> None:
    """The table of predictions of examples/digit_images.py, as its callback draws it."""
    import raylit as pl
    from examples.digit_images import LitImages, write
    from raylit.callbacks import PredictionTable

    write("digits.parquet")
    pl.seed_everything(1)
    data = pl.ParquetDataModule(
        "digits.parquet", split={"val": 0.2}, stratify="label", batch_size=32
    )
    logger = pl.loggers.CSVLogger("logs", version="digit_images")
    table = PredictionTable(every_n_epochs=10)
    pl.Trainer(max_epochs=10, logger=logger, callbacks=[table]).fit(LitImages(), datamodule=data)
    (drawn,) = Path(logger.log_dir).glob("plots/predictions/*.png")
    shutil.copy(drawn, "digit_images.png")


EXAMPLES: dict[str, Callable[[], None]] = {
    "digits": digits,
    "digit_images": digit_images,
    "diamonds": diamonds,
    "glyphs": script("examples.glyphs"),
    "finetune": finetune,
    "lm": script("examples.lm"),
    "gan": script("examples.gan"),
    "forecasting": script("examples.forecasting"),
}


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.symlink(ROOT / "configs", "configs")
        for name in sys.argv[1:] or EXAMPLES:
            EXAMPLES[name]()
            shutil.copy(f"{name}.png", HERE / f"{name}.png")
