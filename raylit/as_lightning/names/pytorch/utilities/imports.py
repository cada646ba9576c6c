"""Lightning's place for which packages are there."""

import importlib.util

_OMEGACONF_AVAILABLE = importlib.util.find_spec("omegaconf") is not None
_TORCHVISION_AVAILABLE = importlib.util.find_spec("torchvision") is not None
_RICH_AVAILABLE = importlib.util.find_spec("rich") is not None
_LIGHTNING_SDK_AVAILABLE = False
