"""Lightning's path to `raylit.callbacks.weights.weight_averaging`."""

from raylit.callbacks.weights.weight_averaging import EMAWeightAveraging, WeightAveraging

__all__ = ["EMAWeightAveraging", "WeightAveraging"]
