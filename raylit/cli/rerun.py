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
from raylit.loggers.mlflow import runs
from raylit.loggers.mlflow.source import git_tags
from raylit.loggers.mlflow.store import REASON_TAG

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
    text = from_the_start(text)
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
    result_id = _fit(text)
    if result_id is None:
        print("The config has no MLflow logger, so there is nothing to compare.")
        return
    # by the client of the store that the config names, which may be another
    again = client.get_run(result_id)
    found = [*_other_data(before, again), *_other_values(client, before, again)]
    for line in found:
        print(f"differs: {line}")
    if found:
        raise SystemExit(1)
    print(f"The same came out, in all values of all steps: {result_id}")


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


def _fit(text: str) -> str | None:
    """Fit as a config describes, and return the id of the new run."""
    from raylit.cli import report

    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "config.yaml")
        Path(file).write_text(text)
        config = parse("fit", ["--config", file])
    config.seed()
    trainer = config.make_trainer([KeepConfig(config.text)])
    model, data = config.make_model_and_data()
    report.begin("fit", trainer, model, data, None)
    return trainer.fit(model, datamodule=data, ckpt_path=config.values.ckpt_path).run_id


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


def _other_values(client: Client, before: Run, again: Run) -> Iterator[str]:
    """Yield metrics that have other values, but for measurements of time and machine."""
    names = sorted({*before.data.metrics, *again.data.metrics})
    other: list[str] = []
    for name in names:
        if name.startswith(NOT_OF_RESULTS):
            continue
        was = _values(client, before, name)
        now = _values(client, again, name)
        if _was_cut(before):
            now = {one for one in now if one[0] <= max(was, default=(-1, ""))[0]}
        if name.startswith("test") and was and not now:
            continue  # logged by an evaluation of the run's checkpoint
        if was != now:
            pairs = zip(sorted(was), sorted(now), strict=False)
            first = next((one for one in pairs if one[0] != one[1]), None)
            at = ""
            if first is not None:
                (step, value), (_, other_value) = first
                at = f", from step {step}: {value}, now {other_value}"
            other.append(f"{name}: {len(was)} values, now {len(now)}{at}")
    yield from other[:MOST_SHOWN]
    if len(other) > MOST_SHOWN:
        yield f"{len(other) - MOST_SHOWN} further metrics"


def _was_cut(run: Run) -> bool:
    """Tell whether a run is a trial that its sweep stopped, which a fit of its own is not."""
    reason = run.data.tags.get(REASON_TAG, "")
    return "raylit.trial" in run.data.tags and reason not in ("", "stopped early")


def _values(client: Client, run: Run, name: str) -> set[tuple[int, str]]:
    """Return the values of a metric with their steps; evaluations may have logged some again."""
    history = client.get_metric_history(run.info.run_id, name)
    return {(one.step, repr(one.value)) for one in history}
