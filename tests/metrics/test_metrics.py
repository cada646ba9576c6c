"""What log() adds up, against the sums written out.

Over ranks, against one process that logged everything.
"""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raylit.errors import ConfigError
from raylit.metrics.entry import MOST_COPIES, SHORTEN_EVERY, Copy, combined
from raylit.metrics.metrics import Metrics, to_numbers
from raylit.parallel import World
from tests.lazy import torchmetrics
from tests.ranks import run_on_two_ranks

FINITE = st.floats(-1e6, 1e6, width=32)
LOGGED = st.lists(st.tuples(FINITE, st.integers(1, 64)), min_size=1, max_size=20)


def metrics(hook: str = "training_step", world: World | None = None) -> Metrics:
    made = Metrics(world or World(torch.device("cpu")))
    made.hook = hook
    return made


def log(to: Metrics, name: str, value: Any, **arguments: Any) -> None:
    defaults = {
        "prog_bar": False,
        "logger": None,
        "on_step": None,
        "on_epoch": True,
        "reduce_fx": "mean",
    }
    more = {"sync_dist": None, "add_dataloader_idx": True, "rank_zero_only": False}
    enable_graph, batch_size = (
        arguments.pop("enable_graph", False),
        arguments.pop("batch_size", None),
    )
    to.log(name, value, tuple({**defaults, **more, **arguments}.values()), enable_graph, batch_size)


def epoch_of(to: Metrics, name: str) -> float:
    to.end_epoch()
    to.refresh()
    return to.callback[name].item()


@settings(deadline=None)
@given(LOGGED)
def test_a_mean_is_weighted_by_the_batch_size(logged: list[tuple[float, int]]) -> None:
    made = metrics()
    for value, size in logged:
        made.begin_batch(torch.zeros(size, 1))
        log(made, "x", torch.tensor(value, dtype=torch.float64), on_step=False)
    expected = math.fsum(value * size for value, size in logged) / sum(size for _, size in logged)
    assert epoch_of(made, "x") == pytest.approx(expected, rel=1e-9, abs=1e-6)


@settings(deadline=None)
@given(LOGGED, st.sampled_from(["sum", "min", "max"]))
def test_other_reductions_know_no_weights(logged: list[tuple[float, int]], reduce_fx: str) -> None:
    made = metrics()
    for value, size in logged:
        made.begin_batch(torch.zeros(size, 1))
        log(made, "x", torch.tensor(value, dtype=torch.float64), on_step=False, reduce_fx=reduce_fx)
    expected = {"sum": math.fsum, "min": min, "max": max}[reduce_fx](value for value, _ in logged)
    assert epoch_of(made, "x") == pytest.approx(expected, rel=1e-9, abs=1e-6)


@settings(deadline=None)
@given(
    LOGGED,
    st.integers(1, 5),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(["sum", "mean"]),
)
def test_adding_up_in_between_changes_no_bit(
    logged: list[tuple[float, int]], every: int, dtype: torch.dtype, reduce_fx: str
) -> None:
    """As batch by batch: every addition is rounded to the type of the values."""
    whole, pieces = metrics(), metrics()
    expected, weight = torch.tensor(0.0, dtype=dtype), 0
    for number, (value, size) in enumerate(logged):
        tensor = torch.tensor(value, dtype=dtype)
        expected = expected + (tensor * size if reduce_fx == "mean" else tensor)
        weight += size
        for made in (whole, pieces):
            made.begin_batch(torch.zeros(size, 1))
            log(made, "x", tensor, on_step=False, reduce_fx=reduce_fx)
        if number % every == 0:
            next(iter(pieces.entries.values())).fold()
    expected = expected / weight if reduce_fx == "mean" else expected
    assert epoch_of(whole, "x") == epoch_of(pieces, "x") == expected.item()
    assert whole.callback["x"].dtype == dtype


