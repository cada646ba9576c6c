"""Lightning's path to `raylit.core.hparams`, and functions for the lengths of loaders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.core.hparams import AttributeDict

if TYPE_CHECKING:
    from raylit.runtime.aliases import Loaders

__all__ = ["AttributeDict", "has_iterable_dataset", "has_len", "sized_len"]


def sized_len(dataloader: Loaders) -> int | None:
    """Return the length of a loader, None if it cannot tell."""
    try:
        return len(dataloader)
    except (TypeError, NotImplementedError):
        return None


def has_iterable_dataset(dataloader: object) -> bool:
    """Tell whether a loader reads an IterableDataset."""
    from torch.utils.data import IterableDataset

    return isinstance(getattr(dataloader, "dataset", None), IterableDataset)


def has_len(dataloader: object) -> bool:
    """Tell whether a loader has a length, as far as it is to be believed."""
    return sized_len(dataloader) is not None and not has_iterable_dataset(dataloader)
