"""cluster/slurm/run.sbatch runs as under Slurm, with a stand-in for Slurm's commands.

In the short tests there is one for Ray too; SIGTERM is a real one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.deadlines import stretched

from .files import CLUSTER, ROOT, texts

# What stands in for Slurm: a program of that name on PATH. Each writes down how it was called.
SLURM = {
    # Refuses what srun 22.05 to 25.05 refuses, with its words, and gives a step the CPUs that it
    # would have there: as many as asked for, else one.
    "srun": (
        """
        options=" cpus-per-task kill-on-bad-exit wait "
        cpus=${SRUN_CPUS_PER_TASK:-}
        while [[ $1 == --* ]]; do
            name=${1#--}
            if [[ $options != *" ${name%%=*} "* ]]; then
                echo "srun: unrecognized option '$1'" >&2
                exit 1
            fi
            if [[ $1 == --cpus-per-task=* ]]; then cpus=${1#*=}; fi
            shift
        done
        if [[ -n ${SLURM_TRES_PER_TASK:-} && ${SLURM_TRES_PER_TASK#cpu=} != "$cpus" ]]; then
            echo "srun: fatal: cpus-per-task set by two different environment variables" >&2
            exit 1
        fi
        if ((${cpus:-1} > SLURM_CPUS_ON_NODE)); then
            echo "srun: error: Unable to create step for job $SLURM_JOB_ID: More processors" \
                "requested than permitted" >&2
            exit 1
        fi
        unset SLURM_CPUS_PER_TASK
        if [[ -n $cpus ]]; then export SLURM_CPUS_PER_TASK=$cpus; fi
        export SLURM_CPUS_ON_NODE=${cpus:-1}
        exec "$@"
    """
    ),
    "squeue": (
        """
        echo "$STATE"
    """
    ),
    "scontrol": (
        """
        echo "scontrol $*" >>"$CALLS"
    """
    ),
}
# symmetric-run, which gives its child the time it needs, and a fit that takes until it is asked to
# end.
RAY = {
    "ray": (
        """
        echo "ray $*" >>"$CALLS"
        env | grep -E "^(RAY|GLOO|NCCL)_" | sort >"$CALLS.env"
        while [[ $1 != -- ]]; do shift; done
        shift
        "$@"
    """
    ),
    "raylit": (
        """
        trap 'echo "raylit got SIGTERM" >>"$CALLS"; exit "${ENDS_WITH:-143}"' TERM
        echo "raylit $*" >>"$CALLS"
        for _ in $(seq "${TENTHS:-300}"); do sleep 0.1; done
    """
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder a job is submitted in, with cluster/ and a .venv whose programs are stand-ins."""
    shutil.copytree(CLUSTER, tmp_path / "cluster", ignore=shutil.ignore_patterns("secrets"))
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    write(programs, {**SLURM, **RAY})
    (programs / "python").symlink_to(sys.executable)
    return tmp_path


def write(programs: Path, scripts: dict[str, str]) -> None:
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{script}")
        (programs / name).chmod(0o755)


def submit(
    folder: Path, *arguments: str, on: Sequence[str] = (), **env: str
) -> subprocess.Popen[str]:
    """Start the script as Slurm would.

    From a copy of it, in the folder, with the variables of a job of one node. `on`: words before
    the command.
    """
    shutil.copy(folder / "cluster/slurm/run.sbatch", folder / "slurm_script")
    job = {
        "SLURM_JOB_ID": "1234567",
        "SLURM_NNODES": "1",
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_TRES_PER_TASK": "cpu=1",
        "SLURM_CPUS_ON_NODE": "2",
        "SLURM_JOB_CPUS_PER_NODE": "2",
    }
    own = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "CALLS": str(folder / "calls"),
        "STATE": "RUNNING",
    }
    command = [*on, "bash", str(folder / "slurm_script"), *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**own, **job, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def calls(folder: Path) -> str:
    return (folder / "calls").read_text() if (folder / "calls").exists() else ""


def wait_for(what: str, folder: Path, job: subprocess.Popen[str], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + stretched(timeout_s)
    while what not in calls(folder):
        assert time.monotonic() < deadline and job.poll() is None, (calls(folder), job.poll())
        time.sleep(0.02)


def ended(job: subprocess.Popen[str], timeout_s: float = 60) -> tuple[int, str]:
    said, _ = job.communicate(timeout=stretched(timeout_s))
    return job.returncode, said


FIT = ("fit", "--config", "configs/digits.yaml")


def test_sigterm_reaches_the_training_and_the_job_is_queued_again(folder: Path) -> None:
    job = submit(folder, *FIT)
    wait_for("\nraylit fit", folder, job)
    job.send_signal(signal.SIGTERM)
    code, said = ended(job)
    assert "raylit got SIGTERM" in calls(folder), said
    assert calls(folder).splitlines()[-1] == "scontrol requeue 1234567"
    assert code == 143
    assert "Queued again" in said


def test_a_job_that_was_cancelled_is_not_queued_again(folder: Path) -> None:
    job = submit(folder, *FIT, STATE="COMPLETING")
    wait_for("\nraylit fit", folder, job)
    job.send_signal(signal.SIGTERM)
    assert ended(job)[0] == 143
    assert "raylit got SIGTERM" in calls(folder) and "scontrol" not in calls(folder)


def test_a_training_that_ends_in_time_is_not_queued_again(folder: Path) -> None:
    job = submit(folder, *FIT, ENDS_WITH="0")
    wait_for("\nraylit fit", folder, job)
    job.send_signal(signal.SIGTERM)
    assert ended(job)[0] == 0
    assert "raylit got SIGTERM" in calls(folder) and "scontrol" not in calls(folder)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 1", 1)])
def test_the_exit_code_is_that_of_the_training(folder: Path, script: str, code: int) -> None:
    write(folder / ".venv/bin", {"raylit": script})
    assert ended(submit(folder, *FIT))[0] == code
    assert "scontrol" not in calls(folder)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (FIT, "raylit fit --config configs/digits.yaml --ckpt_path last"),
        ((*FIT, "--resume"), "raylit fit --config configs/digits.yaml --resume"),
        (("tune", "--sweep", "x.yaml"), "raylit tune --sweep x.yaml"),
    ],
)
def test_a_fit_that_was_queued_again_goes_on(
    folder: Path, arguments: tuple[str, ...], wanted: str
) -> None:
    assert ended(submit(folder, *arguments, TENTHS="0", SLURM_RESTART_COUNT="1"))[0] == 0
    assert calls(folder).splitlines()[-1] == wanted
    (folder / "calls").unlink()
    assert ended(submit(folder, *arguments, TENTHS="0"))[0] == 0
    assert calls(folder).splitlines()[-1] == f"raylit {' '.join(arguments)}", (
        "the first time it is as given"
    )


def test_ray_is_started_with_a_token_and_an_interface_of_this_node(folder: Path) -> None:
    tokens = set()
    for _ in range(2):
        assert (
            ended(
                submit(folder, *FIT, TENTHS="0", SLURM_GPUS_ON_NODE="2", RAYLIT_HEAD_IP="127.0.0.1")
            )[0]
            == 0
        )
        env = dict(line.split("=", 1) for line in (folder / "calls.env").read_text().splitlines())
        tokens.add(env.pop("RAY_AUTH_TOKEN"))
        assert env == {
            "RAY_AUTH_MODE": "token",
            "RAY_ADDRESS": "127.0.0.1:24567",
            "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "=lo",
            "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": "300",
        }
    assert len(tokens) == 2 and all(len(token) == 64 for token in tokens), "each job has its own"
    start = next(line for line in calls(folder).splitlines() if line.startswith("ray "))
    assert start.startswith(
        "ray symmetric-run --address 127.0.0.1:24567 --min-nodes 1 --num-cpus=2 --num-gpus=2"
        " --temp-dir=/tmp/ray-1234567 "
    )
    assert not any(token in start for token in tokens), "arguments are seen by everybody"


@pytest.mark.parametrize(
    ("nodes", "cpus"), [("2", "2"), ("2(x4)", "2"), ("72(x3),2", "2"), ("1(x2),72", "1")]
)
def test_ray_is_told_the_cpus_of_the_smallest_node(folder: Path, nodes: str, cpus: str) -> None:
    job = submit(folder, *FIT, TENTHS="0", SLURM_JOB_CPUS_PER_NODE=nodes)
    assert ended(job)[0] == 0
    assert f" --num-cpus={cpus} " in calls(folder)


def test_what_srun_refuses_ends_the_job(folder: Path) -> None:
    code, said = ended(submit(folder, *FIT, SLURM_JOB_CPUS_PER_NODE="72"))
    assert code == 1 and "More processors requested than permitted" in said
    script = folder / "cluster/slurm/run.sbatch"
    script.write_text(script.read_text().replace(" SLURM_TRES_PER_TASK\n", "\n"))
    code, said = ended(submit(folder, *FIT))
    assert code == 1 and "two different environment variables" in said


def test_nothing_to_run_is_said(folder: Path) -> None:
    code, said = ended(submit(folder))
    assert code == 2 and said.startswith("usage: sbatch")


def test_slurm_is_asked_for_time_to_end() -> None:
    options = [
        line.removeprefix("#SBATCH ")
        for line in texts()["slurm/run.sbatch"].splitlines()
        if line.startswith("#SBATCH")
    ]
    assert {"--requeue", "--signal=B:TERM@120", "--ntasks-per-node=1", "--open-mode=append"} <= set(
        options
    )


NODES = {"1": "10.231.77.1", "2": "10.231.77.2"}


@pytest.fixture
def network() -> Iterator[list[str]]:
    """Two network namespaces that reach each other, as two nodes do."""
    names = {node: f"raylit{uuid.uuid4().hex[:6]}{node}" for node in NODES}
    for name in names.values():
        subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(
        [
            "ip",
            "link",
            "add",
            "node1",
            "netns",
            names["1"],
            "type",
            "veth",
            "peer",
            "name",
            "node2",
            "netns",
            names["2"],
        ],
        check=True,
    )
    for node, name in names.items():
        for command in (
            f"address add {NODES[node]}/24 dev node{node}",
            "link set lo up",
            f"link set node{node} up",
        ):
            subprocess.run(["ip", "-n", name, *command.split()], check=True)
    yield list(names.values())
    for name in names.values():
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(stretched(210))
def test_two_nodes_train_together_and_go_on_after_sigterm(folder: Path, network: list[str]) -> None:
    """Ray and raylit themselves, on two nodes that have a network and processes of their own.

    Needs root, for the namespaces.
    """
    programs = folder / "programs"
    programs.mkdir()
    one, two = (
        f"ip netns exec {name} unshare --pid --fork --kill-child --mount-proc" for name in network
    )
    # The script itself runs on the first node. As with srun's --wait, the other node is ended once
    # the first is done.
    srun = (
        "while [[ $1 == --* ]]; do"
        " [[ $1 == --cpus* ]] && export SLURM_CPUS_PER_TASK=${1#*=}; shift; done"
        f'\n{two} "$@" &\nother=$!\n"$@"\nstatus=$?\nkill -9'
        " $other\nexit $status"
    )
    write(programs, {**SLURM, "srun": srun})
    for name in ("configs", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    job_id = str(os.getpid())
    env = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RAYLIT_VENV": str(Path(sys.executable).parents[1]),
        "PYTHONPATH": str(ROOT),
        "SLURM_NNODES": "2",
        "SLURM_JOB_CPUS_PER_NODE": "1(x2)",
        "RAYLIT_HEAD_IP": NODES["1"],
        "SLURM_JOB_ID": job_id,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    try:
        first = submit(folder, *FIT, "--trainer.num_workers", "2", on=one.split(), **env)
        deadline = time.monotonic() + stretched(180)
        while not list(folder.glob("mlruns/*/*/checkpoints/*.ckpt")):
            assert first.poll() is None and time.monotonic() < deadline, ended(first)
            time.sleep(0.02)
        script = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text()
        os.kill(int(script), signal.SIGTERM)
        code, said = ended(first)
        assert code == 143, said
        assert "in 2 Ray workers of the cluster 10.231.77.1:" in said
        assert calls(folder) == f"scontrol requeue {job_id}\n", said
        saved = max(
            folder.glob("mlruns/*/*/checkpoints/**/*.ckpt"), key=lambda path: path.stat().st_mtime
        )

        code, said = ended(
            submit(
                folder,
                *FIT,
                "--trainer.num_workers",
                "2",
                on=one.split(),
                SLURM_RESTART_COUNT="1",
                **env,
            ),
            timeout_s=180,
        )
        assert code == 0, said
        assert f"from {saved.relative_to(folder)}" in said and "done " in said, said
        assert len(list(folder.glob("mlruns/*/*"))) == 1, "the same MLflow run"
    finally:
        shutil.rmtree(f"/tmp/ray-{job_id}", ignore_errors=True)
