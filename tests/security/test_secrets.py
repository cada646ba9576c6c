"""What is shown and what is stored holds no password and no token."""

from __future__ import annotations

import base64
import dataclasses
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import UserDict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import raylit as pl
from raylit.cli import LightningCLI
from raylit.cli.command import main
from raylit.errors import ConfigError
from raylit.runtime.masked_config import mask_config
from raylit.runtime.secrets import (
    holds_secret,
    is_secret_name,
    without_secret_values,
    without_secrets,
)
from raylit.testing import BoringDataModule, BoringModel
from tests.deadlines import stretched

SECRET = "s3cr3t"

SHOWN = {
    "http://user:s3cr3t@host:5000": "http://user:***@host:5000",
    "http://user:p@s3cr3t@host": "http://user:***@host",
    "http://user:a/s3cr3t@host": "http://user:***@host",
    "http://user:a?s3cr3t@host": "http://user:***@host",
    "http://user:a#s3cr3t@host": "http://user:***@host",
    "https://s3cr3t-token@host": "https://***@host",
    "https://s3cr3t:@host": "https://***@host",
    "https://s3cr3t:x-oauth-basic@github.com/a": "https://***@github.com/a",
    "http://:s3cr3t@host": "http://:***@host",
    "HTTP://user:s3cr3t@host": "HTTP://user:***@host",
    "https://user:s3cr3t%40x@host": "https://user:***@host",
    "redis://:s3cr3t@host/0": "redis://:***@host/0",
    "mysql+pymysql://u:s3'cr3t@h": "mysql+pymysql://u:***@h",
    "postgresql://h/db?user=u&password=s3cr3t": "postgresql://h/db?user=u&password=***",
    "mssql+pyodbc://?odbc_connect=PWD%3Ds3cr3t": "mssql+pyodbc://?odbc_connect=***",
    "mssql+pyodbc:///?odbc_connect=UID%253Da%253BPWD%253Ds3cr3t": (
        "mssql+pyodbc:///?odbc_connect=***"
    ),
    "http://host/mlflow?token=s3cr3t": "http://host/mlflow?token=***",
    "http://host/#access_token=s3cr3t": "http://host/#access_token=***",
    "https://a.blob/x?sv=1&sig=s3cr3t": "https://a.blob/x?sv=1&sig=***",
    "s3://key:s3cr3t@bucket/x": "s3://key:***@bucket/x",
    "a http://u:s3cr3t@h and https://v:s3cr3t@i": "a http://u:***@h and https://v:***@i",
    "host=h password=s3cr3t": "host=h password=***",
    "MLFLOW_TRACKING_PASSWORD=s3cr3t raylit": "MLFLOW_TRACKING_PASSWORD=*** raylit",
    "--model.api_key=s3cr3t": "--model.api_key=***",
    "--model.api_key s3cr3t --x 1": "--model.api_key *** --x 1",
    "  hf_token: 's3cr3t'": '  hf_token: "***"',
    '{"api_key": "s3cr3t", "b": 1}': '{"api_key": "***", "b": 1}',
    "password: 123456": 'password: "***"',
    "a: 1\napi_key: |\n  s3cr3t\n  more\nb: 2": 'a: 1\napi_key: "***"\nb: 2',
    "  api_key: >-\n    s3cr3t\n\n    more\n  b: 2": '  api_key: "***"\n  b: 2',
    "api_key:\n  s3cr3t\nb: 2": 'api_key: "***"\nb: 2',
    "model:\n  api_key: |\n    s3cr3t\n  b: 2": 'model:\n  api_key: "***"\n  b: 2',
    "ü1http://u:s3cr3t@host": "ü1http://u:***@host",
    "secrets:\n  db: s3cr3t\n  web:\n    - s3cr3t\nb: 2": 'secrets: "***"\nb: 2',
}

