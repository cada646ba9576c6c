"""Callbacks that change or average weights: averaging, freezing, pruning, regularization, accumulation.

From outside, import them from `raylit.callbacks`.
Never here: the optimizer step itself, which is in `raylit/engine`.
"""
