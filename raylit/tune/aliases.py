"""Names for the types of the values that a sweep tries and of its reports."""

from __future__ import annotations

from typing import Any, TypeAlias

Value: TypeAlias = Any  # what one key of a config or a space has: a number, a text, a class_path
Values: TypeAlias = dict[str, Any]  # those of a trial, by names such as `model.lr`
Report: TypeAlias = dict[str, Any]  # what Ray Tune is told of a trial: metrics and more, by name
