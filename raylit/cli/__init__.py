"""The command line: `raylit fit --config config.yaml`. The only place for jsonargparse.

Open `command.py` first: from the arguments to the exit code. `source.py` reads config files and flags as data that knows where each key
stands, `config.py` has jsonargparse's parser, the config it makes of them and the objects that describes, `diagnosis.py` says in one sentence
what is wrong with a config. `run.py`, `sweep.py` and `ui.py` are what the commands do.
"""

from raylit.cli.command import main
from raylit.cli.optimizer import ReduceLROnPlateau
from raylit.cli.record import SaveConfigCallback

__all__ = ["ReduceLROnPlateau", "SaveConfigCallback", "main"]
