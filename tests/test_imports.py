"""Who may import what, where import-linter cannot see it, and what `import raylit` may load.

import-linter squashes an outside package to its name, so it cannot tell ray.train from ray.tune or
torch.distributed from torch.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raylit
from tests.deadlines import stretched

PACKAGE = Path(raylit.__file__).parent

ONLY_PLACES = {  # a package, and the parts of raylit that may use it
    "ray.train": {"launch"},
    "ray.tune": {"tune"},
    "ray.data": {"data"},
    "torch.distributed": {"parallel", "checkpoint", "data", "launch"},  # launch: its launcher
}
NOT_LOADED = ("ray", "mlflow", "pyarrow", "jsonargparse", "lightning", "pytorch_lightning")
# what few users of a Trainer need, nor anybody before it does something
NOT_LOADED_BY_THE_TRAINER = (
    *NOT_LOADED,
    "decimal",
    "numpy.random",
    "pstats",
    "raylit.callbacks.finders",
    "raylit.callbacks.weights",
    "raylit.check",
    "raylit.engine.worker",
    "raylit.explain",
    "raylit.export",
    "raylit.validation.pending",
)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run: those below `if TYPE_CHECKING:` do not."""
    yield node
    children = node.orelse if is_type_checking(node) else ast.iter_child_nodes(node)  # type: ignore[attr-defined]
    for child in children:
        yield from walk(child)


def dotted_names(source: str) -> Iterator[tuple[int, str]]:
    """Each outside name that `source` imports or reaches through a dot, with its line.

    For example `import ray.train` and `ray.train.report`.
    """
    for node in walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.lineno, ast.unparse(node)


def uses(source: str, package: str) -> list[int]:
    """The lines of `source` that use `package` or something in it."""
    return sorted(
        {line for line, name in dotted_names(source) if f"{name}.".startswith(f"{package}.")}
    )


@pytest.mark.parametrize(
    "source",
    [
        "import ray.train",
        "import ray.train.torch as rt",
        "from ray import train",
        "from ray.train import report",
        "from ray.train.torch import TorchTrainer",
        "import ray\ndef f():\n    ray.train.report({})",
        "def f():\n    from ray import train",
    ],
)
def test_every_spelling_of_a_use_is_seen(source: str) -> None:
    assert uses(source, "ray.train")


@pytest.mark.parametrize(
    "source",
    [
        "import ray",
        "from ray import trainer",
        "import ray.trainer",
        "from .ray import train",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ray import train",
    ],
)
def test_what_is_no_use_is_not_seen(source: str) -> None:
    assert not uses(source, "ray.train")


@pytest.mark.parametrize("package", ONLY_PLACES)
def test_a_heavy_package_is_used_only_in_its_place(package: str) -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert files
    elsewhere = [
        f"raylit/{file.relative_to(PACKAGE)}:{line}"
        for file in files
        if file.relative_to(PACKAGE).with_suffix("").parts[0] not in ONLY_PLACES[package]
        for line in uses(file.read_text(encoding="utf-8"), package)
    ]
    assert not elsewhere, f"{package} may be used only in {sorted(ONLY_PLACES[package])} of raylit"


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("import raylit", NOT_LOADED),
        ("import torch, raylit; raylit.Trainer", NOT_LOADED_BY_THE_TRAINER),
    ],
    ids=["raylit", "Trainer"],
)
def test_importing_loads_only_what_is_needed(statement: str, names: tuple[str, ...]) -> None:
    script = f"import sys; {statement}; print(*[name for name in {names} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=stretched(120),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], (
        "importing must be quick: load these where they are first used"
    )


def test_all_public_names_exist() -> None:
    assert len(raylit.__all__) == len(set(raylit.__all__))
    missing = [name for name in raylit.__all__ if not hasattr(raylit, name)]
    assert not missing