HF = "hf_" + "aB3" * 11
SHOWN |= {
    "http://host/x?key=s3cr3t&b=1": "http://host/x?key=***&b=1",
    "http://host/x?b=1&auth=s3cr3t#top": "http://host/x?b=1&auth=***#top",
    "//u:s3cr3t@h/x": "//u:***@h/x",
    "postgresql://u:a s3cr3t@h/d": "postgresql://u:***@h/d",
    "postgresql://u:s3cr3t and more@h:5432/d?a=1": "postgresql://u:***@h:5432/d?a=1",
    f"tried {HF} and failed": "tried *** and failed",
    "ghp_" + "a1B2" * 9: "***",
    "sk-" + "proj-" + "a1B2" * 9: "***",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIs3cr3t\n-----END RSA PRIVATE KEY-----\nx": (
        "-----BEGIN RSA PRIVATE KEY----- *** -----END RSA PRIVATE KEY-----\nx"
    ),
}

UNTOUCHED = [
    "http://host:5000 answered me@home",
    "http://host:5000, said me@home",
    "http://host/x?monkey=1&keys=3",
    "monitor: key=a",
    "// a comment: with me@home",
    "sk-learn-pipeline-of-many-steps",
    "hf_model_of_somebody_with_a_long_name",
    "image: repository:tag@sha256:0123456789abcdef",
    "http://host:5000/#/experiments/4/runs/abc",
    "abfs://container@account.dfs.core.windows.net/x",
    "s3://bucket/a@b/c",
    "sqlite:////tmp/a@b.db",
    "num_tokens: 5",
    "image_token: 32000",
    "tokenizer:\n  class_path: bert",
    "tokenizer: bert",
    "pad_token: '<pad>'",
    "use_token: true",
    "epoch=0-step=2.ckpt",
    "--trainer.max_epochs 3",
    "monitor: val_loss",
]


@pytest.mark.parametrize("text", SHOWN)
def test_what_is_shown(text: str) -> None:
    assert without_secrets(text) == SHOWN[text]
    assert without_secrets(SHOWN[text]) == SHOWN[text]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@given(st.text("abc:/@?#%&=;+ ", max_size=8), st.text("abc:/@?#%&=;+ ", max_size=8))
def test_a_password_of_any_characters_that_was_quoted(before: str, after: str) -> None:
    password = quote(before, safe="") + SECRET + quote(after, safe="")
    for uri in (f"https://u:{password}@host/a?b=1", f"postgresql://h/d?x=1&password={password}"):
        assert SECRET not in without_secrets(f"failed: {uri}, and so on")


@given(st.text("abc:/@", max_size=8), st.text("abc:/@", max_size=8))
def test_a_password_that_was_not_quoted(before: str, after: str) -> None:
    assert SECRET not in without_secrets(f"http://u:{before}{SECRET}{after}@host:80/x")


@pytest.mark.parametrize(
    "part", ["a", "a-", "a.", "--a", "a1", "a=", "a:", "http://", " a: ", "@", "'"]
)
def test_long_texts_take_the_time_of_their_length(part: str) -> None:
    began = time.perf_counter()
    without_secrets(part * 100_000)
    assert time.perf_counter() - began < stretched(5)


def test_nested_values() -> None:
    given: dict[str, Any] = {"a": [{"password": SECRET, "n": 1}], "uri": f"http://u:{SECRET}@h"}
    shown = without_secret_values(given)
    assert shown == {"a": [{"password": "***", "n": 1}], "uri": "http://u:***@h"}
    below = {"credentials": {"value": SECRET, "n": 1}, "secrets": [SECRET], "pwd": ({SECRET},)}
    assert without_secret_values(below) == {
        "credentials": {"value": "***", "n": 1},
        "secrets": ["***"],
        "pwd": ({"***"},),
    }
    assert is_secret_name("awsSecretKey") and not is_secret_name("key")


@dataclasses.dataclass
class Login:
    user: str
    api_key: str = ""
    others: Any = None


def test_secrets_are_found_in_whatever_holds_them() -> None:
    for one in (
        {"cfg": Namespace(api_key=SECRET)},
        {"cfg": Login("me", SECRET)},
        {"cfg": [UserDict(login=(Login("me", SECRET),))]},
        {"secrets": [SECRET]},
        {"password": ["abc"]},
        {"password": [123]},
        {"credentials": {"value": "abc"}},
        {"hf_token": b"abc"},
        {"urls": {f"http://u:{SECRET}@host"}},
    ):
        ((name, value),) = one.items()
        assert holds_secret(name, value), one
    circle = Login("me")
    circle.others = [circle, {"lr": 0.1}, Login]
    assert not holds_secret("cfg", circle)
    assert not holds_secret("cfg", Namespace(pad_token="<pad>", token_ids=[1], items=["abc"]))


