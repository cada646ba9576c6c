"""Callbacks that find a learning rate or a batch size by steps that are undone.

From outside, import them from `raylit.callbacks`; `Tuner.lr_find` and `Tuner.scale_batch_size` use
them. Never here: sweeps of many fits, which are in `raylit/tune`.
"""
