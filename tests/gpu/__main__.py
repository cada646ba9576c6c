"""What only a GPU shows: results, resume, waiting, memory and speed, in one command.

    python -m tests.gpu                     all checks on the first GPU, in under eight minutes
    python -m tests.gpu --cpu               all of their code, small, without a GPU
    python -m tests.gpu --only resume       those with this in their name
    python -m tests.gpu --carry build/gpu   copies what it needs beside torch and numpy to a folder

It needs neither a network nor Ray, MLflow, pyarrow and jsonargparse, and says so if one was
imported. On a machine that has torch and numpy alone it takes the other packages, all in pure
Python, from build/gpu, where `--carry` has put them.

Prints a table of what was found and what was wanted, and exits with 1 where one does not hold.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

CARRIED = Path(__file__).parents[2] / "build" / "gpu"
PACKAGES = (
    "fsspec",
    "lightning-utilities",
    "markdown-it-py",
    "mdurl",
    "packaging",
    "pygments",
    "pyyaml",
    "rich",
    "torchmetrics",
    "typing-extensions",
)


def carry(folder: Path) -> None:
    """Copy the Python files of `PACKAGES` from this environment to a folder."""
    for name in PACKAGES:
        for file in metadata.files(name) or ():
            inside = not file.is_absolute() and ".." not in file.parts
            if (inside and file.suffix in (".py", ".typed", "")) or "METADATA" in file.name:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                if Path(str(file.locate())).is_file():
                    shutil.copyfile(str(file.locate()), target)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


def main() -> int:
    """Run what the arguments ask for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cpu", action="store_true", help="run all code paths small, on the CPU")
    parser.add_argument("--only", default="", help="checks with this in their name")
    parser.add_argument("--carry", type=Path, metavar="FOLDER", help="copy packages and end")
    arguments = parser.parse_args()
    if arguments.carry is not None:
        carry(arguments.carry)
        return 0
    if arguments.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first use of cuBLAS
    if CARRIED.is_dir():
        sys.path.append(str(CARRIED))  # behind what is installed
    from tests.gpu.checks import run

    return run(arguments.cpu, arguments.only)


if __name__ == "__main__":
    sys.exit(main())
