"""Checkpoints that somebody else wrote: loading one in any way runs nothing that it asks for."""

from __future__ import annotations

import copy
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import raylit as pl
from raylit.checkpoint import find, load, sharded
from raylit.cli import LightningCLI
from raylit.cli.command import main
from raylit.errors import CheckpointError, ConfigError
from raylit.testing import BoringDataModule, BoringModel
from tests.names import without_addresses

from . import victim
from .test_names import checkpoint_of
from .victim import Typed

HERE = victim.__name__
MADE_BY_A_CLI = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
QUIET = (
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_test_batches=1",
)

SPEC = {"class_path": "subprocess.Popen", "init_args": {"args": "touch ran", "shell": True}}
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "an object": {"block": SPEC},
    "an object as text": {
        "block": '{"class_path": "subprocess.Popen", "init_args": {"args": "ls"}}'
    },
    "a name for an object": {"block": "subprocess.Popen"},
    "a file for an object": {"block": "evil.yaml"},
    "an address for an object": {"block": "http://127.0.0.1:9/evil.yaml"},
    "a class of another package": {"block": {"class_path": "xml.dom.minidom.Document"}},
    "a function": {"act": "os.system"},
    "a function of the user's own": {"act": f"{HERE}.harm"},
    "a function in a class of the user's": {"act": f"{HERE}.Odd.run", "text": f"{HERE}.Odd"},
    "a callable class": {"act": {"class_path": "subprocess.Popen", "init_args": {"args": "ls"}}},
    "what the user's module imported": {"act": f"{HERE}.os.system"},
    "its alias": {"act": f"{HERE}.shell"},
    "a partial": {"act": f"{HERE}.wrapped"},
    "a class": {"kind": "subprocess.Popen"},
    "an object within one": {
        "block": {
            "class_path": "torch.nn.Sequential",
            "init_args": {"args": SPEC},
            "dict_kwargs": SPEC,
        }
    },
    "a module that is not there": {"block": {"class_path": "antigravity.Block"}},
}


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text(f"class_path: {HERE}.Block\n")
    victim.RAN.clear()
    modules = set(sys.modules)
    yield
    assert not victim.RAN and not (tmp_path / "ran").exists()
    assert "antigravity" not in set(sys.modules) - modules


@pytest.mark.parametrize("which", HYPERPARAMETERS)
def test_hyperparameters_that_a_type_would_have_made(which: str, tmp_path: Path) -> None:
    hparams = {**MADE_BY_A_CLI, **HYPERPARAMETERS[which]}
    file = checkpoint_of(tmp_path, Typed, hyper_parameters=hparams)
    with pytest.raises(CheckpointError, match=r"load_from_checkpoint\(path, name=value\)"):
        Typed.load_from_checkpoint(file)


@pytest.mark.parametrize("which", HYPERPARAMETERS)
def test_the_command_line_has_the_same_gate(which: str, tmp_path: Path, capfd: Any) -> None:
    file = checkpoint_of(
        tmp_path, Typed, hyper_parameters={**MADE_BY_A_CLI, **HYPERPARAMETERS[which]}
    )
    model = f"--model={HERE}.Typed"
    data = "--data=raylit.testing.BoringDataModule"
    code = main(["test", model, data, *QUIET, f"--ckpt_path={file}"])
    said = capfd.readouterr().err
    assert code == 2 and "raylit test: The" in said and "in the checkpoint" in said


@pytest.mark.parametrize("which", HYPERPARAMETERS)
def test_lightning_cli_has_the_same_gate(which: str, tmp_path: Path, capfd: Any) -> None:
    file = checkpoint_of(
        tmp_path, Typed, hyper_parameters={**MADE_BY_A_CLI, **HYPERPARAMETERS[which]}
    )
    with pytest.raises((CheckpointError, SystemExit)):
        LightningCLI(Typed, BoringDataModule, args=["test", *QUIET, f"--ckpt_path={file}"])


@pytest.mark.parametrize("name", ["anything", "untyped"])
def test_what_no_type_asks_for(name: str, tmp_path: Path, capfd: Any) -> None:
    """Data stays data; a command's config would make an object of it, so there it is refused."""
    file = checkpoint_of(tmp_path, Typed, hyper_parameters={**MADE_BY_A_CLI, name: SPEC})
    with pytest.warns(UserWarning, match="as it stands in the checkpoint"):
        assert getattr(Typed.load_from_checkpoint(file), name) == SPEC
    flags = [*QUIET, f"--ckpt_path={file}"]
    with pytest.raises(CheckpointError, match=r"raylit\.allow\(subprocess\.Popen\)"):
        LightningCLI(Typed, BoringDataModule, args=["test", *flags])
    model = f"--model={HERE}.Typed"
    assert main(["test", model, "--data=raylit.testing.BoringDataModule", *flags]) == 2
    assert "raylit.allow(subprocess.Popen)" in capfd.readouterr().err


