"""`raylit runs` and `raylit sync`: runs of an MLflow store in the terminal."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raylit.errors import ConfigError, did_you_mean
from raylit.loggers.mlflow import runs
from raylit.loggers.mlflow.store import REASON_TAG

if TYPE_CHECKING:
    from raylit.loggers.mlflow.runs import Client, Run

BARS = "▁▂▃▄▅▆▇█"
UNCUT = 10_000  # columns, of what is no terminal
WIDTH = 24  # of a sparkline
POLL_S = 2.0
MOST_METRICS = 3  # columns of a list
COLORS = {"FINISHED": "green", "FAILED": "red", "KILLED": "yellow", "RUNNING": "cyan"}
CONFIG = "config.yaml"


def run(args: list[str]) -> None:
    """Run `raylit runs ACTION ...`.

    Raises:
        ConfigError: an argument is wrong, or there is no such store or run.
    """
    actions: dict[str, Callable[[Client, argparse.Namespace], None]] = {
        "ls": _list,
        "show": _show,
        "compare": _compare,
        "best": _best,
        "tail": _tail,
        "diff": _diff,
        "rm": _remove,
    }
    action = args[0] if args and not args[0].startswith("-") else "ls"
    if action not in actions:
        raise ConfigError(
            f"raylit runs {action}: say what to do.{did_you_mean(action, actions)} There are:"
            f" {', '.join(actions)}."
        )
    options = _parser(action).parse_args(args[1:] if args[:1] == [action] else args)
    actions[action](runs.open_store(runs.default_uri(options.store)), options)


def sync(args: list[str]) -> None:
    """Run `raylit sync`.

    Raises:
        ConfigError: there is no such folder.
        SystemExit: something is left.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("folder", nargs="?", default=".")
    parser.add_argument("--store")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(args)
    if not os.path.isdir(options.folder):
        raise ConfigError(f"raylit sync {options.folder}: there is no such folder.")
    console = _console()
    num_left = 0
    num_found = 0
    for one in runs.sync(options.folder, options.store):
        num_found += 1
        num_left += bool(one.problem)
        what = f"{one.num} records of the run {one.run_id or '?'}, {_ago(one.age_s)} old"
        if one.problem:
            console.print(f"[yellow]kept[/]  {escape(what)}: {escape(one.problem)} ({one.path})")
        else:
            console.print(f"[green]sent[/]  {escape(what)}, to {escape(one.uri)}")
    if not num_found:
        console.print(f"Nothing waits for MLflow below {os.path.abspath(options.folder)}.")
    if num_left:
        raise SystemExit(1)


def register(args: list[str]) -> None:
    """Run `raylit register RUN --name N [--alias A]`.

    Raises:
        ConfigError: there is no such run, or it has no model.
    """
    from raylit.loggers.mlflow import models

    parser = _Parser(prog="raylit register", add_help=False, allow_abbrev=False)
    parser.add_argument("run")
    parser.add_argument("--name", required=True)
    parser.add_argument("--alias")
    parser.add_argument("--store")
    parser.add_argument("--experiment")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(args)
    client = runs.open_store(runs.default_uri(options.store))
    found = runs.find(client, options.run, options.experiment)
    version = models.register(client, found.info.run_id, options.name, options.alias)
    named = f"@{options.alias}" if options.alias else f"/{version}"
    print(
        f"{options.name}, version {version}:"
        f" mlflow.pyfunc.load_model('models:/{options.name}{named}')"
    )


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises instead of printing its usage and ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument ") + ".")


def _parser(action: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"raylit runs {action}", add_help=False, allow_abbrev=False)
    parser.add_argument("--store")
    parser.add_argument("--experiment")
    parser.add_argument("--verbose", action="store_true")
    if action in ("show", "tail"):
        parser.add_argument("run")
    elif action in ("compare", "rm"):
        parser.add_argument("runs", nargs="+")
    elif action == "diff":
        parser.add_argument("runs", nargs=2)
    if action in ("ls", "best"):
        parser.add_argument("--filter", default="")
        parser.add_argument("-n", "--most", type=int, default=30)
    if action == "ls":
        parser.add_argument("--order", action="append", default=[])
        parser.add_argument("--mark-killed", action="store_true")
    elif action == "best":
        parser.add_argument("metric")
        parser.add_argument("--mode", choices=("min", "max"), default="min")
    elif action == "rm":
        parser.add_argument("--yes", action="store_true")
    return parser


# ---- what the actions do ----


