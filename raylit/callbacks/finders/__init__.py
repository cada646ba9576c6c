"""Callbacks that try steps out, undo them and set what they found: a learning rate, a batch size.

From outside, import them from `raylit.callbacks`; `Tuner.lr_find` and `Tuner.scale_batch_size` use
them. Never here: sweeps of many fits, which are in `raylit/tune`.
"""
