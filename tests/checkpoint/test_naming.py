from __future__ import annotations

from itertools import islice

import torch
from hypothesis import given
from hypothesis import strategies as st

from raylit.checkpoint import naming


def test_fields_are_filled() -> None:
    values = naming.fields({"val/loss": torch.tensor(0.12345)}, epoch=3, step=40)
    assert naming.fill("{epoch}-{step}", values) == "epoch=3-step=40"
    assert naming.fill("{epoch:02d}-{val/loss:.2f}", values) == "epoch=03-val/loss=0.12"
    assert naming.fill("{epoch:02d}-{val/loss:.2f}", values, shows_names=False) == "03-0.12"
    assert naming.fill("{epoch}", values, equals="_") == "epoch_3"


def test_a_missing_metric_is_0_and_other_text_is_kept() -> None:
    assert naming.fill("a{b:.1f}c", {}) == "ab=0.0c"
    assert naming.fill("plain", {"plain": 1}) == "plain"


def test_a_logged_epoch_wins_over_the_counter() -> None:
    values = naming.fields({"epoch": torch.tensor(7.0), "step": 5.0}, epoch=1, step=2)
    assert naming.fill("{epoch}-{step}", values) == "epoch=7-step=5"


@given(st.text(st.characters(exclude_characters="{}"), max_size=20))
def test_a_text_without_fields_is_itself(text: str) -> None:
    assert naming.fill(text, {"a": 1}) == text


def test_versions() -> None:
    assert list(islice(naming.versions("a"), 3)) == ["a", "a-v1", "a-v2"]
    assert list(islice(naming.versions("a", join="_", start=5), 2)) == ["a", "a_v5"]
