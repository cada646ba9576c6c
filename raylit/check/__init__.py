"""`raylit check`: faults of a module, found on a few batches before a long run.

`check.py` says what is run, `probe.py` watches it (with `calls.py`, `samples.py` and `memory.py`),
`judge.py` says what to think of it, `report.py` holds that.

From outside, `check.py` is imported by the Trainer and the command line. Never here: a change that
outlasts the check.
"""
