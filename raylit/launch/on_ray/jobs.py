"""Jobs on a Ray cluster elsewhere, sent to the address of its dashboard through Ray Jobs.

Ray's own requests have no end: a head that is switched off would be waited for in silence. So each
is made in a thread that is left behind when it takes too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from aiohttp import ClientError  # comes with ray[default], as Ray Jobs do
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raylit.errors import ConfigError, LaunchError
from raylit.launch.on_ray import private
from raylit.runtime.messages import info, is_verbose

T = TypeVar("T")

ANSWER_S = 10.0  # for the first answer
REQUEST_S = 30.0  # for any other, of a cluster that has answered before
PATIENCE_S = 600.0  # for a cluster that no longer answers: a laptop that was closed, a new network
QUIET_S = 60.0  # a log in which nothing comes is asked for anew: its connection may be dead
MAX_PACKAGE_BYTES = private.MAX_UPLOAD_BYTES
TERMINATED = 143


class JobServer:
    """The Ray Jobs of a cluster.

    Args:
        address: of its dashboard, `http://head:8265`.
        given: the flag and value that named it, for messages.

    Raises:
        ConfigError: no Ray cluster answers there within 10 s, or it does not let this user in.
    """

    def __init__(self, address: str, given: str) -> None:
        self.address = address
        self._shown = 0  # characters of the log
        if not is_verbose():
            for name in ("dashboard_sdk", "job.sdk"):
                logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        logging.getLogger(private.TOKEN_LOGGER).setLevel(logging.ERROR)
        private.send_token()
        with _address_of_environment(address):
            self._client = _first_answer(address, given)

    def submit(self, name: str, command: str, package: Path, env: Mapping[str, str]) -> None:
        """Start a job, which goes on whatever becomes of this process.

        Args:
            name: no other job may have it.
            command: for a shell; Ray shows it to all who may look at the cluster.
            package: a zip with the files of the folder that the command is called in.
            env: environment variables of the job, which Ray shows too.

        Raises:
            LaunchError: the cluster does not take it.
        """
        environment = {"working_dir": str(package), "env_vars": dict(env)}
        try:
            self._client.submit_job(entrypoint=command, submission_id=name, runtime_env=environment)
        except (RuntimeError, OSError, AuthenticationError) as error:
            hint = ""
            if "No available agent" in str(error):
                hint = (
                    " If it stays so, the agent could not start on the head: its port may be taken."
                    " Give another one there: ray start --head --dashboard-agent-listen-port PORT."
                )
            raise LaunchError(f"{self.address} did not take the job: {error}{hint}") from error

    def follow(self, name: str, show: Callable[[str], object]) -> tuple[int, str]:
        """Show the log of a job until it ends.

        Args:
            name: of the job.
            show: gets each piece of the log once.

        Returns:
            The exit code, 143 if it was stopped, and Ray's words.

        Raises:
            LaunchError: the cluster has not answered for ten minutes.
        """
        self._wait_for_start(name)
        while True:
            is_whole = asyncio.run(self._stream(name, show))
            details = self._details(name)
            if details.status.is_terminal():
                if not is_whole:
                    self._show_rest(name, show)
                return _ended(details)
            time.sleep(1)  # the connection broke, or nothing was said for a while

    def stop(self, name: str) -> None:
        """Ask a job to end; raylit then saves the run. `follow` tells when it has.

        Raises:
            LaunchError: the cluster does not answer.
        """
        try:
            within(REQUEST_S, lambda: self._client.stop_job(name))
        except (RuntimeError, OSError, TimeoutError, AuthenticationError) as error:
            raise LaunchError(f"{self.address} did not stop the job: {error}") from error

    def _wait_for_start(self, name: str) -> None:
        began = time.monotonic()
        is_said = False
        while (details := self._details(name)).status == JobStatus.PENDING:
            if not is_said and time.monotonic() - began > ANSWER_S:
                is_said = True
                info(f"The job waits for the cluster: {details.message}")
            time.sleep(0.5)

    def _show_rest(self, name: str, show: Callable[[str], object]) -> None:
        """Show the end of the log of a job that has ended."""
        try:
            log = within(REQUEST_S, lambda: self._client.get_job_logs(name))
        except (RuntimeError, OSError, TimeoutError, AuthenticationError) as error:
            info(f"{self.address} did not give the end of the log: {error}")
        else:
            show(log[self._shown :])

    async def _stream(self, name: str, show: Callable[[str], object]) -> bool:
        """Show the log as it comes; tell whether its end was seen."""
        log = self._client.tail_job_logs(name)
        skip = self._shown  # a log that is asked for anew begins anew
        while True:
            try:
                piece = await asyncio.wait_for(anext(log), QUIET_S)
            except StopAsyncIteration:
                return True
            except (TimeoutError, OSError, RuntimeError, ClientError):
                return False
            new = piece[skip:]
            skip -= len(piece) - len(new)
            self._shown += len(new)
            show(new)

    def _details(self, name: str) -> JobDetails:
        """Return the details of a job, waiting while the cluster does not answer."""
        began = time.monotonic()
        is_said = False
        while True:
            try:
                return within(REQUEST_S, lambda: self._client.get_job_info(name))
            except (TimeoutError, OSError) as error:
                if time.monotonic() - began > PATIENCE_S:
                    raise LaunchError(
                        f"{self.address} has not answered for {PATIENCE_S / 60:g} minutes. The job"
                        f" {name} goes on if the cluster does."
                    ) from error
                if not is_said:
                    is_said = True
                    info(f"{self.address} does not answer. The job goes on; trying again.")
                time.sleep(2)
            except AuthenticationError as error:
                raise LaunchError(
                    f"{self.address}: {_about_token(str(error))} The job {name} goes on."
                ) from error
            except RuntimeError as error:
                raise LaunchError(f"{self.address} does not know the job: {error}") from error


def within(limit_s: float, call: Callable[[], T]) -> T:
    """Return the result of a call, if that takes no longer than some seconds.

    Raises:
        TimeoutError: it takes longer; its thread is left to itself.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(limit_s)


