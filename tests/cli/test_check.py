"""`raylit check`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from .conftest import Done, run_raylit

MODEL = """

class Unused(Net):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)
"""


def test_a_good_model_ends_with_0(digits: Path) -> None:
    before = sorted(path for path in digits.rglob("*") if "__pycache__" not in path.parts)
    done = run_raylit(digits, "check", "--config", "configs/digits.yaml")
    assert done.code == 0, done
    assert "raylit check: LitDigits on DigitsData, in this process" in done.err
    found = dict(re.findall(r"^ (\w+(?: batch)?) +(ok|unknown|warning|problem)", done.out, re.M))
    assert found.pop("time") in ("ok", "warning")  # it goes by the clock
    assert found == dict.fromkeys(
        ("steps", "gradients", "optimizers", "finite", "samples", "loss", "one batch", "memory"),
        "ok",
    )
    assert sorted(path for path in digits.rglob("*") if "__pycache__" not in path.parts) == before


def test_a_problem_ends_with_1(main: Callable[..., Done], lab: Path) -> None:
    (lab / "lab.py").write_text((lab / "lab.py").read_text() + MODEL)
    done = main(
        "check", "--model", "lab.Unused", "--data", "lab.Diabetes", "--trainer.max_epochs", "1"
    )
    assert done.code == 1
    assert "no gradient reaches unused.weight, unused.bias" in done.out
    assert "Traceback" not in done.err


def test_an_error_of_the_model_and_a_wrong_config(main: Callable[..., Done]) -> None:
    done = main(
        "check",
        "--model",
        "lab.Broken",
        "--data",
        "lab.Diabetes",
        "--trainer.max_epochs=1",
        "--model.at",
        "step",
    )
    assert done.code == 1
    assert "in deeper" in done.err
    done = main("check", "--model", "lab.Nett")
    assert done.code == 2
    assert "Did you mean 'Net'?" in done.err


def test_the_config_of_a_fit_can_be_checked(main: Callable[..., Done], lab: Path) -> None:
    config = main(
        "fit",
        "--model",
        "lab.Net",
        "--data",
        "lab.Diabetes",
        "--trainer.max_epochs",
        "1",
        "--print_config",
    ).out
    (lab / "config.yaml").write_text(config)
    assert main("check", "--config", "config.yaml").code == 0
    with_checkpoint = main("check", "--config", "config.yaml", "--ckpt_path", "last")
    assert with_checkpoint.code == 0
    assert "ckpt_path: last is left out" in with_checkpoint.err
