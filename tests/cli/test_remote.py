"""`raylit fit|tune --on`: what is wrong is found before anything is uploaded."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from raylit.cli import children, kubernetes, tunnel
from raylit.cli.command import main, take_options
from raylit.errors import ConfigError, Terminated
from raylit.launch.on_ray import jobs
from tests.cluster.files import ROOT
from tests.cluster.kuberay import SPECS
from tests.cluster.nodes import RAY
from tests.deadlines import stretched

from .conftest import LAB

RAYJOB = ROOT / "cluster/kubernetes/rayjob.yaml"
NOWHERE = "http://127.0.0.1:1"
CONFIG = """
model: {class_path: lab.Net}
data: {class_path: lab.Diabetes}
trainer: {accelerator: cpu, default_root_dir: /home/ray/runs}
"""


@pytest.fixture
def project(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a config."""
    (lab / "config.yaml").write_text(CONFIG)
    (lab / "sweep.yaml").write_text(
        "space: {model.lr: {uniform: [0.1, 0.2]}}\nmetric: val_loss\ntrials: 2\n"
    )
    return lab


Refused = Callable[..., str]


@pytest.fixture
def refused(project: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a fit that is to be refused, and gives the message."""

    def run(*flags: str, on: str = NOWHERE, command: str = "fit") -> str:
        assert main([command, "--config", "config.yaml", "--on", on, *flags]) == 2
        said = capsys.readouterr().err
        assert "Uploading" not in said and "Traceback" not in said
        return said

    return run


@pytest.mark.parametrize(
    ("on", "words"),
    [
        ("nowhere", "neither an address nor a file"),
        ("head:8265", "Is http://head:8265 meant?"),
        ("head:8275", "Is http://head:8275 meant?"),
        ("head:6379", "Is http://head:8265 meant?"),
        ("ray://head:10001", "an address of Ray Client"),
        ("http://head:8265:1", "is no address"),
        ("http://me:pw@head:8265", "has a login in it"),
        ("job.yaml", "there is no such file"),
        ("config.yaml", "a file of neither kind"),
        ("service.yaml", r"(kind: Service) is a file of neither kind"),
        (NOWHERE, "no Ray cluster takes jobs there: nobody listens there"),
        ("http://no.such.host.invalid:8265", "the name no.such.host.invalid is not known on"),
    ],
)
def test_what_is_no_cluster(refused: Refused, project: Path, on: str, words: str) -> None:
    (project / "service.yaml").write_text("kind: Service\n")
    assert words in refused(on=on)


def test_the_port_of_something_else(refused: Refused) -> None:
    """Such as Ray's own, which ends connections that speak HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        said = refused(on=f"http://127.0.0.1:{server.getsockname()[1]}")
    assert "speaks no HTTP. Ray's own port (6379) is not that of its dashboard" in said


def test_on_without_a_value(refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "config.yaml", "--on"]) == 2
    assert "--on http://head:8265" in capsys.readouterr().err
    assert main(["predict", "--config", "config.yaml", "--on", NOWHERE]) == 2
    assert "--on: raylit predict runs here, where its files" in capsys.readouterr().err


