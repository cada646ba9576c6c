"""Logs as a training does, and goes on from its checkpoint: python log.py FOLDER URI STEPS PAUSE_S.

It imports no torch, so that it can be killed and started again often.
"""

from __future__ import annotations

import pickle
import sys
import time
from pathlib import Path

from raylit.loggers.mlflow.logger import MLFlowLogger

CHECKPOINT_EVERY = 17


def values(step: int) -> dict[str, float]:
    """What is logged at a step."""
    logged = {"train/loss": 1 / (step + 1), "acc@1": step / 3, "nan": float("nan")}
    return logged | ({"val/loss": step**0.5} if step % 10 == 9 else {})


def expected(steps: int) -> dict[tuple[str, int], float]:
    """All that is in the run at the end."""
    return {
        (name.replace("@", ""), step): value
        for step in range(steps)
        for name, value in values(step).items()
    }


def main(folder: Path, uri: str, steps: int, pause_s: float) -> None:
    """Log to the end, from the checkpoint if there is one."""
    logger = MLFlowLogger("kill", tracking_uri=uri, save_dir=folder)
    step = 0
    if (folder / "checkpoint").exists():
        step, state = pickle.loads((folder / "checkpoint").read_bytes())
        logger.resume(state["run_id"])
        logger.load_state_dict(state)
    logger.open(default_root_dir=str(folder), tags={})
    if step:
        logger.load_state_dict(state)  # as rank 0 does
    logger.log_hyperparams({"lr": 0.1})
    while step < steps:
        logger.log_metrics(values(step), step)
        step += 1
        if step % CHECKPOINT_EVERY == 0:
            state = logger.state_dict()
            logger.settle(10)
            (folder / "new").write_bytes(pickle.dumps((step, state)))
            (folder / "new").rename(folder / "checkpoint")
        with (folder / "steps").open("a") as file:
            file.write(".")
        time.sleep(pause_s)
    logger.finalize("success")
    logger.close("success")
    (folder / "run_id").write_text(str(logger.run_id))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
