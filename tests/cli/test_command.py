"""What is refused and how, how failures are shown, and the exit codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from raylit.version import __version__
from tests.deadlines import stretched
from tests.engine.test_resume import bytes_read

from .conftest import Done, run_raylit

GOOD = ("--model", "lab.Net", "--data", "lab.Diabetes", "--trainer.max_epochs", "1")


# An argument of the base class
@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["fitt"], ["'fitt'", "Did you mean 'fit'?"]),
        (["--config", "x.yaml"], ["The command comes first"]),
        (["fit"], ["no model to fit", "--model package.module.Class"]),
        (
            ["fit", *GOOD, "--trainer.max_epoch", "3"],
            ["--trainer.max_epoch:", "Did you mean 'trainer.max_epochs'?"],
        ),
        (
            ["fit", *GOOD, "--trainer.max_epochs", "abc"],
            ["--trainer.max_epochs is 'abc', but must be int or null"],
        ),
        (["fit", *GOOD, "--trainer.max_epochs"], ["--trainer.max_epochs wants a value"]),
        (["fit", *GOOD, "--trainr.max_epochs=3"], ["'trainr'", "Did you mean 'trainer'?"]),
        (["fit", *GOOD, "--trainer", "3"], ["--trainer is 3"]),
        (["fit", *GOOD, "--seed", "1"], ["Did you mean 'seed_everything'?"]),
        (
            ["fit", *GOOD, "--seed_everything", "often"],
            ["--seed_everything is 'often', but must be bool or int"],
        ),
        (["fit", *GOOD, "stray"], ["'stray' is not expected here"]),
        (["fit", *GOOD, "-x", "3"], ["'-x' is not expected here"]),
        (["fit", *GOOD, "--verbos"], ["Did you mean '--verbose'?"]),
        (
            ["fit", *GOOD, "--config", "nosuch.yaml"],
            ["--config nosuch.yaml: there is no such file"],
        ),
        (
            ["fit", *GOOD, "--config", "nosuch/x.yaml"],
            ["--config nosuch/x.yaml", "There is no folder nosuch"],
        ),
        (["fit", "--model", "labb.Net"], ["no module 'labb'", "Did you mean 'lab'?"]),
        (["fit", "--model", "lab.Nett"], ["lab has no class 'Nett'. Did you mean 'Net'?"]),
        (["fit", "--model", "lab.Diabetes"], ["lab.Diabetes is no LightningModule"]),
        (
            ["fit", "--model", "untidy.Net"],
            [
                "importing untidy failed: NameError: name 'undefined' is not defined (untidy.py,"
                " line 2)"
            ],
        ),
        (
            ["fit", "--model", "needy.Net"],
            ["importing needy failed: No module named 'not_installed_here'"],
        ),
        (
            ["fit", *GOOD, "--model.lrr", "0.1"],
            ["--model.lrr: Net has no argument 'lrr'. Did you mean 'model.lr'?"],
        ),
        (["fit", *GOOD, "--model.lr", "fast"], ["--model.lr is 'fast', but must be float"]),
        (
            ["fit", *GOOD, "--model.widht", "3"],
            ["Did you mean 'model.width'?"],
        ),
        (
            ["fit", "--model", "lab.Broken", "--data", "lab.Diabetes"],
            ["--model:", "Broken needs the argument at"],
        ),
        (["fit", *GOOD, "--data.batch", "3"], ["Did you mean 'data.batch_size'?"]),
        (
            ["fit", *GOOD, "--trainer.callbacks+=ModelCheckpont"],
            ["Did you mean 'ModelCheckpoint'?"],
        ),
        (
            ["fit", *GOOD, "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitr=x"],
            ["Did you mean 'trainer.callbacks.monitor'?"],
        ),
        (
            ["fit", *GOOD, "--trainer.callbacks+=EarlyStopping"],
            ["EarlyStopping needs the argument monitor"],
        ),
        (["fit", *GOOD, "--trainer.callbacks", "3"], ["--trainer.callbacks is 3"]),
        (["fit", *GOOD, "--trainer.logger", "CSVLoger"], ["Did you mean 'CSVLogger'?"]),
        (
            [
                "fit",
                *GOOD,
                "--trainer.logger=CSVLogger",
                "--trainer.logger.save_dir=.",
                "--trainer.logger.nam=x",
            ],
            ["Did you mean 'trainer.logger.name'?"],
        ),
        (["fit", *GOOD, "--optimizer", "Adan"], ["Did you mean 'Adam'?"]),
        (
            ["fit", *GOOD, "--optimizer", "Adam", "--optimizer.lrr", "1"],
            ["Did you mean 'optimizer.lr'?"],
        ),
        (
            ["fit", *GOOD, "--optimizer", "SGD", "--lr_scheduler", "StepLR"],
            ["--lr_scheduler:", "StepLR needs the argument step_size"],
        ),
        (
            ["fit", *GOOD, "--trainer.accumulate_grad_batches", "0"],
            ["--trainer.accumulate_grad_batches: accumulate_grad_batches=0: give"],
        ),
        (
            ["fit", *GOOD, "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "3"],
            ["no optimizer for it", "--optimizer Adam"],
        ),
        (
            [
                "fit",
                *GOOD,
                "--optimizer=SGD",
                "--lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau",
            ],
            ["raylit.cli.ReduceLROnPlateau with monitor"],
        ),
        (["fit", *GOOD, "--resume"], ["--resume: there is nothing to go on from"]),
        (["fit", *GOOD, "--resume", "--ckpt_path", "x.ckpt"], ["Give one of the two"]),
        (["fit", *GOOD, "--ckpt_path", "x.ckpt"], ["'x.ckpt': there is no such file"]),
        (["test", *GOOD, "--ckpt_path", "best"], ["no checkpoint was saved"]),
        (
            ["predict", *GOOD, "--output", "nosuch/p.pt"],
            ["--output nosuch/p.pt: there is no folder nosuch"],
        ),
        (["fit", *GOOD, "--output", "p.pt"], ["a config has no key 'output'"]),
        (["tune", *GOOD], ["--sweep"]),
        (["tune", *GOOD, "--sweep", "nosuch.yaml"], ["--sweep nosuch.yaml: there is no such file"]),
        (["ui", "--prt", "3"], ["Did you mean '--port'?"]),
        (["ui", "--port", "x"], ["--port: invalid int value: 'x'"]),
        (["fit", "--modl.help", "x"], ["--modl.help: there is no such flag"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_refused_in_one_sentence(
    main: Callable[..., Done], lab: Path, args: list[str], wanted: list[str]
) -> None:
    (lab / "untidy.py").write_text("import raylit\nx = undefined\n")
    (lab / "needy.py").write_text("import not_installed_here\n")
    done = main(*args)
    assert done.code == 2
    said = [
        line
        for line in done.err.splitlines()
        if not line.startswith(("Seed set", "UserWarning: max_epochs"))
    ]
    assert len(said) == 1 and len(said[0]) < 320, done.err
    for text in wanted:
        assert text in said[0]
    assert not (lab / "lightning_logs").exists(), "nothing may have started"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "trainer:\n  max_epoch: 3",
            (
                "line 2: trainer.max_epoch: Trainer has no argument 'max_epoch'. Did you mean"
                " 'max_epochs'?"
            ),
        ),
        (
            "trainr:\n  max_epochs: 3",
            "line 1: a config has no key 'trainr'. Did you mean 'trainer'?",
        ),
        (
            "model:\n  class_path: lab.Net\n  init_args:\n    widht: 3",
            "line 4: model.init_args.widht: Net has no argument 'widht'. Did you mean 'width'?",
        ),
        (
            "model:\n  class_path: lab.Net\n  init_arg:\n    width: 3",
            "line 3: model.init_arg is not known beside class_path. Did you mean 'init_args'?",
        ),
        (
            "model:\n  class_path: lab.Net\n  width: 3",
            (
                "line 3: model.width is not known beside class_path. An argument of the class"
                " stands below init_args"
            ),
        ),
        (
            "data:\n  class_path: lab.Diabetes\n  init_args:\n    batch_size: many",
            "line 4: data.init_args.batch_size is 'many', but must be int.",
        ),
        (
            (
                "trainer:\n  callbacks:\n  - class_path: raylit.callbacks.ModelSummary\n  -"
                " class_path: raylit.callbacks.ModelCheckpoint\n    init_args:\n      monitr: x"
            ),
            (
                "line 6: trainer.callbacks[1].init_args.monitr: ModelCheckpoint has no argument"
                " 'monitr'. Did you mean 'monitor'?"
            ),
        ),
        (
            (
                "trainer:\n  logger:\n    class_path: raylit.loggers.MLFlowLogger\n    init_args:\n"
                "      experiment_nam: x"
            ),
            (
                "line 5: trainer.logger.init_args.experiment_nam: MLFlowLogger has no argument"
                " 'experiment_nam'. Did you mean 'experiment_name'?"
            ),
        ),
        (
            "trainer:\n  callbacks:\n  - class_path: lightning.fabric.Fabric",
            (
                "line 3: trainer.callbacks[0]: lightning.fabric.Fabric is no Callback. It is one of"
                " Lightning that raylit does not have"
            ),
        ),
        (
            (
                "model:\n  class_path: lab.Net\n  init_args:\n    encoder:\n      class_path:"
                " torch.nn.Linear\n      init_args: {in_feature: 4, out_features: 4}"
            ),
            (
                "line 6: model.init_args.encoder.init_args.in_feature: Linear has no argument"
                " 'in_feature'. Did you mean 'in_features'?"
            ),
        ),
        ("model: {class_path: [lab", "no valid YAML"),
        ("- model", "a config is a mapping of keys to values"),
    ],
)
def test_a_wrong_config_file_is_refused_with_the_line(
    main: Callable[..., Done], lab: Path, text: str, wanted: str
) -> None:
    (lab / "wrong.yaml").write_text(text)
    done = main("fit", *GOOD, "--config", "wrong.yaml")
    assert done.code == 2
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("raylit fit: wrong.yaml")
    assert wanted in done.err


def test_the_file_of_a_component_is_named_when_it_is_wrong(
    main: Callable[..., Done], lab: Path
) -> None:
    (lab / "net.yaml").write_text("class_path: lab.Net\ninit_args:\n  widht: 3\n")
    done = main("fit", *GOOD, "--model", "net.yaml")
    assert done.code == 2
    assert "net.yaml" in done.err and "Did you mean 'width'?" in done.err


def test_help_fits_on_a_screen_and_names_what_there_is(main: Callable[..., Done]) -> None:
    general = main("--help")
    assert general.code == 0
    assert main().out == general.out == main("-h").out
    for command in ("fit", "validate", "test", "predict", "tune", "ui"):
        done = main(command, "-h")
        assert done.code == 0 and f"\n  {command} " in general.out
        assert done.out.startswith(f"usage: raylit {command} ") and 8 < done.out.count("\n") < 30
    assert "--resume" in main("fit", "-h").out
    assert "--resume" not in main("test", "-h").out


def test_arguments_of_a_class_are_listed(main: Callable[..., Done]) -> None:
    done = main("fit", "--model.help", "lab.Net")
    assert done.code == 0
    assert (
        "--model.lr LR" in done.out and "default: 0.05" in done.out and "--model.width" in done.out
    )
    assert "--trainer.max_epochs" in main("fit", "--trainer.help").out
    assert "--optimizer.weight_decay" in main("fit", "--optimizer.help=Adam").out


def test_version(main: Callable[..., Done]) -> None:
    assert main("--version").out == f"raylit {__version__}\n"


def test_the_command_line_loads_neither_ray_nor_mlflow() -> None:
    script = (
        "import sys, raylit.cli; raylit.cli.main(['fit', '-h']); print(*[name for name in ('ray',"
        " 'mlflow', 'pyarrow', 'torch', 'numpy', 'jsonargparse') if name in sys.modules],"
        " file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=stretched(60),
        check=True,
    )
    assert done.stderr.split() == []


def test_an_error_of_user_code_shows_the_users_lines(main: Callable[..., Done]) -> None:
    args = (
        "fit",
        "--model",
        "lab.Broken",
        "--data",
        "lab.Diabetes",
        "--trainer.max_epochs=1",
        "--trainer.num_sanity_val_steps=0",
        "--model.at",
    )
    done = main(*args, "step")
    assert done.code == 1
    lines = done.err.splitlines()
    shown = lines[lines.index("Traceback, your code only (--verbose shows all):") :]
    files = [line for line in shown if line.lstrip().startswith("File")]
    assert len(files) == 2
    assert (
        files[0].endswith("in training_step")
        and files[1].endswith("in deeper")
        and "lab.py" in files[1]
    )
    assert any(
        line.startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied") for line in shown
    )
    assert shown[-1].startswith("(raylit) rank 0 of 1, epoch 0, batch")
    whole = main(*args, "step", "--verbose")
    assert whole.code == 1
    assert "raylit/engine/loop.py" in whole.err and "RuntimeError: mat1" in whole.err


def test_an_error_of_a_constructor_is_shown_as_it_is(main: Callable[..., Done]) -> None:
    done = main("fit", "--model", "lab.Broken", "--data", "lab.Diabetes", "--model.at", "init")
    assert done.code == 1
    assert "RuntimeError: no such head" in done.err and "in __init__" in done.err
    assert "jsonargparse" not in done.err


def test_wrong_use_of_raylit_in_user_code_shows_the_users_line(main: Callable[..., Done]) -> None:
    done = main(
        "fit",
        "--model",
        "lab.Broken",
        "--data",
        "lab.Diabetes",
        "--trainer.max_epochs=1",
        "--model.at",
        "log",
    )
    assert done.code == 2
    assert (
        'self.log("two_values", torch.ones(2))' in done.err
        and "ConfigError: self.log('two_values'" in done.err
    )


def test_the_installed_command_and_the_module_are_the_same(lab: Path) -> None:
    script = Path(sys.executable).with_name("raylit")
    done = subprocess.run(
        [script, "fit", *GOOD, "--print_config"],
        cwd=lab,
        capture_output=True,
        text=True,
        timeout=stretched(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["model"]["class_path"] == "lab.Net"
    assert run_raylit(lab, "fit", *GOOD, "--print_config").out == done.stdout


def test_a_checkpoint_is_read_once(main: Callable[..., Done], lab: Path) -> None:
    """Also to find it, to tell whether it is whole, and for the arguments that are in it."""
    flags = ("--model=lab.Net", "--data=lab.Diabetes", "--trainer.logger=false")
    wide = ("--model.width=60000",)
    assert main("fit", *flags, *wide, "--trainer.max_epochs=1").code == 0
    (saved,) = lab.rglob("*.ckpt")
    size = saved.stat().st_size
    assert size > 2**22
    for arguments in (
        ("fit", *wide, "--ckpt_path=last"),
        ("fit", *wide, "--ckpt_path=best"),
        ("fit", *wide, "--resume"),
        ("validate", "--ckpt_path=last"),
        ("test", "--ckpt_path", str(saved)),
    ):
        before = bytes_read()
        done = main(arguments[0], *flags, *arguments[1:], "--trainer.max_epochs=1")
        assert done.code == 0, done
        assert size < bytes_read() - before < 1.5 * size, arguments


EXITS = """
import sys

