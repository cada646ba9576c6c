"""Questions about a job from launchers that send it to other processes."""

from __future__ import annotations

from raylit.core.job import Job


def checkpoint_folders(job: Job) -> list[str]:
    """Return where the job's checkpoints are, those for recovery too."""
    if job.fn != "fit":
        return []
    folders = (saver.resolve_dirpath(job.trainer) for saver in job.trainer.savers)
    return list(dict.fromkeys(folder for folder in folders if folder is not None))


def parts_of(job: Job) -> dict[str, object]:
    """Return the parts of a job, by the names a user knows."""
    trainer = job.trainer
    return {
        "The LightningModule": job.module,
        "The LightningDataModule": job.datamodule,
        **{f"The {stage} data": loaders for stage, loaders in job.data.items()},
        **{f"The callback {type(callback).__name__}": callback for callback in trainer.callbacks},
        **{f"The logger {type(logger).__name__}": logger for logger in trainer.loggers},
    }
