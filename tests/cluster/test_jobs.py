"""`raylit fit|tune --on` against a real head, as `ray start` makes it, that asks for a token."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import secrets
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from raylit.cli import kubernetes, upload
from tests.cli.conftest import environment, run_raylit
from tests.cli.test_ui import free_port
from tests.cluster.nodes import RAY, ROOT
from tests.deadlines import stretched
from tests.tracking.proxy import Proxy

pytestmark = pytest.mark.ray
PASSWORD = "pw-of-the-laptop-7f3a"

NET = """
import os, time
import raylit as pl
from raylit.testing import BoringModel

class Net(BoringModel):
    def __init__(self, lr: float = 0.1, fail: bool = False, delay_s: float = 0.0):
        super().__init__()
        self.fail, self.delay_s = fail, delay_s
        self.save_hyperparameters()

    def on_fit_start(self):
        print("files:", *sorted(name for name in os.listdir(".") if name != "__pycache__"))

    def training_step(self, batch, batch_idx):
        if self.fail:
            raise RuntimeError("no such head")
        time.sleep(self.delay_s)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", super().validation_step(batch, batch_idx)["x"])
"""
CONFIG = """
model: {class_path: net.Net}
data: {class_path: raylit.testing.BoringDataModule}
trainer: {max_epochs: 1, limit_train_batches: 2, limit_val_batches: 1, accelerator: cpu,
          enable_model_summary: false, logger: raylit.loggers.MLFlowLogger}
"""
SWEEP = """
space: {model.lr: {uniform: [0.01, 0.1]}}
metric: val_loss
trials: 2
"""


@dataclass
class Head:
    """A head node of Ray, and the folder of a user who sends jobs to it.

    Attributes:
        address: of its dashboard.
        token: that it asks for.
        folder: the user's.
        session: where Ray keeps its logs.
        metrics_port: where it exports what it measures.
    """

    address: str
    token: str
    folder: Path
    session: Path
    metrics_port: int

    @property
    def env(self) -> dict[str, str]:
        """The environment on the user's laptop."""
        own = {key: value for key, value in environment().items() if not key.startswith("RAY_")}
        return own | {
            "RAY_AUTH_TOKEN": self.token,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            "PL_MODEL_API_KEY": PASSWORD,
            "PL_TRAINER_LOG_EVERY_N_STEPS": "1",
            "PYTHONPATH": str(ROOT),
        }

    def flags(self, runs: Path, *more: str) -> list[str]:
        where = ["--on", self.address, "--trainer.default_root_dir", str(runs)]
        return ["--config", "config.yaml", *where, *more]

    def jobs(self) -> list[dict[str, Any]]:
        """All that Ray tells of the jobs, as its dashboard does."""
        code = (
            "import json; from ray.job_submission import JobSubmissionClient as Client;"
            f"print(json.dumps([one.dict() for one in Client({self.address!r}).list_jobs()]))"
        )
        env = self.env | {"RAY_AUTH_MODE": "token"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return found

    def job(self, name: str) -> dict[str, Any]:
        (found,) = [one for one in self.jobs() if one["submission_id"] == name]
        return found


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("laptop")
    (folder / "net.py").write_text(NET)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "sweep.yaml").write_text(SWEEP)
    (folder / ".gitignore").write_text("big.bin\n.env\n")
    (folder / "big.bin").write_bytes(b"0" * 1000)
    (folder / ".env").write_text(f"A={PASSWORD}\n")
    commit = "git init -q && git add . && git -c user.name=a -c user.email=a@b commit -qm a"
    subprocess.run(commit, shell=True, cwd=folder, check=True)
    token = secrets.token_hex(32)
    port, dashboard, agent, client, metrics = (str(free_port()) for _ in range(5))
    session = Path(f"/tmp/rl{port}")  # short: sockets lie in it
    started = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={session}"]
    started += ["--object-store-memory=100000000", f"--port={port}"]
    started += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    started += [f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"]
    own = {key: value for key, value in environment().items() if not key.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = own | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "PATH": path}
    env |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    log = (folder.parent / "head.log").open("w")
    process = subprocess.Popen(started, env=env, cwd=folder.parent, stdout=log, stderr=log)
    made = Head(f"http://127.0.0.1:{dashboard}", token, folder, session, int(metrics))
    try:
        wait_for(lambda: "started" in (folder.parent / "head.log").read_text(), process)
        yield made
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # it did not start
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()
        log.close()
        subprocess.run(["rm", "-rf", session], check=True)


def wait_for(
    what: Callable[[], object], process: subprocess.Popen[Any] | None = None, limit_s: float = 120
) -> None:
    deadline = time.monotonic() + stretched(limit_s)
    while not what():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


def raylit(head: Head, *args: str) -> Any:
    return run_raylit(head.folder, *args, env=head.env)


def test_a_fit_is_sent_followed_and_ends_as_here(head: Head, tmp_path: Path) -> None:
    done = raylit(head, "fit", *head.flags(tmp_path))
    assert done.code == 0, done
    assert "files: .gitignore config.yaml net.py sweep.yaml" in done.out, "what git would add"
    assert "Uploading 4 files" in done.err and "kB packed" in done.err
    assert (
        f"RAY_AUTH_MODE=token ray job logs --address {head.address} --follow raylit-fit-"
        in done.err
    )
    assert "look at it" in done.out and re.search(r"done +1 epoch, 2 steps", done.out), done
    proposed = re.search(r"next +(raylit test .+)", done.out)
    assert proposed and f" --ckpt_path {tmp_path}/" in proposed[1], done
    assert f" --on {head.address} " in proposed[1], "where it can be typed"
    assert list(tmp_path.rglob("*.ckpt")), "which stay when Ray has deleted the job's folder"
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        tags = dict(store.execute("select key, value from tags"))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=head.folder, capture_output=True)
    assert tags["mlflow.source.git.commit"] == commit.stdout.decode().strip(), "known there too"
    (job,) = head.jobs()
    assert job["entrypoint"].startswith(
        "raylit fit --config config.yaml --trainer.default_root_dir"
    )
    env = job["runtime_env"]["env_vars"]
    assert env["PL_TRAINER_LOG_EVERY_N_STEPS"] == "1"
    assert not {"MLFLOW_TRACKING_PASSWORD", "PL_MODEL_API_KEY", "RAY_AUTH_TOKEN"} & set(env)
    assert "PL_MODEL_API_KEY stays here" in done.err
    for secret in (PASSWORD, head.token):
        assert secret not in json.dumps(job) + done.out + done.err
        logs = [path.read_bytes() for path in head.session.rglob("*") if path.is_file()]
        assert len(logs) > 10 and not any(secret.encode() in log for log in logs)


