"""What the README and docs/ show runs, and leads somewhere.

Each Python block and each `raylit` command of a page runs in the order of the page, in one process
and one folder, with the names that every guide takes for granted: the model and the data of
examples/digits.py, and a Trainer. PL_TRAINER_* keep fits short where a page says nothing else.

Above a block that cannot run here stands why, and it is compiled only:

    <!-- not run: a bucket of yours -->
    <!-- long: two Ray workers -->           runs with `pytest -m long`
    <!-- pytest: the suite of loggers -->    is a file of tests, which then is run as one

Commands that start Ray run with `pytest -m long` too; those that cannot run are parsed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import raylit.callbacks
from tests.deadlines import stretched

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DIFFERENCES = ROOT / "docs" / "coming-from-lightning.md"
BLOCK = re.compile(r"^(?:<!-- (.*?) -->\n)?```(\w+)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ENVIRONMENT = {
    "PL_TRAINER_MAX_EPOCHS": "1",
    "PL_TRAINER_LIMIT_TRAIN_BATCHES": "2",
    "PL_TRAINER_LIMIT_VAL_BATCHES": "1",
    "PL_TRAINER_LIMIT_TEST_BATCHES": "1",
    "PL_TRAINER_LIMIT_PREDICT_BATCHES": "1",
    "PL_TRAINER_LOG_EVERY_N_STEPS": "1",
    "PL_TRAINER_ENABLE_MODEL_SUMMARY": "False",
}
SHORT = "--trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.max_epochs 2"
# Why a command is only parsed; where it runs instead.
NOT_RUN = {
    r"^ui\b": "serves until Ctrl-C: tests/cli/test_ui.py",
    r"--ray\.address": "names a cluster of yours: tests/cluster",
    r"--on ": "names a cluster of yours: tests/cluster/test_jobs.py",
    r"--resume \S+-\d{8}-": "names a sweep of yours: tests/tune/test_sweep.py",
    r"s3://|gs://": "names a bucket of yours: tests/runtime/test_storage.py",
}
COMMANDS_WITH_CONFIG = ("check", "fit", "validate", "test", "predict", "explain", "export", "tune")
LONG = r"num_workers|^tune\b|async_validation"


@dataclass
class Block:
    """A block of code on a page."""

    page: Path
    line: int
    mark: str
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def code(self) -> Any:
        """Compile it, with the lines of the page."""
        return compile("\n" * (self.line - 1) + self.text, str(self.page), "exec")

    def commands(self) -> Iterator[list[str]]:
        """Give what stands behind each `raylit`."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), "&&"]:
                if word in ("&&", "|", ">", "&", ";"):
                    if words and Path(words[0]).name == "raylit":
                        yield words[1:]
                    words = []
                elif not re.fullmatch(r"[A-Z_]+=.*", word) or words:
                    words.append(word)


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start(3)) + 1
        yield Block(page, line, found[1] or "", found[2], found[3])


def why_not(command: list[str]) -> str | None:
    """Return why a command is only parsed."""
    text = shlex.join(command)
    return next((reason for word, reason in NOT_RUN.items() if re.search(word, text)), None)


def parse(command: list[str]) -> None:
    """Check a command's flags, and its config and sweep against the parser."""
    from raylit.cli import data
    from raylit.cli.command import take_options
    from raylit.cli.config import parse as parse_config

    if command[0] == "data":
        data._parser(command[1]).parse_args(command[2:])
        return
    options, rest = take_options(command[0], command[1:])
    if command[0] != "ui" and "--config" in rest:
        parse_config(command[0], rest)
    if getattr(options, "sweep", None):
        check_sweep(Path(options.sweep).read_text())


def check_sweep(text: str) -> None:
    """Check a sweep file: its settings, search, scheduler and space."""
    import yaml

    from raylit.tune.spec import SweepSpec

    assert SweepSpec.from_dict(yaml.safe_load(text)).space


def run(command: list[str], where: str) -> None:
    from raylit.cli.command import main

    flags: list[str] = []
    if command[0] in COMMANDS_WITH_CONFIG and not {"--print_config", "--help"} & set(command):
        flags = SHORT.split()
    assert main([*command, *flags]) == 0, f"{where}: raylit {shlex.join(command)}"


