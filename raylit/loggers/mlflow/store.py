"""The MLflow side of MLFlowLogger.

Where a store lies, whether it answers, and how entries get into a run of it.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shlex
import shutil
import socket
import threading
import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from raylit.errors import ConfigError
from raylit.loggers.mlflow.journal import Record
from raylit.loggers.mlflow.models import (
    Checkpoints,
    bring_up_to_date,
    lacks_models,
    make_outputs,
)
from raylit.loggers.mlflow.uploads import Upload, remove_link
from raylit.loggers.queue import Rejected
from raylit.runtime.messages import log, warn_once
from raylit.runtime.secrets import has_secret, without_secrets

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run
    from mlflow.exceptions import MlflowException
    from mlflow.protos.service_pb2 import Metric as ProtoMetric
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

# as in mlflow.utils.validation
MAX_NAME_LENGTH = 250
MAX_PARAM_LENGTH = 6000
MAX_ENTRIES = 1000
MAX_DATASET_NAME = 500
MAX_IMAGE_KEY = 140  # part of a file's name, with step, time and more
MOST_CURVES = 12  # of a picture
IMAGES_TAG = "mlflow.loggedImages"  # of a run that has some
# The name of a file with an image; older versions of MLflow had % for +
IMAGE = re.compile(
    r"images/(?P<name>.+)[+%]step[+%](?P<step>-?\d+)[+%]timestamp[+%](?P<time_ms>\d+)[+%][^+%]+\.png"
)
PROCESS_TAG = "raylit.process"  # of whoever sets the status of the run
REASON_TAG = "raylit.stop_reason"
NAME_TAG = "raylit.name."  # of a metric or parameter: how it was called
SYSTEM = "system/node_"  # begins the names of system metrics
ATTEMPT_TAG = "raylit.attempt"
PARENT_TAG = "mlflow.parentRunId"
# What a request is refused with for what is in it: invalid, forbidden by a proxy, too large, and
# what a proxy cannot read. Others (401, 404, 408, 409, 429) are of whoever sends, or pass.
REFUSALS = (400, 403, 413, 414, 422, 431)
# Without it MLflow may show its pages for language models, where a run has no metrics.
ML = "?workflowType=machine_learning"
DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
PACKAGES = {  # by module
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}

Value = tuple[str, str, int, int]  # kind (metric or image), name, step, time in ms


class RunStore:
    """One run of a store, for the threads and processes that write to it.

    Args:
        uri: absolute URI of the store.
        run_id: the run, which exists.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self._uri = uri
        self._run_id = run_id
        self._client: MlflowClient | None = None
        self._lock = threading.Lock()
        self._metric_names = Names()
        self._param_names = Names()
        self._params: dict[str, str] | None = None  # None: not asked for yet
        self._attempt = "1"
        self._has_said_infinite = False
        self._has_said_old = False

    def know(self) -> None:
        """Find out which names and parameters the run has.

        Raises:
            Exception: the store does not answer.
        """
        if self._params is not None:
            return
        data = self._answering_client().get_run(self._run_id).data
        told = {
            key.removeprefix(NAME_TAG): value
            for key, value in data.tags.items()
            if key.startswith(NAME_TAG)
        }
        self._metric_names = Names({key: told.get(key, key) for key in data.metrics})
        self._param_names = Names({key: told.get(key, key) for key in data.params})
        self._attempt = data.tags.get(ATTEMPT_TAG, "1")
        self._params = dict(data.params)

    def name_of(self, metric: str) -> str:
        """Return the name that a metric has in the run. After `know`."""
        return self._metric_names.of(metric)

    def start_ms(self) -> int:
        """Return when the run began."""
        return int(self._answering_client().get_run(self._run_id).info.start_time)

    def newer_than(self, since_ms: int) -> dict[Value, int]:
        """Return how many values and images the run has of each name, step and time that is newer.

        Of a name whose highest step is older nothing is asked; nor of system metrics, which no fit
        logs again.
        """
        client = self._answering_client()
        found: Counter[Value] = Counter()
        run = client.get_run(self._run_id)
        # only this form tells the time
        for newest in without_system(run.to_proto().data.metrics):
            if newest.timestamp > since_ms:
                for one in client.get_metric_history(self._run_id, newest.key):
                    if one.timestamp > since_ms:
                        found["metric", one.key, one.step, one.timestamp] += 1
        if IMAGES_TAG in run.data.tags:
            for file in self._images(client):
                image = IMAGE.fullmatch(file)
                if image is not None and int(image["time_ms"]) > since_ms:
                    found["image", image["name"], int(image["step"]), int(image["time_ms"])] += 1
        return found

    def _images(self, client: MlflowClient) -> list[str]:
        try:
            return [one.path for one in client.list_artifacts(self._run_id, "images")]
        except Exception as error:  # of the store of artifacts: values do not wait for that
            log.warning(f"Images that come again may stand in MLflow twice: {error}")
            return []

    def write(self, entries: list[Record]) -> None:
        """Write entries.

        The same batch may be written twice: MLflow keeps equal metrics, parameters and tags once.

        Raises:
            Rejected: the store will never take one of them.
            Exception: it does not answer, or takes nothing at all.
        """
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        client = self._answering_client()
        self.know()
        assert self._params is not None
        metrics: list[Metric] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        for kind, name, value, time_ms, step in entries:
            if kind == "metric":
                key = self._metric_names.of(name)
                if isinstance(value, float) and math.isinf(value):
                    self._say_infinite(name, step)
                metrics.append(Metric(key, float(value), time_ms, step))
            elif kind == "param":
                key = self._param_names.of(name)
                known = params.get(key, self._params.get(key))
                if known is None:
                    params[key] = str(value)
                elif known != value:  # a parameter of MLflow cannot change
                    tags[clean_name(f"raylit.resume.{self._attempt}.{key}")] = str(value)
            elif kind == "tag":
                tags[clean_name(name)] = str(value)
        new_names = self._metric_names.take_new() | self._param_names.take_new()
        for key, name in new_names.items():
            tags[clean_name(f"{NAME_TAG}{key}")] = name
        try:
            with locked(self._uri):
                client.log_batch(
                    self._run_id,
                    metrics,
                    [Param(*item) for item in params.items()],
                    [RunTag(*item) for item in tags.items()],
                )
            for entry in entries:
                if entry.kind == "text":
                    client.log_text(self._run_id, str(entry.value), entry.key)
                elif entry.kind in ("file", "image"):
                    self._send_file(client, entry)
                elif entry.kind == "curves":
                    figure = curves(json.loads(str(entry.value)))
                    client.log_figure(self._run_id, figure, entry.key)
                elif entry.kind == "models":
                    kept = json.loads(str(entry.value))
                    if kept["monitor"]:
                        kept["monitor"] = self._metric_names.of(kept["monitor"])
                    self._bring_models_up_to_date(client, kept)
                elif entry.kind == "input":
                    with locked(self._uri):
                        self._send_input(client, _dataset_input(entry))
        except Exception as error:
            self._metric_names.give_back(new_names)
            self._param_names.give_back(new_names)
            if isinstance(error, MlflowException) and self._is_refusal(error):
                raise Rejected(without_secrets(str(error))) from error
            raise
        self._params |= params
        # Last: a run that is said to have ended holds all that was logged before
        for status in (entry.value for entry in entries if entry.kind == "status"):
            with locked(self._uri):
                client.set_terminated(self._run_id, str(status))
                make_outputs(client, self._run_id)

    def _send_input(self, client: MlflowClient, given: DatasetInput) -> None:
        """Send the data that was read, under another name if another stage has read the same."""
        from mlflow.entities import Dataset, DatasetInput

        context = given.tags[0].value
        inputs = client.get_run(self._run_id).inputs
        for one in inputs.dataset_inputs if inputs is not None else ():
            is_same = (one.dataset.name, one.dataset.digest) == (
                given.dataset.name,
                given.dataset.digest,
            )
            if is_same and all(tag.value != context for tag in one.tags):
                name = f"{given.dataset.name[: MAX_DATASET_NAME - 20]} ({context})"
                parts = dict(given.dataset) | {"name": name}
                given = DatasetInput(Dataset(**parts), given.tags)
                break
        client.log_inputs(self._run_id, [given])

    def _is_refusal(self, error: MlflowException) -> bool:
        """Tell whether the store refuses these records, and not whoever sends them."""
        code = _status_of(error)
        # A proxy may refuse a text that it takes for an attack, or a body that is too large; a
        # store that we may not write to refuses everything.
        return code == 400 or (code in REFUSALS and self.takes_anything())

    def _say_infinite(self, name: str, step: int) -> None:
        if not self._has_said_infinite:
            self._has_said_infinite = True
            log.warning(
                f"The metric {name!r} is infinite at step {step}. MLflow has no infinity: it keeps"
                " the largest number, 1.8e308, with its sign. (NaN it keeps as it is.)"
            )

    def _bring_models_up_to_date(self, client: MlflowClient, kept: Checkpoints) -> None:
        from mlflow.exceptions import MlflowException

        try:
            with locked(self._uri):
                bring_up_to_date(client, self._run_id, kept)
        except MlflowException as error:
            if not lacks_models(error):
                raise
            if not self._has_said_old:
                self._has_said_old = True
                log.warning(
                    "The MLflow server has no models of runs, which came with MLflow 3.0: it does"
                    " not list the checkpoints. All else is sent."
                )

    def takes_anything(self) -> bool:
        """Tell whether the store takes the least that can be written."""
        from mlflow.entities import RunTag

        try:
            with locked(self._uri):
                self._answering_client().log_batch(self._run_id, tags=[RunTag("raylit.sent", "1")])
        except Exception:
            return False
        return True

    def _send_file(self, client: MlflowClient, entry: Record) -> None:
        """Send a file and delete it; one that is not there was sent before."""
        path = Path(str(entry.value))
        if not path.exists():
            return
        if entry.kind == "file":
            client.log_artifact(self._run_id, str(path), os.path.dirname(entry.key) or None)
        else:
            from PIL import Image

            with Image.open(path) as image:
                client.log_image(
                    self._run_id,
                    image,
                    key=image_key(entry.key),
                    step=entry.step,
                    timestamp=entry.time_ms,
                    synchronous=True,
                )
        remove_staged(entry)

    def upload(self, uploads: list[Upload]) -> None:
        """Copy checkpoints into the artifacts, laid out as Lightning does."""
        client = self._answering_client()
        for upload in uploads:
            if not os.path.exists(upload.path):
                raise Rejected(f"{upload.path} was deleted before it could be uploaded")
            folder = Path(upload.path).stem
            client.log_artifact(self._run_id, upload.path, folder)
            client.log_dict(self._run_id, upload.metadata, f"{folder}/metadata.yaml")
            client.log_text(self._run_id, str(upload.aliases), f"{folder}/aliases.txt")
            if upload.is_link:
                remove_link(upload.path)

    def _answering_client(self) -> MlflowClient:
        check_answers(self._uri)
        with self._lock:
            if self._client is None:
                self._client = client_of(self._uri)
            return self._client