def test_the_address_wins_over_those_of_the_environment(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own client takes these variables first."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "http://127.0.0.1:2")
        assert f"--on {NOWHERE}: no Ray cluster takes jobs there: nobody" in refused()
        assert os.environ[name] == "http://127.0.0.1:2"


def test_who_does_not_answer_is_waited_for_ten_seconds(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert jobs.ANSWER_S == 10
    monkeypatch.setattr(jobs, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        said = refused(on=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "nothing answered within 0.5 s" in said
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("200 OK\n\nhi", "another kind of server"),
        ("404 Not Found\n\n", "another kind of server"),
        (
            "401 Unauthorized\n\nMissing authentication token",
            "none was sent. Copy ~/.ray/auth_token",
        ),
        ("403 Forbidden\n\nInvalid authentication token", "has another token than this machine"),
    ],
)
def test_servers_that_do_not_let_us_in(refused: Refused, answer: str, words: str) -> None:
    head, _, body = answer.partition("\n\n")
    whole = f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(whole.encode())

        threading.Thread(target=serve, daemon=True).start()
        assert words in refused(on=f"http://127.0.0.1:{listener.getsockname()[1]}")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--trainer.max_epoch", "2"], "max_epochs"),
        (["--model.widht", "2"], "width"),
        (["--ray.address", "auto"], "leave out --ray.address"),
        (["--trainer.default_root_dir", "runs"], "in the folder of the job, which Ray deletes"),
        (["--model.lr", "0.1", "--config", "/etc/hostname.yaml"], "no such file"),
        (["--config", "../outside.yaml"], "it is not in the folder that is uploaded"),
        (["--config=ignored.yaml"], ".gitignore or .rayignore leaves it out"),
        (["--ckpt_path", "mine.ckpt"], ".gitignore or .rayignore leaves it out"),
    ],
)
def test_what_is_wrong_with_a_command(
    refused: Refused, project: Path, flags: list[str], words: str
) -> None:
    for name in ("../outside.yaml", "ignored.yaml"):
        (project / name).write_text("seed_everything: 1\n")
    (project / "mine.ckpt").write_bytes(b"x")
    (project / ".gitignore").write_text("ignored.yaml\n*.ckpt\n")
    assert words in refused(*flags)


def test_a_run_must_have_a_place_that_stays(refused: Refused, project: Path) -> None:
    (project / "config.yaml").write_text(CONFIG.replace(", default_root_dir: /home/ray/runs", ""))
    assert "where is the run to write?" in refused()
    kept = "no Ray cluster takes jobs there"
    assert kept in refused("--trainer.storage_path", "s3://bucket/runs")
    assert kept in refused("--trainer.fast_dev_run", "true"), "which keeps nothing"


def test_what_is_wrong_with_a_sweep(refused: Refused, project: Path) -> None:
    assert "--sweep configs/sweeps/digits.yaml" in refused(command="tune")
    fixed = ("--sweep", "sweep.yaml", "--model.lr", "1")
    assert "fixes what the sweep varies" in refused(*fixed, command="tune")
    assert "nobody listens there" in refused("--sweep", "sweep.yaml", command="tune")
    (project / "sweep.yaml").write_text("space: {model.lrr: [1]}\nmetric: a\n")
    assert "line 1" in refused("--sweep", "sweep.yaml", command="tune")
    assert "are on the cluster" in refused("--resume", "lab", command="tune")


def test_secrets_are_not_sent(refused: Refused, project: Path) -> None:
    said = refused("--trainer.default_root_dir", "s3://key:hunter2@bucket/runs")
    assert "Ray shows and logs the command" in said and "hunter2" not in said
    (project / ".env").write_text("A=1\n")
    assert "  .env: its name is that of a file of secrets" in refused()


def test_secrets_of_configs_are_left_to_the_cluster(
    refused: Refused, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "lab.py").write_text(
        LAB + "class Keyed(Net):\n    def __init__(self, api_key: dict, **kwargs):\n"
        "        super().__init__(**kwargs)\n"
    )
    keyed = "lab.Keyed, init_args: {api_key: {openai: hunter2}}}"
    (project / "config.yaml").write_text(CONFIG.replace("lab.Net}", keyed))
    said = refused()
    assert "config.yaml, line 2: model.init_args.api_key.openai looks like a secret" in said
    assert "hunter2" not in said
    (project / "config.yaml").write_text(
        CONFIG.replace("lab.Net}", keyed.replace("hunter2", "'***'"))
    )
    assert "nobody listens there" in refused(), "the value is not wanted here"
    monkeypatch.setenv("PL_MODEL_API_KEY_OPENAI", "hunter2")
    assert "PL_MODEL_API_KEY_OPENAI stays here, since Ray shows it" in refused()
    sweep = "space: {model.api_key: {choice: [{openai: hunter2}]}}\nmetric: val_loss\n"
    (project / "sweep.yaml").write_text(sweep)
    said = refused("--sweep", "sweep.yaml", command="tune")
    assert "sweep.yaml, line 1: space.model.api_key.choice[0].openai looks like" in said


