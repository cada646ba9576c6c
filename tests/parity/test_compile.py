"""What `torch.compile` returned, given to the Trainer: it trains as the model itself.

The backend is the eager one: numbers are bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.harness import loader, model_class, parity, rows, seen, trainer


@parity
@pytest.mark.parametrize(
    "arguments", [{}, {"accumulate_grad_batches": 2}, {"precision": "64-true"}], ids=str
)
def test_a_compiled_model(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> Any:
    class Silent(model_class(pl)):  # type: ignore[misc]
        """Logs nothing: Lightning cannot compile what logs, see test_differences."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.loss(batch)

        test_step = validation_step

    torch._dynamo.reset()
    model = torch.compile(Silent(), backend="eager")
    one = trainer(pl, tmp_path, **arguments)
    one.fit(model, loader(3), loader(2, seed=1))
    path = tmp_path / "kept.ckpt"
    one.save_checkpoint(path)
    stored = torch.load(path, weights_only=False)
    return {
        **seen(one),
        "rows": rows(one),
        "keys": list(stored["state_dict"]),
        "test": one.test(model, loader(2), verbose=False),
    }
