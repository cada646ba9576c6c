from __future__ import annotations

from pathlib import Path

import pytest

from raylit.cli.source import dotted, read_arguments, read_file, where_given, with_flags
from raylit.errors import ConfigError

TEXT = """\
# a comment
trainer:
  max_epochs: 3
  callbacks:
  - class_path: a.B
    init_args:
      monitor: x
  - class_path: a.C
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("trainer",), 2),
        (("trainer", "max_epochs"), 3),
        (("trainer", "callbacks", 0), 5),
        (("trainer", "callbacks", 0, "init_args", "monitor"), 7),
        (("trainer", "callbacks", 1, "class_path"), 8),
        (("trainer", "callbacks", 1, "nothing", "there"), 8),
    ],
)
def test_a_file_knows_the_line_of_each_key(
    config: Path, path: tuple[str | int, ...], line: int
) -> None:
    assert read_file(str(config), "--config").where(path) == f"{config}, line {line}"


def test_arguments_are_read_in_their_order(config: Path) -> None:
    args = [
        "--trainer.max_epochs=4",
        "--config",
        str(config),
        "--model",
        "a.B",
        "--model.lr",
        "-1",
        "-c",
        str(config),
    ]
    sources = read_arguments(args)
    assert [source.name for source in sources] == [
        "--trainer.max_epochs",
        str(config),
        "--model",
        "--model.lr",
        str(config),
    ]
    assert [source.values for source in sources if source.root is None] == [
        {"trainer": {"max_epochs": 4}},
        {"model": "a.B"},
        {"model": {"lr": -1}},
    ]


def test_the_last_that_was_given_is_found(config: Path) -> None:
    sources = read_arguments(
        ["--config", str(config), "--trainer.min_epochs=1", "--trainer.callbacks+=D"]
    )
    assert where_given(sources, ["trainer", "max_epochs"]) == f"{config}, line 3"
    assert where_given(sources, ["trainer", "min_epochs"]) == "--trainer.min_epochs"
    assert where_given(sources, ["trainer", "callbacks"]) == "--trainer.callbacks+"
    assert where_given(sources, ["trainer", "max_steps"]) is None


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert read_file(str(tmp_path / "empty.yaml"), "--config").values == {}


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config .*: it is a folder, no file"):
        read_file(str(tmp_path), "--config")


def test_paths_are_written_as_users_do() -> None:
    assert (
        dotted(("trainer", "callbacks", 0, "init_args", "monitor"))
        == "trainer.callbacks[0].init_args.monitor"
    )


def test_a_flag_replaces_a_key_that_a_file_writes_in_one(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("space: {trainer.max_epochs: 6, model: {lr: 0.1}, model.act.p: {uniform: 1}}")
    flags = ["--sweep.space.trainer.max_epochs", "2", "--sweep.space.model.lr", "0.2"]
    flags += ["--sweep.space.model.act.p", "{choice: [1]}", "--sweep.space.data.size", "3"]
    found = with_flags(read_file(str(file), "--sweep"), flags, "sweep").values
    assert found["space"] == {
        "trainer.max_epochs": 2,
        "model": {"lr": 0.2},
        "model.act.p": {"choice": [1]},
        "data": {"size": 3},
    }
