"""Lightning's path to `raylit.callbacks.monitors.device_stats_monitor`."""

from raylit.callbacks.monitors.device_stats_monitor import DeviceStatsMonitor

__all__ = ["DeviceStatsMonitor"]