@pytest.mark.long
@pytest.mark.timeout(stretched(120))
def test_without_the_token_nothing_is_sent(head: Head, tmp_path: Path) -> None:
    before = len(head.jobs())
    for token, words in (("0" * 64, "another token"), (None, "none was sent")):
        env = {**head.env, "RAY_AUTH_TOKEN": token or "", "RAY_AUTH_MODE": "token" if token else ""}
        if token is None:
            env = {key: value for key, value in env.items() if not key.startswith("RAY_AUTH")}
            env["HOME"] = str(tmp_path)  # which has no ~/.ray/auth_token
        done = run_raylit(head.folder, "fit", *head.flags(tmp_path), env=env)
        assert done.code == 2 and words in done.err, done
        assert "Uploading" not in done.err
    assert len(head.jobs()) == before


@pytest.mark.long
@pytest.mark.timeout(stretched(200))
def test_a_job_that_fails_gives_its_exit_code(head: Head, tmp_path: Path) -> None:
    done = raylit(head, "fit", *head.flags(tmp_path, "--model.fail", "true"))
    assert done.code == 1 and "RuntimeError: no such head" in done.out, done
    assert "net.py" in done.out and "site-packages" not in done.out, "the user's own lines"
    done = raylit(head, "fit", *head.flags(Path("/proc/none")))
    assert done.code == 2 and "raylit fit: " in done.out, done
    done = raylit(head, "fit", *head.flags(tmp_path, "--ckpt_path", "/none.ckpt"))
    assert done.code == 2 and "there is no such file" in done.out, done


