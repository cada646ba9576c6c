"""Callbacks that save what a fit can go on from, and the base that tells the Trainer to call them last.

From outside, import them from `raylit.callbacks`.
Never here: the format of a checkpoint, which is in `raylit/checkpoint`.
"""
