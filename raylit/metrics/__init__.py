"""Values that `self.log` receives.

Kept without waiting for the device, averaged over an epoch, reduced over the ranks.

From outside, the engine imports `metrics.py`, `entry.py` (one key) and `torchmetric.py`, which the
finders import too; whoever needs plain numbers takes `to_numbers` from `metrics.py`.
Never here: loggers, callbacks, or anything that reads a value within a step.
"""
