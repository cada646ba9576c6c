from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from raylit.runtime.processes import ProcessName


def test_a_process_is_alive_until_it_has_ended() -> None:
    script = (
        "from raylit.runtime.processes import ProcessName; print(ProcessName.of_this(),"
        " flush=True); input()"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        name = ProcessName.parse(process.stdout.readline().strip())
        assert name is not None and name.pid == process.pid
        assert name.state() == "alive"
        process.kill()
        process.wait()
    assert name.state() == "gone"


def test_what_another_host_runs_is_unknown_and_before_a_reboot_nothing_is_left() -> None:
    name = ProcessName.of_this()
    assert ProcessName.parse(str(name)) == name
    assert name.state() == "alive"
    assert replace(name, started=name.started - 1).state() == "gone"  # the id was given again
    assert replace(name, host="elsewhere").state() == "unknown"
    assert replace(name, boot="before").state() == "gone"
    assert replace(name, namespace="1").state() == "unknown"  # another container
    assert [ProcessName.parse(text) for text in ("", "a:b", "a:b:c:d:e")] == [None] * 3