def test_texts_that_look_like_names_stay_texts(tmp_path: Path) -> None:
    hparams = {**MADE_BY_A_CLI, "text": "os.system", "anything": "subprocess.Popen"}
    loaded = Typed.load_from_checkpoint(checkpoint_of(tmp_path, Typed, hyper_parameters=hparams))
    assert (loaded.text, loaded.anything) == ("os.system", "subprocess.Popen")


def test_what_is_harmless_is_made(tmp_path: Path) -> None:
    hparams = {
        **MADE_BY_A_CLI,
        "block": {"class_path": f"{HERE}.Block", "init_args": {"width": 7}},
        "act": "torch.nn.functional.gelu",
        "kind": "torch.nn.ReLU",
    }
    loaded = Typed.load_from_checkpoint(checkpoint_of(tmp_path, Typed, hyper_parameters=hparams))
    assert isinstance(loaded.block, victim.Block) and loaded.block.width == 7
    assert (loaded.act, loaded.kind) == (nn.functional.gelu, nn.ReLU)


@pytest.mark.parametrize(
    "parts",
    [
        {"hyper_parameters": "os.system"},
        {"hyper_parameters": ["width"]},
        {"raylit": 3},
        {"raylit": {"hyper_parameters": []}},
        {"raylit": {"hyper_parameters": {"hyper_parameters": "act"}}},
        {"hyper_parameters": {"_instantiator": "os.system"}},
        {"hyper_parameters": {"_instantiator": ["os"]}},
    ],
    ids=without_addresses,
)
def test_hyperparameters_of_a_wrong_shape(parts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="checkpoint"):
        Typed.load_from_checkpoint(checkpoint_of(tmp_path, Typed, **parts))


def test_hyperparameters_that_multiply(tmp_path: Path) -> None:
    many: list[Any] = ["lol"]
    for _ in range(30):
        many = [many] * 9
    file = checkpoint_of(tmp_path, Typed, hyper_parameters={**MADE_BY_A_CLI, "anything": many})
    with pytest.raises(CheckpointError, match="more than 200,000 values"):
        Typed.load_from_checkpoint(file)


