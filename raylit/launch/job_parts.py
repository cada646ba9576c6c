"""Questions about a job from launchers that send it to other processes."""

from __future__ import annotations

from collections.abc import Sequence

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
        **by_class("The callback", trainer.callbacks),
        **by_class("The logger", trainer.loggers),
    }


def by_class(word: str, parts: Sequence[object]) -> dict[str, object]:
    """Name parts by their classes; of several of one class, the later ones have numbers."""
    named: dict[str, object] = {}
    for part in parts:
        name = f"{word} {type(part).__name__}"
        number = sum(type(other).__name__ == type(part).__name__ for other in named.values())
        named[f"{name} ({number + 1})" if number else name] = part
    return named


def origin_of_restart(job: Job) -> str:
    """Return from where a job goes on when its ranks are started again, for messages."""
    return "from the newest checkpoint" if job.fn == "fit" else "from the start"
