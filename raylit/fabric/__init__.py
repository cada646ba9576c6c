"""Lightning's place for code that its Fabric and Trainer share; the class Fabric is left out.

raylit has one way to train, the Trainer: a loop of one's own is plain PyTorch.
"""

from raylit.runtime.lazy import attribute_loader
from raylit.runtime.rng import seed_everything

__all__ = ["seed_everything"]

__getattr__ = attribute_loader(__name__)  # Lightning's paths, which no module here imports
