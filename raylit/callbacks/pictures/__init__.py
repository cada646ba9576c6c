"""Pictures of what a model does: figures, tables, images and texts for the loggers.

`picture.py` is what they share: when one is due, and what of a batch is a prediction or a label;
`chosen.py` picks samples, the same on any number of ranks. From outside, the classes are imported,
from `raylit.callbacks`. Never here: what changes training; matplotlib, before something is drawn.
"""
