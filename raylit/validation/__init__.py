"""Validation that training does not wait for.

`config.py` says how it runs, `pending.py` keeps the validations without values yet.

From outside, the Trainer imports `config.py`; the engine knows its contracts in `core/job.py`
alone. `launch/on_ray/validation.py` runs one as a Ray task. Never here: Ray itself.
"""
