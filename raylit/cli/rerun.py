"""`raylit rerun`: repeat the fit of an MLflow run, and tell whether the result is the same."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import yaml

from raylit.cli.config import parse
from raylit.cli.record import KeepConfig, from_the_start
from raylit.errors import ConfigError
from raylit.loggers import MLFlowLogger
from raylit.loggers.mlflow import runs
from raylit.loggers.mlflow.source import git_tags
from raylit.loggers.mlflow.store import REASON_TAG
from raylit.trainer.resolved import OF_ONE_RUN

if TYPE_CHECKING:
    from raylit.loggers.mlflow.runs import Client, Run

COMMIT = "mlflow.source.git.commit"
DIRTY = "mlflow.source.git.dirty"
NOT_OF_RESULTS = ("perf/", "system/", "data_wait", "best/")  # best/ is of a sweep
MOST_SHOWN = 5


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument ") + ".")


def rerun(args: list[str]) -> None:
    """Run `raylit rerun RUN`.

    Raises:
        ConfigError: there is no such run, or it keeps no config.
        SystemExit: other values came out.
    """
    parser = _Parser(prog="raylit rerun", add_help=False, allow_abbrev=False)
    parser.add_argument("run")
    parser.add_argument("--store")
    parser.add_argument("--experiment")
    parser.add_argument("--print_config", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(args)
    uri = runs.default_uri(options.store)
    client = runs.open_store(uri)
    before = runs.find(client, options.run, options.experiment)
    text = runs.text_of(client, before, "config.yaml")
    if not text:
        raise ConfigError(
            f"The run {before.info.run_id} keeps no config.yaml, so it is not known what it was"
            " made of. Fits with an MLFlowLogger keep one."
        )
    text = _in_a_new_run(from_the_start(text))
    if options.print_config:
        print(text, end="")
        return
    print(f"Running again {before.info.run_name} ({before.info.run_id}): raylit fit --config FILE,")
    print("FILE being its config.yaml:\n")
    print(text)
    for line in differences(before, text):
        print(f"differs: {line}")
    if _was_cut(before):
        reason = before.data.tags[REASON_TAG]
        print(f"Its sweep stopped it ({reason}): the steps that it took are compared.")
    sys.stdout.flush()
    logger = _fit(text)
    if logger is None:
        print("The config has no MLflow logger, so there is nothing to compare.")
        return
    again = logger.experiment.get_run(str(logger.run_id))
    values = _other_values((client, before), (logger.experiment, again))
    found = [*_other_data(before, again), *values]
    for line in found:
        print(f"differs: {line}")
    if found:
        raise SystemExit(1)
    print(f"The same came out, in all values of all steps: {logger.run_id}")


def differences(before: Run, text: str) -> Iterator[str]:
    """Yield the differences that are known before anything runs.

    Args:
        before: the run.
        text: its config.
    """
    tags = before.data.tags
    now = git_tags(Path.cwd())
    if tags.get(COMMIT) != now.get(COMMIT):
        was = tags.get(COMMIT, "none")
        yield f"the commit: it was {was[:12]}, here is {now.get(COMMIT, 'none')[:12]}"
    for name, those in (("it had", tags), ("here are", now)):
        if those.get(DIRTY) == "true":
            yield f"the code: {name} changes that are in no commit"
    config = yaml.safe_load(text)
    seed = config.get("seed_everything") if isinstance(config, dict) else None
    if seed is None or isinstance(seed, bool):
        yield "the seed: the config has none"
    for line in text.splitlines():
        if line.startswith("# Not told: "):
            yield f"what the config does not tell: {line.removeprefix('# Not told: ')}"


def _in_a_new_run(text: str) -> str:
    """Return a config whose loggers begin a run, where it names the one to be written into."""
    config = yaml.safe_load(text)
    trainer = config.get("trainer") if isinstance(config, dict) else None
    named = trainer.get("logger") if isinstance(trainer, dict) else None
    is_changed = False
    for logger in named if isinstance(named, list) else [named]:
        arguments = (logger.get("init_args") or {}) if isinstance(logger, dict) else {}
        for name in OF_ONE_RUN & set(arguments):
            del arguments[name]
            is_changed = True
    if not is_changed:
        return text
    head = [line for line in text.splitlines() if line.startswith("#")]
    return "\n".join((*head, yaml.safe_dump(config, sort_keys=False, allow_unicode=True)))


def _fit(text: str) -> MLFlowLogger | None:
    """Fit as a config describes, and return the logger that has the new run."""
    from raylit.cli import report

    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "config.yaml")
        Path(file).write_text(text)
        config = parse("fit", ["--config", file])
    config.seed()
    trainer = config.make_trainer([KeepConfig(config.text)])
    model, data = config.make_model_and_data()
    report.begin("fit", trainer, model, data, None)
    run_id = trainer.fit(model, datamodule=data, ckpt_path=config.values.ckpt_path).run_id
    loggers = [one for one in trainer.loggers if isinstance(one, MLFlowLogger)]
    return next((one for one in loggers if run_id is not None and one.run_id == run_id), None)


def _other_data(before: Run, again: Run) -> Iterator[str]:
    was, now = _digests(before), _digests(again)
    for context in sorted(now):  # a test is of the checkpoint, not of the fit
        if was.get(context) != now.get(context):
            yield (
                f"the data of {context}: its digest was {was.get(context, 'not kept')}, now it is"
                f" {now.get(context, 'not kept')}"
            )


def _digests(run: Run) -> dict[str, str]:
    inputs = run.inputs.dataset_inputs if run.inputs is not None else []
    return {tag.value: one.dataset.digest for one in inputs for tag in one.tags}


def _other_values(one: tuple[Client, Run], other: tuple[Client, Run]) -> Iterator[str]:
    """Yield metrics that have other values, but for measurements of time and machine.

    Args:
        one: the run, with a client of the store that it is in.
        other: likewise its repetition, whose config may name another store.
    """
    before, again = one[1], other[1]
    names = sorted({*before.data.metrics, *again.data.metrics})
    lines: list[str] = []
    for name in names:
        if name.startswith(NOT_OF_RESULTS):
            continue
        was = _values(*one, name)
        now = _values(*other, name)
        if _was_cut(before):
            now = {point for point in now if point[0] <= max(was, default=(-1, ""))[0]}
        if name.startswith("test") and was and not now:
            continue  # logged by an evaluation of the run's checkpoint
        if was != now:
            pairs = zip(sorted(was), sorted(now), strict=False)
            first = next((pair for pair in pairs if pair[0] != pair[1]), None)
            at = ""
            if first is not None:
                (step, value), (_, other_value) = first
                at = f", from step {step}: {value}, now {other_value}"
            lines.append(f"{name}: {len(was)} values, now {len(now)}{at}")
    yield from lines[:MOST_SHOWN]
    if len(lines) > MOST_SHOWN:
        yield f"{len(lines) - MOST_SHOWN} further metrics"


def _was_cut(run: Run) -> bool:
    """Tell whether a run is a trial that its sweep stopped, which a fit of its own is not."""
    reason = run.data.tags.get(REASON_TAG, "")
    return "raylit.trial" in run.data.tags and reason not in ("", "stopped early")


def _values(client: Client, run: Run, name: str) -> set[tuple[int, str]]:
    """Return the values of a metric with their steps; evaluations may have logged some again."""
    history = client.get_metric_history(run.info.run_id, name)
    return {(one.step, repr(one.value)) for one in history}
