from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from raylit.errors import ConfigError
from raylit.runtime.batch import SideStream, cast_to, move_to, size_of, transfer_to

META = torch.device("meta")  # tensors on it have no data: a device to move to on any machine
Pair = namedtuple("Pair", ["x", "y"])


@dataclasses.dataclass
class Sample:
    x: Tensor
    name: str = "a"


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: Tensor
    made: int = dataclasses.field(init=False, default=3)

    def __post_init__(self) -> None:
        object.__setattr__(self, "made", 4)


@dataclasses.dataclass
class Prepared:
    """Whose constructor wants what it does not keep, and prepares what it is not given."""

    x: Tensor
    scale: dataclasses.InitVar[float]
    calls: int = dataclasses.field(init=False, default=0)
    unset: Tensor = dataclasses.field(init=False)

    def __post_init__(self, scale: float) -> None:
        self.x = self.x * scale
        self.calls += 1
        self.note = object()


@attrs.frozen
class FrozenAttrs:
    x: Tensor
    made: int = attrs.field(init=False, default=9)


@attrs.define
class PreparedAttrs:
    x: Tensor
    _own: int = 5
    tag: object = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tag = object()


class Graph:
    """A batch of a library that knows how to move itself, in place."""

    def __init__(self) -> None:
        self.x = torch.ones(2)

    def to(self, device: Any) -> None:
        self.x = self.x.to(device)


def test_nested_batches_keep_their_types() -> None:
    x = torch.ones(2)
    batch = {
        "a": [x, (x, "text")],
        "b": Pair(x, 3),
        "c": OrderedDict(d=x),
        "e": Sample(x),
        "f": None,
    }
    moved = move_to(batch, META)
    assert [type(moved[key]) for key in batch] == [type(value) for value in batch.values()]
    leaves = [moved["a"][0], moved["a"][1][0], moved["b"].x, moved["c"]["d"], moved["e"].x]
    assert [leaf.device.type for leaf in leaves] == ["meta"] * 5
    assert (moved["a"][1][1], moved["b"].y, moved["e"].name, moved["f"]) == ("text", 3, "a", None)
    assert x.device.type == "cpu", "the batch itself is as it was"


def test_objects_are_copied_without_being_made_anew() -> None:
    x = torch.ones(2)
    prepared, tagged = Prepared(x, 2.0), PreparedAttrs(x)
    batch = [Frozen(x), prepared, FrozenAttrs(x), tagged]
    frozen, again, other, retagged = moved = move_to(batch, META)
    assert [type(one) for one in moved] == [type(one) for one in batch]
    assert {one.x.device.type for one in moved} == {"meta"}
    assert (frozen.made, again.calls, other.made, retagged._own) == (4, 1, 9, 5)
    assert retagged.tag is tagged.tag and again.note is prepared.note
    (cast,) = cast_to([prepared], torch.float64)  # type: ignore[misc]
    assert (cast.x.dtype, cast.x.tolist()) == (torch.float64, [2, 2])
    assert size_of(cast) == 2
    assert prepared.x.tolist() == [2, 2], "the batch itself is as it was"


def test_what_moves_itself_in_place_is_given_back() -> None:
    graph = Graph()
    assert move_to(graph, META) is graph
    assert graph.x.device.type == "meta"


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.ones(5, 2), 5),
        (torch.tensor(1.0), 1),
        ([torch.ones(3), torch.ones(3)], 3),
        ({"a": {"b": torch.ones(4, 1)}}, 4),
        (({"text": ["abc", "de"]}, torch.ones(2, 3)), 2),
        (zip(["name"], [torch.ones(8)], strict=True), 8),
        (Sample(torch.ones(6)), 6),
        (Pair(2, torch.ones(7)), 7),
    ],
)
def test_the_size_is_that_of_the_first_tensor(batch: Any, size: int) -> None:
    assert size_of(batch) == size


def test_a_batch_without_tensors_has_no_size() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=n"):
        size_of({"a": [1, 2.0, None, "text"]})


def test_tensors_of_different_sizes_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="different first dimensions; 2 was taken"):
        assert size_of([torch.ones(2), torch.ones(3)]) == 2


def test_a_defaultdict_keeps_its_default() -> None:
    moved = move_to(defaultdict(list, a=torch.ones(1)), META)
    assert moved["a"].device.type == "meta"
    assert moved["b"] == []


class Copies(torch.Tensor):
    """A tensor that tells when it is copied and when its memory is kept for another stream."""

    told: list[Any]
    copied = False

    def to(self, *args: Any, **kwargs: Any) -> Any:
        self.told.append(("copy", kwargs.get("non_blocking", False)))
        made = noted(self.told)
        made.copied = True
        return made

    def record_stream(self, stream: Any) -> None:
        self.told.append(("keep for", stream.name))


def noted(told: list[Any]) -> Copies:
    made = torch.ones(2).as_subclass(Copies)
    made.told = told
    return made


def test_copies_go_to_a_stream_of_their_own_and_the_step_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order of events; what they do is up to CUDA."""
    told: list[Any] = []

    class Stream:
        def __init__(self, device: Any = None, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            told.append((self.name, "waits for", other.name))

    @contextlib.contextmanager
    def within(stream: Stream) -> Iterator[None]:
        told.append(("begin", stream.name))
        yield
        told.append(("end", stream.name))

    class Graphs:
        """Knows how to move itself, and not on which stream its memory is used."""

        def to(self, device: Any) -> Any:
            told.append("graph")
            return self

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(name="compute"))
    moved = SideStream(torch.device("cuda", 0)).move({"x": noted(told), "graphs": Graphs(), "n": 3})
    assert moved["x"].copied and moved["n"] == 3
    assert told == [
        ("begin", "side"),
        ("copy", True),
        ("keep for", "compute"),
        ("begin", "compute"),
        "graph",
        ("end", "compute"),
        ("end", "side"),
        ("compute", "waits for", "side"),
    ]


def test_on_a_cpu_there_are_no_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "Stream")
    x = torch.ones(2)
    assert transfer_to([x], torch.device("cpu"))[0] is x
    assert transfer_to([x], torch.device("meta"))[0].device.type == "meta"
