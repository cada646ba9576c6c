"""Lightning's path to `raylit.callbacks.monitors.throughput_monitor`."""

from raylit.callbacks.monitors.throughput_monitor import ThroughputMonitor

__all__ = ["ThroughputMonitor"]
