"""What users set, call and read: `trainer.py` (Trainer), `settings.py` (its arguments), `view.py` (the running state), `driver.py` (one job).

From outside, users and the folders above import Trainer.
Never here: how a step flows, or how processes are started.
"""

from raylit.runtime.lazy import attribute_loader
from raylit.trainer.trainer import Trainer

__all__ = ["Trainer"]

__getattr__ = attribute_loader(__name__)  # Lightning's paths, which no module here imports
