"""`raylit init NAME`: a project that runs, with tests that pass at once."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from raylit.cli import report
from raylit.errors import ConfigError
from raylit.runtime.storage import unwritable

TEMPLATE = Path(__file__).with_name("template")
MOST_BYTES = 200  # in a name; file systems take 255, and files beside it need some
OWN_MODULES = ("model.py", "data.py")  # those that go into the project's package


def run(args: list[str]) -> None:
    """Write a project into a new folder.

    Args:
        args: the name of the folder, or a path that ends in it.

    Raises:
        ConfigError: it is no name, or something of this name is there.
    """
    args = [arg for arg in args if arg != "--verbose"]
    if len(args) != 1 or args[0].startswith("-"):
        raise ConfigError(
            f"raylit init takes one name, but got {' '.join(args) or 'none'}. Write: raylit init"
            " my-project"
        )
    if "\0" in args[0] or len(os.fsencode(Path(args[0]).name)) > MOST_BYTES:
        raise ConfigError(
            f"raylit init: no folder can be called {args[0][:40]!r}... Give a name of at most"
            f" {MOST_BYTES} letters, digits and -, such as my-project."
        )
    target = Path(args[0])
    name = target.resolve().name
    package = check_name(name)
    if os.path.lexists(target):
        raise ConfigError(
            f"raylit init would make the folder {target}, but there is one, and nothing is"
            " overwritten. Give another name, or move it."
        )
    parent = target.resolve().parent
    problem = unwritable(str(parent))
    if problem is not None:
        raise ConfigError(f"raylit init cannot write {target}: {problem}. Give another place.")
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".init-") as scratch:
        made = Path(scratch) / name
        made.mkdir()
        files = write(made, name, package)
        if os.path.lexists(target):
            raise ConfigError(
                f"{target} was made by another process meanwhile. Nothing was written."
            )
        shutil.move(made, target)
    rows = [("made", f"{report.shown(str(target.resolve()))}: {', '.join(files)}")]
    rows.append(
        ("next", f"cd {target} && python -m pytest && raylit fit --config configs/fit.yaml")
    )
    report.print_rows(rows)


def check_name(name: str) -> str:
    """Return the name of the Python package of a project.

    Raises:
        ConfigError: none can be made of the name, or there is a module of that name.
    """
    package = re.sub(r"[-. ]", "_", name).lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", package) or keyword.iskeyword(package):
        raise ConfigError(
            f"raylit init {name}: no Python package can be called {package!r}. Give a name of"
            " letters, digits and -, such as my-project."
        )
    taken = {"tests", "configs", "raylit", "torch", "ray", "mlflow", *sys.stdlib_module_names}
    if package in taken:
        raise ConfigError(
            f"raylit init {name}: the package {package!r} would stand in the way of another of that"
            f" name. Give another name, such as my-{name}."
        )
    return package


def write(folder: Path, name: str, package: str) -> list[str]:
    """Write the files of a project into a folder; returns their paths in it."""
    files = []
    for source in sorted(TEMPLATE.rglob("*.in")):
        if source.is_dir():
            continue
        relative = source.relative_to(TEMPLATE).with_suffix("")  # without .in
        if str(relative) in OWN_MODULES:
            relative = Path(package, relative)
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text().replace("{name}", name).replace("{package}", package)
        path.write_text(text)
        files.append(str(relative))
    (folder / package / "__init__.py").write_text(f'"""{name}."""\n')
    return files