def remove_staged(entry: Record) -> None:
    """Remove the file of a record that has one, with the folder that was made for it."""
    if entry.kind in ("file", "image"):
        shutil.rmtree(Path(str(entry.value)).parent, ignore_errors=True)


def curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw epoch values over the steps, those of one group of names together."""
    from matplotlib.figure import Figure

    names = sorted({name for row in history for name in row} - {"epoch", "step"})
    groups = sorted({name.rpartition("/")[2] for name in names})[:MOST_CURVES]
    figure = Figure(figsize=(8, 2.5 * len(groups)), layout="constrained")
    for axes, group in zip(figure.subplots(len(groups), squeeze=False)[:, 0], groups, strict=True):
        for name in (one for one in names if one.rpartition("/")[2] == group):
            points = [(row["step"], row[name]) for row in history if name in row]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _dataset_input(entry: Record) -> DatasetInput:
    """Return the input of a run of which a journal keeps the parts as JSON."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    parts = json.loads(str(entry.value))
    columns = [
        {
            "type": "tensor",
            "name": name,
            "tensor-spec": {"dtype": dtype, "shape": [-1, *shape]},
        }
        for name, (dtype, shape) in parts["columns"].items()
    ]
    dataset = Dataset(
        name=parts["name"][:MAX_DATASET_NAME],
        digest=parts["digest"],
        source_type="code",
        source=json.dumps({"tags": {"mlflow.source.name": parts["name"]}}),
        schema=json.dumps({"mlflow_tensorspec": {"features": json.dumps(columns)}}),
        profile=json.dumps({"num_rows": parts["num_rows"]}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", entry.key)])


def _status_of(error: MlflowException) -> int:
    """Return the HTTP status of an error; of an answer that is not MLflow's own, from its text."""
    found = re.search(r"failed with error code (\d{3})", str(error))
    return int(found.group(1)) if found else int(error.get_http_status_code())  # type: ignore[no-untyped-call]


class Names:
    """The names that values have in a run, where MLflow does not take those that they were given.

    Args:
        known: those that the run has, with what they stand for.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self._given = dict(known or {})
        self._ours = {given: name for name, given in self._given.items()}
        self._new: dict[str, str] = {}

    def of(self, given: str) -> str:
        """Return the name for a name, always the same, and another one for every other."""
        name = self._ours.get(given)
        if name is None:
            name = clean_name(given)
            if self._given.get(name, given) != given:
                number = f"{zlib.crc32(given.encode()):08x}"
                taken = name
                name = f"{name[: MAX_NAME_LENGTH - 9]}-{number}"
                log.warning(
                    f"{given!r} and {self._given[taken]!r} differ in letters only that MLflow does"
                    f" not take; the first is {name!r} there."
                )
            self._given[name] = given
            self._ours[given] = name
            if name != given:
                self._new[name] = given
        return name

    def take_new(self) -> dict[str, str]:
        """Return the changed names with their originals, each once, for the run to record."""
        new = self._new
        self._new = {}
        return new

    def give_back(self, new: Mapping[str, str]) -> None:
        """The run could not be told of names; they are new again."""
        self._new |= {name: given for name, given in new.items() if name in self._given}


@lru_cache(maxsize=10_000)
def clean_name(name: str) -> str:
    """Turn any text into a name for MLflow: as in Lightning, characters it refuses are left out."""
    parts = (
        part for part in re.sub(r"[^/\w.\- :]+", "", name).split("/") if part not in ("", ".", "..")
    )
    clean = "/".join(parts) or "_"
    if len(clean) > MAX_NAME_LENGTH:  # two long names must not become one
        clean = f"{clean[: MAX_NAME_LENGTH - 9]}-{zlib.crc32(name.encode()):08x}"
    return clean


def image_key(name: str) -> str:
    """Turn any text into a key of images, in which MLflow takes fewer letters than elsewhere."""
    clean = clean_name(name)
    key = re.sub(r"[^A-Za-z0-9_\-./ ]", "_", clean)
    if key == clean and len(key) <= MAX_IMAGE_KEY:
        return key
    return f"{key[: MAX_IMAGE_KEY - 9]}-{zlib.crc32(name.encode()):08x}"  # two stay two


def image_file(name: str) -> str:
    """Return how the name of an image stands in that of its file."""
    return image_key(name).replace("/", "~")


def without_system(newest: Iterable[ProtoMetric]) -> Iterator[ProtoMetric]:
    """Yield those of the newest values that a fit has logged: system metrics count seconds."""
    return (one for one in newest if not one.key.startswith(SYSTEM))


def flatten(
    params: Mapping[str, object] | Namespace, prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Yield `model.lr` and the like with their values as text.

    Lists are values, as in Lightning.
    """
    for key, value in (vars(params) if isinstance(params, Namespace) else params).items():
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, Mapping | Namespace) and (
            vars(value) if isinstance(value, Namespace) else value
        ):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", without_secrets(str(value))


def find_store(
    tracking_uri: str | None, files_dir: str | None, root_dir: str
) -> tuple[str, str | None]:
    """Decide which store to use.

    Args:
        tracking_uri: what the user gave; None: what mlflow was told (`set_tracking_uri`,
            MLFLOW_TRACKING_URI), else a database of our own.
        files_dir: folder for a database of our own and its artifacts, if not `mlflow.db` and
            `mlruns` in `root_dir`.
        root_dir: absolute folder of the Trainer.

    Returns:
        Its absolute URI and, for a database of our own, the root folder of its artifacts.

    Raises:
        ConfigError: the folder holds a store of plain files, which MLflow does not open any more.
    """
    import mlflow

    uri = tracking_uri
    if not uri and (mlflow.active_run() is not None or mlflow.is_tracking_uri_set()):  # type: ignore[no-untyped-call]
        uri = mlflow.get_tracking_uri()
    if not uri and files_dir is None:
        return sqlite_uri(os.path.join(root_dir, "mlflow.db")), os.path.join(root_dir, "mlruns")
    folder = _local_folder(uri) if uri else files_dir
    if folder is None:
        return absolute(str(uri)), None
    if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
        return Path(folder).as_uri(), None
    database = sqlite_uri(os.path.join(folder, "mlflow.db"))
    if any(Path(folder).glob("[0-9]*/meta.yaml")):
        raise ConfigError(
            f"{folder} holds an MLflow store of plain files, which MLflow has given up. Move it"
            f" into a database: mlflow migrate-filestore --source {folder} --target {database}  (or"
            " set MLFLOW_ALLOW_FILE_STORE=true)."
        )
    return database, folder


def connect(uri: str, artifact_root: str | None) -> MlflowClient:
    """Return a client of the store, which is made if it is a database file that is not there yet.

    Raises:
        ConfigError: the store does not answer or lets nobody in, its folder cannot be written to,
            or its database is broken.
    """
    from mlflow import MlflowClient

    check_driver(uri)
    named = sqlite_file(uri)
    if uri.startswith("sqlite:") and (
        named is None or os.path.basename(named) == ":memory:" or os.path.isdir(named)
    ):
        raise ConfigError(
            f"tracking_uri={uri!r} names no file, but a database in memory, which no other process"
            " can read and which ends with this one. Give a file: sqlite:///mlflow.db"
        )
    try:
        check_answers(uri, num_retries=1)
        file = sqlite_file(uri)
        if file is not None:
            os.makedirs(os.path.dirname(file), exist_ok=True)
            if not os.access(file if os.path.exists(file) else os.path.dirname(file), os.W_OK):
                raise PermissionError(f"no permission to write {file}")
            make_database(file, artifact_root or "./mlruns")
        if has_secret(uri):
            # Else mlflow prints the URI as it is when a run ends.
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
            warn_once(
                f"The tracking URI {without_secrets(uri)} holds a password. It is masked wherever"
                " raylit shows or stores it; give it by the environment instead, where there is"
                " nothing to mask: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or"
                " MLFLOW_TRACKING_TOKEN."
            )
        if artifact_root is not None:
            _local_store(uri, artifact_root)
        client = MlflowClient(tracking_uri=uri)
        with short_requests():
            client.search_experiments(max_results=1)
    except Exception as error:
        raise ConfigError(
            f"MLFlowLogger cannot reach its store {without_secrets(f'{uri}: {_said(error)}')}\n"
            f"Nothing of the run would be recorded, so it was not started. {_remedy(uri, error)}"
        ) from error
    return client


def _said(error: Exception) -> str:
    """Return the text of an error, without the pages of SQL and of HTML that some carry."""
    text = re.sub(
        r"\s*(\[SQL: |\(Background on this error|<!doctype).*", "", str(error), flags=re.S | re.I
    )
    return text if len(text) <= 600 else f"{text[:600]}..."


def _remedy(uri: str, error: Exception) -> str:
    """Return advice about a store that cannot be used."""
    from mlflow.exceptions import MlflowException

    file = sqlite_file(uri)
    code = _status_of(error) if isinstance(error, MlflowException) else 0
    if code in (401, 403):
        return (
            "The server wants to know who asks: set MLFLOW_TRACKING_USERNAME and"
            " MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what it takes."
        )
    if "upgrade" in str(error):
        return (
            "The database was made by another version of MLflow. Make a copy of it, then:"
            f" mlflow db upgrade {without_secrets(uri)}"
        )
    if file is not None and os.path.isfile(file) and os.access(file, os.W_OK):
        return (
            f"The file {file} is no whole database of MLflow: it is damaged, or whoever made it was"
            f" interrupted. If no runs are in it, delete it; else move it away (mv {file}"
            f" {file}.broken) and get what is in it with sqlite3 {file}.broken .recover"
        )
    return (
        "Start the server (mlflow server --host 127.0.0.1 --port 5000), correct tracking_uri or"
        " MLFLOW_TRACKING_URI (http://, https://, sqlite:///, postgresql://, mysql://, mssql:// or"
        " a folder), or give neither to record into a local database."
    )


def make_database(file: str, artifact_root: str) -> None:
    """Make an SQLite store, unless it is there: by one process at a time, and whole or not at all.

    Args:
        file: of the database.
        artifact_root: folder of its artifacts.
    """
    if os.path.exists(file):
        return
    with locked(sqlite_uri(file)):
        if os.path.exists(file):
            return  # another process was quicker
        new = f"{file}.new"
        for left in (new, f"{new}-journal"):  # by one that was interrupted
            Path(left).unlink(missing_ok=True)
        made = _local_store(sqlite_uri(new), artifact_root)
        made.engine.dispose()
        os.rename(new, file)


def load() -> None:
    """Import mlflow now, with the modules that the first run in a database needs.

    That takes one second, two on a busy machine.
    """
    import mlflow
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def running_children(client: MlflowClient, experiment_id: str, run_id: str) -> list[str]:
    """Return the ids of the runs below `run_id` that have not ended.

    Raises:
        Exception: the store does not answer.
    """
    check_answers(client.tracking_uri)
    query = "attributes.status = 'RUNNING'"
    return [run.info.run_id for run in _runs_below(client, experiment_id, run_id, query)]


def child_tagged(
    client: MlflowClient, experiment_id: str, run_id: str, key: str, value: str
) -> str | None:
    """Return the id of the newest run below `run_id` that has a tag; None if none has.

    Raises:
        Exception: the store does not answer.
    """
    check_answers(client.tracking_uri)
    query = f"tags.`{key}` = '{value}'"
    return next(
        (run.info.run_id for run in _runs_below(client, experiment_id, run_id, query)), None
    )


def children_of(
    client: MlflowClient, run_id: str
) -> list[tuple[dict[str, str], dict[str, float]]] | None:
    """Return parameters and metrics of the finished runs below `run_id`; None if it is no run."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException:
        return None
    query = "attributes.status = 'FINISHED'"
    found = _runs_below(client, run.info.experiment_id, run_id, query)
    return [(dict(one.data.params), dict(one.data.metrics)) for one in found]


def _runs_below(client: MlflowClient, experiment_id: str, run_id: str, query: str) -> Iterator[Run]:
    """Yield the runs below `run_id` that a query is true of, the newest first."""
    query = f"tags.`{PARENT_TAG}` = '{run_id}' and {query}"
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def client_of(uri: str) -> MlflowClient:
    """Return a client of a store that exists.

    Raises:
        FileNotFoundError: the database is a file of another machine. mlflow would make an empty one
            here, where nobody looks for it.
    """
    from mlflow import MlflowClient

    file = sqlite_file(uri)
    if file is not None and not os.path.isfile(file):
        raise FileNotFoundError(
            f"The database {file} is not on this machine ({socket.gethostname()}). "
            "Workers on several machines need a server: MLFlowLogger(tracking_uri='http://...')."
        )
    return MlflowClient(tracking_uri=uri)


def experiment_of_environment(client: MlflowClient, name: str | None) -> str | None:
    """Return the experiment that `mlflow.set_experiment` was told, if it is in this store.

    None if the user has given a name, which comes first.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
    same = absolute(mlflow.get_tracking_uri()) == absolute(client.tracking_uri)
    if name is not None or not experiment_id or not same:
        return None
    try:
        return str(client.get_experiment(experiment_id).experiment_id)
    except MlflowException as error:
        raise ConfigError(
            f"MLFLOW_EXPERIMENT_ID={experiment_id} names no experiment of"
            f" {without_secrets(client.tracking_uri)}. Unset it, or give experiment_name."
        ) from error


def find_experiment(
    client: MlflowClient, name: str, artifact_location: str | None, artifact_root: str | None
) -> str:
    """Return the id of the experiment `name`, which is created if it is not there.

    Raises:
        ConfigError: it was deleted, which keeps its name taken.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        create = (
            client.create_experiment
            if artifact_root is None
            else _local_store(client.tracking_uri, artifact_root).create_experiment
        )
        try:
            created = str(create(name, artifact_location))
            # Shows what belongs to training first
            client.set_experiment_tag(created, "mlflow.experimentKind", "custom_model_development")
            return created
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)  # another process was quicker
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise ConfigError(
            f"The experiment {name!r} was deleted, so no run can be added to it. Restore it with"
            f" `mlflow experiments restore --experiment-id {experiment.experiment_id}`, or give"
            " another experiment_name."
        )
    return str(experiment.experiment_id)


@contextmanager
def short_requests() -> Iterator[None]:
    """Context in which mlflow gives up on a request after a minute, unless told otherwise.

    By itself it would try for a quarter of an hour.
    """
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
    new = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Be the only process of this machine that writes to the store, if that is an SQLite file.

    SQLite itself lets a writer wait for 20 s at most, and then fails.
    """
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    # Not to be nested: each call opens the file anew, and would wait for its own process
    with open(f"{file}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _local_store(uri: str, artifact_root: str) -> SqlAlchemyStore:
    """Return the database itself, made if it is not there.

    A client cannot say where artifacts go: it takes the working directory.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # mlflow takes % in a path, as in a URI, for the beginning of a character's number
    location = Path(artifact_root).as_uri() if "%" in artifact_root else artifact_root
    return SqlAlchemyStore(uri, location)  # type: ignore[no-untyped-call]


def active_run_id(uri: str) -> str | None:
    """Return the run that the user has started, if it is in this store.

    Started in this thread by `mlflow.start_run`, or named by MLFLOW_RUN_ID.
    """
    import mlflow

    active = mlflow.active_run()
    run_id = active.info.run_id if active is not None else os.environ.get("MLFLOW_RUN_ID")
    return run_id if run_id and absolute(mlflow.get_tracking_uri()) == uri else None


def check_answers(uri: str, num_retries: int = 0) -> None:
    """Raise within seconds if no server answers at `uri`.

    The requests of mlflow itself would try for four minutes.
    """
    parts = urlsplit(uri)
    if is_http(uri):
        from mlflow.exceptions import MlflowException
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
        try:
            answer = http_request(  # type: ignore[no-untyped-call]
                credentials,
                "/health",
                "GET",
                max_retries=num_retries,
                timeout=5,
                raise_on_status=False,
            )
        except MlflowException as error:
            raise ConnectionError(without_secrets(str(error))) from None
        if answer.status_code in (502, 503, 504):
            raise ConnectionError(f"HTTP status {answer.status_code}")
    elif parts.hostname and parts.scheme.split("+")[0] in DEFAULT_PORTS:
        socket.create_connection(
            (parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme.split("+")[0]]), timeout=5
        ).close()


def check_driver(uri: str) -> None:
    """Check that the package is there by which SQLAlchemy speaks to a database.

    Raises:
        ConfigError: its package is not installed, or SQLAlchemy knows no such driver.
    """
    if urlsplit(uri).scheme.split("+")[0] not in DEFAULT_PORTS:
        return
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    shown = without_secrets(uri)
    try:
        make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        package = PACKAGES.get(str(error.name), error.name)
        raise ConfigError(
            f"{shown}: the package that speaks to this database is missing. Install it:"
            f" pip install {package}"
        ) from error
    except SQLAlchemyError as error:
        raise ConfigError(
            f"{shown} is no address of a database: {without_secrets(str(error))} Give one such as"
            " postgresql+psycopg2://USER@HOST/NAME."
        ) from error


def is_http(uri: str) -> bool:
    """Tell whether the store is a server that speaks MLflow's own protocol."""
    return uri.startswith(("http://", "https://"))


def page_of_run(experiment_id: str, run_id: str) -> str:
    """Return where a run is shown by a server of MLflow, below its address."""
    return f"/#/experiments/{experiment_id}/runs/{run_id}{ML}"


def page_of_runs(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the page that compares runs, by parallel coordinates of their differences."""
    runs, experiments = (quote(json.dumps(list(one))) for one in (run_ids, [experiment_id]))
    # MLflow finds the runs only if they come first
    return f"/#/compare-runs?runs={runs}&experiments={experiments}&{ML[1:]}"


def page_of_view(experiment_id: str, key: str) -> str:
    """Return where the charts of an experiment's runs are shown as a shared view has them."""
    view = f"viewStateShareKey={key}&compareRunsMode=CHART"
    return f"/#/experiments/{experiment_id}/runs{ML}&{view}"


def look(uri: str, page: str) -> str:
    """Return how to look at a page: its address, or the command that serves it and then that."""
    shown = without_secrets(uri)
    if is_http(shown):
        return f"{shown}{page}"
    here = uri == sqlite_uri(os.path.abspath("mlflow.db"))
    store = "" if here else f" --backend-store-uri {shlex.quote(shown)}"
    return f"raylit ui{store}   then http://127.0.0.1:5000{page}"


def sqlite_uri(file: str) -> str:
    """Return the URI of an SQLite store in a file: SQLAlchemy takes `?` and `%` for its own."""
    return f"sqlite:///{file.replace('%', '%25').replace('?', '%3F')}"


def sqlite_file(uri: str) -> str | None:
    """Return the file of an SQLite store."""
    return (
        unquote(uri.removeprefix("sqlite:///").split("?")[0])
        if uri.startswith("sqlite:///")
        else None
    )


def absolute(uri: str) -> str:
    """Return the URI of a store, made independent of the current folder."""
    file = sqlite_file(uri)
    if file is not None and not os.path.isabs(file):
        _, mark, options = uri.partition("?")
        return f"{sqlite_uri(os.path.abspath(file))}{mark}{options}"
    return uri.rstrip("/")


def _local_folder(uri: str) -> str | None:
    """Return the folder that a URI without a scheme means, None if it means a server or database.

    Raises:
        ConfigError: it is no URI.
    """
    if uri.strip(":/") == "memory":
        raise ConfigError(
            f"tracking_uri={uri!r} names no file, but a database in memory, which no other process"
            " can read and which ends with this one. Give a file: sqlite:///mlflow.db"
        )
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # an address of IPv6 that ends nowhere
        raise ConfigError(
            f"tracking_uri={without_secrets(uri)!r} is no URI: {error}. Give one as"
            " http://host:5000, sqlite:///mlflow.db or a folder."
        ) from error
    if parts.scheme not in ("", "file") or uri in ("databricks", "databricks-uc", "uc"):
        return None
    return os.path.abspath(unquote(parts.netloc + parts.path))
