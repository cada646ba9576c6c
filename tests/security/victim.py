"""A user's module as an attacker would like it: it imports, wraps and subclasses what does harm."""

from __future__ import annotations

import enum
import functools
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch
from torch import nn

import raylit as pl
from raylit.testing import BoringModel

RAN: list[str] = []  # what was called

shell = os.system
nested = {"run": subprocess.run}
wrapped = functools.partial(os.system, "echo harm")


def harm(*args: Any, **kwargs: Any) -> None:
    RAN.append(f"harm{args}")


def activation(x: torch.Tensor) -> torch.Tensor:
    return x


@pl.allow
def squared(x: torch.Tensor) -> torch.Tensor:
    return x * x


def default_activation(x: torch.Tensor) -> torch.Tensor:
    return x


class Size(enum.Enum):
    SMALL = 1
    run = staticmethod(harm)


class Meta(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        RAN.append("Meta.__call__")
        return super().__call__(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        RAN.append(f"Meta.__getattr__({name})")
        return harm


class Odd(metaclass=Meta):
    helper = Popen
    shell = os.system

    @staticmethod
    def run(*args: Any) -> None:
        RAN.append("Odd.run")


class Block(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.width = width


@dataclass
class Options:
    width: int = 1
    size: Size = Size.SMALL


class Loud(Options):
    """Not a dataclass itself: its __init__ is its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        RAN.append("Loud.__init__")
        super().__init__(*args, **kwargs)


class Unpickled:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return harm, ("__reduce__",)

    def __setstate__(self, state: Any) -> None:
        RAN.append("__setstate__")


def renamed() -> type:
    """A class of another module that says that it was defined here."""

    class Renamed(Path):
        def __init__(self, *args: Any) -> None:
            RAN.append("Renamed.__init__")

    Renamed.__qualname__ = "Renamed"
    return Renamed


class Net(BoringModel):
    def __init__(
        self, act: Any = default_activation, norm: Any = None, width: int = 32, **more: Any
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.act = act


class Typed(BoringModel):
    """Its annotations have jsonargparse look names up."""

    def __init__(
        self,
        block: nn.Module | None = None,
        act: Callable[..., Any] | None = None,
        kind: type[nn.Module] | None = None,
        anything: Any = None,
        untyped=None,  # type: ignore[no-untyped-def]
        text: str = "",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.block, self.act, self.kind = block, act, kind
        self.anything, self.untyped, self.text = anything, untyped, text