@pytest.mark.parametrize("typed", [["--on", "a", "--x", "1"], ["--x", "1", "--on=a"]])
def test_on_may_stand_anywhere(typed: list[str]) -> None:
    options, rest = take_options("fit", typed)
    assert options.on == "a" and options.typed == rest == ["--x", "1"]


def test_who_has_no_home_of_a_project(
    refused: Refused, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(project))
    assert "Call it in that of your project" in refused()


# A RayJob

KUBECTL = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
shift 2
case $1 in
    auth) echo "${CAN:-yes}" ;;
    create)
        if [[ $2 == -f ]]; then cat >"$MADE"; echo 0a1b; [[ -z $FAILS ]]
        else cp "${4#*=code.zip=}" "$MADE.zip"; fi ;;
    get) echo '{"status": '"$STATUS"'}' ;;
    patch) [[ -z $UNPATCHED ]] ;;
    logs) printf '%b' "$LOG" ;;
esac
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands in for `kubectl`: writes down how it was called.

    Gives the folder of its notes.
    """
    notes = tmp_path / "notes"
    (notes / "bin").mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("notes\n__pycache__\n")
    program = notes / "bin/kubectl"
    program.write_text(KUBECTL)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{notes / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(notes / "calls"))
    monkeypatch.setenv("MADE", str(notes / "made"))
    monkeypatch.setattr(kubernetes, "EVERY_S", 0.01)
    return notes


def status(state: str, outcome: str, message: str = "") -> str:
    return json.dumps({"jobDeploymentStatus": state, "jobStatus": outcome, "message": message})


def test_a_rayjob_is_made_of_the_file(
    project: Path, kubectl: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("STATUS", status("Complete", "SUCCEEDED"))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    monkeypatch.delenv("RAYLIT_TESTS_STRETCH")
    flags = ["--config", str(project / "config.yaml"), "--model.lr", "0.1"]
    assert main(["fit", *flags, "--on", str(RAYJOB)]) == 0
    made = json.loads((kubectl / "made").read_text())
    name = made["metadata"]["name"]
    assert name.startswith("raylit-fit-") and len(name) <= 47, "which KubeRay demands"
    assert made["spec"]["entrypoint"] == "raylit fit --config config.yaml --model.lr 0.1"
    runtime = yaml.safe_load(made["spec"]["runtimeEnvYAML"])
    assert runtime["working_dir"] == "/home/ray/code/code.zip"
    assert runtime["env_vars"].pop("RAYLIT_ON") == str(RAYJOB)
    assert set(runtime["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S", "PYTHONUNBUFFERED"}
    jsonschema.validate(made["spec"], SPECS["RayJob"])
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    pod["spec"] = made["spec"]["submitterPodTemplate"]["spec"]
    kubernetes_validate.validate(pod, "1.34", strict=True)
    was = yaml.safe_load(RAYJOB.read_text())
    assert made["spec"]["rayClusterSpec"] == was["spec"]["rayClusterSpec"], "the file's own cluster"
    with zipfile.ZipFile(kubectl / "made.zip") as package:
        assert set(package.namelist()) == {".gitignore", "config.yaml", "lab.py", "sweep.yaml"}
    calls = (kubectl / "calls").read_text().splitlines()
    assert all(call.startswith("-n raylit ") for call in calls)
    assert [call.split()[2] for call in calls] == ["auth", "create", "create", "patch", "get"]
    assert f"patch configmap {name}" in calls[3] and '"uid": "0a1b"' in calls[3]
    said = capfd.readouterr()
    assert f"kubectl -n raylit logs --follow job/{name}" in said.err
    assert "hunter2" not in said.err + said.out + json.dumps(made) + "".join(calls)


def test_a_rayjob_that_fails_gives_the_exit_code_of_the_job(
    project: Path, kubectl: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    message = "Job entrypoint command failed with exit code 2, last available logs: ValueError"
    monkeypatch.setenv("STATUS", status("Failed", "FAILED", message))
    assert main(["fit", "--config", "config.yaml", "--on", str(RAYJOB)]) == 2
    said = capfd.readouterr().err
    assert "ended with exit code 2" in said and "ValueError" not in said, "the log has shown it"


@pytest.mark.long
def test_a_script_is_sent_as_it_is_called(
    project: Path, kubectl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATUS", status("Complete", "SUCCEEDED"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = "from raylit.cli import LightningCLI\nimport lab\n"
    (project / "main.py").write_text(f"{script}LightningCLI(lab.Net, lab.Diabetes)\n")
    (project / "own.yaml").write_text("trainer: {default_root_dir: /home/ray/runs}\n")
    flags = ["tune", "--config", "own.yaml", "--sweep", "sweep.yaml", "--sweep.trials", "1"]
    command = [sys.executable, "main.py", *flags, "--on", str(RAYJOB)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=stretched(60))
    assert done.returncode == 0, done.stderr
    made = json.loads((kubectl / "made").read_text())
    assert made["spec"]["entrypoint"] == f"python main.py {' '.join(flags)}"


def test_the_log_is_shown_while_it_runs(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = kubernetes.Submission("a", "raylit fit", {}, yaml.safe_load(RAYJOB.read_text()), "--on")
    monkeypatch.setenv("STATUS", status("Running", "RUNNING"))
    one, other = "[pod/a-1/submitter] ", "[pod/a-2/submitter] "
    # The connection is lost, and then a second attempt has a pod of its own
    logs = iter((f"{one}1\\n", f"{one}1\\n{one}2 %\\r3 %\\n", f"{other}1\\n"))
    monkeypatch.setenv("LOG", next(logs))
    shown: list[str] = []

    def show(piece: str) -> None:
        shown.append(piece)
        os.environ["LOG"] = next(logs, "")
        if not os.environ["LOG"]:
            os.environ["STATUS"] = status("Complete", "SUCCEEDED")

    assert job.follow(show) == (0, "")
    assert shown == ["1\n", "2 %\r3 %\n", "1\n"]


def test_without_rights_or_kubectl_nothing_is_made(
    refused: Refused, kubectl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAN", "no")
    assert "no RayJob can be made in the namespace raylit: no" in refused(on=str(RAYJOB))
    assert not (kubectl / "made").exists() and not (kubectl / "made.zip").exists()
    (kubectl / "bin/kubectl").unlink()
    git = next(
        Path(folder) / "git"
        for folder in os.environ["PATH"].split(os.pathsep)
        if (Path(folder) / "git").exists()
    )
    os.symlink(git, kubectl / "bin/git")
    monkeypatch.setenv("PATH", str(kubectl / "bin"))
    assert "which `kubectl` makes, and there is none" in refused(on=str(RAYJOB))


def test_what_fails_halfway_leaves_nothing(
    project: Path, kubectl: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    for step in ("FAILS", "UNPATCHED"):
        monkeypatch.setenv(step, "1")
        assert main(["fit", "--config", "config.yaml", "--on", str(RAYJOB)]) == 1
        monkeypatch.delenv(step)
        deleted = (kubectl / "calls").read_text().splitlines()[-2:]
        assert [call.split()[2:4] for call in deleted] == [
            ["delete", "rayjob"],
            ["delete", "configmap"],
        ]


def test_a_rayjob_that_could_not_work(kubectl: Path) -> None:
    file = yaml.safe_load(RAYJOB.read_text())
    for key, value, words in (
        ("submissionMode", "HTTPMode", "Write K8sJobMode"),
        ("clusterSelector", {"ray.io/cluster": "raylit"}, "port-forward"),
    ):
        wrong = {**file, "spec": {**file["spec"], key: value}}
        with pytest.raises(ConfigError, match=words):
            kubernetes.Submission("a", "raylit fit", {}, wrong, "--on job.yaml")
    del file["spec"]["rayClusterSpec"]["headGroupSpec"]
    headless = kubernetes.Submission("a", "raylit fit", {}, file, "--on job.yaml")
    with pytest.raises(ConfigError, match="no whole RayJob: 'headGroupSpec' is missing"):
        headless.submit(kubectl / "code.zip")
    assert not (kubectl / "calls").exists(), "nothing is made"


def test_a_submitter_is_made_where_the_file_has_none() -> None:
    file = yaml.safe_load(RAYJOB.read_text())
    del file["spec"]["submitterPodTemplate"]
    made = kubernetes.Submission("a", "raylit fit", {}, file, "--on").manifest()
    (container,) = made["spec"]["submitterPodTemplate"]["spec"]["containers"]
    assert container["image"].startswith("registry.example.com/raylit:")
    assert container["volumeMounts"][0]["mountPath"] == "/home/ray/code"


# A cluster of `ray up`

SSH = """#!{python}
import re, socket, sys, threading
found = re.search(r"-L (\\d+):localhost:8265", " ".join(sys.argv))
if found is None:
    sys.exit(0)  # what `ray up` does on the machine