def run_as_tests(block: Block) -> None:
    file = Path(f"test_{block.line}.py")
    file.write_text(block.text)
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=stretched(300),
        check=False,
    )
    assert done.returncode == 0, f"{block.where}:\n{done.stdout}"
    assert re.search(r"[1-9]\d* passed", done.stdout), done.stdout


def at_hand() -> dict[str, Any]:
    """Return the names that each guide takes for granted; docs/README.md says so."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    import raylit as pl
    from examples.digits import DigitsData, LitDigits

    data = DigitsData()
    data.setup("fit")
    return {
        "__name__": "__main__",
        "pl": pl,
        "torch": torch,
        "nn": nn,
        "DataLoader": DataLoader,
        "LitDigits": LitDigits,
        "DigitsData": DigitsData,
        "model": LitDigits(width=8),
        "data": data,
        "loader": data.train_dataloader(),
        "trainer": pl.Trainer(),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as after `git clone`, with a table that docs/data.md speaks of."""
    import pyarrow as pa
    import pyarrow.csv

    here = tmp_path_factory.mktemp("docs")
    for name in ("configs", "examples", "cluster"):
        (here / name).symlink_to(ROOT / name)
    houses = pa.table(
        {
            "rooms": [2.5, 3.0, 4.0, 5.0] * 50,
            "kind": ["flat", "house", "flat", "hut"] * 50,
            "price": [number + 0.5 for number in range(200)],
        }
    )
    with pa.CompressedOutputStream(str(here / "houses.csv.gz"), "gzip") as file:
        pyarrow.csv.write_csv(houses, file)
    return here


def follow(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, long: bool) -> None:
    """Do what a page shows, from top to bottom."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] | None = None
    for block in blocks(page):
        kind, _, reason = block.mark.partition(": ")
        known = kind in ("not run", "long", "pytest") and reason
        assert block.mark == "" or known, block.where
        skipped = kind == "not run" or (kind == "long" and not long)
        if block.language == "python":
            code = block.code()
            if kind == "pytest" and long:
                run_as_tests(block)
            if not skipped:
                names = names or at_hand()
                exec(code, names)
        elif block.language == "yaml":
            check_sweep(block.text)
        elif block.language == "bash":
            for command in block.commands():
                waits = re.search(LONG, shlex.join(command)) and not long
                if skipped or waits or why_not(command):
                    parse(command)
                else:
                    run(command, block.where)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        follow(page, folder, monkeypatch, long=False)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs_on_ray_too(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: str
) -> None:
    follow(page, folder, monkeypatch, long=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", prose):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if heading:
            assert heading in {anchor(line) for line in target.read_text().splitlines()}, link


def anchor(line: str) -> str:
    """Return what a link to a heading is called."""
    words = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower())
    return words.replace(" ", "-") if line.startswith("#") else ""


def rows() -> list[str]:
    """Return the rows of the tables of differences."""
    part = DIFFERENCES.read_text().split("## Where raylit differs on purpose")[1]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [line for line in lines if not line.startswith(("| |", "|---"))]


def test_each_callback_is_told() -> None:
    told = set(re.findall(r"`(\w+)`", (ROOT / "docs/reference.md").read_text()))
    assert set(raylit.callbacks.__all__) <= told


def test_each_variable_is_told() -> None:
    """All of raylit's own but those by which its processes tell each other something."""
    between = {"RAYLIT_", "RAYLIT_ON", "RAYLIT_IMPORTED_BEFOREHAND", "RAYLIT_TERMINATED"}
    sources = [path.read_text() for path in (ROOT / "raylit").rglob("*.py")]
    read = {name for text in sources for name in re.findall(r"\bRAYLIT_[A-Z_]*", text)}
    page = (ROOT / "docs" / "reference.md").read_text()
    assert read - between == set(re.findall(r"`(RAYLIT_[A-Z_]+)`", page))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split(" | ")[0][2:])
def test_each_difference_from_lightning_has_a_test(row: str) -> None:
    proofs = re.findall(r"\[test\]\(([^)\s]+) \"(\w+)\"\)", row.split(" | ")[-1])
    assert proofs, 'the last cell names the test: [test](../tests/parity/test_x.py "test_y")'
    for file, name in proofs:
        path = (DIFFERENCES.parent / file).resolve()
        assert path.is_file(), file
        assert re.search(rf"^(?:def {name}\(|@parity\ndef {name}\()", path.read_text(), re.M), name
