"""Runs as they are in a store, for the command line: found, read, ended, and sent from journals.

Never here: torch, Ray, or anything of a fit that runs.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from raylit.errors import ConfigError, did_you_mean
from raylit.loggers.mlflow import store
from raylit.loggers.mlflow.delivery import deliver, num_waiting
from raylit.loggers.mlflow.journal import journals_in, reading
from raylit.loggers.mlflow.models import make_outputs
from raylit.loggers.mlflow.store import PARENT_TAG, PROCESS_TAG, REASON_TAG
from raylit.runtime.processes import ProcessName
from raylit.runtime.secrets import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities import Run as _Run

    Client: TypeAlias = MlflowClient
    Run: TypeAlias = _Run

SILENT_S = 600.0  # of a run on another host, after which it is taken for lost
LEAST_PREFIX = 4

Condition = Literal["as told", "gone", "lost"]


def default_uri(uri: str | None = None) -> str:
    """Return the store that is meant: given, else of the environment, else of this folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def open_store(uri: str) -> MlflowClient:
    """Return a client of a store that is there.

    Raises:
        ConfigError: it is not, or does not answer.
    """
    import mlflow
    from mlflow import MlflowClient

    uri = store.absolute(uri)
    file = store.sqlite_file(uri)
    if file is not None and not os.path.isfile(file):
        raise ConfigError(
            f"There is no MLflow store {os.path.abspath(file)}. An MLFlowLogger records into"
            " mlflow.db in the folder where the fit was started (trainer.default_root_dir): go"
            " there, or name the store: --store sqlite:////path/to/mlflow.db"
        )
    store.check_driver(uri)
    try:
        store.check_answers(uri, num_retries=1)
        client = MlflowClient(tracking_uri=uri)  # knows which kinds of stores there are
    except Exception as error:
        raise ConfigError(
            f"The MLflow store does not answer: {without_secrets(f'{uri}: {error}')} Start its"
            " server, or name another one: --store http://127.0.0.1:5000"
        ) from error
    mlflow.set_tracking_uri(uri)  # where MLflow looks for models, whatever its client was told
    return client


def experiments(client: MlflowClient, name: str | None) -> list[Experiment]:
    """Return the experiment of a name, or all.

    Raises:
        ConfigError: there is none of that name.
    """
    found: list[Experiment] = []
    token: str | None = None
    while True:
        page = client.search_experiments(page_token=token, max_results=1000)
        found += page
        token = page.token
        if not token:
            break
    if name is None:
        return found
    chosen = [one for one in found if name in (one.name, one.experiment_id)]
    if not chosen:
        names = [one.name for one in found]
        raise ConfigError(
            f"There is no experiment {name!r}.{did_you_mean(name, names)} There are:"
            f" {', '.join(names[:20])}."
        )
    return chosen


