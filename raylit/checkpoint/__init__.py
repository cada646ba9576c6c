"""Checkpoints: what is in them, their file format, writing them whole, reading them safely."""

from raylit.checkpoint import find
from raylit.checkpoint.file import load, plain_items, save, to_plain
from raylit.checkpoint.state import dump, load_optimizer, read, restore_module, restore_training

__all__ = ["dump", "find", "load", "load_optimizer", "plain_items", "read", "restore_module", "restore_training", "save", "to_plain"]
