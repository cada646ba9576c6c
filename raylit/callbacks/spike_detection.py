"""Lightning's path to `raylit.callbacks.monitors.spike_detection`."""

from raylit.callbacks.monitors.spike_detection import SpikeDetection

__all__ = ["SpikeDetection"]
