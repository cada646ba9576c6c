"""The reader itself refuses configs beyond the bounds, quickly, also where jsonargparse reads."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raylit.runtime import bounded_yaml
from raylit.runtime.bounds import TooLargeError, check_size
from tests.deadlines import stretched


def laughs(levels: int, width: int) -> str:
    lines = ["a0: &a0 [lol]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (laughs(40, 9), "values when written out"),
        (laughs(2000, 2), "values when written out|nested too deep"),
        ("&a [*a]", "contains itself"),
        ("a: &a {b: {c: [*a]}}", "contains itself"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ("{a: " * 100_000, "nested deeper than 64"),
        ("- " * 100_000, "nested deeper than 64"),
        ("\n".join(f"k{i}: 1" for i in range(20_001)), "more than 20,000 values"),
        ("x" * (2**20 + 1), "larger than 1 MiB"),
        ("a: 1\nb: 2\na: 3", "'a' stands here and in line 1"),
        ("x: [{a: 1, a: 2}]", "'a' stands here and in line 1"),
    ],
    ids=range(11),
)
def test_it_is_refused_at_once(text: str, words: str) -> None:
    began = time.perf_counter()
    with pytest.raises(bounded_yaml.RefusedError, match=words):
        bounded_yaml.read(text)
    assert time.perf_counter() - began < stretched(5)


def test_just_within_the_bounds() -> None:
    assert bounded_yaml.read("[" * 63 + "]" * 63)[1]
    assert len(bounded_yaml.read("\n".join(f"k{i}: 1" for i in range(9_000)))[1]) == 9_000
    assert bounded_yaml.read("a: &a {x: 1}\nb: {<<: *a, x: 2}")[1]["b"] == {"x": 2}


def test_a_value_that_looks_like_a_date_and_is_none() -> None:
    with pytest.raises(yaml.YAMLError) as caught:
        bounded_yaml.read("2020-13-45")
    assert not isinstance(caught.value, bounded_yaml.RefusedError), "as a flag it is a text"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("model: \u00e4".encode("latin-1"), "line 1, column 8: the byte 0xe4 is no UTF-8"),
        ("a: 1\nb: \u00e4".encode("latin-1"), "line 2, column 4"),
        ("a: 1".encode("utf-16"), "UTF-16"),
        (b"a\0b", "binary"),
        (b"#" * (2**20 + 1), "larger than 1 MiB"),
    ],
    ids=range(5),
)
def test_files_that_are_no_configs(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        bounded_yaml.read_bytes(tmp_path / "x.yaml")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(ValueError, match="no file"):
            bounded_yaml.read_bytes(path)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("a: 1".encode("utf-8-sig"))
    assert bounded_yaml.read(bounded_yaml.read_bytes(tmp_path / "x.yaml"))[1] == {"a": 1}


NESTED = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=4)
    ),
    max_leaves=30,
)


def written_out(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(written_out(key) + written_out(one) for key, one in value.items())
    return 1 + sum(map(written_out, value)) if isinstance(value, list) else 1


@given(NESTED)
def test_the_size_is_that_of_what_is_written_out(value: Any) -> None:
    assert check_size(value) == written_out(value)
    shared = [value, value, [value]]
    assert check_size(shared) == written_out(shared)
    with pytest.raises(TooLargeError):
        check_size(shared, max_values=written_out(shared) - 1)


@given(st.text("abc:[]{}&*-, \n'\"!#|>?%@", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        bounded_yaml.read(text)
    except yaml.YAMLError as error:
        assert str(error)