def test_an_endless_epoch_does_not_grow() -> None:
    made = metrics()
    for _ in range(3 * SHORTEN_EVERY + 1):
        log(made, "x", 1.0, on_step=False, batch_size=1)
    (entry,) = made.entries.values()
    assert len(entry.values) < SHORTEN_EVERY
    assert epoch_of(made, "x") == 1.0


def test_a_step_value_is_kept_without_being_read() -> None:
    made = metrics()
    made.begin_batch(torch.zeros(2))
    value = torch.tensor(3.0, requires_grad=True)
    log(made, "x", value, on_step=True, on_epoch=False)
    (entry,) = made.entries.values()
    assert isinstance(entry.last, Tensor)
    assert not entry.last.requires_grad
    assert not entry.values
    made.refresh()
    assert made.callback == {"x": entry.last}


def test_a_graph_is_kept_where_it_is_wanted() -> None:
    made = metrics()
    made.begin_batch(None)
    log(
        made,
        "x",
        torch.ones(1, requires_grad=True) * 2,
        on_step=True,
        on_epoch=False,
        enable_graph=True,
    )
    (entry,) = made.entries.values()
    assert isinstance(entry.last, Tensor)
    assert entry.last.requires_grad


# ---- over ranks ----

Logged = list[tuple[float, int]]
REDUCTIONS = ["mean", "sum", "min", "max"]


def cases() -> list[tuple[str, list[Logged]]]:
    """What each of two ranks logs, and how it is reduced; some log nothing.

    The same on every rank and here.
    """
    draw = random.Random(5)
    sizes = [(draw.randint(0, 9), draw.randint(0, 9)) for _ in range(60)]
    return [
        (
            draw.choice(REDUCTIONS),
            [
                [(draw.uniform(-1e3, 1e3), draw.randint(1, 64)) for _ in range(number)]
                for number in both
            ],
        )
        for both in sizes
        if any(both)
    ]


def main(folder: str) -> dict[str, Any]:
    """What each rank does."""
    world = World.join("cpu")
    asked = 0
    gather = world.all_gather_object

    def counting(value: Any) -> list[Any]:
        nonlocal asked
        asked += 1
        return gather(value)

    world.all_gather_object = counting  # type: ignore[method-assign]
    made = metrics("validation_step", world)
    for number, (reduce_fx, ranks) in enumerate(cases()):
        for value, size in ranks[world.rank]:
            made.begin_batch(torch.zeros(size, 1))
            log(made, f"x{number}", torch.tensor(value, dtype=torch.float64), reduce_fx=reduce_fx)
    log(made, "own", float(world.rank), batch_size=1, sync_dist=False)
    log(made, "zero", float(world.rank), batch_size=1, rank_zero_only=True)
    made.end_epoch()
    made.refresh()
    found: dict[str, Any] = {"epoch": to_numbers(made.callback), "asked": asked}
    # the next epoch, in which the other rank has something to say
    made.reset()
    if world.rank == 1:
        log(made, "x0", 7.0, batch_size=1, reduce_fx=cases()[0][0])
    made.end_epoch()
    made.refresh()
    found["next"] = made.callback["x0"].item()
    steps = metrics(world=world)
    steps.begin_batch(None)
    log(steps, "both", 2.0 + 2 * world.rank, on_step=True, on_epoch=False, sync_dist=True)
    log(
        steps,
        "most",
        2.0 + 2 * world.rank,
        on_step=True,
        on_epoch=False,
        sync_dist=True,
        reduce_fx="max",
    )
    log(steps, "own", 2.0 + 2 * world.rank, on_step=True, on_epoch=False)
    steps.reduce_steps()
    found["steps"] = to_numbers(steps.to_log())
    # The next batch: the ranks know the names by now, and one of them has nothing but zeros
    steps.begin_batch(None)
    for name in ("both", "most", "own"):
        settings: dict[str, Any] = {"sync_dist": True} if name != "own" else {}
        settings |= {"reduce_fx": "max"} if name == "most" else {}
        log(steps, name, world.rank - 1.0, on_step=True, on_epoch=False, **settings)
    steps.reduce_steps()
    found["again"] = to_numbers(steps.to_log())
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_two_ranks(main, tmp_path_factory.mktemp("metrics"))


