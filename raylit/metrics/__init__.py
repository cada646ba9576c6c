"""Values that `self.log` receives.

Kept without waiting for the device, averaged over an epoch, reduced over the ranks.

From outside, `metrics.py` is imported by the engine, and `entry.py` (one key) by nobody else.
Never here: loggers, callbacks, or anything that reads a value within a step.
"""