class Model(BoringModel):
    def __init__(
        self, api_key: str = "", hf_token: str = "", uri: str = "", lr: float = 0.1
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).mean()
        self.log("train_loss", loss)
        return loss


class Asking(BoringModel):
    def __init__(self, api_key: str = "") -> None:
        super().__init__()
        self.save_hyperparameters("api_key")


def test_secrets_among_hyperparameters_are_kept_by_the_module_alone(tmp_path: Path) -> None:
    model = Model(api_key=SECRET)
    assert model.hparams.api_key == SECRET and model.secret_hparams == ["api_key"]
    assert Asking(api_key=SECRET).secret_hparams == []


SCRIPT = f'''
import sys, warnings
import torch
import raylit as pl
from raylit.loggers import CSVLogger, MLFlowLogger
from tests.security.test_secrets import Model
from raylit.testing import RandomDataset

uri = "sqlite:///mlflow.db?password={SECRET}"
loggers = [
    MLFlowLogger(tracking_uri=uri, tags={{"origin": "https://{SECRET}@git/x"}}),
    CSVLogger("csv"),
]
model = Model(api_key="{SECRET}", hf_token="{SECRET}", uri="http://u:{SECRET}@host")
trainer = pl.Trainer(max_steps=2, logger=loggers, accelerator="cpu", **eval(sys.argv[1]))
trainer.fit(model, torch.utils.data.DataLoader(RandomDataset(32, 4)))
'''


