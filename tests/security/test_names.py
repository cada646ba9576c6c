"""What a checkpoint may name, and what it may not, however it is written."""

from __future__ import annotations

import functools
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import raylit as pl
from raylit.core.importable import find, find_public, restore
from raylit.errors import CheckpointError, ConfigError

from . import victim
from .victim import Net

HERE = victim.__name__

GOOD = {
    "torch.nn.modules.activation:ReLU": nn.ReLU,
    "torch.optim.adam:Adam": torch.optim.Adam,
    "torch.optim.lr_scheduler:StepLR": torch.optim.lr_scheduler.StepLR,
    "torch.nn.functional:relu": nn.functional.relu,
    "torch._C._nn:gelu": nn.functional.gelu,
    "torch.nn.functional:gelu": nn.functional.gelu,
    "torch:relu": torch.relu,
    "torch.nn.init:xavier_uniform_": nn.init.xavier_uniform_,
    f"{HERE}:Block": victim.Block,
    f"{HERE}:Options": victim.Options,
    f"{HERE}:Size": victim.Size,
    f"{HERE}:Size.SMALL": victim.Size.SMALL,
    f"{HERE}:squared": victim.squared,
    f"{HERE}:default_activation": victim.default_activation,
}


@pytest.mark.parametrize("path", GOOD)
def test_what_a_checkpoint_may_name(path: str) -> None:
    assert find(path, Net) is GOOD[path]


BAD = [
    # attributes of attributes: every module that a module has imported
    "torch:os.system",
    "torch:sys.modules",
    "torch.nn:modules.activation.torch.os.system",
    "torch.nn.functional:torch.os.system",
    "torch.optim:Optimizer.__init__.__globals__",
    "torch.hub:load",
    "torch:hub.load",
    "torch:load",
    "torch:save",
    "torch:from_file",
    "torch:compile",
    "torch._C:import_ir_module",
    "torch:import_ir_module",
    "torch.utils.cpp_extension:load",
    "torch.distributed.run:main",
    "torch.serialization:load",
    "torch.nn.modules.module:Module.apply",
    "torch.nn.functional:handle_torch_function",
    "torch.multiprocessing.spawn:spawn",
    # what the user's module has imported
    f"{HERE}:os.system",
    f"{HERE}:os",
    f"{HERE}:subprocess.Popen",
    f"{HERE}:Popen",
    f"{HERE}:shell",
    f"{HERE}:nested",
    f"{HERE}:wrapped",
    f"{HERE}:torch.nn.ReLU",
    f"{HERE}:Path",
    f"{HERE}:BoringModel",
    f"{HERE}:pl.Trainer",
    "__main__:os.system",
    "__main__:sys",
    # functions that nobody allowed, also of the user's own
    f"{HERE}:harm",
    f"{HERE}:activation",
    f"{HERE}:Odd.run",
    f"{HERE}:Odd.helper",
    f"{HERE}:Odd.shell",
    f"{HERE}:Odd.nothing",
    f"{HERE}:Unpickled.__reduce__",
    f"{HERE}:Net.__init__",
    f"{HERE}:Net.__class__",
    f"{HERE}:Net.__init__.__globals__",
    f"{HERE}:Net.load_from_checkpoint",
    # tricks with enumerations
    f"{HERE}:Size.run",
    f"{HERE}:Size.SMALL.value",
    f"{HERE}:Size.SMALL.__class__",
    f"{HERE}:Size.LARGE",
    f"{HERE}:Size.__members__",
    "enum:Enum",
    "signal:Signals.SIGKILL",
    # elsewhere
    "builtins:exec",
    "builtins:eval",
    "builtins:getattr",
    "builtins:type",
    "os:system",
    "posix:system",
    "subprocess:Popen",
    "functools:partial",
    "importlib:import_module",
    "operator:attrgetter",
    "pickle:loads",
    "ctypes:CDLL",
    "raylit.cli.command:main",
    "raylit.trainer.trainer:Trainer",
    "raylit.testing.modules:BoringModel",
    "antigravity:webbrowser",
    "this:s",
    # no names at all
    "",
    ":",
    "torch",
    "torch:",
    ":relu",
    "torch:relu:relu",
    "torch.nn.modules.activation:ReLU()",
    "torch.nn.modules.activation: ReLU",
    "torch.nn.modules.activation:ReLU\n",
    "torch.nn..modules:ReLU",
    "../torch:relu",
    "torch/nn:ReLU",
    # other characters that look the same, or are the same once normalized
    "torch.nn.modules.activation:ReLＵ",  # noqa: RUF001
    "tоrch:relu",  # noqa: RUF001
    "ｔorch:relu",  # noqa: RUF001
    "torch:ｏs.system",  # noqa: RUF001
]


