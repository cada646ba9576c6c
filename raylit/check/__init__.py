"""`raylit check`: faults of a module, found on a few batches before a long run.

From outside, `check.py` is imported by the Trainer and the command line; `probe.py` by `check.py`
alone. Never here: a change that outlasts the check.
"""