def _list(client: Client, options: argparse.Namespace) -> None:
    ids = [one.experiment_id for one in runs.experiments(client, options.experiment)]
    runs.end_gone(client, ids, lost=options.mark_killed)
    found = runs.search(client, ids, options.filter, options.order, options.most)
    console = _console()
    if not found:
        console.print("There are no such runs.")
        return
    metrics = _telling(found)
    rows = [
        {
            "run": one.info.run_id[:8],
            "name": escape(f"{'  ' * (depth - 1)}{'└ ' if depth else ''}{one.info.run_name}"),
            "status": _status(one),
            "began": _when(one),
            "took": _took(one),
            **{name: _number(one.data.metrics.get(name)) for name in metrics},
        }
        for depth, one in runs.tree(found)
    ]
    columns = list(rows[0])
    for name in ("", "took", "began", *reversed(metrics[1:]), "status"):  # the least telling first
        columns = [one for one in columns if one != name]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for one in columns:
            is_number = one in metrics
            table.add_column(one, no_wrap=one != "name", justify="right" if is_number else "left")
        for row in rows:
            table.add_row(*(row[one] for one in columns))
        if console.measure(table, options=console.options.update(width=UNCUT)).minimum <= (
            console.width
        ):
            break
    console.print(table)


def _show(client: Client, options: argparse.Namespace) -> None:
    one = runs.find(client, options.run, options.experiment)
    console = _console()
    info = one.info
    experiment = client.get_experiment(info.experiment_id).name
    console.print(f"[bold]{escape(info.run_name)}[/]  {info.run_id}  in {escape(experiment)}")
    console.print(f"{_status(one)}, began {_when(one)}, took {_took(one)}")
    shown = {
        key: value
        for key, value in sorted(one.data.tags.items())
        if value and (key.startswith("raylit.") or ".git." in key or key in SHOWN_TAGS)
    }
    _print_pairs(console, "tags", shown)
    _print_pairs(console, "parameters", dict(sorted(one.data.params.items())))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("metrics", "", "last", "least", "most"):
        table.add_column(name, justify="right" if name in ("last", "least", "most") else "left")
    for key, value in sorted(one.data.metrics.items()):
        if key.startswith("system/"):
            continue  # in the pages of MLflow
        values = [point.value for point in client.get_metric_history(info.run_id, key)]
        line = sparkline(values) if len(values) > 1 else ""
        table.add_row(escape(key), line, *map(_number, (value, min(values), max(values))))
    if table.row_count:
        console.print(table)
    files = [item.path + "/" * item.is_dir for item in client.list_artifacts(info.run_id)]
    if files:
        console.print(f"[bold]files[/]  {escape('  '.join(files))}")


SHOWN_TAGS = ("mlflow.user", "mlflow.source.name", "mlflow.parentRunId", "mlflow.note.content")


def _compare(client: Client, options: argparse.Namespace) -> None:
    found = [runs.find(client, name, options.experiment) for name in options.runs]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", *(f"{one.info.run_name} ({one.info.run_id[:6]})" for one in found)):
        table.add_column(escape(name), justify="right" if name else "left")
    table.add_row("status", *map(_status, found))
    table.add_row("took", *map(_took, found))
    for key in _keys(one.data.params for one in found):
        values = [one.data.params.get(key, "") for one in found]
        if len({*values}) > 1:
            table.add_row(escape(key), *map(escape, values))
    for key in _keys(one.data.metrics for one in found):
        if not key.startswith("system/"):
            table.add_row(escape(key), *(_number(one.data.metrics.get(key)) for one in found))
    _console().print(table)