@pytest.mark.parametrize("path", BAD)
def test_what_it_may_not_name(path: str) -> None:
    victim.RAN.clear()
    modules = set(sys.modules)
    with pytest.raises(ValueError):
        find(path, Net)
    with pytest.raises(ValueError):
        find_public(path.replace(":", "."), Net)
    assert not victim.RAN and set(sys.modules) <= modules


@pytest.mark.parametrize("path", [p for p in BAD if p.startswith((HERE, "torch:os", "os:"))])
def test_a_refused_name_says_how_to_allow_it_or_what_is_wrong(path: str) -> None:
    with pytest.raises(ValueError, match=r"raylit\.allow\(|was not defined there|was not imported"):
        find(path, Net)


def test_a_public_name_is_found_where_a_package_re_exports_it() -> None:
    assert find_public("torch.nn.ReLU", Net) is nn.ReLU
    assert find_public("torch.optim.Adam", Net) is torch.optim.Adam
    assert find_public("torch.relu", Net) is torch.relu
    assert find_public(f"{HERE}.Block", Net) is victim.Block


def test_nothing_of_the_users_own_is_imported(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "wiping.py").write_text("raise SystemExit('it ran')\nclass Block: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    package = types.ModuleType("wiping_user")
    cls = type("Net", (Net,), {"__module__": "wiping"})
    monkeypatch.setitem(sys.modules, "wiping_user", package)
    with pytest.raises(ValueError, match="was not imported"):
        find("wiping:Block", cls)


def test_a_class_that_says_it_was_defined_elsewhere(monkeypatch: Any) -> None:
    """`__module__` can be set; where its `__init__` was written cannot."""
    for made in (victim.renamed(), type("Foreign", (), {"__init__": pytest.raises.__init__})):
        name = made.__qualname__
        made.__module__ = HERE
        monkeypatch.setattr(victim, name, made, raising=False)
    assert find(f"{HERE}:Renamed", Net) is victim.Renamed  # type: ignore[attr-defined]
    foreign = types.FunctionType(
        (lambda self: None).__code__, {"__name__": "elsewhere"}, "__init__"
    )
    victim.Foreign.__init__ = foreign  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="may name"):
        find(f"{HERE}:Foreign", Net)


def test_two_functions_of_one_name(monkeypatch: Any) -> None:
    """The one that was allowed is found, whatever stands at its name now."""
    monkeypatch.setattr(victim, "squared", victim.harm)
    found = find(f"{HERE}:squared", Net)
    assert found is not victim.harm and found.__name__ == "squared"


HARM = {"plain": "echo harm"}
DESCRIPTIONS: list[Any] = [
    None,
    "torch:relu",
    [],
    {},
    {"path": None},
    {"path": ["torch", "relu"]},
    {"path": f"{HERE}:harm"},
    {"partial": {"path": "torch:os.system"}, "args": [HARM], "keywords": {}},
    {"partial": {"path": f"{HERE}:harm"}, "args": [HARM], "keywords": {}},
    {
        "partial": {"partial": {"path": "functools:partial"}, "args": [], "keywords": {}},
        "args": [{"path": "os:system"}, HARM],
        "keywords": {},
    },
    {"partial": {"path": "torch:relu"}, "args": [{"path": "os:system"}], "keywords": {}},
    {"partial": {"path": "torch:relu"}, "args": [], "keywords": {"x": {"path": "os:system"}}},
    {"partial": {"path": "torch:relu"}, "args": [], "keywords": {1: HARM}},
    {"partial": {"path": "torch:relu"}, "args": {"a": 1}, "keywords": {}},
    {"partial": {"path": "torch:relu"}, "args": [], "keywords": []},
    {"partial": HARM, "args": [], "keywords": {}},
    {"path": f"{HERE}:Loud", "fields": {}},
    {"path": f"{HERE}:Odd", "fields": {}},
    {"path": f"{HERE}:Block", "fields": {"width": {"plain": 3}}},
    {"path": f"{HERE}:Options", "fields": {"width": {"path": "os:system"}}},
    {"path": f"{HERE}:Options", "fields": [1]},
    {"path": "subprocess:Popen", "fields": {"args": HARM}},
]


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=str)
def test_descriptions_that_are_refused(description: Any, tmp_path: Path) -> None:
    victim.RAN.clear()
    with pytest.raises(ValueError):
        restore(description, Net)
    file = checkpoint_of(
        tmp_path, raylit={"hyper_parameters": {"hyper_parameters": {"act": description}}}
    )
    with pytest.raises(CheckpointError, match=r"'act'[\s\S]*load_from_checkpoint\(path, act="):
        Net.load_from_checkpoint(file)
    assert Net.load_from_checkpoint(file, act=None).act is None
    assert not victim.RAN


