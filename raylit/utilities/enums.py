"""Lightning's path to `raylit.core.states` and `raylit.utilities.grads`."""

from raylit.core.states import LightningEnum
from raylit.utilities.grads import GradClipAlgorithmType

__all__ = ["GradClipAlgorithmType", "LightningEnum"]
