"""Callbacks that show a model's results as figures, tables, images and texts in the loggers.

`picture.py` is the base that they share: it tells when a picture is due, and which part of a batch
is a prediction or a label; `chosen.py` picks samples, the same on any number of ranks. From
outside, the classes are imported, from `raylit.callbacks`. Never here: code that changes training;
an import of matplotlib before something is drawn.
"""