def _best(client: Client, options: argparse.Namespace) -> None:
    ids = [one.experiment_id for one in runs.experiments(client, options.experiment)]
    order = f"metrics.`{options.metric}` {'ASC' if options.mode == 'min' else 'DESC'}"
    found = runs.search(client, ids, options.filter, [order], options.most)
    having = [one for one in found if options.metric in one.data.metrics]
    if not having:
        names = _keys(one.data.metrics for one in runs.search(client, ids, most=100))
        raise ConfigError(
            f"No run has a metric {options.metric!r}.{did_you_mean(options.metric, names)} Their"
            f" metrics: {', '.join(names[:20])}."
        )
    params = [
        key
        for key in _keys(one.data.params for one in having)
        if len({one.data.params.get(key) for one in having}) > 1
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", options.metric, "run", "name", "status", *params[:5]):
        table.add_column(escape(name), justify="right" if name == options.metric else "left")
    for place, one in enumerate(having, 1):
        table.add_row(
            str(place),
            _number(one.data.metrics[options.metric]),
            one.info.run_id[:8],
            escape(one.info.run_name),
            _status(one),
            *(escape(one.data.params.get(key, "")) for key in params[:5]),
        )
    _console().print(table)


def _tail(client: Client, options: argparse.Namespace) -> None:
    run_id = runs.find(client, options.run, options.experiment).info.run_id
    console = _console()
    seen: dict[str, tuple[int, int]] = {}
    while True:
        one = client.get_run(run_id)
        rows: dict[int, list[str]] = {}
        for newest in one.to_proto().data.metrics:  # only this form tells step and time
            place = (newest.step, newest.timestamp)
            if seen.get(newest.key) != place and not newest.key.startswith("system/"):
                seen[newest.key] = place
                value = f"{newest.key} {_number(newest.value)}"
                rows.setdefault(newest.step, []).append(value)
        for step in sorted(rows):
            console.print(f"[dim]step {step:>8}[/]  {escape('  '.join(sorted(rows[step])))}")
        if one.info.status != "RUNNING" or runs.condition(one) == "gone":
            console.print(_status(one))
            return
        time.sleep(POLL_S)


def _diff(client: Client, options: argparse.Namespace) -> None:
    first, second = (runs.find(client, name, options.experiment) for name in options.runs)
    console = _console()
    tags = ("mlflow.source.git.commit", "mlflow.source.name", "mlflow.user", "raylit.version")
    pairs = [
        (key, first.data.params.get(key), second.data.params.get(key))
        for key in _keys((first.data.params, second.data.params))
    ]
    pairs += [(key, first.data.tags.get(key), second.data.tags.get(key)) for key in tags]
    for key, one, other in pairs:
        if one != other:
            console.print(
                f"{escape(key)}: [red]{escape(str(one))}[/] [green]{escape(str(other))}[/]"
            )
    lines = difflib.unified_diff(
        runs.text_of(client, first, CONFIG).splitlines(),
        runs.text_of(client, second, CONFIG).splitlines(),
        f"{first.info.run_name}/{CONFIG}",
        f"{second.info.run_name}/{CONFIG}",
        lineterm="",
    )
    for line in lines:
        color = {"+": "[green]", "-": "[red]"}.get(line[:1], "")
        console.print(f"{color}{escape(line)}{'[/]' if color else ''}")


def _remove(client: Client, options: argparse.Namespace) -> None:
    found = [runs.find(client, name, options.experiment) for name in options.runs]
    for one in found:
        if one.info.status == "RUNNING" and runs.condition(one) == "as told":
            raise ConfigError(f"The run {one.info.run_id} is running. End it before it is deleted.")
    names = ", ".join(f"{one.info.run_name} ({one.info.run_id[:8]})" for one in found)
    if not options.yes:
        raise ConfigError(f"This would delete {names}. Say so: raylit runs rm ... --yes")
    for one in found:
        client.delete_run(one.info.run_id)
    print(f"Deleted {names}. Until mlflow gc, mlflow runs restore brings them back.")


# ---- how things look ----


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Return the course of numbers as a line of blocks; a number that is not finite is a blank."""
    size = max(len(values) / width, 1)
    num = min(len(values), width)
    drawn = [values[int(place * size)] for place in range(num - 1)] + [*values[-1:]]
    finite = [value for value in drawn if abs(value) < float("inf")]
    if not finite:
        return " " * num
    low = min(finite)
    span = max(finite) - low
    return "".join(
        BARS[int((value - low) / span * 7.999) if span else 0] if abs(value) < float("inf") else " "
        for value in drawn
    )


def _telling(found: Iterable[Run]) -> list[str]:
    """Return the metrics that tell most of some runs: those of validation, then by frequency."""
    counts: dict[str, int] = {}
    for one in found:
        for key in one.data.metrics:
            counts[key] = counts.get(key, 0) + 1
    own = ("system/", "perf/", "optim/", "epoch", "lr-")
    told = [key for key in counts if not key.startswith(own)]
    rank = {key: (not key.startswith(("best/", "val")), -counts[key], key) for key in told}
    return sorted(told, key=rank.__getitem__)[:MOST_METRICS]


def _keys(mappings: Iterable[dict[str, str] | dict[str, float]]) -> list[str]:
    return sorted({key for one in mappings for key in one})


def _console() -> Console:
    """Return where tables go: as wide as a terminal, and in a file or a pipe as they are."""
    is_sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if is_sized else UNCUT)


def _print_pairs(console: Console, title: str, pairs: dict[str, str]) -> None:
    if not pairs:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title)
    table.add_column("")
    for key, value in pairs.items():
        table.add_row(escape(key), escape(value if len(value) <= 200 else f"{value[:200]}..."))
    console.print(table)


def _status(one: Run) -> str:
    found = runs.condition(one)
    if found == "lost":
        return f"[yellow]lost[/] (silent for {_ago(time.time() - runs.heard_of(one))})"
    status = "KILLED" if found == "gone" else str(one.info.status)
    color = COLORS.get(status)
    reason = one.data.tags.get(REASON_TAG, "")
    text = f"[{color}]{status.lower()}[/]" if color else status.lower()
    return f"{text} ({escape(reason[:60])})" if reason and status != "RUNNING" else text


def _when(one: Run) -> str:
    return datetime.fromtimestamp(one.info.start_time / 1000).strftime("%Y-%m-%d %H:%M")


def _took(one: Run) -> str:
    end_ms = one.info.end_time or time.time() * 1000
    return _ago((end_ms - one.info.start_time) / 1000)


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
