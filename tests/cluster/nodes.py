"""A Ray cluster of several nodes on this machine.

Each in a network namespace of its own, with its own address, on one bridge.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from tests.deadlines import stretched

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


def why_not() -> str | None:
    """Say why no namespaces can be made here, or None."""
    if shutil.which("ip") is None:
        return "there is no `ip` command (package iproute2)"
    name = f"rl{uuid.uuid4().hex[:6]}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"`ip netns add` fails, it wants root and CAP_SYS_ADMIN: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


class Nodes:
    """Makes namespaces, and starts and ends the Ray nodes in them.

    A context manager: whatever it made is gone afterwards.

    Args:
        num_nodes: how many; the first is the head.
        num_cpus: of each.
        unshared: a folder that only the head sees.
    """

    def __init__(self, num_nodes: int = 2, num_cpus: int = 1, unshared: Path | None = None) -> None:
        self.unshared = unshared
        self.id = uuid.uuid4().hex[:5]
        self.num_cpus = num_cpus
        self.net = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 200}"
        self.names = [f"rl{self.id}n{number}" for number in range(num_nodes)]
        self.addresses = [f"{self.net}.{number + 1}" for number in range(num_nodes)]
        self.bridge = f"rl{self.id}br"
        self.ray_folder = tempfile.mkdtemp(prefix="rl", dir="/tmp")  # short: sockets lie in it
        self.env = {
            key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "GLOO_"))
        }
        self.env |= {
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }

    @property
    def address(self) -> str:
        """Where the cluster is found."""
        return f"{self.addresses[0]}:6379"

    def __enter__(self) -> Nodes:
        try:
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("link", "set", self.bridge, "up")
            for number, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
                _ip("netns", "add", name)
                outside = f"rl{self.id}o{number}"
                _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
                _ip("link", "set", outside, "master", self.bridge, "up")
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", "eth0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for number in reversed(range(len(self.names))):
            self.kill(number)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)  # and its interfaces
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    def command(self, number: int, *command: str) -> list[str]:
        """The command that runs `command` on a node."""
        return ["ip", "netns", "exec", self.names[number], *command]

    def popen(self, number: int, *command: str, **arguments: Any) -> subprocess.Popen[str]:
        """Start a process on a node."""
        env = self.env | arguments.pop("env", {})
        return subprocess.Popen(self.command(number, *command), env=env, text=True, **arguments)

    def start(self, number: int) -> None:
        """Start Ray on a node, as its users do."""
        where = (
            ["--head", "--port=6379", f"--temp-dir={self.ray_folder}"]
            if number == 0
            else [f"--address={self.address}"]
        )
        options = [
            f"--node-ip-address={self.addresses[number]}",
            f"--num-cpus={self.num_cpus}",
            "--object-store-memory=100000000",
        ]
        options += ["--include-dashboard=false"] if number == 0 else []
        start = [RAY, "start", *where, *options, "--disable-usage-stats"]
        if number and self.unshared:
            # Seen in this node only
            start = [
                "sh",
                "-c",
                f"mount -t tmpfs none {self.unshared} && exec {shlex.join(start)}",
            ]
        self._ray(number, *start)

    def drain(self, node_id: str, deadline_s: int) -> None:
        """Give a node notice that it will be taken away, as the provider of a spot machine does."""
        why = [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "spot",
            "--deadline-remaining-seconds",
            str(deadline_s),
        ]
        self._ray(0, RAY, "drain-node", "--address", self.address, "--node-id", node_id, *why)

    def _ray(self, number: int, *command: str) -> None:
        # once a token file exists, `ray start --head` asks for the token, and all others have to
        # send it
        mode = "token" if Path("~/.ray/auth_token").expanduser().exists() else "disabled"
        env = self.env | {"RAY_AUTH_MODE": mode}
        done = subprocess.run(
            self.command(number, *command),
            env=env,
            capture_output=True,
            text=True,
            timeout=stretched(60),
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def cut(self, number: int) -> None:
        """Take a node's network away, as when its power goes: nobody tells the others."""
        _ip("-n", self.names[number], "link", "set", "eth0", "down")

    def join(self, number: int) -> None:
        """Give it back."""
        _ip("-n", self.names[number], "link", "set", "eth0", "up")

    def kill(self, number: int) -> None:
        """Take a node away: SIGKILL to all that runs on it."""
        for _ in range(50):
            found = subprocess.run(
                ["ip", "netns", "pids", self.names[number]], capture_output=True, text=True
            ).stdout.split()
            if not found:
                return
            for pid in found:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
