"""A PostgreSQL of Debian's package, and MLflow's server on it that asks for a password."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.loggers.mlflow_store import free_port, wait_for_server

USER = "admin"
PASSWORD = "a password of some length"


def programs() -> Path:
    """Return the folder of PostgreSQL's programs.

    Raises:
        FileNotFoundError: it is not installed.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    if initdb is None:
        raise FileNotFoundError("There is no PostgreSQL. Install it: apt-get install postgresql")
    return Path(initdb).parent


class Postgres:
    """A database on this machine, in a temporary folder.

    Attributes:
        port: where it listens, on loopback.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self._bin = programs()
        # Not in pytest's folder, whose parents only root may enter
        self._folder = tempfile.mkdtemp(prefix="raylit-postgres-")
        self._as: list[str] = []
        if os.geteuid() == 0:  # which it refuses to run as
            user = pwd.getpwnam("postgres")
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"]
            self._as.append("--clear-groups")
        data = f"{self._folder}/data"
        self._call("initdb", "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync")
        self.start()
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow", "runs")
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow", "users")

    def start(self) -> None:
        """Start it; returns when it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder}"
        log = f"{self._folder}/log"
        self._call("pg_ctl", "-D", f"{self._folder}/data", "-l", log, "-w", "-o", options, "start")

    def kill(self) -> None:
        """End it as a power failure does, without a farewell."""
        pid = int(Path(f"{self._folder}/data/postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        self._call("pg_ctl", "-D", f"{self._folder}/data", "-m", "immediate", "stop", check=False)

    def remove(self) -> None:
        """End it and delete its files."""
        self._call("pg_ctl", "-D", f"{self._folder}/data", "-m", "immediate", "stop", check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def uri(self, database: str = "runs") -> str:
        """Return the URI of a database."""
        return f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/{database}"

    def _call(self, program: str, *arguments: str, check: bool = True) -> None:
        command = [*self._as, str(self._bin / program), *arguments]
        log = Path(f"{self._folder}/calls")
        with log.open("ab") as file:
            done = subprocess.run(command, cwd="/", stdout=file, stderr=file, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{program} failed:\n{log.read_text()}")


@contextmanager
def server_with_login(postgres: Postgres, folder: Path) -> Iterator[str]:
    """Serve a database over HTTP to whoever knows the password; yields the address."""
    port = free_port()
    settings = folder / "auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"admin_username = {USER}\ndatabase_uri = {postgres.uri('users')}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", postgres.uri()]
    command += ["--port", str(port), "--workers", "1", "--app-name", "basic-auth"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    env = os.environ | {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of a test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for_server(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