def test_over_ranks_a_value_is_that_of_all_samples(ranks: Any) -> None:
    """However many batches each rank had, none among them.

    And all values go over in one collective.
    """
    for number, (reduce_fx, logged) in enumerate(cases()):
        everything = [one for rank in logged for one in rank]
        values = [value for value, _ in everything]
        expected = {
            "mean": (
                math.fsum(value * size for value, size in everything)
                / sum(size for _, size in everything)
            ),
            "sum": math.fsum(values),
            "min": min(values),
            "max": max(values),
        }
        for rank in ranks:
            assert rank["epoch"][f"x{number}"] == pytest.approx(expected[reduce_fx], rel=1e-12)
    assert [rank["asked"] for rank in ranks] == [1, 1]


def test_a_key_that_only_one_rank_logged_in_an_epoch(ranks: Any) -> None:
    assert [rank["next"] for rank in ranks] == [7.0, 7.0]


def test_what_stays_on_its_rank(ranks: Any) -> None:
    assert [rank["epoch"]["own"] for rank in ranks] == [0.0, 1.0]
    assert [rank["epoch"]["zero"] for rank in ranks] == [0.0, 0.0]


def test_step_values_over_ranks(ranks: Any) -> None:
    assert [rank["steps"] for rank in ranks] == [
        {"both": 3.0, "most": 4.0, "own": 2.0},
        {"both": 3.0, "most": 4.0, "own": 4.0},
    ]
    assert [rank["again"] for rank in ranks] == [
        {"both": -0.5, "most": 0.0, "own": -1.0},
        {"both": -0.5, "most": 0.0, "own": 0.0},
    ]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("value", "arguments", "message"),
    [
        (torch.ones(3), {}, r"shape \(3,\)"),
        ("text", {}, "`str` values cannot be logged"),
        ({"a": 1}, {}, "Use self.log_dict"),
        (1.0, {"on_step": False, "on_epoch": False}, "records nothing"),
        (1.0, {"reduce_fx": "median"}, "only 'mean', 'sum', 'min' and 'max'"),
        (1.0, {"reduce_fx": torch.median}, "only 'mean', 'sum', 'min' and 'max'"),
    ],
)
def test_what_cannot_be_logged(value: Any, arguments: dict[str, Any], message: str) -> None:
    made = metrics()
    made.begin_batch(None)
    with pytest.raises(ConfigError, match=message):
        log(made, "x", value, **arguments)


@pytest.mark.parametrize(
    ("hook", "where"), [("setup", "inside setup"), (None, "no hook of the loop is running")]
)
def test_where_nothing_can_be_logged(hook: str | None, where: str) -> None:
    made = metrics()
    made.hook = hook
    with pytest.raises(ConfigError, match=where):
        log(made, "x", 1.0)


def test_a_name_means_one_thing_in_one_hook() -> None:
    made = metrics()
    log(made, "x", 1.0, batch_size=1)
    with pytest.raises(ConfigError, match=r"twice in training_step with different arguments"):
        log(made, "x", 1.0, batch_size=1, prog_bar=True)
    made.hook = "on_train_batch_end"
    log(made, "x", 1.0, batch_size=1, prog_bar=True)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.one_of(FINITE, FINITE.map(torch.tensor), st.integers(-5, 5)),
        max_size=6,
    )
)
def test_numbers(values: dict[str, Any]) -> None:
    found = to_numbers(values)
    assert list(found) == list(values)
    assert all(found[name] == float(value) for name, value in values.items())
    assert not any(isinstance(value, Tensor) for value in found.values())


# ---- read before it is reduced ----


def test_a_value_is_no_other_for_being_read() -> None:
    read, unread = metrics("on_validation_epoch_end"), metrics("on_validation_epoch_end")
    for made in (read, unread):
        for value in (1.0, 4.0):
            log(made, "x", value, batch_size=1)
            if made is read:
                made.refresh()
    assert epoch_of(read, "x") == epoch_of(unread, "x") == 2.5


