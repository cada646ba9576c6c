"""Processes of this machine as ranks, without Ray: the only place for torch's own launcher."""

from raylit.launch.processes.launcher import ProcessLauncher

__all__ = ["ProcessLauncher"]
