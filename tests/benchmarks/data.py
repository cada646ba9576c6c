"""How fast rows of a table become batches: raylit and other ways, as ratios within one run.

    python -m tests.benchmarks.data [--rows 2000000] [--rounds 3] [--only memory] [--stream-gb 2]

2 M rows of 20 float32 columns and a target, into one process, as (x, y) with the features side by
side. Each round reads every way once, one after the other, so that a busy machine slows all of
them; the table has the medians over the rounds of rows per second, and the ratio of the times in
the same round to those of the way that it is measured by. A slow way reads only as many rows as it
can in some seconds. The bare ways are the limit: a tensor that is indexed by a permutation, and a
scan by Arrow whose batches become one tensor each.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.feather
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.data import prepare
from raylit.data.combined import CombinedLoader
from raylit.parallel import World

FEATURES = [f"f{number}" for number in range(20)]
MAX_S = 4.0  # of one way in one round
GROUP_ROWS = 131_072


@dataclass
class Way:
    """A way to read.

    Attributes:
        name: in the table.
        begin: returns the batches of an epoch.
        measured_by: the name of the way that its ratio is to.
        aim: the ratio that is wanted, None if none is.
    """

    name: str
    begin: Callable[[int], Iterator[Any]]
    measured_by: str
    aim: dict[int, float] | None = None


def table_of(rows: int, seed: int = 0) -> pa.Table:
    """Random numbers, which nothing can compress."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.standard_normal(rows, dtype=np.float32) for name in FEATURES}
    return pa.table({**columns, "y": rng.standard_normal(rows, dtype=np.float32)})


def write(folder: Path, rows: int) -> None:
    """Write the table as Parquet and as IPC."""
    table = table_of(rows)
    pq.write_table(table, folder / "rows.parquet", row_group_size=GROUP_ROWS)
    path = str(folder / "rows.arrow")
    pyarrow.feather.write_feather(table, path, compression="uncompressed", chunksize=GROUP_ROWS)


def ways(folder: Path, with_ray: bool) -> list[Way]:
    """All ways to compare."""
    parquet = folder / "rows.parquet"
    table = pq.read_table(parquet)
    x = torch.from_numpy(np.stack([table[name].to_numpy() for name in FEATURES], 1))
    y = torch.from_numpy(table["y"].to_numpy().copy())
    data = TensorDataset(x, y)

    def indexed(batch_size: int) -> Iterator[Any]:
        order = torch.randperm(len(x))
        for start in range(0, len(x), batch_size):
            places = order[start : start + batch_size]
            yield x[places], y[places]

    def scanned(batch_size: int) -> Iterator[Any]:
        for batch in pyarrow.dataset.dataset(parquet).to_batches(batch_size=batch_size):
            if batch.num_rows:
                both = torch.from_numpy(batch.to_tensor().to_numpy())
                yield both[:, :-1], both[:, -1]

    def arrow(mode: str, shuffle: bool, batch: str = "tuple") -> Callable[[int], Iterator[Any]]:
        source = folder / "rows.arrow" if mode == "mapped" else parquet
        dataset = pl.ArrowDataset(source, target="y", batch=batch, mode=mode)
        return lambda batch_size: iter(read_by_raylit(dataset.loader(batch_size, shuffle=shuffle)))

    def by_torch(batch_size: int) -> Iterator[Any]:
        return iter(DataLoader(data, batch_size, shuffle=True))

    def by_raylit(batch_size: int) -> Iterator[Any]:
        return iter(read_by_raylit(DataLoader(data, batch_size, shuffle=True)))

    index, scan, slow = "tensor index, shuffled", "Arrow scan to a tensor", "DataLoader, torch"
    found = [
        Way(index, indexed, index),
        Way(scan, scanned, scan),
        Way(slow, by_torch, slow),
        Way("DataLoader, raylit", by_raylit, slow, {256: 5.0, 4096: 5.0}),
        Way("in memory, shuffled", arrow("memory", True), index, {256: 0.9, 4096: 0.9}),
        Way("in memory, shuffled, to DataLoader", arrow("memory", True), slow, {256: 14.0}),
        Way("in memory", arrow("memory", False), index),
        Way("in memory, shuffled, dict", arrow("memory", True, "dict"), index),
        Way("mapped, shuffled", arrow("mapped", True), index),
        Way("mapped", arrow("mapped", False), index),
        Way("streamed, shuffled", arrow("stream", True), scan, {4096: 0.4}),
        Way("streamed", arrow("stream", False), scan, {4096: 0.7}),
        Way("streamed, shuffled, dict", arrow("stream", True, "dict"), scan),
    ]
    if importlib.util.find_spec("datasets") is not None:
        found.append(Way("Hugging Face datasets, shuffled", hugging_face(parquet, folder), index))
    if with_ray:
        found.append(Way("Ray Data", ray_data(parquet), scan))
    return found


