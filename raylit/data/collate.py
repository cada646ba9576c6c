"""collate_missing: batches of samples that do not all have the same modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from raylit.errors import DataError
from raylit.runtime.batch import parts_of

PRESENT = "present"


def collate_missing(
    samples: Sequence[object], placeholder: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Make a batch of samples some of which lack a modality, and tell which.

    Args:
        samples: dicts, dataclasses or attrs objects; a modality that is missing is None, or no key.
        placeholder: an example of each modality that a whole batch may lack, such as
            `{"image": torch.zeros(1, 8, 8)}`; it takes the place of those that are missing. Without
            one, zeros (for text an empty one) in the shape that the other samples have.

    Returns:
        A dict with each modality collated, (samples, ...), and under `present` a dict with a mask
        for each, (samples,), True where the sample has it.

    Raises:
        DataError: a sample has no named parts, or a part is called `present`.

    Example:
        >>> samples = [{"image": torch.ones(2), "age": 3.0}, {"image": None, "age": 5.0}]
        >>> batch = collate_missing(samples)
        >>> batch["image"].tolist(), batch["present"]["image"].tolist()
        ([[1.0, 1.0], [0.0, 0.0]], [True, False])
        >>> from functools import partial
        >>> collate = partial(collate_missing, placeholder={"image": torch.zeros(2)})
        >>> loader = DataLoader(samples, batch_size=2, collate_fn=collate)
    """
    given = [dict(_named(sample)) for sample in samples]
    examples: dict[str, object] = {}
    for parts in given:
        for name, value in parts.items():
            if value is not None:
                examples.setdefault(name, value)
    stand_ins = {name: _nothing_like(value) for name, value in examples.items()}
    stand_ins |= dict(placeholder or {})
    if PRESENT in stand_ins:
        raise DataError(
            f"A modality is called {PRESENT!r}, which is where collate_missing puts the masks. Give"
            " it another name."
        )
    batch: dict[str, object] = {}
    masks: dict[str, Tensor] = {}
    for name, stand_in in stand_ins.items():
        values = [parts.get(name) for parts in given]
        masks[name] = torch.tensor([value is not None for value in values])
        batch[name] = default_collate([stand_in if value is None else value for value in values])
    return {**batch, PRESENT: masks}


def _named(sample: object) -> list[tuple[str, object]]:
    if isinstance(sample, (list, tuple)) and not hasattr(sample, "_fields"):
        parts = []  # which have positions, not names
    else:
        parts = list(parts_of(sample))
    if not parts:
        raise DataError(
            f"collate_missing got a {type(sample).__name__}, whose parts have no names. Let the"
            ' data set return a dict, such as {"image": image, "text": None}, a dataclass or an'
            " attrs object."
        )
    return parts


def _nothing_like(value: object) -> Any:
    """Return zeros, and empty texts, in the form of a modality."""
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if isinstance(value, np.ndarray):
        return np.zeros_like(value)
    if isinstance(value, (str, bytes)):
        return type(value)()
    if isinstance(value, (bool, int, float)):
        return type(value)(0)
    if isinstance(value, Mapping):
        return {key: _nothing_like(one) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_nothing_like, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(_nothing_like, value))
    raise DataError(
        f"collate_missing cannot stand in for a {type(value).__name__}. Give a placeholder for it:"
        " partial(collate_missing, placeholder={...})."
    )