@pytest.mark.parametrize("reduce_fx", ["mean", "sum", "min", "max"])
def test_nan_of_any_part_is_nan(reduce_fx: str) -> None:
    for values in ([math.nan, 1.0], [1.0, math.nan]):
        assert math.isnan(combined(reduce_fx, values))
        made = metrics()
        for value in values:
            log(made, "x", value, batch_size=1, on_step=False, reduce_fx=reduce_fx)
            next(iter(made.entries.values())).fold()
        assert math.isnan(epoch_of(made, "x"))


def test_a_mean_without_any_weight_is_nan() -> None:
    made = metrics()
    log(made, "x", 1.0, batch_size=0, on_step=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(epoch_of(made, "x"))


def test_there_may_be_more_loaders_in_the_next_epoch() -> None:
    made = metrics("validation_step")
    for loaders in (1, 3, 2, 1):
        for number in range(loaders):
            made.begin_batch(torch.zeros(1), number if loaders > 1 else None)
            log(made, "x", float(number))
            if number == 0:
                log(made, "once", 5.0, add_dataloader_idx=False)
        made.end_epoch()
        found = {}
        for index in range(loaders) if loaders > 1 else [None]:
            found.update(made.loader_values(index))
        names = [f"x/dataloader_idx_{number}" for number in range(loaders)]
        names = names if loaders > 1 else ["x"]
        assert to_numbers(found) == {
            "once": 5.0,
            **{name: float(number) for number, name in enumerate(names)},
        }
        made.reset()
    made.begin_batch(torch.zeros(1), 0)
    log(made, "once", 5.0, add_dataloader_idx=False)
    made.begin_batch(torch.zeros(1), 1)
    with pytest.raises(ConfigError, match="for two loaders"):
        log(made, "once", 5.0, add_dataloader_idx=False)


# ---- on their way from a device ----


class Arrives:
    """Stands in for a torch.cuda.Event: the copy is there at a certain time."""

    now = 0

    def __init__(self, at: int) -> None:
        self.at = at
        self.waited = 0

    def query(self) -> bool:
        return Arrives.now >= self.at

    def synchronize(self) -> None:
        self.waited += not self.query()
        Arrives.now = max(Arrives.now, self.at)


def test_copies_are_added_up_as_they_arrive_and_no_more_than_a_few_are_kept() -> None:
    made = metrics()
    log(made, "x", torch.tensor(0.0), on_step=False, batch_size=1)
    (entry,) = made.entries.values()
    entry.fold()
    values = torch.arange(1.0, 31.0)
    events = []
    for number, value in enumerate(values):
        Arrives.now += 1
        events.append(Arrives(Arrives.now + (2 if number % 7 else 9)))
        entry.copies.append(Copy(value.reshape(1), [1], events[-1]))
        entry.take_in(MOST_COPIES)
        assert len(entry.copies) <= MOST_COPIES
        assert not entry.weights
    waited = [number for number, event in enumerate(events) if event.waited]
    assert waited, "some copies took longer than the next ones"
    assert all(number % 7 == 0 for number in waited)
    assert epoch_of(made, "x") == values.sum().item() / 31


# ---- Metrics that are not in the module ----


def test_a_metric_that_is_not_in_the_module_goes_on() -> None:
    """Its state is in the checkpoint, and comes back when it is logged again."""
    values = [3.0, 5.0, 4.0, 8.0]
    whole = torchmetrics.MeanMetric()
    for value in values:
        whole.update(value)
    first, second = metrics(), metrics()
    for made, part in ((first, values[:2]), (second, values[2:])):
        metric = torchmetrics.MeanMetric()
        if made is second:
            second.load_partial_sums(first.partial_sums())
        for value in part:
            made.begin_batch(None)
            metric.update(value)
            log(made, "m", metric, on_step=False)
    assert epoch_of(second, "m") == whole.compute().item()
