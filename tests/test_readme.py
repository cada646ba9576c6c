"""What the README and the tree of files in docs/design.md say is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import raylit
from raylit.testing import BoringModel
from tests.deadlines import stretched

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DESIGN = (ROOT / "docs" / "design.md").read_text()


def test_first_example_runs(tmp_path: Path) -> None:
    example = README.split("```python\n")[1].split("```")[0]
    assert len([line for line in example.splitlines() if line]) <= 31
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=stretched(120),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    accuracy, path = done.stdout.splitlines()[-1].split()
    assert float(accuracy) > 0.9
    assert Path(path).is_file()


def is_lightnings_path(file: Path) -> bool:
    """A short file that only leads to where the things live."""
    return file.read_text().startswith(
        ('"""Lightning\'s path', '"""Lightning\'s place', '"""Lightning\'s name')
    )


def test_tree_names_every_file() -> None:
    tree = DESIGN.split("## What is where")[1].split("```")[1]
    named = set(re.findall(r"\w+\.py", tree))
    files = [
        path for path in Path(raylit.__file__).parent.rglob("*.py") if path.name != "__init__.py"
    ]
    assert {path.name for path in files if not is_lightnings_path(path)} - named == set()
    assert named - {path.name for path in files} - {"digits.py"} == set()
    assert {path.parent.name for path in files} - set(re.findall(r"(\w+)/", tree)) - {
        "progress"
    } == set()


def test_readme_is_short() -> None:
    """Each feature has its page in docs/."""
    assert len(README.splitlines()) <= 165


def test_one_batch_passes_the_files_that_contributing_names(tmp_path: Path) -> None:
    """In this order."""
    chapter = (ROOT / "CONTRIBUTING.md").read_text().split("### Follow one batch")[1]
    named = re.findall(r"^\| `([\w/]+\.py)`", chapter.split("## To add")[0], re.MULTILINE)
    assert len(named) <= 12
    package = Path(raylit.__file__).parent
    assert [name for name in named if not (package / name).is_file()] == []
    left = [str(package / name) for name in named]

    def note(frame: FrameType, event: str, _: object) -> None:
        """Go to the next name of the list when a function of that file is called."""
        if event == "call" and left and frame.f_code.co_filename == left[0]:
            left.pop(0)

    class Logs(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.layer(batch).square().mean()
            self.log("loss", loss)
            return loss

    logger = raylit.MLFlowLogger("one batch", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    logger.experiment  # noqa: B018  the database is made, which takes long where calls are watched
    trainer = raylit.Trainer(
        max_steps=2,
        log_every_n_steps=1,
        logger=logger,
        default_root_dir=tmp_path,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    model = Logs()
    sys.setprofile(note)
    try:
        trainer.fit(model)
    finally:
        sys.setprofile(None)
    assert left == []
