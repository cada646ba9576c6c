"""Lightning's place for its bar of tqdm, with the bar that it draws."""

from tqdm.auto import tqdm as Tqdm

from raylit.as_lightning.beside import names_of
from raylit.callbacks.progress import tqdm_progress

__all__ = ["TQDMProgressBar", "Tqdm"]

TQDMProgressBar = tqdm_progress.TQDMProgressBar

__getattr__ = names_of(__name__, tqdm_progress)


def convert_inf(number: float | None) -> float | None:
    """Return a total as tqdm wants it: None for one that is not known."""
    return None if number in (None, float("inf")) else number
