"""The command line: `raylit fit --config config.yaml`, and LightningCLI for scripts.

The only place for jsonargparse.

Open `command.py` first: from the arguments of `raylit` to its exit code. `source.py` reads config
files and flags as data that knows where each key stands, `config.py` has jsonargparse's parser, the
config made from them and the objects that the config describes, `diagnosis.py` names the error in a
config in one sentence. `run.py`, `sweep.py` and `ui.py` do the work of the commands; `remote.py`
has another machine do it, with `upload.py`, `kubernetes.py` and `tunnel.py`. `lightning_cli.py` is
for the user's own script, with `parser.py`; both make objects with `construct.py` and
`optimizer.py` and keep the config with `record.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader

if TYPE_CHECKING:
    from raylit.cli.command import main
    from raylit.cli.construct import instantiate_module
    from raylit.cli.lightning_cli import ArgsType, LightningCLI
    from raylit.cli.optimizer import (
        LRSchedulerCallable,
        LRSchedulerType,
        LRSchedulerTypeTuple,
        LRSchedulerTypeUnion,
        OptimizerCallable,
        ReduceLROnPlateau,
        instantiate_class,
    )
    from raylit.cli.parser import LightningArgumentParser
    from raylit.cli.record import SaveConfigCallback

# Loaded when asked for: `raylit --help` is to be quick, and jsonargparse and torch are not.
_PLACES = {
    "ArgsType": "raylit.cli.lightning_cli",
    "LRSchedulerCallable": "raylit.cli.optimizer",
    "LRSchedulerType": "raylit.cli.optimizer",
    "LRSchedulerTypeTuple": "raylit.cli.optimizer",
    "LRSchedulerTypeUnion": "raylit.cli.optimizer",
    "LightningArgumentParser": "raylit.cli.parser",
    "LightningCLI": "raylit.cli.lightning_cli",
    "OptimizerCallable": "raylit.cli.optimizer",
    "ReduceLROnPlateau": "raylit.cli.optimizer",
    "SaveConfigCallback": "raylit.cli.record",
    "instantiate_class": "raylit.cli.optimizer",
    "instantiate_module": "raylit.cli.construct",
    "main": "raylit.cli.command",
}

__all__ = [
    "ArgsType",
    "LRSchedulerCallable",
    "LRSchedulerType",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "LightningArgumentParser",
    "LightningCLI",
    "OptimizerCallable",
    "ReduceLROnPlateau",
    "SaveConfigCallback",
    "instantiate_class",
    "instantiate_module",
    "main",
]

if not TYPE_CHECKING:  # which finds a name that is not there
    __getattr__ = attribute_loader(__name__, _PLACES)
