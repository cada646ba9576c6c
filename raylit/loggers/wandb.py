"""Lightning's path to `raylit.loggers.hosted.wandb`."""

from raylit.loggers.hosted.wandb import WandbLogger

__all__ = ["WandbLogger"]
