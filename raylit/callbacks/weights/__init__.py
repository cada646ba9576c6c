"""Callbacks that change or average weights.

Averaging, freezing, pruning, regularization, accumulation.

From outside, import them from `raylit.callbacks`.
Never here: the optimizer step itself, which is in `raylit/engine`.
"""
