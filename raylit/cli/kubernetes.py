"""A job as a RayJob of Kubernetes: a cluster that comes with it and goes with it.

The code lies in a ConfigMap that KubeRay's submitter uploads, at each attempt anew. So nothing
waits for this machine once the two are made, and both go when the RayJob is deleted.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from raylit.errors import ConfigError, LaunchError
from raylit.runtime.aliases import PlainDict
from raylit.runtime.messages import info

MAX_PACKAGE_BYTES = 1_000_000  # a ConfigMap holds 1 MiB in all
ANSWER = "--request-timeout=10s"
FOLDER = "/home/ray/code"  # in the submitter's container
PACKAGE = "code.zip"
EVERY_S = 3.0
LOST_AFTER = 100  # failed questions in a row, some five minutes


def is_rayjob(definition: Mapping[str, object]) -> bool:
    """Tell whether a file describes a RayJob."""
    return definition.get("kind") == "RayJob" and isinstance(definition.get("spec"), dict)


@dataclass(frozen=True)
class Submission:
    """A RayJob to be made of a file.

    Attributes:
        name: of the RayJob and its ConfigMap.
        command: what the job calls.
        env: environment variables of the job.
        definition: what stands in the file.
        given: the flag that named it, for messages.
    """

    name: str
    command: str
    env: Mapping[str, str]
    definition: PlainDict
    given: str

    def __post_init__(self) -> None:
        mode = self.definition["spec"].get("submissionMode", "K8sJobMode")
        if mode != "K8sJobMode":
            raise ConfigError(
                f"{self.given}: its submissionMode is {mode}, in which nothing of Kubernetes'"
                " uploads the code. Write K8sJobMode."
            )
        if "clusterSelector" in self.definition["spec"]:
            raise ConfigError(
                f"{self.given}: it goes to a cluster that is there already (clusterSelector). Send"
                " the job to its dashboard: kubectl port-forward service/NAME-head-svc 8265, and"
                " --on http://127.0.0.1:8265."
            )

    @property
    def namespace(self) -> str:
        """Where it is made."""
        return str(self.definition.get("metadata", {}).get("namespace", "default"))

    @property
    def hints(self) -> str:
        """Commands that show its log and end it."""
        kubectl = f"  kubectl -n {self.namespace}"
        return (
            f"{kubectl} logs --follow job/{self.name}\n"
            f"{kubectl} get rayjob {self.name}\n"
            f"{kubectl} delete rayjob {self.name}"
        )

    def manifest(self) -> PlainDict:
        """Return the RayJob: the file's, with this command, its environment and its code.

        Raises:
            ConfigError: the file lacks a part of a RayJob.

        Example:
            >>> pod = {"spec": {"containers": [{"name": "head", "image": "raylit:0.1.0-cpu"}]}}
            >>> spec = {"rayClusterSpec": {"headGroupSpec": {"template": pod}}}
            >>> file = {"kind": "RayJob", "spec": spec}
            >>> Submission("a", "raylit fit", {}, file, "--on job.yaml").manifest()["metadata"]
            {'name': 'a', 'namespace': 'default'}
        """
        try:
            return self._made()
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ConfigError(
                f"{self.given}: it is no whole RayJob: {why}. Compare it with"
                " cluster/kubernetes/rayjob.yaml."
            ) from error

    def _made(self) -> PlainDict:
        made: PlainDict = copy.deepcopy(dict(self.definition))
        spec = made["spec"]
        metadata = made.get("metadata", {})
        metadata.pop("generateName", None)
        made["metadata"] = {**metadata, "name": self.name, "namespace": self.namespace}
        spec["entrypoint"] = self.command
        own = yaml.safe_load(spec.get("runtimeEnvYAML", "")) or {}
        env = {**own.get("env_vars", {}), **self.env}
        runtime = {**own, "working_dir": f"{FOLDER}/{PACKAGE}", "env_vars": env}
        spec["runtimeEnvYAML"] = yaml.safe_dump(runtime)
        pod = spec.setdefault("submitterPodTemplate", self._submitter(spec))["spec"]
        pod["volumes"] = [
            *pod.get("volumes", []),
            {"name": "code", "configMap": {"name": self.name}},
        ]
        container = pod["containers"][0]
        mount = {"name": "code", "mountPath": FOLDER, "readOnly": True}
        container["volumeMounts"] = [*container.get("volumeMounts", []), mount]
        return made

    def _submitter(self, spec: PlainDict) -> PlainDict:
        """Return the pod that KubeRay would make, where the file describes none."""
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        container = {"name": "submitter", "image": head["image"]}
        return {"spec": {"restartPolicy": "Never", "containers": [container]}}

    def check(self) -> None:
        """Find out whether Kubernetes answers and lets this user make RayJobs.

        Raises:
            ConfigError: it does not, or there is no `kubectl`, or the file is no whole RayJob.
        """
        self.manifest()
        if shutil.which("kubectl") is None:
            raise ConfigError(
                f"{self.given} is a RayJob, which `kubectl` makes, and there is none on this"
                " machine. Install it (https://kubernetes.io/docs/tasks/tools), or send the job to"
                " a cluster that runs: --on http://HEAD:8265."
            )
        done = self._kubectl("auth", "can-i", "create", "rayjobs.ray.io", ANSWER)
        if done.stdout.strip() != "yes":
            raise ConfigError(
                f"{self.given}: no RayJob can be made in the namespace {self.namespace}:"
                f" {_last_line(done) or 'kubectl says no more'}. Look at `kubectl config"
                " current-context`, and install KubeRay (cluster/README.md)."
            )

    def submit(self, package: Path) -> None:
        """Make the ConfigMap and the RayJob, which then owns it.

        Raises:
            ConfigError: the file is no whole RayJob; nothing was made.
            LaunchError: Kubernetes does not take them; neither is there then.
        """
        manifest = self.manifest()
        source = f"--from-file={PACKAGE}={package}"
        self._must("create", "configmap", self.name, source)
        try:
            made = self._must("create", "-f", "-", "-o", "jsonpath={.metadata.uid}", given=manifest)
            owner = {
                "apiVersion": "ray.io/v1",
                "kind": "RayJob",
                "name": self.name,
                "uid": made.strip(),
            }
            change = json.dumps({"metadata": {"ownerReferences": [owner]}})
            self._must("patch", "configmap", self.name, "--type=merge", "-p", change)
        except LaunchError:
            self._kubectl("delete", "rayjob", self.name, "--ignore-not-found", "--wait=false")
            self._kubectl("delete", "configmap", self.name)
            raise

    def follow(self, show: Callable[[str], object]) -> tuple[int, str]:
        """Show the log until the RayJob has ended, over all its attempts.

        Returns:
            The exit code, and what KubeRay says.

        Raises:
            LaunchError: Kubernetes has not answered for some minutes.
        """
        said = ""
        failed = 0
        shown: dict[str, int] = {}
        while failed < LOST_AFTER:
            done = self._kubectl("get", "rayjob", self.name, "-o", "json", ANSWER)
            failed = failed + 1 if done.returncode else 0
            status = {} if done.returncode else json.loads(done.stdout).get("status", {})
            state = str(status.get("jobDeploymentStatus", said))
            if state != said:
                said = state
                info(f"RayJob {self.name}: {state}")
            if state in ("Complete", "Failed"):
                return _ended(status)
            if state == "Running":
                self._show_log(show, shown)
            time.sleep(EVERY_S)
        raise LaunchError(
            f"Kubernetes does not answer: {_last_line(done)}. The RayJob {self.name} goes on:\n"
            f"{self.hints}"
        )

    def stop(self) -> None:
        """Delete the RayJob; its pods have their time to save.

        Raises:
            LaunchError: Kubernetes does not do it.
        """
        self._must("delete", "rayjob", self.name, "--wait=false")

    def _show_log(self, show: Callable[[str], object], shown: dict[str, int]) -> None:
        """Show the submitter's log, which is the job's, until its pod ends.

        Kubernetes gives it from its beginning, also after a connection that was lost.

        Args:
            show: gets the lines.
            shown: how many lines of each pod have been shown, which is kept up to date.
        """
        log = ["logs", "--follow", "--prefix", f"job/{self.name}"]
        command = ["kubectl", "-n", self.namespace, *log]
        found: Counter[str] = Counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:  # [pod/NAME/CONTAINER] LINE
                pod, _, text = line.decode(errors="replace").partition(" ")
                found[pod] += 1
                if found[pod] > shown.get(pod, 0):
                    shown[pod] = found[pod]
                    show(text)

    def _must(self, *arguments: str, given: object = None) -> str:
        done = self._kubectl(*arguments, given=given)
        if done.returncode:
            raise LaunchError(f"{shlex.join(['kubectl', *arguments[:3]])}: {_last_line(done)}")
        return done.stdout

    def _kubectl(self, *arguments: str, given: object = None) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "-n", self.namespace, *arguments]
        text = None if given is None else json.dumps(given)
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def _ended(status: Mapping[str, object]) -> tuple[int, str]:
    message = str(status.get("message", ""))
    if status.get("jobStatus") == "SUCCEEDED":
        return 0, message
    code = re.search(r"exit code (\d+)", message)  # the only place that has it
    return int(code[1]) if code and int(code[1]) else 1, message


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2].removesuffix(".")
