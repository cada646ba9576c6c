"""Draw the figures of docs/: python docs/figures/draw.py [FOLDER]."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK = "#1f2933"
BLUE = "#dbeafe"
GREEN = "#d9f2e1"
ORANGE = "#fde8cf"
RED = "#fbdcdc"
GREY = "#eef1f4"

Point = tuple[float, float]


def canvas(width: float, height: float) -> Axes:
    """Return axes on which one unit is a tenth of an inch."""
    figure = plt.figure(figsize=(width / 10, height / 10), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return axes


def box(axes: Axes, at: Point, size: Point, text: str, color: str, note: str = "") -> None:
    """Draw a box around the point `at`, with a title and a smaller note below it."""
    left = at[0] - size[0] / 2
    bottom = at[1] - size[1] / 2
    style = "round,pad=0,rounding_size=1"
    axes.add_patch(
        FancyBboxPatch((left, bottom), *size, boxstyle=style, facecolor=color, edgecolor=INK, lw=1)
    )
    axes.text(
        at[0],
        at[1] + (1.3 if note else 0),
        text,
        ha="center",
        va="center",
        fontsize=9,
        color=INK,
        weight="bold" if note else "normal",
    )
    if note:
        axes.text(at[0], at[1] - 1.6, note, ha="center", va="center", fontsize=7.5, color=INK)


def arrow(
    axes: Axes, start: Point, end: Point, text: str = "", bend: float = 0.0, shift: Point = (0, 1)
) -> None:
    """Draw an arrow, with a text beside its middle."""
    path = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=11, color=INK, lw=1, connectionstyle=path
        )
    )
    if text:
        middle = ((start[0] + end[0]) / 2 + shift[0], (start[1] + end[1]) / 2 + shift[1])
        axes.text(*middle, text, ha="center", va="center", fontsize=7.5, color=INK)


def title(axes: Axes, at: Point, text: str) -> None:
    axes.text(*at, text, ha="left", va="center", fontsize=8, color=INK, style="italic")


def step() -> None:
    """Draw how one step flows, from `fit` to `optimizer.step()`."""
    axes = canvas(92, 50)
    chain = [
        ("Trainer.fit", "settings, on the driver"),
        ("Launcher.launch", "the one seam"),
        ("worker.run_job", "on every rank"),
        ("loop.fit", "epochs"),
        ("loop.train_epoch", "batches"),
        ("loop.train_batch", "one batch"),
    ]
    for number, (name, note) in enumerate(chain):
        at = (16, 45 - 8 * number)
        color = ORANGE if number == 1 else BLUE
        box(axes, at, (24, 6), name, color, note)
        if number:
            arrow(axes, (16, at[1] + 5), (16, at[1] + 3))
    lines = [
        ("next batch", "fetched and moved while the one before computed", GREY),
        ("training_step(batch)", "your code; log() keeps a detached tensor", GREEN),
        ("zero_grad(), loss.backward()", "gradients between ranks go meanwhile", GREEN),
        ("clip, optimizer.step()", "at the end of a window of batches", GREEN),
        ("agree on stops", "after at most 16 batches, on the CPU", GREY),
        ("loggers", "every log_every_n_steps: values become numbers", GREY),
    ]
    for number, (name, note, color) in enumerate(lines):
        at = (66, 45 - 8 * number)
        box(axes, at, (44, 6), name, color, note)
        if number:
            arrow(axes, (66, at[1] + 5), (66, at[1] + 3))
    arrow(axes, (28, 5), (44, 45), bend=-0.12)
    save(axes, "step")


def resume() -> None:
    """Draw the states of a run that dies and resumes."""
    axes = canvas(96, 52)
    box(axes, (82, 44), (22, 7), "dead", RED, "SIGKILL, power, node lost")
    box(axes, (12, 28), (18, 7), "start", GREY, "fit(ckpt_path='last')")
    box(axes, (47, 28), (24, 7), "training", GREEN, "cursor: the next action")
    box(axes, (82, 28), (22, 7), "done", GREEN, "recovery files deleted")
    box(axes, (12, 7), (18, 7), "newest whole", BLUE, "a torn one is passed over")
    box(axes, (47, 7), (24, 7), "checkpoint on disk", BLUE, "temporary name, sync, rename")
    box(axes, (82, 7), (22, 7), "stopped", ORANGE, "SIGTERM, Ctrl-C, exception")
    arrow(axes, (57, 31.5), (71, 42.5), "at any moment", shift=(-5.5, 1.5))
    arrow(
        axes, (71, 46), (12, 31.5), "started again: by you, Ray or Slurm", bend=0.22, shift=(-2, 9)
    )
    arrow(axes, (21, 28), (35, 28), "nothing saved yet", shift=(0, 1.4))
    arrow(axes, (59, 28), (71, 28), "limit reached", shift=(0, 1.4))
    arrow(axes, (9, 24.5), (9, 10.5), "looks for one", shift=(-4.3, 0))
    arrow(axes, (18, 10.5), (37, 24.5), "enters at its cursor", shift=(-6.5, 2))
    arrow(axes, (45, 24.5), (45, 10.5), "every 300 s", shift=(-4.5, -2))
    axes.text(46, 17.5, "in the background", fontsize=7.5, color=INK, va="center")
    arrow(axes, (56, 24.5), (73, 10.5), "after the batch", shift=(6, 1.5))
    arrow(axes, (71, 7), (59, 7), "saves", shift=(0, 1.4))
    arrow(axes, (35, 7), (21, 7), "of all these", shift=(0, 1.4))
    save(axes, "resume")


def sweep() -> None:
    """Draw how a sweep goes."""
    axes = canvas(96, 42)
    box(axes, (13, 34), (22, 7), "config", GREY, "model, data, trainer")
    box(axes, (13, 20), (22, 7), "sweep file", GREY, "space, metric, trials")
    box(axes, (43, 27), (24, 7), "search", BLUE, "draws values for a trial")
    box(axes, (43, 9), (24, 7), "scheduler", BLUE, "stops bad trials early")
    for number in range(3):
        at = (70, 34 - 9 * number)
        box(axes, at, (18, 6), f"trial {number + 1}", GREEN, "a fit with its own seed")
        arrow(axes, (55, 27), (61, at[1]))
        arrow(axes, (79, at[1]), (84, 20 + (at[1] - 25) * 0.4))
    box(axes, (89, 20), (10, 16), "MLflow", ORANGE)
    axes.text(89, 16.5, "a run,\nits trials\nas children", ha="center", va="center", fontsize=7)
    arrow(axes, (24, 34), (31, 28.5))
    arrow(axes, (24, 20), (31, 25.5))
    arrow(axes, (64, 13), (55, 10), "metric after each epoch", shift=(2.4, -2.6))
    arrow(axes, (39, 12.5), (39, 23.5))
    axes.text(40, 18, "values seen", ha="left", va="center", fontsize=7.5, color=INK)
    box(axes, (13, 6), (22, 7), "best.yaml", GREY, "for raylit fit --config")
    arrow(axes, (31, 8), (24, 6.5), "best first", shift=(0, 1.4))
    save(axes, "sweep")


def save(axes: Axes, name: str) -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    # no date and no version within, so that the same figure is the same file
    axes.figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    plt.close()


if __name__ == "__main__":
    step()
    resume()
    sweep()
