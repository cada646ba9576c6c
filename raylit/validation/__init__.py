"""Validation that training does not wait for: what is pending, and what becomes of its values.

From outside, the engine begins and collects validations; `launch/on_ray/validation.py` runs one as
a Ray task. Never here: Ray itself.
"""
