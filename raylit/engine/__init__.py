"""How a step flows.

Open `loop.py` first, then `evaluation.py`, `optimizers.py`, `run.py` and `worker.py` (the life of
one rank).

From outside, `launch/` calls `worker.run_job`; the Trainer reads the Run; callbacks see of it
`core.trainer.RunHandle`. Never here: how processes are started, the callbacks and loggers that we
ship, and heavy packages other than torch.
"""
