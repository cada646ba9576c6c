"""Callbacks that show a run in the terminal.

The progress bar, the screen it draws on, the summary of the model.

From outside, import them from `raylit.callbacks`; the launcher draws on a screen for its workers.
Never here: values that anything but the eye depends on.
"""