def _first_answer(address: str, given: str) -> JobSubmissionClient:
    try:
        return within(ANSWER_S, lambda: JobSubmissionClient(address))
    except AuthenticationError as error:
        raise ConfigError(f"{given}: {_about_token(str(error))}") from error
    except TimeoutError:
        problem = f"nothing answered within {ANSWER_S:g} s"
    except ConnectionError:
        problem = _unreachable(address)
    except (RuntimeError, OSError, ValueError, KeyError):
        problem = "what answers is another kind of server, or a Ray without ray[default]"
    raise ConfigError(
        f"{given}: no Ray cluster takes jobs there: {problem}. Give the address of its dashboard,"
        " as `ray start --head` prints it, or the end of a tunnel to it, such as"
        " http://127.0.0.1:8265 after `ssh -L 8265:127.0.0.1:8265 head`."
    )


def _unreachable(address: str) -> str:
    parts = urlsplit(address)
    try:
        socket.getaddrinfo(parts.hostname, None)
    except OSError:
        return f"the name {parts.hostname} is not known on this machine"
    try:
        socket.create_connection((parts.hostname, parts.port or 80), timeout=1).close()
    except OSError:
        return "nobody listens there"
    return "what listens there speaks no HTTP. Ray's own port (6379) is not that of its dashboard"


def _about_token(answer: str) -> str:
    if "Missing authentication token" in answer:
        return (
            "the cluster asks for a token, and none was sent. Copy ~/.ray/auth_token of its head"
            " node to here, or set RAY_AUTH_TOKEN, and leave RAY_AUTH_MODE unset or set it to"
            " token."
        )
    return (
        "the cluster has another token than this machine (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or"
        " ~/.ray/auth_token). Copy that of its head node."
    )


@contextlib.contextmanager
def _address_of_environment(address: str) -> Iterator[None]:
    """Have Ray take this address: its environment variables would win over the argument."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _ended(details: JobDetails) -> tuple[int, str]:
    message = details.message or ""
    if details.status == JobStatus.SUCCEEDED:
        return 0, message
    if details.status == JobStatus.STOPPED:
        return TERMINATED, message
    code = details.driver_exit_code or 1  # None: it did not come to run
    return code if code > 0 else 128 - code, message  # as shells tell of signals
