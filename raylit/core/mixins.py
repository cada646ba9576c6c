"""Lightning's path to `raylit.core.hparams`."""

from raylit.core.hparams import HasHyperparameters as HyperparametersMixin

__all__ = ["HyperparametersMixin"]
