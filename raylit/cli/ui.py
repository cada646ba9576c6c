"""`raylit ui`: MLflow's server on this machine."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from raylit.cli.children import end, ended_by_signals
from raylit.errors import ConfigError, LaunchError, MissingPackageError
from raylit.loggers.mlflow import runs, store
from raylit.runtime.messages import is_verbose, warn
from raylit.runtime.secrets import without_secrets

START_TIMEOUT_S = 120.0
SQLITE = b"SQLite format 3\0"  # how each of its files begins (https://sqlite.org/fileformat2.html)
MIN_PASSWORD_LENGTH = 12  # as in MLflow's basic-auth app


def serve(uri: str | None, host: str, port: int, auth: bool = False) -> None:
    """Serve MLflow's pages until Ctrl-C.

    Args:
        uri: the store; None: MLFLOW_TRACKING_URI, else `mlflow.db` in the current folder.
        host: address to listen on.
        port: port to listen on.
        auth: whether users have to log in (MLflow's basic-auth app).

    Raises:
        ConfigError: there is no such store, or the port is taken.
        LaunchError: the server ended.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    check_port(host, port)
    check_store(uri)
    if not auth:
        warn_if_open(host, port)
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        host,
        "--port",
        str(port),
        "--workers",
        "1",
        *(("--app-name", "basic-auth") if auth else ()),
    ]
    # Not as an argument: it may hold a password, and everybody can list processes.
    env = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri} | (login() if auth else {})
    with tempfile.TemporaryFile() as log, ended_by_signals():
        # a session of its own, so that the server's own children end with it and Ctrl-C reaches it
        # through us alone
        child = subprocess.Popen(
            command,
            stdout=None if is_verbose() else log,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        try:
            print(f"Starting MLflow for {without_secrets(uri)} ...", flush=True)
            wait_until_it_answers(child, url, log)
            home = f"{url}/#/experiments{store.ML}"
            print(f"Runs and sweeps: {home}    (Ctrl-C ends it)", flush=True)
            if not auth:
                newest = newest_page(url)
                print(f"The newest: {newest}" if newest else "There is no run yet.", flush=True)
            child.wait()
            raise LaunchError(f"MLflow ended with exit code {child.returncode}.{said(log)}")
        except KeyboardInterrupt:
            print("\nEnded.", flush=True)
        finally:
            end(child)


def newest_page(url: str) -> str | None:
    """Return the page of the newest run, or of the comparison of the newest sweep's trials.

    None if there is no run.
    """
    client = runs.open_store(url)
    found = runs.search(client, [one.experiment_id for one in runs.experiments(client, None)])
    if not found:
        return None
    parent = found[0].data.tags.get(store.PARENT_TAG, found[0].info.run_id)
    trials = [one for one in found if one.data.tags.get(store.PARENT_TAG) == parent]
    if not trials:
        return url + store.page_of_run(found[0].info.experiment_id, found[0].info.run_id)
    ids = [one.info.run_id for one in trials[:100]]
    return url + store.page_of_runs(trials[0].info.experiment_id, ids)


def check_store(uri: str) -> None:
    """Raise a ConfigError unless there is a store at `uri`.

    MLflow would make an empty one, where nobody finds a run.
    """
    if store.is_http(uri):
        raise ConfigError(
            f"{without_secrets(uri)} is an MLflow server already: open it in a browser. raylit ui"
            " serves stores such as sqlite:///mlflow.db."
        )
    store.check_driver(uri)
    file = store.sqlite_file(uri)
    if file is not None and not os.path.isfile(file):
        raise ConfigError(
            f"There is no MLflow store {os.path.abspath(file)}. An MLFlowLogger records into"
            " mlflow.db in the folder where `raylit fit` was started (trainer.default_root_dir):"
            " go there, or name the store: raylit ui --backend-store-uri"
            " sqlite:////path/to/mlflow.db"
        )
    if file is not None and os.path.getsize(file):
        with open(file, "rb") as opened:
            begin = opened.read(len(SQLITE))
        if begin != SQLITE:
            raise ConfigError(
                f"{os.path.abspath(file)} is no SQLite database, and so no MLflow store. Name one:"
                " raylit ui --backend-store-uri sqlite:////path/to/mlflow.db"
            )
    if "://" not in uri and not os.path.isdir(uri):
        raise ConfigError(
            f"There is no MLflow store {uri!r}. Give a URI, such as sqlite:///mlflow.db."
        )


def warn_if_open(host: str, port: int) -> None:
    """Warn if other machines reach a server that has no login."""
    if host not in ("localhost", "::1") and not host.startswith("127."):
        warn(
            f"Everybody who reaches {host}:{port} can read, change and delete all runs: there is no"
            " login. Serve 127.0.0.1 and reach it through ssh -L, or ask for a login: raylit ui"
            " --auth"
        )


def login() -> dict[str, str]:
    """Return the environment of a server that asks for a login, and print how to log in.

    The users are in a database of their own, in a folder that only this user can read.

    Raises:
        ConfigError: the password is too short for MLflow.
        MissingPackageError: MLflow's page for logins lacks a package.
    """
    if importlib.util.find_spec("flask_wtf") is None:
        raise MissingPackageError("flask-wtf", "raylit ui --auth", "auth")
    folder = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "raylit-ui"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    database = folder / "users.db"
    given = os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD")
    if given is not None and len(given) < MIN_PASSWORD_LENGTH:
        raise ConfigError(
            f"MLFLOW_AUTH_ADMIN_PASSWORD has {len(given)} characters; MLflow wants"
            f" {MIN_PASSWORD_LENGTH}. Give a longer one, or none to have one made."
        )
    keeper = folder / "admin-password"
    if not keeper.exists():
        with open(os.open(keeper, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(given or secrets.token_urlsafe(24))
    settings = folder / "auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"database_uri = sqlite:///{database}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    key = folder / "session-key"
    if not key.exists():
        with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    print(f"Log in as admin, with the password in {keeper}", flush=True)
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": keeper.read_text().strip(),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text().strip(),
    }


def check_port(host: str, port: int) -> None:
    """Raise a ConfigError unless one can listen there."""
    if not 0 < port < 2**16:
        raise ConfigError(
            f"--port {port}: ports are 1 to {2**16 - 1}. Give one: raylit ui --port 5000"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        other = port + 1 if port < 2**16 - 1 else 5000
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {reason}. Give another port: raylit ui --port {other}"
        ) from error


def wait_until_it_answers(child: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    """Return when the server answers."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise LaunchError(
                f"MLflow ended with exit code {child.returncode} before it answered.{said(log)}"
            )
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise LaunchError(f"MLflow did not answer at {url} within {START_TIMEOUT_S:.0f} s.{said(log)}")


def said(log: IO[bytes]) -> str:
    """Return the end of the server's output."""
    log.seek(0)
    text = log.read().decode(errors="replace").strip()
    if "No module named mlflow" in text:
        raise MissingPackageError("mlflow", "raylit ui")
    lines = text.splitlines()[-10:]
    return "\n".join(["", *lines])
