"""`raylit check`: faults of a module, found on a few batches before a long run.

`check.py` runs the steps, `probe.py` watches them (with `calls.py`, `samples.py` and `memory.py`),
`judge.py` makes findings of its notes, `report.py` holds the findings.

From outside, `check.py` is imported by the Trainer and the command line. Never here: a change that
outlasts the check.
"""