def spellings(secret: str) -> list[bytes]:
    """A secret as it stands in a file: as it is, in UTF-16, in hexadecimal, in base64.

    Its base64 is one of three, by what stands before it, without the letters at both ends that
    hold bits of its neighbours.
    """
    plain = secret.encode()
    return [plain, secret.encode("utf-16-le"), plain.hex().encode()] + [
        base64.b64encode(b" " * before + plain)[
            -(-before * 8 // 6) : (before + len(plain)) * 8 // 6
        ]
        for before in (0, 1, 2)
    ]


def holding(folder: Path) -> list[str]:
    """Files below a folder that hold the secret, whatever they are."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file() or path.name == "script.py" or not path.stat().st_size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if any(data.find(spelling) >= 0 for spelling in spellings(SECRET)):
                found.append(str(path))
    return found


@pytest.mark.parametrize("before", ["", "a", "ab"])
def test_the_search_finds_what_is_encoded(before: str, tmp_path: Path) -> None:
    text = f"{before}password={SECRET}!"
    for name, content in {
        "plain": text.encode(),
        "utf16": text.encode("utf-16"),
        "hex": text.encode().hex().encode(),
        "base64": base64.b64encode(text.encode()),
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "none").write_bytes(b"password=***")
    (tmp_path / "empty").touch()
    assert {Path(path).name for path in holding(tmp_path)} == {"plain", "utf16", "hex", "base64"}


@pytest.mark.long
def test_no_file_of_a_run_holds_a_secret(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root), "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "script.py", "{}"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "api_key, hf_token, uri of Model look like secrets" in done.stderr
    assert "holds a password" in done.stderr and "MLFLOW_TRACKING_TOKEN" in done.stderr
    assert list(tmp_path.rglob("*.ckpt")) and not holding(tmp_path)


CONFIG = f"""
model:
  class_path: tests.security.test_secrets.Model
  init_args: {{api_key: {SECRET}, uri: "http://u:{SECRET}@host"}}
data: raylit.testing.BoringDataModule
trainer:
  accelerator: cpu
  max_steps: 2
  enable_progress_bar: false
  logger:
    - class_path: raylit.loggers.MLFlowLogger
      init_args: {{tracking_uri: "sqlite:///mlflow.db?password={SECRET}"}}
    - class_path: raylit.loggers.CSVLogger
      init_args: {{save_dir: csv}}
"""


def test_no_file_of_a_command_holds_a_secret(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path / "work")
    assert main(["fit", "--config", "../config.yaml", f"--model.hf_token={SECRET}"]) == 0
    assert main(["fit", "--config", "../config.yaml", "--print_config"]) == 0
    assert main(["fit", "--config", "../config.yaml", f"--model.hf_tokn={SECRET}"]) == 2
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err, said
    kept = list(tmp_path.rglob("work/**/config.yaml"))
    assert len(kept) == 2 and all("***" in path.read_text() for path in kept)
    assert not holding(tmp_path / "work")


ON_RAY = f"""
model:
  class_path: tests.security.test_secrets.Model
  init_args: {{api_key: {SECRET}, uri: "http://u:{SECRET}@host"}}
data: raylit.testing.BoringDataModule
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 2
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    class_path: raylit.loggers.MLFlowLogger
    init_args: {{tracking_uri: "sqlite:///WORK/mlflow.db?password={SECRET}"}}
"""
SWEEP = f"""
name: lr
metric: {{name: train_loss, mode: min}}
space: {{model.lr: {{choice: [0.1, 0.2]}}}}
trials: 2
max_concurrent: 2
# the store asks for token={SECRET}
"""


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_no_file_of_a_fit_on_ray_and_of_a_sweep_holds_a_secret(tmp_path: Path) -> None:
    """Neither in the folders nor among what Ray keeps of the session."""
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "config.yaml").write_text(ON_RAY.replace("WORK", str(work)))
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    root = Path(__file__).parents[2]
    env = os.environ | {
        "PYTHONPATH": str(root),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_PASSWORD": SECRET,
        "RAY_TMPDIR": str(Path(tempfile.mkdtemp(prefix="rl", dir="/tmp"))),
    }
    env.pop("RAY_ADDRESS", None)
    config = ["--config", "../config.yaml"]
    sweep = [*config, "--sweep", "../sweep.yaml"]

    def run(*args: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "raylit", *args],
            cwd=work,
            env=env | more,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    try:
        said = run("fit", *config, "--trainer.num_workers=1") + run("tune", *sweep)
        (best,) = work.glob("raylit_runs/lr-*/best.yaml")
        given = {"PL_MODEL_API_KEY": SECRET, "PL_MODEL_URI": f"http://u:{SECRET}@host"}
        given["PL_TRAINER_LOGGER_TRACKING_URI"] = f"sqlite:///{work}/mlflow.db"
        assert all(name in best.read_text().partition("\n")[0] for name in given)
        said += run("fit", "--config", str(best), **given)
        session = Path(env["RAY_TMPDIR"])
        assert list(session.rglob("raylet.out")), "the search is where Ray writes"
        assert SECRET not in said
        assert not holding(work)
        assert not holding(session)
    finally:
        shutil.rmtree(env["RAY_TMPDIR"], ignore_errors=True)


MASKED = {
    "model:\n  api_key: |\n    s3cr3t\n    more\n  lr: 1\n": (
        ["PL_MODEL_API_KEY"],
        {"api_key": "***"},
    ),
    "model: {api_key: 's3cr3t', uri: 'http://u:s3cr3t@h/x'}": (
        ["PL_MODEL_API_KEY", "PL_MODEL_URI"],
        {"api_key": "***", "uri": "http://u:***@h/x"},
    ),
    "model:\n  passphrase: one\n    s3cr3t two\n  lr: 1": (
        ["PL_MODEL_PASSPHRASE"],
        {"passphrase": "***"},
    ),
    "model:\n  ? api_key\n  : s3cr3t\n": (["PL_MODEL_API_KEY"], {"api_key": "***"}),
    "model:\n  api_key: &a s3cr3t\n  other_token: *a\n": (
        ["PL_MODEL_API_KEY", "PL_MODEL_OTHER_TOKEN"],
        {"api_key": "***", "other_token": "***"},
    ),
    "model:\n  init_args:\n    tokens: 3\n    secrets:\n    - s3cr3t\n    - b: s3cr3t\n": (
        ["PL_MODEL_SECRETS_0", "PL_MODEL_SECRETS_1_B"],
        {"init_args": {"tokens": 3, "secrets": ["***", {"b": "***"}]}},
    ),
    "model:\n  ü: 'ä'\n  api_key: \"s3cr3t\"  # token=s3cr3t\n": (
        ["PL_MODEL_API_KEY"],
        {"ü": "ä", "api_key": "***"},
    ),
    "model:\n  api_key:\n    openai: s3cr3t\n    retries: 3\n  lr: 1\n": (
        ["PL_MODEL_API_KEY_OPENAI"],
        {"api_key": {"openai": "***", "retries": 3}, "lr": 1},
    ),
    "model:\n  password: 1234\n  use_token: true\n": (
        ["PL_MODEL_PASSWORD"],
        {"password": "***", "use_token": True},
    ),
}


@pytest.mark.parametrize("text", MASKED)
def test_a_config_without_secrets_is_a_config_that_says_how_they_are_given(text: str) -> None:
    variables, expected = MASKED[text]
    masked = mask_config(text)
    assert SECRET not in masked
    head, _, body = masked.partition("\n")
    assert head.endswith(f"by the environment: {', '.join(variables)}")
    model = yaml.safe_load(body)["model"]
    assert {key: model[key] for key in expected} == expected
    assert mask_config(body) == body, "what is masked stays as it is"


@pytest.mark.parametrize("text", ["a: 1\nb: [x, 'y']\n# c\n", "", "a: *b", "[", "x: '***'\n"])
def test_a_config_without_any_stays_as_it_is(text: str) -> None:
    assert mask_config(text) == text


def test_a_kept_config_takes_them_from_the_environment(
    tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert main(["fit", "--config", "config.yaml"]) == 0
    (kept,) = tmp_path.glob("csv/**/config.yaml")
    capfd.readouterr()
    again = ["fit", "--config", str(kept)]
    assert main(again) == 2
    said = capfd.readouterr().err
    line = kept.read_text().splitlines().index('    api_key: "***"') + 1
    assert f"line {line}: model.init_args.api_key is masked (***): set PL_MODEL_API_KEY." in said
    assert "PL_TRAINER_LOGGER_0_TRACKING_URI" in said and "PL_MODEL_URI" in said
    assert main([*again, "--print_config"]) == 0
    monkeypatch.setenv("PL_MODEL_API_KEY", SECRET)
    monkeypatch.setenv("PL_TRAINER_LOGGER_0_TRACKING_URI", "sqlite:///mlflow.db")
    assert main(again) == 2
    capfd.readouterr()
    assert main([*again, f"--model.uri=http://v:{SECRET}@host"]) == 0
    assert SECRET not in "".join(capfd.readouterr())


def test_lightning_cli_takes_them_from_the_environment(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("model:\n  api_key: '***'\n")
    quiet = ["--trainer.logger=false", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    flags = ["fit", "--config=c.yaml", "--trainer.enable_progress_bar=false", *quiet]
    with pytest.raises(ConfigError, match=r"model.api_key is masked .*set PL_MODEL_API_KEY"):
        LightningCLI(Model, BoringDataModule, args=flags)
    monkeypatch.setenv("PL_MODEL_API_KEY", SECRET)
    cli = LightningCLI(Model, BoringDataModule, args=flags)
    assert cli.model.hparams.api_key == SECRET


def test_where_and_messages(capfd: Any) -> None:
    from raylit.runtime.messages import info, warn

    info(f"at http://u:{SECRET}@host")
    with pytest.warns(UserWarning) as caught:
        warn(f"at http://u:{SECRET}@host")
    assert SECRET not in capfd.readouterr().err + str(caught[0].message)


def test_the_environment_travels_with_the_logger_and_not_with_its_text(monkeypatch: Any) -> None:
    import pickle

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    sent = pickle.dumps(pl.MLFlowLogger(tracking_uri="http://127.0.0.1:1"))
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    logger = pickle.loads(sent)
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ, "only the process that writes has it"
    with pytest.raises(Exception, match="127"):
        _ = logger._run_store
    logger._has_run = True
    assert logger._run_store is not None and os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET
    assert SECRET not in repr(logger)
