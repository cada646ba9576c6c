"""The Trainer.

`trainer.py` has the methods that users call, `view.py` the attributes that they read, `settings.py`
its arguments, `driver.py` the beginning and the end of a job in the user's process.

From outside, users and the folders above import Trainer.
Never here: how a step flows, or how processes are started.
"""

from raylit.runtime.lazy import attribute_loader
from raylit.trainer.trainer import Trainer

__all__ = ["Trainer"]

__getattr__ = attribute_loader(__name__)  # Lightning's paths, which no module here imports