def search(
    client: MlflowClient,
    experiment_ids: Sequence[str],
    query: str = "",
    order_by: Sequence[str] = (),
    most: int = 1000,
) -> list[Run]:
    """Return runs, the newest first unless ordered otherwise.

    Raises:
        ConfigError: MLflow does not understand the query or the order.
    """
    from mlflow.exceptions import MlflowException

    found: list[Run] = []
    token: str | None = None
    try:
        while len(found) < most:
            page = client.search_runs(
                list(experiment_ids),
                query,
                max_results=min(1000, most - len(found)),
                order_by=list(order_by) or ["attributes.start_time DESC"],
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                break
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise ConfigError(
            f'MLflow does not understand {query!r}: {error} A filter looks like "metrics.val_loss'
            " < 0.3 and params.`model.lr` = '0.01'\"."
        ) from error
    return found


def find(client: MlflowClient, name: str, experiment: str | None = None) -> Run:
    """Return the run of an id, the beginning of one, or a name; `last` is the newest.

    Raises:
        ConfigError: there is none, or more than one.
    """
    from mlflow.exceptions import MlflowException

    if len(name) == 32 and name.isalnum():
        try:
            return client.get_run(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    ids = [one.experiment_id for one in experiments(client, experiment)]
    found: list[Run] = []
    if name == "last":
        found = search(client, ids, most=1)
    else:
        quote = '"' if "'" in name else "'"  # MLflow has no escape for one in a text
        if quote not in name:
            found = search(client, ids, f"attributes.run_name = {quote}{name}{quote}", most=50)
        if not found and len(name) >= LEAST_PREFIX and name.isalnum():
            found = search(client, ids, f"attributes.run_id LIKE '{name}%'", most=50)
    if not found:
        raise ConfigError(
            f"There is no run {name!r} in {without_secrets(client.tracking_uri)}. Give an id, its"
            f" first {LEAST_PREFIX} letters or more, a name, or `last`: raylit runs ls shows them."
        )
    if len(found) > 1:
        ids_of_them = ", ".join(one.info.run_id[:12] for one in found[:5])
        raise ConfigError(
            f"{len(found)} runs are meant by {name!r}: {ids_of_them}. Give the id of one."
        )
    return found[0]


def condition(run: Run) -> Condition:
    """Return whether a run that is said to be running has a process that runs it.

    `gone`: it had one on this host, which has ended. `lost`: it has one elsewhere, and nothing was
    heard of it for ten minutes.
    """
    if run.info.status != "RUNNING":
        return "as told"
    name = ProcessName.parse(run.data.tags.get(PROCESS_TAG, ""))
    if name is None:
        return "as told"
    state = name.state()
    if state == "unknown" and time.time() - heard_of(run) > SILENT_S:
        return "lost"
    return "gone" if state == "gone" else "as told"


def heard_of(run: Run) -> float:
    """Return when something of a run came to the store, in seconds since 1970."""
    # only this form tells the time
    times = [one.timestamp for one in run.to_proto().data.metrics]
    return float(max([run.info.start_time, *times])) / 1000


def end_gone(client: MlflowClient, experiment_ids: Sequence[str], *, lost: bool = False) -> int:
    """Mark runs as KILLED whose process is gone; returns how many.

    Args:
        client: of the store.
        experiment_ids: where to look.
        lost: also those elsewhere that nothing is heard of.
    """
    num = 0
    for listed in search(client, experiment_ids, "attributes.status = 'RUNNING'"):
        if condition(listed) not in ("gone", "lost"):
            continue
        with store.locked(client.tracking_uri):
            run = client.get_run(listed.info.run_id)  # since it was listed it may have gone on
            found = condition(run)
            if found != "gone" and not (found == "lost" and lost):
                continue
            reason = "its process is gone" if found == "gone" else "nothing was heard of it"
            client.set_tag(run.info.run_id, REASON_TAG, reason)
            client.set_terminated(run.info.run_id, "KILLED")
            make_outputs(client, run.info.run_id)
        num += 1
    return num


def text_of(client: MlflowClient, run: Run, path: str) -> str:
    """Return a text among the artifacts of a run, "" if it is not there."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run.info.run_id, path, folder)).read_text()
        except (MlflowException, OSError):
            return ""


def tree(found: Sequence[Run]) -> Iterator[tuple[int, Run]]:
    """Yield runs with how deep they stand: those of a sweep below it, in the order given."""
    ids = {run.info.run_id for run in found}
    below: dict[str | None, list[Run]] = {}
    for run in found:
        parent = run.data.tags.get(PARENT_TAG)
        below.setdefault(parent if parent in ids else None, []).append(run)

    def walk(parent: str | None, depth: int) -> Iterator[tuple[int, Run]]:
        for run in below.get(parent, ()):
            yield depth, run
            yield from walk(run.info.run_id, depth + 1)

    return walk(None, 0)


@dataclass(frozen=True)
class Sent:
    """The delivery of a journal.

    Attributes:
        path: of the journal.
        run_id: the run.
        uri: of the store.
        age_s: since something was appended to it.
        num: how many records the store did not have.
        problem: why it stays; empty: it was sent.
    """

    path: str
    run_id: str
    uri: str
    age_s: float
    num: int
    problem: str


def sync(folder: str, uri: str | None) -> Iterator[Sent]:
    """Send all journals below a folder that nobody appends to any more, each to its own store.

    Args:
        folder: where to look.
        uri: of the stores whose journals hold no password, which nobody keeps: as it was given to
            the fit.
    """
    for path in journals_in(folder):
        try:
            with reading(path) as reader:
                header = reader.header
                is_left = reader.is_left or header.state == "unknown"
                num = num_waiting(reader)
        except (OSError, ValueError) as error:
            yield Sent(path, "", "", 0.0, 0, str(error))
            continue
        age_s = time.time() - os.path.getmtime(path)
        if not is_left or (header.state == "unknown" and age_s < SILENT_S):
            yield Sent(path, header.run_id, header.uri, age_s, num, "its fit is running")
            continue
        target = header.uri
        if uri is not None and without_secrets(uri) == header.uri:
            target = uri
        problem = ""
        try:
            open_store(target)
            if not deliver(path, target, wait_s=0):
                problem = "another process is sending it"
        except Exception as error:
            problem = without_secrets(f"{error}".splitlines()[0])
        yield Sent(path, header.run_id, header.uri, age_s, num, problem)
