"""How a job on a cluster elsewhere is followed, against a dashboard that does as it is told.

Which addresses are none: tests/cli/test_remote.py. A real head: tests/cluster/test_jobs.py.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raylit.errors import LaunchError
from raylit.launch.on_ray import jobs
from raylit.launch.on_ray.jobs import JobServer, within
from tests.deadlines import stretched

LOG = "first line\nGrüße\n" + "epoch 1/3\repoch 2/3\repoch 3/3\n" + "the end"


class Dashboard:
    """Speaks what Ray's client asks of a dashboard, for one job, `mine`.

    Attributes:
        states: of the job, each told once but for the last.
        details: what else is told of it.
        pieces: of its log, in a list for each time that it is followed; each connection breaks
            after its list but for the last one's, which ends well.
        stays: whether a connection stays open in silence rather than break.
        is_away: whether requests are answered by an error of the network.
        submitted: what was submitted, and which paths were asked for.
    """

    def __init__(self) -> None:
        self.states = ["RUNNING", "SUCCEEDED"]
        self.details: dict[str, Any] = {"message": "of Ray", "driver_exit_code": None}
        self.pieces = [[LOG]]
        self.stays = self.is_away = False
        self.refusal: tuple[int, str] | None = None
        self.submitted: list[dict[str, Any]] = []
        self.asked: list[str] = []

    async def answer(self, request: Any) -> Any:
        from aiohttp import web

        path = request.path
        self.asked.append(f"{request.method} {path}")
        if path == "/api/version":
            return web.json_response({"version": "4", "ray_version": "2.60.0"})
        if self.is_away:
            request.transport.close()
        if self.refusal is not None:
            return web.Response(status=self.refusal[0], text=self.refusal[1])
        if path.startswith("/api/packages"):
            return web.Response(status=404 if request.method == "GET" else 200)
        if request.method == "POST" and path == "/api/jobs/":
            self.submitted.append(await request.json())
            return web.json_response({"submission_id": "mine", "job_id": "mine"})
        if not path.startswith("/api/jobs/mine"):
            return web.Response(status=404, text="Job other does not exist")
        if path.endswith("/stop"):
            return web.json_response({"stopped": True})
        if path.endswith("/logs"):
            return web.json_response({"logs": LOG})
        if path.endswith("/logs/tail"):
            return await self.tail(request)
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        told = {"type": "SUBMISSION", "entrypoint": "raylit fit", "status": state, **self.details}
        return web.json_response(told)

    async def tail(self, request: Any) -> Any:
        from aiohttp import web

        is_last = len(self.pieces) == 1
        pieces = self.pieces[0] if is_last else self.pieces.pop(0)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for piece in pieces:
            await socket.send_str(piece)
        if self.stays and not is_last:
            await socket.receive()  # until the other side gives up
        elif is_last:
            await socket.close()
        else:
            request.transport.abort()
        return socket

    def serve(self, ready: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        from aiohttp import web

        async def start() -> None:
            app = web.Application()
            app.router.add_route("*", "/{rest:.*}", self.answer)
            self.runner = web.AppRunner(app, shutdown_timeout=0)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.address = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
            ready.set()

        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(self.runner.cleanup())
        loop.close()


@pytest.fixture
def head() -> Iterator[Dashboard]:
    made = Dashboard()
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=made.serve, args=(ready, loop), daemon=True)
    thread.start()
    assert ready.wait(stretched(20))
    yield made
    loop.call_soon_threadsafe(loop.stop)
    thread.join(stretched(20))


@pytest.fixture
def server(head: Dashboard, monkeypatch: pytest.MonkeyPatch) -> JobServer:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return JobServer(head.address, f"--on {head.address}")


def followed(server: JobServer, name: str = "mine") -> tuple[str, int, str]:
    shown: list[str] = []
    code, message = server.follow(name, shown.append)
    return "".join(shown), code, message


@pytest.mark.parametrize(
    ("state", "exit_code", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("STOPPED", None, 143),
        ("FAILED", 2, 2),
        ("FAILED", -9, 137),  # as shells tell of a signal
        ("FAILED", None, 1),  # it did not come to run
        ("FAILED", 0, 1),  # Ray lost sight of it
    ],
)
def test_a_job_ends_here_as_it_ended_there(
    head: Dashboard, server: JobServer, state: str, exit_code: int | None, code: int
) -> None:
    head.states = ["PENDING", "RUNNING", state]
    head.details["driver_exit_code"] = exit_code
    assert followed(server) == (LOG, code, "of Ray")


@pytest.mark.parametrize("stays", [False, True], ids=["breaks", "is silent"])
def test_each_character_of_the_log_is_shown_once(
    head: Dashboard, server: JobServer, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    """However often the connection breaks, or is dead without a word: a new one begins anew."""
    monkeypatch.setattr(jobs, "QUIET_S", stretched(0.05))
    head.stays = stays
    head.states = ["RUNNING", "RUNNING", "RUNNING", "RUNNING", "SUCCEEDED"]
    head.pieces = [[], [LOG[:3], LOG[3:14]], [LOG[:8], LOG[8:20]], [LOG[:2], LOG[2:30], LOG[30:]]]
    assert followed(server) == (LOG, 0, "of Ray")
    assert [path for path in head.asked if path.endswith("/logs")] == []


def test_the_end_of_a_log_that_broke_off_is_fetched(head: Dashboard, server: JobServer) -> None:
    head.states = ["RUNNING", "FAILED"]
    head.pieces = [[LOG[:12]], []]
    assert followed(server) == (LOG, 1, "of Ray")


def test_a_job_that_nobody_knows(head: Dashboard, server: JobServer) -> None:
    with pytest.raises(LaunchError, match=rf"{head.address} does not know the job: .*not exist"):
        server.follow("other", print)


def test_a_cluster_that_goes_away_is_waited_for_and_told_of_once(
    head: Dashboard,
    server: JobServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    head.is_away = True
    left = [3]

    def sleep(seconds: float) -> None:
        left[0] -= 1
        head.is_away = left[0] > 0

    monkeypatch.setattr(time, "sleep", sleep)
    assert followed(server) == (LOG, 0, "of Ray")
    assert left[0] <= 0
    assert capfd.readouterr().err.count("does not answer. The job goes on; trying again") == 1
    monkeypatch.setattr(jobs, "PATIENCE_S", 0.0)
    head.is_away = True
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(LaunchError, match=r"has not answered for 0 minutes\. The job mine goes on"):
        server.follow("mine", print)
    with pytest.raises(LaunchError, match="did not stop the job"):
        server.stop("mine")


def test_a_job_that_waits_for_the_cluster_says_so_once(
    head: Dashboard,
    server: JobServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(jobs, "ANSWER_S", 0.0)
    head.states = ["PENDING", "PENDING", "PENDING", "SUCCEEDED"]
    assert followed(server)[1] == 0
    assert capfd.readouterr().err.count("The job waits for the cluster: of Ray") == 1


def test_what_is_sent_is_what_was_given(head: Dashboard, server: JobServer, tmp_path: Path) -> None:
    package = tmp_path / "code.zip"
    package.write_bytes(b"a zip")
    server.submit("mine", "raylit fit", package, {"A": "größe"})
    (sent,) = head.submitted
    assert (sent["entrypoint"], sent["submission_id"]) == ("raylit fit", "mine")
    assert sent["runtime_env"]["env_vars"] == {"A": "größe"}
    assert sent["runtime_env"]["working_dir"].startswith("gcs://")
    assert any(path.startswith("PUT /api/packages/gcs/") for path in head.asked)
    server.stop("mine")
    assert head.asked[-1] == "POST /api/jobs/mine/stop"


@pytest.mark.parametrize(
    ("status", "answer", "has_hint"),
    [(500, "No available agent to submit job", True), (400, "mine is taken", False)],
)
def test_a_cluster_that_does_not_take_the_job(
    head: Dashboard, server: JobServer, tmp_path: Path, status: int, answer: str, has_hint: bool
) -> None:
    (tmp_path / "code.zip").write_bytes(b"a zip")
    head.refusal = status, answer
    with pytest.raises(LaunchError, match=f"did not take the job: .*{answer}") as raised:
        server.submit("mine", "raylit fit", tmp_path / "code.zip", {})
    assert ("--dashboard-agent-listen-port" in str(raised.value)) is has_hint


@pytest.mark.parametrize("was", [None, "http://127.0.0.1:2"])
def test_the_users_own_address_is_as_it_was(
    head: Dashboard, monkeypatch: pytest.MonkeyPatch, was: str | None
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    if was is not None:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", was)
    JobServer(head.address, "--on it")
    assert os.environ.get("RAY_API_SERVER_ADDRESS") == was
    assert "GET /api/version" in head.asked


def test_a_call_that_takes_too_long_is_left_to_itself() -> None:
    over = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.01, lambda: over.wait(stretched(20)))
    over.set()
    assert within(stretched(20), lambda: "größe") == "größe"
    assert within(stretched(20), lambda: None) is None


@pytest.mark.parametrize("error", [KeyError("k"), SystemExit(3), TimeoutError("its own")])
def test_what_a_call_raises_is_raised_here(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        within(stretched(20), fail)
    assert raised.value is error
