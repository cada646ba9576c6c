"""`Trainer.explain`: how much each part of an input speaks for an output.

`explain.py` is the task, on every rank; `inputs.py` makes a module a function of the inputs to be
explained; `methods.py` are captum's methods; `explanation.py` is the result for the user. From
outside, the Trainer, `AttributionLogger` and the command line import it. Never here: anything that
changes a model.
"""

from raylit.explain.explain import Explain
from raylit.explain.explanation import Explanation
from raylit.explain.methods import METHODS

__all__ = ["METHODS", "Explain", "Explanation"]