LAUGHS = "a0: &a0 [lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", LAUGHS.encode(), "values when written out"),
        ("a.yaml", b"width: [" + b"[" * 5000, "nested deeper"),
        ("a.yaml", b"- width\n- 3\n", "holds a list"),
        ("a.yaml", b"width: 3\nwidth: 4\n", "stands here and in line 1"),
        ("a.yaml", b"width: !!python/object/apply:os.system ['touch ran']\n", "no file of hyper"),
        ("a.yaml", "width: \u00e4".encode("latin-1"), "is no UTF-8"),
        ("a.yaml", b"#" * (2**20 + 1), "larger than 1 MiB"),
        ("a.csv", b"name,value\nwidth,3\n", "'key'"),
    ],
    ids=range(8),
)
def test_a_file_of_hyperparameters_is_read_with_the_same_bounds(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    file = checkpoint_of(tmp_path, Typed)
    with pytest.raises(ConfigError, match=words):
        Typed.load_from_checkpoint(file, hparams_file=tmp_path / name)


@pytest.mark.parametrize("value", ["os.system('touch ran')", "[" * 9000, "__import__('os')"])
def test_a_value_in_a_csv_file_is_no_code(value: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"key,value\ntext,{value}\n")
    file = checkpoint_of(tmp_path, Typed)
    assert Typed.load_from_checkpoint(file, hparams_file=tmp_path / "a.csv").text == value


# ---- files that are no checkpoints ----


def no_checkpoints(folder: Path) -> Iterator[Path]:
    contents = {
        "empty": b"",
        "text": b"hello",
        "zip": b"PK\x03\x04" + bytes(100),
        "p": b"\x80\x02.",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name
    with zipfile.ZipFile(folder / "other.zip", "w") as file:
        file.writestr("a", "b")
    yield folder / "other.zip"
    torch.save([1, 2], folder / "list")
    yield folder / "list"
    for name, complete in (("d1", "[]"), ("d2", "3"), ("d3", '{"files": 3}'), ("d4", "")):
        (folder / name).mkdir()
        (folder / name / sharded.COMPLETE).write_text(complete)
        yield folder / name


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    for path in no_checkpoints(tmp_path):
        with pytest.raises(CheckpointError, match=r"could not be read|no checkpoint|not a check"):
            load(path)
        trainer = quiet_trainer(tmp_path, max_steps=1)
        for run in (trainer.fit, trainer.test):
            with pytest.raises(CheckpointError, match=re.escape(str(path))):
                run(BoringModel(), datamodule=BoringDataModule(), ckpt_path=path)


COMMANDS = ("fit", "validate", "test", "predict", "explain")


def test_a_command_says_of_a_file_that_is_no_checkpoint_what_it_is(
    tmp_path: Path, capfd: Any
) -> None:
    model = ["--model=raylit.testing.BoringModel", "--data=raylit.testing.BoringDataModule"]
    whole = checkpoint_of(tmp_path, BoringModel)
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-100])
    torch.save(BoringModel(), tmp_path / "module")
    files = [*no_checkpoints(tmp_path), tmp_path / "cut", tmp_path / "module"]
    for path in files:
        for command in COMMANDS if path == files[0] else COMMANDS[::2]:
            code = main([command, *model, *QUIET[:4], f"--ckpt_path={path}"])
            said = capfd.readouterr().err
            assert code == 2 and "Traceback" not in said and "from the checkpoint" not in said, said
            assert f"raylit {command}: " in said and str(path) in said
    assert not list(tmp_path.glob("**/version_*"))


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_command_lets_code_run_only_where_it_is_told_so(command: str, tmp_path: Path) -> None:
    saver = pl.callbacks.ModelCheckpoint(dirpath=tmp_path)
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[saver])
    trainer.fit(BoringModel(), datamodule=BoringDataModule())
    checkpoint = {**load(saver.best_model_path), "extra": victim.Block()}
    torch.save(checkpoint, tmp_path / "object.ckpt")
    model = ["--model=raylit.testing.BoringModel", "--data=raylit.testing.BoringDataModule"]
    flags = [*QUIET[:4], "--trainer.max_steps=1", f"--ckpt_path={tmp_path / 'object.ckpt'}"]
    assert main([command, *model, *flags]) == 2
    assert main([command, *model, *flags, "--weights_only=true"]) == 2
    assert main([command, *model, *flags, "--weights_only=false"]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_checkpoint_that_may_not_be_read(tmp_path: Path) -> None:
    file = checkpoint_of(tmp_path, BoringModel)
    file.chmod(0)
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(CheckpointError, match=r"could not be read: Permission denied"):
            load(file)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("weights", [3, None, ["w"], {}, {"other": torch.ones(1)}], ids=str)
def test_weights_that_do_not_fit(weights: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": weights, "epoch": 0, "global_step": 0}, tmp_path / "x.ckpt")
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1)
    with pytest.raises(CheckpointError, match=r"The weights in .* do not fit BoringModel"):
        trainer.test(BoringModel(), datamodule=BoringDataModule(), ckpt_path=tmp_path / "x.ckpt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A checkpoint of a fit in its first epoch, and a folder."""
    folder = tmp_path_factory.mktemp("trained")
    saver = pl.callbacks.ModelCheckpoint(dirpath=folder)
    trainer = quiet_trainer(folder, max_steps=2, callbacks=[saver])
    trainer.fit(BoringModel(), datamodule=BoringDataModule())
    return load(saver.best_model_path), folder


def quiet_trainer(folder: Path, **more: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_train_batches=4,
        default_root_dir=folder,
        **more,
    )


PARTS = [
    *[("epoch",), ("global_step",), ("loops",), ("callbacks",), ("optimizer_states",)],
    *[("lr_schedulers",), ("raylit",), ("optimizer_states", 0), ("lr_schedulers", 0)],
    *[("raylit", name) for name in ("progress", "history", "ranks", "lineage", "validations")],
    *[("raylit", "progress", name) for name in ("at", "batch", "steps", "is_last_batch")],
    *[("raylit", "history", "rows"), ("raylit", "ranks", 0), ("raylit", "ranks", 0, "rng")],
    ("raylit", "ranks", 0, "rng", "python"),
]
WRONG = {"float": 0.5, "text": "x", "number": -3, "list": [1], "mapping": {"a": 1}}


@pytest.mark.parametrize("kind", WRONG)
def test_no_part_of_another_kind_is_more_than_a_damaged_checkpoint(
    kind: str, trained: tuple[dict[str, Any], Path]
) -> None:
    """A fit goes on without it, where that can be, or says that the checkpoint is damaged."""
    whole, folder = trained
    refused = 0
    for part in PARTS:
        checkpoint = copy.deepcopy(whole)
        inner: Any = checkpoint
        for key in part[:-1]:
            inner = inner[key]
        inner[part[-1]] = WRONG[kind]
        torch.save(checkpoint, folder / "x.ckpt")
        trainer = quiet_trainer(folder, max_steps=3, enable_checkpointing=False)
        try:
            trainer.fit(BoringModel(), datamodule=BoringDataModule(), ckpt_path=folder / "x.ckpt")
        except CheckpointError as error:
            assert str(folder / "x.ckpt") in str(error)
            refused += 1
    assert refused >= len(PARTS) // 2


def test_older_rows_of_the_history_are_in_a_file_of_that_name_on_this_machine(
    trained: tuple[dict[str, Any], Path],
) -> None:
    whole, folder = trained
    (folder / "secret.jsonl").write_text('{"step": 1}\n')
    for path in (f"{folder}/secret.jsonl", "/etc/passwd", "http://127.0.0.1:9/x.jsonl"):
        checkpoint = copy.deepcopy(whole)
        checkpoint["raylit"]["history"]["older"] = {"path": path, "rows": 1}
        torch.save(checkpoint, folder / "x.ckpt")
        trainer = quiet_trainer(folder, max_steps=3, enable_checkpointing=False)
        with pytest.raises(CheckpointError, match="is no file of older rows"):
            trainer.fit(BoringModel(), datamodule=BoringDataModule(), ckpt_path=folder / "x.ckpt")


# ---- files that are pickles ----


def evil_files(folder: Path) -> list[Path]:
    torch.save({"state_dict": {}, "x": victim.Unpickled()}, folder / "zip.ckpt")
    torch.save({"x": victim.Unpickled()}, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    (folder / "plain.ckpt").write_bytes(pickle.dumps(victim.Unpickled()))
    (folder / "opcodes.ckpt").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    return sorted(folder.glob("*.ckpt"))


def test_a_pickle_is_refused_however_it_is_loaded(tmp_path: Path) -> None:
    for file in evil_files(tmp_path):
        with pytest.raises(CheckpointError):
            load(file)
        with pytest.raises(CheckpointError):
            Typed.load_from_checkpoint(file)
        with pytest.raises(CheckpointError):
            BoringDataModule.load_from_checkpoint(file)
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        for run in (trainer.fit, trainer.test):
            with pytest.raises(CheckpointError):
                run(Typed(), datamodule=BoringDataModule(), ckpt_path=file)
    with pytest.raises(CheckpointError):
        load(find.resolve("best", [], str(tmp_path), "test") or "")


def metadata_of(folder: Path, **states: Any) -> Path:
    """A sharded checkpoint of one tensor, and with `states` beside it in its metadata."""
    from torch.distributed import checkpoint as dcp

    target = folder / "sharded.ckpt"
    dcp.save({"weight": torch.ones(2)}, checkpoint_id=target, no_dist=True)
    parts = {"raylit": {"parts": {"weight": ("state_dict", "weight")}}, "state_dict": {}}
    torch.save(parts, target / sharded.META)
    return target


def finish(target: Path) -> Path:
    import json

    sizes = {file.name: file.stat().st_size for file in target.iterdir()}
    (target / sharded.COMPLETE).write_text(json.dumps({"files": sizes}))
    return target


def test_a_sharded_folder(tmp_path: Path) -> None:
    target = finish(metadata_of(tmp_path))
    assert load(target)["state_dict"]["weight"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "evil",
    [
        victim.Unpickled(),
        {"x": victim.Unpickled()},
        b"cos\nsystem\n(S'touch ran'\ntR.",
        b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR.",
        b"ctorch\nos\n.",
        b"ctorch.serialization\nload\n(S'x'\ntR.",
        b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93.",
    ],
    ids=without_addresses,
)
def test_its_metadata_runs_nothing(tmp_path: Path, evil: Any) -> None:
    target = metadata_of(tmp_path)
    content = evil if isinstance(evil, bytes) else pickle.dumps(evil)
    (target / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match="could not be read"):
        load(finish(target))


def test_its_other_file_runs_nothing(tmp_path: Path) -> None:
    target = metadata_of(tmp_path)
    torch.save({"x": victim.Unpickled()}, target / sharded.META)
    with pytest.raises(CheckpointError):
        load(finish(target))


def test_its_parts_lie_in_it(tmp_path: Path) -> None:
    """The metadata says in which file a part lies: a file elsewhere is not opened."""
    target = metadata_of(tmp_path)
    (part,) = target.glob("*.distcp")
    os.replace(part, tmp_path / "elsewhere.distcp")
    metadata = pickle.loads((target / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../elsewhere.distcp"
    (target / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="outside"):
        load(finish(target))
