"""`raylit fit|tune|validate|test --on`: the same command as a job of a Ray cluster elsewhere.

All its faults are found here, before anything is uploaded. The files of this folder, the flags, and
variables of raylit's own go along. No secret does, since Ray shows commands and environments of
jobs to all who may look at the cluster.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NoReturn

from raylit.cli import kubernetes, tunnel, upload
from raylit.cli.config import Config, ConfigReader, secrets_elsewhere
from raylit.cli.source import ConfigSource, dotted, read_file
from raylit.errors import ConfigError
from raylit.loggers.mlflow.source import git_tags
from raylit.runtime import environment
from raylit.runtime.masked_config import secret_paths
from raylit.runtime.messages import info, number_of
from raylit.runtime.secrets import MASK, has_secret, is_secret_name, without_secrets

INTERRUPTED = 130
NOT_FOUND = 127  # a shell's exit code for a command that is not there
FILES = ("--config", "-c", "--sweep")  # flags that name a file of the folder that is uploaded
WANTED = (
    "Give the address of a Ray dashboard (http://head:8265), a RayJob of Kubernetes"
    " (cluster/kubernetes/rayjob.yaml) or a cluster file of `ray up` (cluster/ray/aws.yaml)."
)
# Raylit's save of a run that is stopped; Ray kills it 3 s after it has asked it to end.
STOP_WAIT_S = 60
OWN_VARIABLES = ("PL_", "RAYLIT_")
LAST_LINES = ", last available logs"  # where Ray's words repeat the log, which has been shown
OF_THE_TERMINAL = ("RAYLIT_PROGRESS", "RAYLIT_VERBOSE")
INSTEAD = (
    "Write '***' in its place in the config, and set the variable (PL_MODEL_API_KEY for"
    " model.api_key) where `ray start` is called; or use what the cluster has for it, such as"
    " MLFLOW_TRACKING_PASSWORD."
)


def run(command: str, args: Sequence[str], options: Namespace, reader: ConfigReader) -> None:
    """Run a command as a job, and end the process as the job did.

    Args:
        command: which.
        args: what keys of the config are given, and --config.
        options: the other flags; `on` says where, `typed` is all that was typed but for that.
        reader: reads the config.

    Raises:
        ConfigError: something is wrong; nothing was uploaded.
        SystemExit: the job did not succeed, or it goes on without anybody who looks.
    """
    given = f"--on {options.on}"
    is_file, definition = _target(options.on, given)
    if options.ray_address:
        raise ConfigError(
            f"{given} says where to run, and --ray.address {options.ray_address} too. The job finds"
            " its own cluster: leave out --ray.address."
        )
    config = _checked(command, list(args), options, reader)
    _refuse_lost_runs(config)
    folder = Path.cwd()
    files = _files(folder)
    typed = _with_files_below(options.typed, folder, files)
    _refuse_secret_flags(typed)
    _refuse_secret_values(config.sources)
    if command == "tune" and options.sweep is not None:
        _refuse_secret_values([read_file(options.sweep, "--sweep")])
    line = f"{reader.program} {shlex.join([command, *typed])}"
    env = {**_environment(), environment.ON: options.on}
    name = f"raylit-{command}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch, "code.zip")
        pack = partial(_pack, folder, files, package)
        if is_file and kubernetes.is_rayjob(definition):
            job = kubernetes.Submission(name, line, env, definition, given)
            job.check()
            pack(kubernetes.MAX_PACKAGE_BYTES, "a ConfigMap")
            job.submit(package)
            _end(*_follow_rayjob(job), line)
            return
        where = tunnel.to_head(options.on) if is_file else nullcontext(options.on.rstrip("/"))
        file = options.on if is_file else None
        _end(*_run_on_dashboard(where, file, given, name, line, env, package, pack), line)


def _run_on_dashboard(
    where: AbstractContextManager[str],
    cluster_file: str | None,
    given: str,
    name: str,
    line: str,
    env: dict[str, str],
    package: Path,
    pack: Callable[[int, str], None],
) -> tuple[int, str]:
    # Ray is loaded only once all else is known to be good
    from raylit.launch.on_ray.jobs import MAX_PACKAGE_BYTES, JobServer

    own_mode = os.environ.get("RAY_AUTH_MODE")
    with where as address:
        server = JobServer(address, given)
        pack(MAX_PACKAGE_BYTES, "Ray")
        server.submit(name, line, package, env)
        # `ray job` reads the token's file only where it is told to
        ray = "RAY_AUTH_MODE=token ray" if own_mode != os.environ.get("RAY_AUTH_MODE") else "ray"
        tunnels = f"  ray dashboard {cluster_file} --port {address.rpartition(':')[2]} &\n"
        hints = (tunnels if cluster_file is not None else "") + (
            f"  {ray} job logs --address {address} --follow {name}\n"
            f"  {ray} job stop --address {address} {name}"
        )
        info(
            f"Job {name} runs on {address}, and goes on without this process. Ray's own commands"
            f" for its log, and to stop it:\n{hints}"
        )
        try:
            return server.follow(name, _show)
        except KeyboardInterrupt:
            if not _is_to_stop(name):
                _look_away(name, hints)
        server.stop(name)
        server.follow(name, _show)
        info(f"Job {name} is stopped.")
        sys.exit(INTERRUPTED)


def _follow_rayjob(job: kubernetes.Submission) -> tuple[int, str]:
    info(
        f"RayJob {job.name} is made, and goes on without this process. Kubernetes' own commands for"
        f" its log, and to end it:\n{job.hints}"
    )
    try:
        return job.follow(_show)
    except KeyboardInterrupt:
        if not _is_to_stop(job.name):
            _look_away(job.name, job.hints)
    job.stop()
    info(f"RayJob {job.name} is deleted.")
    sys.exit(INTERRUPTED)


def _end(code: int, message: str, line: str) -> None:
    """End the process as the job did."""
    if code == 0:
        return
    if code == NOT_FOUND:
        info(
            f"The cluster has no command {line.split()[0]!r}: raylit is to be installed on its"
            " nodes as it is here (cluster/README.md)."
        )
    why = without_secrets(message.partition(LAST_LINES)[0])
    info(f"The job ended with exit code {code}. {why}".rstrip())
    sys.exit(code)


def _target(on: str, given: str) -> tuple[bool, dict[str, object]]:
    """Return whether a file is meant, and the contents of that file.

    Raises:
        ConfigError: it is neither a file of one of the two kinds nor an address.
    """
    if re.match(r"https?://", on):
        if has_secret(on) or "@" in on:
            raise ConfigError(
                "--on: the address has a login in it, which the commands that are printed would"
                " show. Leave it out; Ray's token is read from ~/.ray/auth_token or RAY_AUTH_TOKEN."
            )
        if not re.fullmatch(r"https?://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?(/[\w./-]*)?", on):
            raise ConfigError(f"{given} is no address. {WANTED}")
        return False, {}
    if on.startswith("ray://"):
        raise ConfigError(f"{given} is an address of Ray Client, which takes no jobs. {WANTED}")
    if not on.endswith((".yaml", ".yml")) and not os.path.isfile(on):
        found = re.match(r"([\w.-]+):(\d*)", on)
        # Ray's own port is not the dashboard's.
        port = 8265 if found is None or found[2] in ("", "6379") else found[2]
        hint = f" Is http://{found[1]}:{port} meant?" if found else ""
        raise ConfigError(f"{given} is neither an address nor a file.{hint} {WANTED}")
    definition = read_file(on, "--on").values
    if not kubernetes.is_rayjob(definition) and not {"cluster_name", "provider"} <= set(definition):
        kind = f" (kind: {definition['kind']})" if "kind" in definition else ""
        raise ConfigError(f"{given}{kind} is a file of neither kind. {WANTED}")
    return True, definition


def _checked(command: str, args: list[str], options: Namespace, reader: ConfigReader) -> Config:
    """Return the config, as far as it can be tried out without data.

    Raises:
        ConfigError: something in it or in the sweep file is wrong.
    """
    with secrets_elsewhere():
        if command == "tune":
            from raylit.cli.sweep import check

            return check(args, options, reader)
        return reader.read(command, args)


def _refuse_lost_runs(config: Config) -> None:
    """Check that the files of a run outlast the job.

    Raises:
        ConfigError: it would be in the folder that Ray makes for the job, and deletes.
    """
    trainer = config.values.trainer
    places = {name: trainer.get(name) for name in ("default_root_dir", "storage_path")}
    for name, place in places.items():
        if place is not None and not (os.path.isabs(str(place)) or "://" in str(place)):
            raise ConfigError(
                f"{config.where('trainer', name) or f'trainer.{name}'} is {place}, in the folder of"
                " the job, which Ray deletes when it has ended. Give a path from the root that all"
                " nodes see, or a bucket."
            )
    if not any(places.values()) and not trainer.get("fast_dev_run"):
        raise ConfigError(
            "--on: where is the run to write? Ray deletes the folder of a job when it has ended."
            " Give one that all nodes see (--trainer.default_root_dir /home/ray/runs/digits), or a"
            " bucket (--trainer.storage_path s3://bucket/runs)."
        )


def _files(folder: Path) -> list[str]:
    """Return the files of the folder that go along.

    Raises:
        ConfigError: it is none that could be uploaded, or there are secrets in it.
    """
    if folder in (Path.home(), Path(folder.anchor)):
        raise ConfigError(
            f"--on uploads the folder it is called in, which is {folder}: all of it. Call it in"
            " that of your project."
        )
    files = upload.files_of(folder)
    upload.refuse_secrets(folder, files)
    return files


def _with_files_below(typed: Sequence[str], folder: Path, files: Sequence[str]) -> list[str]:
    """Return the arguments that were typed, with the files among them as the job finds them.

    Raises:
        ConfigError: the job would not find one.
    """
    there = set(files)
    result: list[str] = []
    flag = ""
    for arg in typed:
        name, equals, value = arg.partition("=")
        if name in (*FILES, "--ckpt_path") and equals:
            result.append(f"{name}={_below(name, value, folder, there)}")
        elif flag in (*FILES, "--ckpt_path"):
            result.append(_below(flag, arg, folder, there))
        else:
            result.append(arg)
        flag = arg
    return result


def _below(flag: str, value: str, folder: Path, there: set[str]) -> str:
    if "://" in value:
        return value
    path = Path(os.path.abspath(value))
    if flag == "--ckpt_path" and (
        value in ("best", "last") or not path.exists() or Path(value) == path
    ):
        return value  # a path from the root is one of the cluster
    relative = os.path.relpath(path, folder)
    if relative not in there:
        why = (
            "it is not in the folder that is uploaded"
            if relative.startswith("..")
            else ".gitignore or .rayignore leaves it out of what is uploaded"
        )
        raise ConfigError(f"{flag} {value}: the job would not find it: {why} ({folder}).")
    return relative


def _refuse_secret_flags(typed: Sequence[str]) -> None:
    """Find passwords among the flags.

    Raises:
        ConfigError: there is one; Ray shows and logs the command of a job.
    """
    shown = without_secrets(shlex.join(typed))
    if shown != shlex.join(typed):
        found = next((arg for arg in shown.split() if MASK in arg), MASK)
        raise ConfigError(f"{found}: Ray shows and logs the command of a job. {INSTEAD}")


def _refuse_secret_values(sources: Sequence[ConfigSource]) -> None:
    """Find passwords in the files of configs and sweeps.

    Raises:
        ConfigError: there is one; the cluster keeps all uploaded files.
    """
    for source in sources:
        for path in () if source.root is None else secret_paths(source.root):
            raise ConfigError(
                f"{source.where(path)}: {dotted(path)} looks like a secret, and the cluster keeps"
                f" all uploaded files. {INSTEAD}"
            )


def _environment() -> dict[str, str]:
    """Return the environment variables that go along: raylit's own, and the commit of the code."""
    env = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "PYTHONUNBUFFERED": "1"}
    for name, value in os.environ.items():
        if not name.startswith(OWN_VARIABLES) or name in OF_THE_TERMINAL:
            continue
        if _is_of_secret(name) or has_secret(value):
            info(f"{name} stays here, since Ray shows it. Set it where `ray start` is called.")
        else:
            env[name] = value
    tags = {name: tag for name, tag in git_tags(Path.cwd()).items() if not name.endswith("repoURL")}
    if tags:
        env["MLFLOW_RUN_CONTEXT"] = json.dumps(tags)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        info(
            "MLFLOW_TRACKING_URI of here does not go along: the job logs to where that of the"
            " cluster points."
        )
    return env


def _is_of_secret(variable: str) -> bool:
    """Tell whether a variable holds a secret, or a part of one: PL_MODEL_API_KEY_OPENAI."""
    words = variable.split("_")
    return any(is_secret_name("_".join(words[: end + 1])) for end in range(len(words)))


def _pack(folder: Path, files: Sequence[str], package: Path, max_bytes: int, where: str) -> None:
    size = upload.pack(folder, files, package, max_bytes, where)
    info(f"Uploading {number_of(len(files), 'file')} of {folder}, {upload.megabytes(size)} packed.")


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _is_to_stop(name: str) -> bool:
    """Ask whether Ctrl-C means the job, or only looking at it."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"\nStop the job {name}? [y: stop it, Enter: only look away] ", end="", file=sys.stderr)
    sys.stderr.flush()
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes", "stop")
    except KeyboardInterrupt:
        return False


def _look_away(name: str, hints: str) -> NoReturn:
    info(f"Job {name} goes on. To look at it again, or to stop it:\n{hints}")
    sys.exit(INTERRUPTED)
