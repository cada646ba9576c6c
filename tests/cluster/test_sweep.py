"""A sweep over two nodes, of which one dies, ends as one over nodes that live.

The nodes are network namespaces with their own addresses.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.nodes import Nodes, why_not
from tests.deadlines import stretched

NUM_TRIALS = 5  # of `swept`
NUM_REPORTS = 3
SCRIPT = """
import sys
from pathlib import Path
from tests.tune.test_sweep import Slow, swept
if __name__ == "__main__":
    swept(Path(sys.argv[1]), Slow)
"""


def reports(folder: Path) -> dict[str, list[int]]:
    """The numbers of the reports of each trial, as its file has them."""
    found: dict[str, list[int]] = {}
    for path in folder.glob("raylit_runs/*/trial-*/reports.jsonl"):
        whole = [line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        lines = [json.loads(line) for line in whole]
        found[path.parent.name] = [line["report"] for line in lines if "report" in line]
    return found


@pytest.mark.ray
@pytest.mark.long
def test_a_sweep_goes_on_when_a_node_dies(tmp_path: Path) -> None:
    reason = why_not()
    assert reason is None, f"No network namespaces can be had here: {reason}."
    with Nodes(2) as nodes:
        nodes.start(0)
        nodes.start(1)
        with (tmp_path / "errors").open("w") as errors:
            command = (sys.executable, "-c", SCRIPT, str(tmp_path))
            env = {"RAY_ADDRESS": nodes.address}
            driver = nodes.popen(0, *command, env=env, stdout=errors, stderr=errors)
        deadline = time.monotonic() + stretched(180)
        while sum(bool(numbers) for numbers in reports(tmp_path).values()) < 2:
            assert driver.poll() is None, (tmp_path / "errors").read_text()
            assert time.monotonic() < deadline, (tmp_path / "errors").read_text()
            time.sleep(0.1)
        nodes.kill(1)
        code = driver.wait(stretched(240))
        said = (tmp_path / "errors").read_text()
    assert code == 0, said
    assert said.count(" finished: val_loss=") == NUM_TRIALS, said
    wanted = list(range(1, NUM_REPORTS + 1))
    assert reports(tmp_path) == {f"trial-{n:03d}": wanted for n in range(NUM_TRIALS)}, said
