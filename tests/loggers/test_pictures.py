"""Images and tables of odd kinds; tests/tracking/test_pictures.py has them in loggers."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from raylit.errors import DataError
from raylit.loggers.pictures import as_csv, as_image, as_json, as_markdown
from tests.lazy import pandas


def pixels(image: Any) -> Any:
    return np.asarray(as_image(image))


def test_channels_may_come_first_or_last() -> None:
    first = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(3, 2, 5)
    assert pixels(first).tolist() == first.transpose(1, 2, 0).tolist()
    last = first.transpose(1, 2, 0)
    assert pixels(last).tolist() == last.tolist()


@pytest.mark.parametrize("shape", [(3, 5, 3), (4, 4, 4), (1, 6, 3), (3, 3, 1)])
def test_where_both_could_be_channels_the_last_are(shape: tuple[int, ...]) -> None:
    image = as_image(np.zeros(shape))
    assert (image.height, image.width, len(image.getbands())) == shape


@pytest.mark.parametrize("shape", [(), (4,), (2, 4, 5), (5, 4, 2), (1, 3, 4, 5), (2, 3, 3, 3)])
def test_a_shape_that_is_none_of_an_image_is_said(shape: tuple[int, ...]) -> None:
    for image in (np.zeros(shape), torch.zeros(shape)):
        with pytest.raises(DataError) as raised:
            as_image(image)
        assert f"of shape {shape}." in str(raised.value)


@pytest.mark.parametrize("image", [None, {}, 7])
def test_what_is_no_array_at_all_is_said(image: Any) -> None:
    with pytest.raises(DataError, match=r"log_image was given an array of shape \(\)"):
        as_image(image)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_floats_of_all_widths_are_from_0_to_1(dtype: torch.dtype) -> None:
    given = torch.tensor([[0.0, 0.25, 1.0, -3.0, 7.0, math.nan]], dtype=dtype)
    assert pixels(given).tolist() == [[0, 64, 255, 0, 255, 0]]


def test_integers_are_from_0_to_255_and_do_not_wrap_around() -> None:
    for dtype in (np.int16, np.int64, np.int32):
        assert pixels(np.array([[-1, 0, 128, 255, 256, 300]], dtype)).tolist() == [
            [0, 0, 128, 255, 255, 255]
        ]
    assert pixels(torch.tensor([[1, 0]], dtype=torch.uint8)).tolist() == [[1, 0]]
    assert pixels(torch.tensor([[True, False]])).tolist() == [[255, 0]]
    assert pixels([[0, 255], [1, 2]]).tolist() == [[0, 255], [1, 2]]


def test_a_tensor_of_the_training_is_left_as_it_is() -> None:
    weights = torch.full((2, 3), 2.0, requires_grad=True)
    assert pixels(weights).tolist() == [[255] * 3] * 2
    assert weights.requires_grad and weights.tolist() == [[2.0] * 3] * 2
    given = np.full((2, 3), 0.5)
    as_image(given)
    assert given.tolist() == [[0.5] * 3] * 2


# ---- tables ----

HOSTILE = {"name, or |": ['say "hi"', "two\nlines", "ünï|code", ""], 3: [1, -0.5, None, True]}


def test_csv_comes_back_as_it_was_whatever_stands_in_it() -> None:
    read = list(csv.reader(io.StringIO(as_csv(HOSTILE), newline="")))
    assert read == [
        ["name, or |", "3"],
        ['say "hi"', "1"],
        ["two\nlines", "-0.5"],
        ["ünï|code", ""],
        ["", "True"],
    ]


def test_json_comes_back_as_it_was_whatever_stands_in_it() -> None:
    assert json.loads(as_json(HOSTILE)) == {
        "columns": ["name, or |", "3"],
        "data": [['say "hi"', 1], ["two\nlines", -0.5], ["ünï|code", None], ["", True]],
    }


def test_markdown_keeps_a_row_a_line_and_its_cells() -> None:
    assert as_markdown(HOSTILE).split("\n") == [
        "| name, or \\| | 3 |",
        "| --- | --- |",
        '| say "hi" | 1 |',
        "| two lines | -0.5 |",
        "| ünï\\|code | None |",
        "|  | True |",
    ]


def test_numbers_of_numpy_and_torch_are_plain_ones() -> None:
    table = {
        "a": torch.tensor([1, 2]),
        "b": np.array([0.5, 0.25]),
        "c": (torch.tensor(True), np.int64(3)),
        "d": [np.str_("x"), torch.tensor([[7.5]])],
    }
    assert json.loads(as_json(table))["data"] == [[1, 0.5, True, "x"], [2, 0.25, 3, 7.5]]
    assert as_csv(table).splitlines()[1:] == ["1,0.5,True,x", "2,0.25,3,7.5"]


def test_rows_of_numbers_are_text_and_what_is_not_finite_is_null_in_json() -> None:
    table = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": [float("nan"), float("inf")]}
    found = as_json(table)
    json.loads(found, parse_constant=pytest.fail)  # JSON has no NaN
    assert json.loads(found)["data"] == [["[1.0, 2.0]", None], ["[3.0, 4.0]", None]]
    assert as_csv(table).splitlines()[1:] == ['"[1.0, 2.0]",nan', '"[3.0, 4.0]",inf']


def test_what_is_neither_number_nor_text_is_told_as_text() -> None:
    table = {"a": [[1, 2], {"b": 1}, 1 + 2j, b"x", torch.float32]}
    assert [row for (row,) in json.loads(as_json(table))["data"]] == [
        "[1, 2]",
        "{'b': 1}",
        "(1+2j)",
        "b'x'",
        "torch.float32",
    ]


def test_a_table_without_rows_has_its_columns() -> None:
    for empty in ({"a": [], "b": torch.zeros(0)}, pandas.DataFrame({"a": [], "b": []})):
        assert json.loads(as_json(empty)) == {"columns": ["a", "b"], "data": []}
        assert as_csv(empty).strip() == "a,b"
        assert as_markdown(empty) == "| a | b |\n| --- | --- |"
    assert json.loads(as_json({})) == {"columns": [], "data": []}


def test_a_frame_tells_its_columns_and_not_its_index() -> None:
    frame = pandas.DataFrame({"loss": [0.5, None], "ü": ["a|b", "c"]}, index=["x", "y"])
    assert json.loads(as_json(frame)) == {
        "columns": ["loss", "ü"],
        "data": [[0.5, "a|b"], [None, "c"]],
    }
    assert as_csv(frame).splitlines() == ["loss,ü", "0.5,a|b", ",c"]
    assert as_markdown(frame).splitlines()[2:] == ["| 0.5 | a\\|b |", "| nan | c |"]


@pytest.mark.parametrize("form", [as_json, as_csv, as_markdown])
def test_columns_of_different_lengths_are_named(form: Any) -> None:
    with pytest.raises(DataError, match=r"different lengths \(a: 3, b: 2, c: 0\)"):
        form({"a": [1, 2, 3], "b": "xy", "c": []})


@pytest.mark.parametrize("form", [as_json, as_csv, as_markdown])
@pytest.mark.parametrize("table", [None, "text", [[1, 2]], 3])
def test_what_is_no_table_is_said_with_one_that_is(form: Any, table: Any) -> None:
    with pytest.raises(DataError) as raised:
        form(table)
    assert f"was given a {type(table).__name__}. Give a pandas DataFrame" in str(raised.value)
