from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from raylit.cli.completion import completion
from raylit.cli.help import HELP
from raylit.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["fi"], "fit"),
        (["fit", "--trainer.max_e"], "--trainer.max_epochs"),
        (["predict", "--outp"], "--output"),
        (["ui", "--au"], "--auth"),
    ],
    ids=str,
)
def test_bash_completes(tmp_path: Path, words: list[str], wanted: str) -> None:
    (tmp_path / "raylit.bash").write_text(completion("bash"))
    line = " ".join(f"'{word}'" for word in ["raylit", *words])
    script = (
        f"source raylit.bash; COMP_WORDS=({line}); COMP_CWORD={len(words)};"
        f" _shtab_raylit raylit '{words[-1]}' x 2>/dev/null; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert wanted in done.stdout.split(), (done.stdout, done.stderr)


def test_of_a_shell_that_is_not_known() -> None:
    assert "raylit" in completion("zsh")
    with pytest.raises(ConfigError, match="bash, zsh"):
        completion("cmd")


def test_every_flag_of_the_help_is_completed() -> None:
    script = completion("bash")

    def completed(command: str) -> set[str]:
        found = re.search(rf"^_shtab_raylit{command}_option_strings=\((.*)\)$", script, re.M)
        assert found is not None
        return {word.strip("'\"") for word in found[1].split()}

    example = {"--trainer.NAME", "--model.lr"}
    for command, text in HELP.items():
        flags = set(re.findall(r"(?<![\w.])--?[a-z][\w.-]*", text)) - example
        assert flags <= completed(f"_{command}"), flags - completed(f"_{command}")
    assert {"--help", "--version", "--print_completion"} <= completed("")
