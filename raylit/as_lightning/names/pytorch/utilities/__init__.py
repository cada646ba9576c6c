"""Lightning's names beside those of `raylit.utilities`."""

import torch

from raylit import utilities
from raylit.as_lightning.beside import names_of

FLOAT16_EPSILON = torch.finfo(torch.float16).eps
FLOAT32_EPSILON = torch.finfo(torch.float32).eps
FLOAT64_EPSILON = torch.finfo(torch.float64).eps

__getattr__ = names_of(__name__, utilities)