def test_a_description_that_multiplies_or_contains_itself() -> None:
    one: Any = {"path": "torch:relu"}
    for _ in range(60):
        one = {"partial": {"path": "torch:relu"}, "args": [one] * 8, "keywords": {}}
    with pytest.raises(ValueError, match=r"values when written out|nested too deep"):
        restore(one, Net)
    one["args"] = [one]
    with pytest.raises(ValueError, match="contains itself"):
        restore(one, Net)


def test_a_partial_of_what_is_known() -> None:
    described = {
        "partial": {
            "partial": {"path": "torch:sum"},
            "args": [],
            "keywords": {"dim": {"plain": 0}},
        },
        "args": [],
        "keywords": {},
    }
    found = restore(described, Net)
    assert isinstance(found, functools.partial) and found.func is torch.sum


def checkpoint_of(folder: Path, cls: type = Net, **parts: Any) -> Path:
    """A checkpoint of plain data, as anybody can write it."""
    file = folder / "evil.ckpt"
    content = {
        "state_dict": cls().state_dict(),
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.6.0",
        "hyper_parameters": {},
        "hparams_name": "kwargs",
        **parts,
    }
    torch.save(content, file)
    return file


# ---- allow ----


def test_allow_is_for_classes_and_functions_that_can_be_found() -> None:
    def local() -> None: ...

    for wrong in (local, lambda: 0, 3, "os.system", functools.partial(print)):
        with pytest.raises(ConfigError, match=r"raylit\.allow"):
            pl.allow(wrong)
    with pytest.raises(ConfigError, match="was given nothing"):
        pl.allow()


def test_what_was_allowed_is_found(monkeypatch: Any) -> None:
    monkeypatch.setattr("raylit.core.importable._allowed", {})
    with pytest.raises(ValueError, match=rf"raylit\.allow\({HERE}\.activation\)"):
        find(f"{HERE}:activation", Net)
    assert pl.allow(victim.activation) is victim.activation
    assert find(f"{HERE}:activation", Net) is victim.activation
    assert find_public(f"{HERE}.activation", Net) is victim.activation
    import signal

    pl.allow(signal.Signals)
    assert find("signal:Signals.SIGKILL", Net) is signal.SIGKILL


# ---- names that nobody thought of ----

PIECES = ["torch", "nn", "os", "system", "functional", "modules", "__init__", "__globals__", "sys"]
PIECES += [*HERE.split("."), "Size", "Odd", "SMALL", "harm", "Net", "subprocess", "Popen", "load"]
NAMES = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), min_size=1, max_size=5)


@given(NAMES.map(".".join), NAMES.map(".".join))
def test_whatever_is_found_is_known(module: str, name: str) -> None:
    victim.RAN.clear()
    modules = set(sys.modules)
    try:
        found = find(f"{module}:{name}", Net)
    except ValueError:
        found = nn.ReLU
    kind = found if isinstance(found, type) else type(found)
    assert issubclass(kind, types.FunctionType | types.BuiltinFunctionType) or (
        kind.__module__.startswith((HERE, "tests.", "torch.nn.", "torch.optim.", "torch."))
    )
    assert found not in (victim.harm, victim.Popen, victim.shell) and not victim.RAN
    assert all(one.startswith(("torch.", "torchmetrics")) for one in set(sys.modules) - modules)