def read_by_raylit(loader: Any) -> Iterator[Any]:
    """Return the batches as the loop of a fit reads them."""
    world = World(torch.device("cpu"))
    combined = prepare(
        loader, "train", world, limit=1.0, distribute=True, overfit=False, origin="the benchmark"
    )
    return (item[0] for item in combined)


def hugging_face(parquet: Path, folder: Path) -> Callable[[int], Iterator[Any]]:
    """The data set of Hugging Face with tensors as its format, read by a DataLoader of torch's."""
    import datasets

    datasets.disable_progress_bars()
    data = datasets.Dataset.from_parquet(str(parquet), cache_dir=str(folder / "hf"))
    data = data.with_format("torch")

    def read(batch_size: int) -> Iterator[Any]:
        for batch in DataLoader(data, batch_size, shuffle=True):
            yield torch.stack([batch[name] for name in FEATURES], 1), batch["y"]

    return read


def ray_data(parquet: Path) -> Callable[[int], Iterator[Any]]:
    """The batches of Ray Data, on a cluster of this machine."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def read(batch_size: int) -> Iterator[Any]:
        for batch in ray.data.read_parquet(str(parquet)).iter_torch_batches(batch_size=batch_size):
            yield torch.stack([batch[name] for name in FEATURES], 1), batch["y"]

    return read


def rate(way: Way, batch_size: int) -> tuple[float, float]:
    """Return rows per second over an epoch or a part of one, and seconds to the first batch."""
    start = time.perf_counter()
    rows = first_rows = 0
    first_s = 0.0
    for number, batch in enumerate(way.begin(batch_size)):
        rows += len(batch["y"] if isinstance(batch, dict) else batch[1])
        if not number:
            first_s = time.perf_counter() - start
            first_rows = rows
        elif number % 16 == 0 and time.perf_counter() - start > first_s + MAX_S:
            return (rows - first_rows) / (time.perf_counter() - start - first_s), first_s
    return rows / (time.perf_counter() - start), first_s


def measure(chosen: list[Way], batch_size: int, rounds: int) -> list[str]:
    """Return the table for one size of batches."""
    for way in chosen:  # what is read once, such as the rows in memory, is read now
        next(way.begin(batch_size))
    rates: dict[str, list[float]] = {way.name: [] for way in chosen}
    firsts: dict[str, list[float]] = {way.name: [] for way in chosen}
    for _ in range(rounds):
        for way in chosen:
            found, first = rate(way, batch_size)
            rates[way.name].append(found)
            firsts[way.name].append(first)
    lines = [f"batch {batch_size}:"]
    lines.append(f"{'way':36}{'M rows/s':>10}{'ratio':>9}   {'to':26}{'first, ms':>10}   aim")
    for way in chosen:
        base = rates[way.measured_by]
        ratio = statistics.median(a / b for a, b in zip(rates[way.name], base, strict=True))
        aim = (way.aim or {}).get(batch_size)
        told = "" if aim is None else f">= {aim:g}: {'held' if ratio >= aim else 'MISSED'}"
        first = statistics.median(firsts[way.name]) * 1e3
        median = statistics.median(rates[way.name]) / 1e6
        lines.append(
            f"{way.name:36}{median:10.3f}{ratio:9.2f}   {way.measured_by:26}{first:10.1f}   {told}"
        )
    return lines


def resume(folder: Path, rounds: int, number: int = 7000) -> str:
    """Return how long it takes to go on at a batch, beside the permutation that it needs."""
    dataset = pl.ArrowDataset(folder / "rows.parquet", target="y", batch="tuple", mode="memory")
    loader = dataset.loader(256, shuffle=True)
    next(iter(loader))
    number = min(number, len(loader) - 1)
    times = []
    floors = []
    for epoch in range(rounds):
        combined = CombinedLoader(loader)
        loader.set_epoch(epoch)
        combined.go_on(number, [loader.state_dict()])
        start = time.perf_counter()
        next(iter(combined))
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
        torch.randperm(len(dataset))
        floors.append(time.perf_counter() - start)
    told = statistics.median(times) * 1e3
    floor = statistics.median(floors) * 1e3
    held = "held" if told <= 150 else "MISSED"
    return (
        f"resume in memory at batch {number}: {told:.0f} ms   <= 150: {held}"
        f"   (of which the permutation of all rows: {floor:.0f} ms)"
    )


PEAK = """
import sys, resource, torch
import raylit as pl
import pyarrow.parquet, pyarrow.dataset
from raylit.data.arrow import ArrowDataset
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if
    line.startswith("VmHWM")) / 1024
