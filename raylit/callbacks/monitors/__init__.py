"""Callbacks that watch a run: its metrics, learning rates, devices, speed and time.

Some of them stop it.

From outside, import them from `raylit.callbacks`.
Never here: anything drawn on a screen.
"""