def pump(one, other):
    while data := one.recv(4096):
        other.sendall(data)
    other.shutdown(socket.SHUT_WR)

server = socket.create_server(("127.0.0.1", int(found[1])))
while True:
    near, _ = server.accept()
    far = socket.create_connection(("127.0.0.1", {port}))
    for pair in ((near, far), (far, near)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""


@pytest.fixture
def cluster_file(project: Path) -> Iterator[Path]:
    """A file of `ray up` for one machine."""
    name = f"tunnel{uuid.uuid4().hex[:8]}"
    file = project / "cluster.yaml"
    provider = "{type: local, head_ip: 127.0.0.1, worker_ips: []}"
    nothing = "".join(
        f"{part}_commands: []\n" for part in ("setup", "head_start_ray", "worker_start_ray")
    )
    file.write_text(
        f"cluster_name: {name}\nprovider: {provider}\nauth: {{ssh_user: me}}\n{nothing}"
    )
    yield file
    for left in Path("/tmp/ray").glob(f"cluster-{name}.*"):
        left.unlink()


def test_a_terminal_that_is_closed_takes_the_tunnel_with_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that does not end when it is asked to."""
    program = project / "dashboard"
    program.write_text(
        f"#!{sys.executable}\nimport signal, socket, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "server = socket.create_server(('127.0.0.1', int(sys.argv[-1])))\ntime.sleep(600)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(children, "WAIT_S", 0.2)
    port = 0
    with pytest.raises(Terminated), tunnel.to_head("cluster.yaml") as address:
        port = int(address.rpartition(":")[2])
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(stretched(10))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.long
def test_a_cluster_that_is_not_up(refused: Refused, cluster_file: Path) -> None:
    said = refused(on="cluster.yaml")
    assert "`ray dashboard` does not reach the head of this cluster" in said, said
    assert "Head node of cluster" in said, "what Ray says"


@pytest.mark.long
@pytest.mark.timeout(stretched(120))
def test_the_dashboard_is_reached_through_ray_s_own_tunnel(
    project: Path, cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Ray's `ray up` and `ray dashboard`, and a stand-in for ssh that forwards the port."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        head.settimeout(stretched(10))
        ssh = SSH.format(python=sys.executable, port=head.getsockname()[1])
        for name, text in (("ssh", ssh), ("rsync", "#!/bin/sh\n")):
            program = project / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(text)
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}")
        up = [RAY, "up", "--yes", str(cluster_file)]
        subprocess.run(up, check=True, stdout=subprocess.DEVNULL, timeout=stretched(60))
        with tunnel.to_head(str(cluster_file)) as address:
            port = int(address.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as near:
                near.sendall(b"hello")
                far, _ = head.accept()
                if far.recv(10, socket.MSG_PEEK) == b"":  # the look whether the tunnel stands
                    far, _ = head.accept()
                assert far.recv(10) == b"hello"
                far.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
