"""Whatever is typed, one message says what is wrong, with exit code 2, and nothing was started.

All inputs run in one process, which has loaded everything before the first.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raylit import Trainer
from raylit.errors import ConfigError
from tests.deadlines import stretched

from .conftest import Done

HUGE = "9" * 400
ON_RAY = ("--trainer.num_workers", "1")
GOOD = ("--model", "lab.Net", "--data", "lab.Diabetes")
LAUGHS = "a0: &a0 [lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)

FILES: dict[str, bytes] = {
    "laughs.yaml": LAUGHS.encode(),
    "laughs_in_model.yaml": f"{LAUGHS}model: {{class_path: lab.Net, init_args: *a29}}\n".encode(),
    "laughing_maps.yaml": b"a0: &a0 {x: 1}\n"
    + b"".join(b"a%d: &a%d {x: *a%d, y: *a%d}\n" % (i, i, i - 1, i - 1) for i in range(1, 60)),
    "merged_laughs.yaml": b"a0: &a0 {x: [1]}\n"
    + b"".join(
        b"a%d: &a%d {<<: *a%d, y: [*a%d, *a%d]}\n" % (i, i, i - 1, i - 1, i - 1)
        for i in range(1, 40)
    ),
    "large.yaml": b"model: lab.Net\n" + b"# nothing\n" * 2_100_000,
    "many.yaml": b"trainer:\n" + b"".join(b"  k%d: 1\n" % i for i in range(80_000)),
    "self.yaml": b"model: &m\n  class_path: lab.Net\n  init_args: *m\n",
    "self_list.yaml": b"model: &m [*m]\n",
    "brackets.yaml": b"model: " + b"[" * 5000,
    "closed_brackets.yaml": b"model: " + b"[" * 5000 + b"]" * 5000,
    "braces.yaml": b"model: " + b"{a: " * 5000,
    "dashes.yaml": b"model: " + b"- " * 5000 + b"a",
    "indented.yaml": b"".join(b"%sa:\n" % (b" " * i) for i in range(500)),
    "latin1.yaml": "model: lab.Net\ndata: lab.Diab\u00e8te\n".encode("latin-1"),
    "utf16.yaml": "model: lab.Net\n".encode("utf-16"),
    "utf16le.yaml": "model: lab.Net\n".encode("utf-16-le"),
    "utf32.yaml": "model: lab.Net\n".encode("utf-32"),
    "binary.yaml": bytes(range(256)) * 10,
    "png.yaml": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "zip.yaml": b"PK\x03\x04\x14\x00\x00\x00",
    "controls.yaml": b"model: \x01\x02\n",
    "escape.yaml": b"model: \x1b[31mred\n",
    "duplicate.yaml": (
        b"model: lab.Net\ntrainer:\n  max_epochs: 1\n  max_steps: 2\n  max_epochs: 3\n"
    ),
    "duplicate_top.yaml": b"model: lab.Net\nmodel: lab.Bare\n",
    "duplicate_quoted.yaml": b"model: lab.Net\n'model': lab.Bare\n",
    "text.yaml": b"just a text\n",
    "list.yaml": b"- model\n- data\n",
    "number.yaml": b"3\n",
    "tab.yaml": b"model:\n\tclass_path: lab.Net\n",
    "colon.yaml": b"model: lab.Net: other\n",
    "quote.yaml": b"model: 'lab.Net\n",
    "alias.yaml": b"model: *nothing\n",
    "documents.yaml": b"model: lab.Net\n---\nmodel: lab.Bare\n",
    "python.yaml": b"model: !!python/object/apply:os.system ['touch ran']\n",
    "python_name.yaml": b"model: !!python/name:os.system\n",
    "tag.yaml": b"model: !unknown lab.Net\n",
    "date.yaml": b"model: lab.Net\nseed_everything: 2020-13-45\n",
    "integer.yaml": b"seed_everything: " + b"9" * 5000 + b"\n",
    "null_key.yaml": b"null: 1\n",
    "number_key.yaml": b"1: 2\n",
    "list_key.yaml": b"? [a, b]\n: 1\n",
    "map_key.yaml": b"? {a: b}\n: 1\n",
    "binary_tag.yaml": b"model: !!binary '*'\n",
    "set.yaml": b"model: !!set {a, b}\n",
    "unknown.yaml": b"modell: lab.Net\n",
    "deeper.yaml": b"model:\n  class_path: lab.Net\n  init_args:\n    lr: {a: {b: c}}\n",
    "no_class.yaml": b"model:\n  init_args: {lr: 1}\n",
    "class_list.yaml": b"model:\n  class_path: [lab.Net]\n",
    "class_null.yaml": b"model:\n  class_path: null\n",
    "class_number.yaml": b"model:\n  class_path: 3\n",
    "args_list.yaml": b"model:\n  class_path: lab.Net\n  init_args: [1]\n",
    "args_text.yaml": b"model:\n  class_path: lab.Net\n  init_args: text\n",
    "trainer_list.yaml": b"model: lab.Net\ntrainer: [1]\n",
    "trainer_text.yaml": b"model: lab.Net\ntrainer: fast\n",
    "plugins.yaml": (
        b"model: lab.Net\ntrainer:\n  plugins:\n    class_path: subprocess.Popen\n"
        b"    init_args: {args: 'touch ran', shell: true}\n"
    ),
    "failures.yaml": (
        b"model: lab.Net\ntrainer:\n  max_failures:\n    class_path: subprocess.Popen\n"
        b"    init_args: {args: 'touch ran', shell: true}\n"
    ),
    "callback.yaml": (
        b"model: lab.Net\ntrainer:\n  callbacks:\n    - class_path: subprocess.Popen\n"
        b"      init_args: {args: 'touch ran', shell: true}\n"
    ),
    "logger.yaml": (
        b"model: lab.Net\ntrainer:\n  logger:\n    class_path: subprocess.Popen\n"
        b"    init_args: {args: 'touch ran', shell: true}\n"
    ),
    "strategy.yaml": (
        b"model: lab.Net\ntrainer:\n  strategy:\n    class_path: subprocess.Popen\n"
        b"    init_args: {args: 'touch ran', shell: true}\n"
    ),
    "profiler.yaml": (
        b"model: lab.Net\ntrainer:\n  profiler:\n    class_path: subprocess.Popen\n"
        b"    init_args: {args: 'touch ran', shell: true}\n"
    ),
    "optimizer.yaml": (
        b"model: lab.Net\noptimizer:\n  class_path: subprocess.Popen\n"
        b"  init_args: {args: 'touch ran', shell: true}\n"
    ),
    "data.yaml": (
        b"model: lab.Net\ndata:\n  class_path: subprocess.Popen\n"
        b"  init_args: {args: 'touch ran', shell: true}\n"
    ),
    "encoder.yaml": (
        b"model:\n  class_path: lab.Net\n  init_args:\n"
        b"    encoder: {class_path: subprocess.Popen,"
        b" init_args: {args: 'touch ran', shell: true}}\n"
    ),
    "path_list.yaml": b"model: lab.Net\ntrainer:\n  default_root_dir: [a]\n",
    "path_map.yaml": b"model: lab.Net\ntrainer:\n  default_root_dir: {a: 1}\n",
    "path_number.yaml": b"model: lab.Net\ntrainer:\n  storage_path: 3\n",
    "path_of_saver.yaml": (
        b"model: lab.Net\ntrainer:\n  callbacks:\n    - class_path: ModelCheckpoint\n"
        b"      init_args: {dirpath: [a]}\n"
    ),
    "within.yaml": b"model: laughs.yaml\n",
    "within_self.yaml": b"model: within_self.yaml\n",
    "within_binary.yaml": b"model: lab.Net\ntrainer: binary.yaml\n",
}

# What stands behind `raylit`, and words of the answer.
INPUTS: list[tuple[tuple[str, ...], str]] = [
    *((("fit", "--config", name), "") for name in FILES),
    (("fit", "--config", "latin1.yaml"), "line 2, column 15: the byte 0xe8 is no UTF-8"),
    (("fit", "--config", "utf16.yaml"), "it is text in UTF-16"),
    (("fit", "--config", "binary.yaml"), "binary file"),
    (
        ("fit", "--config", "duplicate.yaml"),
        r"line 5, column 3.*'max_epochs' stands here and in line 3",
    ),
    (("fit", "--config", "large.yaml"), "larger than 1 MiB"),
    (("fit", "--config", "laughs.yaml"), "values when written out"),
    (("fit", "--config", "self.yaml"), "line 3.*&m contains itself"),
    (("fit", "--config", "closed_brackets.yaml"), "nested deeper than 64"),
    (("fit", "--config", "plugins.yaml"), "plugins"),
    (("fit", "--config", "path_list.yaml"), "line 3.*default_root_dir is \\['a'\\], but must be"),
    (("fit", "--config", "path_of_saver.yaml"), "dirpath"),
    (("fit", "--config", "."), "a folder, no file"),
    (("fit", "--config", "/dev/null"), "a device, no file"),
    (("fit", "--config", "/dev/zero"), "a device, no file"),
    (("fit", "--config", "/dev/urandom"), "a device, no file"),
    (("fit", "--config", "pipe"), "a pipe, no file"),
    (("fit", "--config", ""), "wants a file"),
    (("fit", "--config", " "), "wants a file"),
    (("fit", "--config"), "--config wants a value"),
    (("fit", "--config", "--config"), "--config wants a value"),
    (("fit", "--config=nothing.yaml"), "there is no such file"),
    (("fit", "--config", "x" * 5000), "--config"),
    (("fit", "--config", "a\0b"), "null"),
    (("fit", "--config", "lab.py/x.yaml"), "--config lab.py/x.yaml"),
    (("fit", "--config", "loop.yaml"), "loop.yaml"),
    (("fit", "--config", "lab.py"), "lab.py"),
    # flags
    (("fit", f"--{'.'.join('a' * 3000)}", "1"), "3000 parts"),
    (("fit", "--model." + "x" * 5000, "1"), ""),
    (("fit", *GOOD, "--model.lr", "[" * 5000), "--model.lr"),
    (("fit", *GOOD, "--model.lr", "[" * 5000 + "]" * 5000), "nested deeper than 64"),
    (("fit", *GOOD, "--model.lr", "{a: " * 3000), "--model.lr"),
    (("fit", *GOOD, "--model.lr", LAUGHS), "--model.lr"),
    (("fit", *GOOD, "--model.lr", "&a [*a]"), "contains itself"),
    (("fit", *GOOD, "--model.lr", "9" * 2_000_000), "larger than 1 MiB"),
    (("fit", *GOOD, "--model.lr", "{a: 1, a: 2}"), "stands here and in line 1"),
    (("fit", *GOOD, "--model.lr", "\x1b]0;x\x07"), "--model.lr"),
    (("fit", *GOOD, "--model.lr", "\udcff"), "--model.lr"),
    (("fit", *GOOD, "--model.width", "1e999"), "--model.width"),
    (("fit", *GOOD, "--model.width", "9" * 5000), "--model.width"),
    (("fit", *GOOD, "--model.width", "4.5"), "--model.width"),
    (("fit", *GOOD, "--model.width", "wide"), "--model.width is 'wide', but must be int"),
    (("fit", *GOOD, "--model.width", ""), "--model.width"),
    (("fit", *GOOD, "--model.width="), "--model.width"),
    (("fit", *GOOD, "--model.nothing", "1"), "nothing"),
    (("fit", *GOOD, "--model.lr.deeper", "1"), "--model.lr"),
    (("fit", *GOOD, "--model.encoder", "subprocess.Popen"), "--model.encoder"),
    (("fit", *GOOD, "--model.encoder", "os.system"), "--model.encoder"),
    (("fit", *GOOD, "--model.encoder", "nothing.Net"), "--model.encoder"),
    (("fit", *GOOD, "--model.encoder.class_path", "subprocess.Popen"), "--model.encoder"),
    (("fit", *GOOD, "--trainer.plugins", '{"class_path": "subprocess.Popen"}'), "plugins"),
    (("fit", *GOOD, "--trainer.callbacks", '{"class_path": "subprocess.Popen"}'), "callbacks"),
    (("fit", *GOOD, "--trainer.callbacks", "5"), "callbacks"),
    (("fit", *GOOD, "--trainer.callbacks+", "nothing.Here"), "callbacks"),
    (("fit", *GOOD, "--trainer.logger", "subprocess.Popen"), "logger"),
    (("fit", *GOOD, "--trainer.logger", "maybe"), "logger"),
    (("fit", *GOOD, "--trainer.strategy", "dp"), "strategy"),
    (("fit", *GOOD, "--trainer.precision", "17"), "precision"),
    (("fit", *GOOD, "--trainer.profiler", "fast"), "profiler"),
    (("fit", *GOOD, "--trainer.max_epochs", "-7"), "max_epochs"),
    (("fit", *GOOD, "--trainer.max_epochs", "many"), "max_epochs"),
    (("fit", *GOOD, "--trainer.max_epochs", "[1]"), "max_epochs"),
    (("fit", *GOOD, "--trainer.max_steps", "1.5"), "max_steps"),
    (("fit", *GOOD, "--trainer.max_time", "soon"), "The duration"),
    (("fit", *GOOD, "--trainer.limit_train_batches", "-1"), "limit_train_batches"),
    (("fit", *GOOD, "--trainer.limit_train_batches", "1.5"), "limit_train_batches"),
    (("fit", *GOOD, "--trainer.val_check_interval", "0"), "val_check_interval"),
    (("fit", *GOOD, "--trainer.accumulate_grad_batches", "0"), "accumulate_grad_batches"),
    (("fit", *GOOD, "--trainer.gradient_clip_val", "much"), "gradient_clip_val"),
    (("fit", *GOOD, "--trainer.gradient_clip_algorithm", "none"), "gradient_clip_algorithm"),
    (("fit", *GOOD, "--trainer.deterministic", "perhaps"), "deterministic"),
    (("fit", *GOOD, "--trainer.log_every_n_steps", "-1"), "log_every_n_steps"),
    (("fit", *GOOD, "--trainer.num_sanity_val_steps", "-2"), "num_sanity_val_steps"),
    (("fit", *GOOD, "--trainer.overfit_batches", "-1"), "overfit_batches"),
    (("fit", *GOOD, "--trainer.num_workers", "few"), "num_workers"),
    (("fit", *GOOD, "--trainer.num_workers", "1000000"), "at most 65,536 make a group|at most"),
    (("fit", *GOOD, "--trainer.devices", "99999999999"), "99,999,999,999 workers: at most 65,536"),
    (("fit", *GOOD, "--trainer.max_time", "99999999999999:00:00:00"), "longer than"),
    (("fit", *GOOD, "--trainer.default_root_dir", "lab.py"), "it is a file"),
    (("fit", *GOOD, "--trainer.storage_path", "lab.py/x"), "lab.py is a file"),
    (("fit", *GOOD, "--model.width", "***"), "width"),
    (("fit", *GOOD, "--model.name", "***"), "name"),
    (("fit", *GOOD, "--trainer.nothing", "1"), "nothing"),
    (("fit", *GOOD, "--trainer", "[]"), "trainer"),
    (("fit", *GOOD, "--trainer", "nothing.yaml"), "trainer"),
    (("fit", *GOOD, "--trainer", "binary.yaml"), "trainer"),
    (("fit", *GOOD, "--seed_everything", "-1"), "seed"),
    (("fit", *GOOD, "--seed_everything", "1e5"), "seed"),
    (("fit", *GOOD, "--seed_everything", "9" * 30), "seed"),
    (("fit", *GOOD, "--optimizer", "Adamm"), "optimizer"),
    (("fit", *GOOD, "--optimizer", "os.system"), "optimizer"),
    (("fit", *GOOD, "--optimizer.lr", "1"), "optimizer"),
    (("fit", *GOOD, "--lr_scheduler", "StepLR"), "lr_scheduler"),
    (("fit", *GOOD, "--lr_scheduler", "torch.nn.ReLU"), "lr_scheduler"),
    (("fit", *GOOD, "--ckpt_path", "nothing.ckpt"), "nothing.ckpt"),
    (("fit", *GOOD, "--ckpt_path", ""), "ckpt_path"),
    (("fit", *GOOD, "--ckpt_path", "[1]"), "ckpt_path"),
    (("fit", *GOOD, "--ckpt_path", "best"), "best"),
    (("fit", *GOOD, "--resume"), "there is nothing to go on from"),
    (("fit", *GOOD, "--resume", "--ckpt_path", "last"), "one of the two"),
    (("fit", *GOOD, "--resume=3"), "resume"),
    (("fit", *GOOD, "--verbose=3"), "verbose"),
    (("fit", *GOOD, "--"), "--"),
    (("fit", *GOOD, "---", "1"), ""),
    (("fit", *GOOD, "--.", "1"), "a part of its name is empty"),
    (("fit", *GOOD, "--a..b", "1"), "a part of its name is empty"),
    (("fit", *GOOD, "--=1"), "a part of its name is empty"),
    (("fit", *GOOD, "-c"), "-c wants a value"),
    (("fit", *GOOD, "-x"), "'-x' is not expected here"),
    (("fit", *GOOD, "stray"), "'stray' is not expected here"),
    (("fit", *GOOD, "--print_config=x"), "print_config"),
    (("fit", *GOOD, "--config.x", "1"), "config"),
    (("fit", *GOOD, "--class_path", "os.system"), "class_path"),
    (("fit", *GOOD, "--__path__", "x"), "__path__"),
    (("fit", *GOOD, "--model.__path__", "x"), "__path__"),
    (("fit", *GOOD, "--model.help"), ""),
    (("fit", "--model.help", "nothing.Net"), "nothing"),
    (("fit", "--nothing.help"), "--nothing.help: there is no such flag"),
    (("fit", "--data.help", "lab"), "lab"),
    # numbers beyond all, folders and files that are none
    *(
        (("fit", *GOOD, f"--trainer.{name}", HUGE), f"{name} is a number of 400 digits")
        for name in ("max_epochs", "max_steps", "accumulate_grad_batches", "log_every_n_steps")
    ),
    (("fit", *GOOD, "--trainer.num_sanity_val_steps", HUGE), "num_sanity_val_steps is a number of"),
    (("fit", *GOOD, "--trainer.num_workers", HUGE), "num_workers"),
    (("fit", *GOOD, "--trainer.num_workers", "[3, 1]"), "num_workers"),
    (("fit", *GOOD, "--trainer.num_workers", "[1, 2, 3]"), "num_workers"),
    (("fit", *GOOD, "--trainer.num_workers", "nan"), "num_workers"),
    (("fit", *GOOD, "--model.lr", HUGE), "--model.lr.*int too large"),
    (("fit", *GOOD, "--trainer.limit_train_batches", "nan"), "limit_train_batches"),
    (("fit", *GOOD, "--trainer.limit_val_batches", ".inf"), "limit_val_batches"),
    (("fit", *GOOD, "--trainer.gradient_clip_val", ".nan"), "gradient_clip_val is not a number"),
    (("fit", *GOOD, "--trainer.val_check_interval", ".nan"), "val_check_interval"),
    (("fit", *GOOD, "--trainer.check_val_every_n_epoch", "0"), "check_val_every_n_epoch"),
    (("fit", *GOOD, "--trainer.max_failures", "-5"), "max_failures"),
    (("fit", *GOOD, "--trainer.max_time", ".nan"), "The duration"),
    (("fit", *GOOD, "--trainer.max_time", "{hours: many}"), "The duration"),
    (("fit", *GOOD, "--trainer.max_time", "{centuries: 1}"), "The duration"),
    (("fit", *GOOD, "--trainer.fast_dev_run", "-1"), "fast_dev_run"),
    (("fit", *GOOD, "--trainer.fast_dev_run", "often"), "fast_dev_run"),
    (("fit", *GOOD, "--trainer.default_root_dir", ""), "names no folder"),
    (("fit", *GOOD, "--trainer.default_root_dir", "s3://"), "Give s3://BUCKET/FOLDER"),
    (("fit", *GOOD, "--trainer.storage_path", "gs:///"), "Give gs://BUCKET/FOLDER"),
    (("runs", "ls", "--store", "mysql+pymysql://u:pw@h/d"), "pip install pymysql"),
    (("fit", *GOOD, "--trainer.default_root_dir", " "), "names no folder"),
    (("fit", *GOOD, "--trainer.default_root_dir", "a\0b"), "names no folder"),
    (("fit", *GOOD, "--trainer.default_root_dir", "x" * 5000), "File name too long"),
    (("fit", *GOOD, "--trainer.default_root_dir", "x" * 300), "File name too long"),
    (("fit", *GOOD, "--trainer.default_root_dir", "/dev/null"), "is a file"),
    (("fit", *GOOD, "--trainer.default_root_dir", "loop.yaml"), "levels of symbolic links"),
    (("fit", *GOOD, "--trainer.default_root_dir", "loop.yaml/x"), "levels of symbolic links"),
    (("fit", *GOOD, "--trainer.default_root_dir", "nothing://bucket/x"), "nothing://"),
    (("fit", *GOOD, "--trainer.storage_path", ""), "names no folder"),
    (("fit", *GOOD, "--trainer.storage_path", "a\0b"), "names no folder"),
    (("fit", *GOOD, *ON_RAY, "--trainer.storage_path", "relative"), "is relative"),
    (("fit", *GOOD, *ON_RAY, "--trainer.resources_per_worker", "{CPU: -1}"), "CPU"),
    (("fit", *GOOD, *ON_RAY, "--trainer.resources_per_worker", "{CPU: .nan}"), "CPU"),
    (("fit", *GOOD, *ON_RAY, "--trainer.resources_per_worker", "{GPU: .5}"), "GPU"),
    (("fit", *GOOD, *ON_RAY, "--trainer.resources_per_worker", "[1]"), "resources_per_worker"),
    (("fit", *GOOD, *ON_RAY, "--trainer.resources_per_worker", "{CPU: [1]}"), "CPU"),
    (("fit", *GOOD, "--ckpt_path", "/dev/zero"), "a device, no file"),
    (("fit", *GOOD, "--ckpt_path", "/dev/null"), "a device, no file"),
    (("test", *GOOD, "--ckpt_path", "pipe"), "a pipe, no file"),
    (("fit", *GOOD, "--ckpt_path", "a\0b"), "ckpt_path"),
    (("fit", *GOOD, "--ckpt_path", "loop.yaml"), "ckpt_path"),
    (("fit", *GOOD, "--ckpt_path", "x" * 5000), "ckpt_path"),
    (("fit", *GOOD, "--ckpt_path", "nothing://x/y.ckpt"), "nothing"),
    (("fit", *GOOD, "--ckpt_path", "registry:nothing"), "registry:nothing"),
    (("fit", *GOOD, "--ray.nothing", "1"), "nothing"),
    # models
    (("fit",), "there is no model to fit"),
    (("fit", "--model", "lab"), "lab"),
    (("fit", "--model", "lab.nothing"), "nothing"),
    (("fit", "--model", "lab.torch"), "torch"),
    (("fit", "--model", "lab.time.sleep"), "lab.time"),
    (("fit", "--model", "os.system"), "system"),
    (("fit", "--model", "subprocess.Popen"), "is no LightningModule"),
    (("fit", "--model", "..Net"), "Net"),
    (("fit", "--model", ".Net"), "Net"),
    (("fit", "--model", "lab."), "lab"),
    (("fit", "--model", "lab..Net"), "lab"),
    (("fit", "--model", "lab Net"), "lab Net"),
    (("fit", "--model", "lab.Nét"), "N"),
    (("fit", "--model", "a" * 3000), "a"),
    (("fit", "--model", ".".join("a" * 3000)), "a"),
    (("fit", "--model", "[lab.Net]"), "model"),
    (("fit", "--model", "null"), "model"),
    (("fit", "--model", "{class_path: lab.Net, init_arg: 1}"), "init_arg"),
    (("fit", "--model", "lab.Broken"), "needs the argument at"),
    (("fit", "--model", "broken.Net"), "broken"),
    (("fit", "--model", "syntax.Net"), "syntax"),
    (("fit", "--model", "exits.Net"), "ended the process"),
    (("fit", *GOOD[:2], "--data", "lab.Net"), "is no LightningDataModule"),
    (("fit", *GOOD, "--data.batch_size", "[]"), "batch_size"),
    # commands
    (("",), "There is no command ''"),
    (("fitt",), "Did you mean 'fit'"),
    (("FIT",), "There is no command"),
    (("--fit",), "There is no command"),
    (("-",), "There is no command"),
    (("--",), "There is no command"),
    (("fit fit",), "There is no command"),
    (("\0",), "There is no command"),
    (("--print_completion",), "print_completion"),
    (("--print_completion", "cmd"), "There are: bash, zsh"),
    (("fit", "fit"), "'fit' is not expected here"),
    # other commands
    (("predict", *GOOD, "--output", ""), "it is no name of a file"),
    (("predict", *GOOD, "--output", "."), "it is a folder"),
    (("predict", *GOOD, "--output", "/"), "it is a folder"),
    (("predict", *GOOD, "--output", "nothing/x.pt"), "there is no folder nothing"),
    (("predict", *GOOD, "--output", "/dev/null"), "it is no file"),
    (("predict", *GOOD, "--output", "lab.py/x.pt"), "there is no folder lab.py"),
    (("predict", *GOOD, "--output", "/proc/x.pt"), "nothing can be written there|no permission"),
    (("predict", *GOOD, "--output"), "output"),
    (("fit", *GOOD, "--ckpt_path", "lab.py"), "lab.py was not loaded|could not be read"),
    (("fit", *GOOD, "--ckpt_path", "file:///etc/passwd"), "/etc/passwd could not be read"),
    (("fit", *GOOD, "--on", "a b"), "neither an address nor a file"),
    (("fit", *GOOD, "--on", "http://u:s3cr3t@127.0.0.1:1"), "has a login in it"),
    (("fit", *GOOD, "--on", "http://["), "is no address"),
    (("predict", *GOOD, "--ckpt_path", "nothing"), "nothing"),
    (("test", *GOOD, "--resume"), "--resume"),
    (("validate", *GOOD, "--resume"), "--resume"),
    (("test", *GOOD, "--output", "x.pt"), "output"),
    (("test", *GOOD, "--ckpt_path", "best"), "best"),
    (("test", *GOOD, "--weights_only", "maybe"), "weights_only"),
    (("test", *GOOD, "--verbos", "1"), "verbos"),
    (("check", "--model", "nothing.Net"), "nothing"),
    (("tune", *GOOD), "--sweep"),
    (("tune", *GOOD, "--sweep"), "sweep"),
    (("tune", *GOOD, "--sweep", ""), "--sweep wants a file"),
    (("tune", *GOOD, "--sweep", "."), "a folder, no file"),
    (("tune", *GOOD, "--sweep", "/dev/null"), "a device, no file"),
    (("tune", *GOOD, "--sweep", "nothing.yaml"), "there is no such file"),
    (("tune", *GOOD, "--sweep", "laughs.yaml"), "values when written out"),
    (("tune", *GOOD, "--sweep", "latin1.yaml"), "is no UTF-8"),
    (("tune", *GOOD, "--sweep", "duplicate.yaml"), "stands here and in line"),
    (("ui", "--port", "99999"), "ports are 1 to 65535"),
    (("ui", "--port", "0"), "ports are 1 to 65535"),
    (("ui", "--port", "-1"), "port"),
    (("ui", "--port", "http"), "port"),
    (("ui", "--host", "no.such.host.invalid"), "no.such.host.invalid"),
    (("ui", "--backend-store-uri", "nothing"), "There is no MLflow store"),
    (("ui", "--backend-store-uri", "http://127.0.0.1:1"), "is an MLflow server already"),
    (("ui", "--backend-store-uri", "sqlite:///nothing.db"), "There is no MLflow store"),
    (("ui", "--backend-store-uri", "sqlite:///lab.py"), "lab.py is no SQLite database"),
    (("ui", "--backend-store-uri", "mysql+pymysql://u:pw@h/d"), "pip install pymysql"),
    (("ui", "--backend-store-uri", "postgresql+nothing://h/d"), "is no address of a database"),
    (("ui", "--nothing"), "raylit ui has no such flag"),
    (("ui", "stray"), "raylit ui has no such flag"),
    (("ui", "--port", "8.5"), "port"),
    (("ui", "--host", ""), "Cannot listen on"),
    (("runs", "ls", "--nothing"), "nothing"),
    (("runs", "show", "nothing"), ""),
    (("runs", "ls", "--store", "nothing://x"), "The MLflow store does not answer"),
    (("init", "a/b\0"), "no folder can be called"),
    (("init", "x" * 300), "no folder can be called"),
    (("init", "1x"), "no Python package can be called"),
    (("init", "class"), "no Python package can be called"),
    (("init", "lab.py"), "but there is one"),
]


def test_there_are_enough_inputs() -> None:
    assert len(INPUTS) >= 150 and len(set(INPUTS)) == len(INPUTS)


@pytest.fixture
def hostile(lab: Path) -> Path:
    for name, content in FILES.items():
        (lab / name).write_bytes(content)
    os.mkfifo(lab / "pipe")
    (lab / "loop.yaml").symlink_to("loop.yaml")
    (lab / "broken.py").write_text("1 / 0\n")
    (lab / "syntax.py").write_text("def\n")
    (lab / "exits.py").write_text("raise SystemExit(3)\n")
    return lab


def on_ray() -> bool:
    """Tell whether this process is connected to a Ray cluster."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def test_every_input_is_refused_with_one_message(
    hostile: Path, main: Callable[..., Done], monkeypatch: Any
) -> None:
    wrong: list[str] = []
    main("fit", *GOOD, "--print_config")
    files = sorted(hostile.rglob("*"))
    threads = threading.active_count()
    was_on_ray = on_ray()  # by tests before in this process
    for args, words in INPUTS:
        began = time.perf_counter()
        shown = " ".join(args)[:120]
        try:
            done = main(*args)
        except BaseException as error:
            wrong.append(f"{shown}: {type(error).__name__}: {str(error)[:200]}")
            continue
        took = time.perf_counter() - began
        said = done.err
        problems = [
            f"exit code {done.code}" if done.code != 2 else "",
            "a traceback" if "Traceback" in said or 'File "' in said else "",
            f"no {words!r}" if not re.search(words, said) else "",
            "no message" if not said.strip() else "",
            f"{len(said)} characters" if len(said) > 4000 else "",
            f"{took:.0f} s" if took > stretched(10) else "",
        ]
        if any(problems):
            wrong.append(f"{shown}: {', '.join(filter(None, problems))}: {said[:300]!r}")
    left = [path for path in sorted(hostile.rglob("*")) if path not in files]
    left = [path for path in left if "__pycache__" not in path.parts]
    assert not (hostile / "ran").exists()
    assert not wrong, f"{len(wrong)} of {len(INPUTS)}:\n" + "\n".join(wrong)
    assert not left, left
    assert threading.active_count() == threads
    assert was_on_ray or not on_ray()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RAYLIT_PROGRESS", "foo"),
        ("RAYLIT_TIMEOUT_S", "abc"),
        ("RAYLIT_RESIZE_EVERY_S", "-1"),
        ("PL_GLOBAL_SEED", "abc"),
        ("PL_TRAINER_MAX_EPOCHS", "many"),
        ("PL_TRAINER_MAX_EPOCHS", HUGE),
        ("PL_TRAINER_NUM_WORKERS", "few"),
        ("PL_TRAINER_NUM_WORKERS", "True"),
        ("PL_TRAINER_DEFAULT_ROOT_DIR", "[1, 2]"),
        ("PL_TRAINER_CALLBACKS", "nothing.Here"),
        ("PL_TRAINER_PLUGINS", "{'class_path': 'subprocess.Popen'}"),
    ],
)
def test_variables_that_cannot_be_meant(
    variable: str, value: str, lab: Path, main: Callable[..., Done], monkeypatch: Any
) -> None:
    files = sorted(lab.iterdir())
    monkeypatch.setenv(variable, value)
    done = main("fit", *GOOD)
    assert done.code == 2 and "Traceback" not in done.err
    assert variable in done.err
    assert [path for path in sorted(lab.iterdir()) if path.name != "__pycache__"] == files


