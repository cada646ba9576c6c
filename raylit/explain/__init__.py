"""`Trainer.explain`: how much each part of an input speaks for an output.

`explain.py` is the task, on every rank; `inputs.py` makes of a module a function of what is to be
explained; `methods.py` are captum's methods; `explanation.py` is what the user gets. From outside,
the Trainer, `AttributionLogger` and the command line import it. Never here: what changes a model.
"""

from raylit.explain.explain import Explain
from raylit.explain.explanation import Explanation
from raylit.explain.methods import METHODS

__all__ = ["METHODS", "Explain", "Explanation"]
