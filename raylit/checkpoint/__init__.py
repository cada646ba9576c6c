"""Checkpoints: what is in them, their file format, writing them whole, reading them safely."""

from raylit.checkpoint import find, pending, sharded
from raylit.checkpoint.file import load, plain_items, save, to_plain
from raylit.checkpoint.sharded import to_one_file
from raylit.checkpoint.state import dump, load_optimizer, read, restore_module, restore_training
from raylit.checkpoint.write import write

__all__ = [
    "dump",
    "find",
    "load",
    "load_optimizer",
    "pending",
    "plain_items",
    "read",
    "restore_module",
    "restore_training",
    "save",
    "sharded",
    "to_one_file",
    "to_plain",
    "write",
]