def test_a_variable_that_the_command_itself_sets(monkeypatch: Any) -> None:
    monkeypatch.setenv("PL_SEED_WORKERS", "abc")
    with pytest.raises(ConfigError, match="PL_SEED_WORKERS=abc is none of 0, 1"):
        Trainer(max_epochs=1, logger=False)


@pytest.mark.parametrize("name", ["trials", "max_concurrent"])
def test_sweeps_beyond_all_numbers(name: str, hostile: Path, main: Callable[..., Done]) -> None:
    lines = ["name: s", "metric: {name: val_loss, mode: min}", "space: {model.lr: {choice: [1]}}"]
    (hostile / "sweep.yaml").write_text("\n".join([*lines, f"{name}: {HUGE}"]))
    done = main("tune", *GOOD, "--sweep", "sweep.yaml")
    assert done.code == 2 and "Traceback" not in done.err
    assert "line 4" in done.err and "is larger than" in done.err


MADE_UNSEEN = "{backend: {class_path: subprocess.Popen, init_args: {args: touch ran, shell: true}}}"


def test_the_trainer_has_nothing_made_that_no_type_asks_for(
    hostile: Path, main: Callable[..., Done]
) -> None:
    assert main("fit", *GOOD[:2], "--trainer.compile", MADE_UNSEEN).code == 2
    assert not (hostile / "ran").exists()