import lab


class Net(lab.Net):
    def __init__(self, at: str):
        super().__init__()
        self.end("init", at)
        self.at = at

    def end(self, here, at):
        if here == at:
            sys.exit(f"no files: token=s3cr3t, in {at}")

    def setup(self, stage):
        self.end("setup", self.at)

    def training_step(self, batch, batch_idx):
        self.end("step", self.at)
"""


@pytest.mark.parametrize("at", ["init", "setup", "step"])
def test_a_text_with_which_user_code_ends_the_process_is_shown(
    at: str, lab: Path, main: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab / "gives_up.py").write_text(EXITS)
    monkeypatch.delitem(sys.modules, "gives_up", raising=False)
    quiet = ("--trainer.logger", "false", "--trainer.max_epochs", "1")
    done = main(
        "fit", "--model", "gives_up.Net", "--model.at", at, "--data", "lab.Diabetes", *quiet
    )
    assert done.code == 1 and "Traceback" not in done.err
    assert done.err.endswith(f"no files: token=***, in {at}\n"), done


@pytest.mark.parametrize("reader", ["head -1", "true"])
@pytest.mark.parametrize("flags", ["--print_completion zsh", "--help"])
def test_nobody_reads_to_the_end(flags: str, reader: str, tmp_path: Path) -> None:
    """As with `raylit ... | head`; the reader may be gone before the first letter."""
    done = subprocess.run(
        f"{sys.executable} -m raylit {flags} | {reader}",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=stretched(60),
        check=True,
    )
    assert len(done.stdout.splitlines()) == (reader == "head -1") and done.stderr == ""
