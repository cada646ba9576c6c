"""Checkpoints: their file format, writing them whole, finding the newest, folders of sharded ones.

From outside, any module but `place` may be imported; the names that most need are found here too.
Never here: the parts of a run's state, which `engine/state.py` puts together.
"""

from raylit.checkpoint import find, pending, sharded
from raylit.checkpoint.format import load, save
from raylit.checkpoint.plain import plain_items, to_plain
from raylit.checkpoint.sharded import to_one_file

__all__ = ["find", "load", "pending", "plain_items", "save", "sharded", "to_one_file", "to_plain"]
