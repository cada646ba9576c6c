"""Lightning's path to `raylit.callbacks.weights.stochastic_weight_averaging`."""

from raylit.callbacks.weights.stochastic_weight_averaging import StochasticWeightAveraging

__all__ = ["StochasticWeightAveraging"]