before = peak()
dataset = ArrowDataset(sys.argv[1], target="y", batch="tuple", mode=sys.argv[2])
rows = sum(len(y) for x, y in dataset.loader(4096, shuffle=sys.argv[3] == "shuffled"))
assert rows == len(dataset)
print(peak() - before)
"""


def peak_mb(source: Path, mode: str, order: str) -> float:
    """Return by how many MB the peak of a process's memory rises when it reads all rows."""
    command = [sys.executable, "-c", PEAK, str(source), mode, order]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def memory(folder: Path, gigabytes: float) -> list[str]:
    """Return the peaks of memory, of streaming a large file among them."""
    lines = [f"{'peak memory above the baseline':36}{'MB':>8}"]
    for name, file in (("memory", "rows.parquet"), ("mapped", "rows.arrow")):
        lines.append(f"{name:36}{peak_mb(folder / file, name, 'shuffled'):8.0f}")
    rows = int(gigabytes * 1e9 / (4 * (len(FEATURES) + 1)))
    part = table_of(min(rows, 1_000_000), seed=1)
    with pq.ParquetWriter(folder / "large.parquet", part.schema, use_dictionary=False) as writer:
        for start in range(0, rows, part.num_rows):
            chunk = part.slice(0, min(part.num_rows, rows - start))
            writer.write_table(chunk, row_group_size=GROUP_ROWS)
    size = os.path.getsize(folder / "large.parquet") / 1e9
    for order in ("shuffled", "in order"):
        found = peak_mb(folder / "large.parquet", "stream", order)
        held = "held" if found <= 300 else "MISSED"
        name = f"streamed, {order}, {size:.1f} GB"
        lines.append(f"{name:36}{found:8.0f}   <= 300: {held}")
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="*", default=[256, 4096])
    parser.add_argument("--only", default="", help="part of a name; what it is measured by stays")
    parser.add_argument("--stream-gb", type=float, default=2.0, help="size of the file, 0: none")
    parser.add_argument("--no-ray", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="raylit-data-") as name:
        folder = Path(name)
        write(folder, options.rows)
        with contextlib.redirect_stderr(sys.stdout):
            all_ways = ways(folder, with_ray=not options.no_ray)
        named = [way for way in all_ways if options.only in way.name]
        bases = {way.measured_by for way in named}
        chosen = [way for way in all_ways if way in named or way.name in bases]
        for batch_size in options.batch:
            print("\n".join(measure(chosen, batch_size, options.rounds)), end="\n\n")
        print(resume(folder, options.rounds))
        if options.stream_gb:
            print("\n".join(itertools.chain([""], memory(folder, options.stream_gb))))


if __name__ == "__main__":
    main()
