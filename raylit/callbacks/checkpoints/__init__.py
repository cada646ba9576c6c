"""Callbacks that save checkpoints.

From outside, import them from `raylit.callbacks`.
Never here: the format of a checkpoint, which is in `raylit/checkpoint`.
"""
