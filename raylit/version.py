"""The version of raylit."""

__version__ = "0.1.0"
