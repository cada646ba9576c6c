"""How a step flows.

Open `loop.py` first, then `evaluation.py`, `optimizers.py`, `run.py` and `worker.py` (the life of
one rank).

From outside, `launch/` calls `worker.run_job`, with `signals.terminating` around it. The Trainer,
the watchdog, checks, exports, explanations, finders and sweeps work with the Run (`run.py`), and
some of them take single functions from other modules. All other callbacks see of the Run only
`core.trainer.RunHandle`. Never here: how processes are started, the callbacks and loggers that we
ship, and heavy packages other than torch.
"""