def started(head: Head, runs: Path, **arguments: Any) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a long fit, and wait until it trains."""
    said = runs / "said"
    flags = head.flags(runs, "--model.delay_s", "0.3", "--trainer.max_epochs", "40")
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "raylit", "fit", *flags],
            cwd=head.folder,
            env=head.env,
            stdout=file,
            **({"stderr": file, "stdin": subprocess.DEVNULL} | arguments),
        )
    wait_for(lambda: "epoch 2/40" in said.read_text(), process)
    return process, said


@pytest.mark.long
@pytest.mark.timeout(stretched(240))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_without_a_terminal_the_job_goes_on(head: Head, tmp_path: Path, number: int) -> None:
    """Ctrl-C without anybody to ask, and the end of the laptop."""
    process, said = started(head, tmp_path)
    process.send_signal(number)
    code = process.wait(stretched(30))
    text = said.read_text()
    name = text.partition("Job ")[2].partition(" ")[0]
    assert head.job(name)["status"] == "RUNNING"
    if number == signal.SIGINT:
        assert code == 130 and f"Job {name} goes on." in text and "Traceback" not in text, text
        assert text.count(f"ray job stop --address {head.address} {name}") == 2
    wait_for(lambda: list(tmp_path.rglob("epoch=39-step=80.ckpt")))
    while head.job(name)["status"] == "RUNNING":
        time.sleep(1)
    assert head.job(name)["status"] == "SUCCEEDED"


@pytest.mark.long
@pytest.mark.timeout(stretched(240))
def test_a_network_that_goes_and_comes_loses_no_line(head: Head, tmp_path: Path) -> None:
    proxy = Proxy(int(head.address.rpartition(":")[2]), seed=1)
    process, said = started(replace(head, address=f"http://127.0.0.1:{proxy.port}"), tmp_path)
    proxy.cuts = proxy.refuses = 1.0
    wait_for(lambda: "does not answer. The job goes on" in said.read_text(), process)
    proxy.cuts = proxy.refuses = 0.0
    assert process.wait(stretched(120)) == 0
    proxy.close()
    text = said.read_text()
    assert [f"epoch {number}/40" for number in range(1, 41)] == re.findall(r"epoch \d+/40", text)
    assert proxy.num_cut and re.search(r"^done ", text, re.MULTILINE) and "Traceback" not in text


@pytest.mark.long
@pytest.mark.timeout(stretched(240))
def test_at_a_terminal_ctrl_c_asks_whether_to_stop(head: Head, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process, said = started(head, tmp_path, stdin=theirs, stderr=theirs)
    process.send_signal(signal.SIGINT)
    os.write(ours, b"y\n")
    assert process.wait(stretched(90)) == 130
    os.close(theirs)
    asked = os.read(ours, 10_000).decode()
    name = asked.partition("Job ")[2].partition(" ")[0]
    assert f"Stop the job {name}?" in asked and f"Job {name} is stopped" in asked, asked
    assert head.job(name)["status"] == "STOPPED"
    assert "Go on with:" in said.read_text(), "it was saved"
    os.close(ours)


@pytest.mark.long
@pytest.mark.timeout(stretched(300))
def test_workers_and_a_sweep_run_on_the_cluster(head: Head, tmp_path: Path) -> None:
    done = raylit(head, "fit", *head.flags(tmp_path / "fit", "--trainer.num_workers", "2"))
    assert done.code == 0 and "in 2 Ray workers" in done.out, done
    done = raylit(head, "tune", *head.flags(tmp_path / "tune", "--sweep", "sweep.yaml"))
    assert done.code == 0 and done.out.count(" finished: val_loss=") == 2, done
    proposed = re.search(r"next +(raylit fit --config config.yaml .+)", done.out)
    assert proposed and proposed[1].endswith(f" --on {head.address}"), done
    assert list((tmp_path / "tune").rglob("best.yaml")), done


@pytest.mark.long
@pytest.mark.timeout(stretched(150))
def test_the_submitter_of_kubernetes_uploads_the_package(head: Head, tmp_path: Path) -> None:
    """With the command KubeRay makes of a RayJob, and the package where the ConfigMap has it."""
    files = upload.files_of(head.folder)
    upload.pack(head.folder, files, tmp_path / "code.zip", 10**6, "a ConfigMap")
    file = yaml.safe_load((ROOT / "cluster/kubernetes/rayjob.yaml").read_text())
    line = f"raylit fit --config config.yaml --trainer.default_root_dir {tmp_path}"
    made = kubernetes.Submission("a", line, {"PL_TRAINER_MAX_EPOCHS": "1"}, file, "--on").manifest()
    runtime = yaml.safe_load(made["spec"]["runtimeEnvYAML"])
    runtime["working_dir"] = runtime["working_dir"].replace(kubernetes.FOLDER, str(tmp_path))
    command = [RAY, "job", "submit", "--runtime-env-json", json.dumps(runtime)]
    command += ["--", *shlex.split(made["spec"]["entrypoint"])]
    env = head.env | {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": head.address}  # as KubeRay sets it
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "files: .gitignore config.yaml net.py sweep.yaml" in done.stdout
    assert list(tmp_path.rglob("epoch=0-step=2.ckpt"))


@pytest.mark.long
@pytest.mark.timeout(stretched(120))
def test_what_is_watched_is_where_the_readme_says(head: Head) -> None:
    folder = head.session / "session_latest/metrics"
    boards = {path.name for path in folder.glob("grafana/dashboards/*.json")}
    assert "default_grafana_dashboard.json" in boards and "train_grafana_dashboard.json" in boards
    assert "ray" in (folder / "prometheus/prometheus.yml").read_text()
    url = f"http://127.0.0.1:{head.metrics_port}/metrics"

    def exported() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
            return b"ray_node_cpu_utilization" in answer.read()  # without the token
        return False

    wait_for(exported)
